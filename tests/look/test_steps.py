"""Attention by hand is torch's, the guides' worked example comes out right, and the scale shows."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

import mirada
from mirada.core.mask import Mask
from mirada.errors import MiradaError

MASKS = {"none": None, "causal": Mask(causal=True), "window": Mask(window=2),
         "start": Mask(causal=True, start=3)}


def qkv(*lead, T=5, S=7, K=8, Kv=6, dtype=torch.float32):
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(*lead, n, w, generator=draws).to(dtype)
            for n, w in ((T, K), (S, K), (S, Kv))]


@pytest.mark.scope("1.1.2")
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("lead", [(), (2, 3)])
def test_every_step_and_the_end_is_torch_s(lead, name):
    q, k, v = qkv(*lead)
    found, mask = mirada.look.steps(q, k, v, mask=MASKS[name]), MASKS[name]
    seen = torch.ones(5, 7).bool() if mask is None else mask.rows(0, 5, 5, 7)[0, 0]
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    assert (found.output - wanted).abs().max() <= 1e-6
    for t in range(5):
        for s in range(7):
            score = (q[..., t, :] * k[..., s, :]).sum(-1)
            assert torch.allclose(found.scores[..., t, s], score, atol=1e-5)
            assert torch.allclose(found.scaled[..., t, s], score / math.sqrt(8), atol=1e-5)
            if not seen[t, s]:
                assert (found.weights[..., t, s] == 0).all()
                assert (found.masked[..., t, s] == float("-inf")).all()
    assert torch.allclose(found.weights.sum(-1), torch.ones(*lead, 5))
    assert torch.allclose(found.weights @ v, found.output)


def test_a_query_that_sees_nothing_takes_nothing():
    q, k, v = qkv()
    found = mirada.look.steps(q, k, v, mask=Mask(causal=True, start=-2))
    assert (found.output[:2] == 0).all() and (found.weights[:2] == 0).all()
    assert found.weights[2, 0] == 1


@pytest.mark.scope("1.1.2")
def test_the_guides_example_with_its_scores_corrected():
    words = [[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 1]]
    found = mirada.look.steps(words, words, words, queries=["El", "gato", "duerme"])
    printed = [[2, 1, 2], [1, 2, 1], [2, 1, 3]]  # in the guide; two of these are not dot products
    assert found.scores.tolist() == [[2, 1, 1], [1, 2, 1], [1, 1, 3]] != printed
    assert torch.equal(found.scaled, found.scores / 2)
    weights = [[0.4519, 0.2741, 0.2741], [0.2741, 0.4519, 0.2741], [0.2119, 0.2119, 0.5761]]
    assert torch.allclose(found.weights, torch.tensor(weights), atol=5e-5)
    assert torch.allclose(found.output, found.weights @ torch.tensor(words).float())
    page = str(found)
    assert "weights: softmax" in page and "0.5761" in page and page.count("duerme") == 7


def test_what_does_not_fit_is_said():
    q, k, v = qkv()
    with pytest.raises(MiradaError, match=r"\(5, 8\), \(7, 8\), \(6, 6\): they must be"):
        mirada.look.steps(q, k, v[:6])
    with pytest.raises(MiradaError, match="they must be"):
        mirada.look.steps([1.0], [1.0], [1.0])
    with pytest.raises(MiradaError, match="2 and 7 names for 5 queries and 7 keys"):
        mirada.look.steps(q, k, v, queries=["a", "b"])


def test_steps_for_programs_and_as_a_picture(tmp_path):
    q, k, v = qkv(2)
    found = mirada.look.steps(q, k, v, mask=Mask(causal=True))
    told = json.loads(json.dumps(found.data(), allow_nan=False))
    assert told["masked"][0][0][1] is None and told["scale"] == 8**-0.5
    assert torch.allclose(torch.tensor(told["output"]), found.output)
    assert (tmp_path / "a.png").samefile(found.save(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(MiradaError, match="a picture is a file ending in"):
        found.save(tmp_path / "a.gif")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.scope("1.1.3")
def test_the_scale_keeps_variance_entropy_and_gradient():
    rows = mirada.look.scaling(4, 32, 256).rows
    for row in rows:
        assert row.variance[0] == pytest.approx(row.width, rel=0.15)
        assert row.variance[1] == pytest.approx(1, rel=0.15)
    for name in ("entropy", "gradient"):
        plain, scaled = zip(*(getattr(row, name) for row in rows), strict=True)
        assert plain[0] > 1.5 * plain[1] and plain[1] > 1.5 * plain[2]
        assert max(scaled) - min(scaled) < 0.05 and min(scaled) > 0.85, "no width changes it"
    assert rows[2].gradient[0] < 0.25 < 0.9 < rows[2].gradient[1]


@pytest.mark.scope("1.1.3")
def test_its_figures_are_autograd_s():
    row = mirada.look.scaling(16, keys=6, rows=9, seed=4).rows[0]
    draws = torch.Generator().manual_seed(4)
    q = torch.randn(9, 16, generator=draws)
    scores = q @ torch.randn(6, 16, generator=draws).T
    for n, s in enumerate((scores, scores / 4)):
        slopes = [torch.autograd.functional.jacobian(lambda x: x.softmax(-1), one).trace()
                  for one in s]
        assert row.gradient[n] == pytest.approx(torch.stack(slopes).mean().item(), abs=1e-5)
        entropy = torch.distributions.Categorical(logits=s).entropy().mean() / math.log(6)
        assert row.entropy[n] == pytest.approx(entropy.item(), abs=1e-5)
        assert row.variance[n] == pytest.approx(s.var().item(), rel=1e-5)


def test_scaling_is_shown(tmp_path):
    found = mirada.look.scaling(8, 64, rows=64)
    assert [line.split()[0] for line in str(found).splitlines()[2:4]] == ["8", "64"]
    assert json.loads(json.dumps(found.data()))["rows"][1]["width"] == 64
    assert (tmp_path / "s.svg").samefile(found.save(tmp_path / "s.svg"))
    for wrong in (dict(keys=1), dict(rows=0)):
        with pytest.raises(MiradaError, match="must be 1 or more"):
            mirada.look.scaling(8, **wrong)

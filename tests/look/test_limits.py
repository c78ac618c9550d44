"""The four limits of attention maps that the guide names, each with the tool that answers it, and
a caution on every page that shows one."""

import pytest
import torch

import mirada
from look import planted
from mirada import look
from mirada.look import sweeps
from mirada.look.stages import trace

TEXT = "el perro con la mesa duerme"


@pytest.fixture(scope="module")
def model():
    return planted.build(0)


@pytest.fixture(scope="module")
def tape(model):
    with torch.no_grad(), model.record(resid="sublayers", z=True) as tape:
        model(**model.tokenizer([TEXT]))
    return tape


@pytest.mark.scope("1.18.10")
def test_a_look_is_no_cause(model):
    """The decoy looks as the induction head does; taking each away tells them apart."""
    ids = torch.arange(3, 9).repeat(2)[None]
    metric = sweeps.log_probability(8, at=-2)
    clean = {"input_ids": ids}
    with torch.no_grad(), model.record() as tape:
        model(**clean)
    (at, real), (_, decoy) = [1, 0], planted.DECOY
    assert torch.allclose(tape.pattern(at, real), tape.pattern(at, decoy), atol=1e-4)
    found = sweeps.sweep(model, clean, metric)
    assert found.mean[at, real] < -1 and abs(found.mean[at, decoy]) < 1e-6


@pytest.mark.scope("1.18.10")
def test_the_stream_goes_on_beside_attention(model, tape):
    """What the trace says a layer's attention adds, and how long the vector is, by hand."""
    blocks = next(s for s in trace(model, TEXT).stages if s.name == "Blocks")
    assert blocks.columns[:3] == ["layer", "attn adds", "the vector"]
    for layer, adds, whole, _ in blocks.rows:
        for said, x in ((adds, tape.added(layer, "attn")), (whole, tape.resid(layer + 1))):
            assert said == pytest.approx(x[0].norm(dim=-1).median().item(), abs=1e-3)


@pytest.mark.scope("1.18.10")
def test_heads_that_do_the_same_are_found_and_taken_together():
    """A head copied over another, the rest made to differ: one cluster, whose two cost the same."""
    m = mirada.build("gpt2", size="tiny", seed=3)
    draw = torch.Generator().manual_seed(0)
    for p in m.parameters():
        p.data.add_(torch.randn(p.shape, generator=draw) * 0.3)
    f = m.body.blocks[1].attn.f
    for linear in (f.q, f.k, f.v):
        linear.weight.data[48:] = linear.weight.data[16:32]
        linear.bias.data[48:] = linear.bias.data[16:32]
    f.o.weight.data[:, 48:] = f.o.weight.data[:, 16:32]
    ids = torch.randint(0, 1024, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), m.record(z=True) as tape:
        m(input_ids=ids)
    found = look.redundant(tape, threshold=0.01)
    assert [[found.heads[n] for n in c] for c in found.clusters] == [[(1, 1), (1, 3)]]
    both = look.backup(m, ids, sweeps.logit_difference(5, 9), [(1, 1), (1, 3)], op="zero")
    assert both.joint == pytest.approx(both.singles.sum().item() + both.backup)
    assert torch.allclose(both.singles[0], both.singles[1])


@pytest.mark.scope("1.18.10")
def test_a_big_model_is_summed_up(model):
    """Many heads and a long text: an overview of bounded size, and roles for who asks."""
    m = mirada.build("gpt2", size="tiny", layers=12, context=512)
    with torch.no_grad(), m.record() as tape:
        m(input_ids=torch.zeros(1, 512, dtype=torch.long))
    assert tape.pooled(32).shape == (12, 1, 4, 32, 32)
    found = look.roles(model, "es", only="duplicate", rows=12, causal=False)
    assert [v.score.at[1:] for v in found.verdicts] == [(0, 1)]


@pytest.mark.scope("1.18.10")
def test_every_page_has_its_caution(model, tape):
    ids = torch.arange(3, 9)[None]
    metric = sweeps.logit_difference(5, 9)
    change = {"site": "head_out", "layer": 0, "heads": [1], "op": "zero"}
    made = [sweeps.sweep(model, ids, metric), sweeps.effect(model, ids, metric, change),
            sweeps.backup(model, ids, metric, [(0, 1), (1, 0)])]
    for one in made:
        assert str(one).endswith(sweeps.CAUTION) and one.data()["note"] == sweeps.CAUTION
    pages = [(look.head_view(tape), "not why the model answers"),
             (look.lens(tape), "not yet ignorance"), (look.flow(tape), "not a cause"),
             (look.redundant(tape), "removing them together shows"),
             (look.roles(model, only="duplicate", rows=12, causal=False), "only a verified role")]
    for one, words in pages:
        assert words in " ".join(str(one).split()), type(one)

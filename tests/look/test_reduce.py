"""Figures made in row blocks are those of the whole pattern, which is never held."""

import pytest
import torch

import mirada
from mirada.core.attend import Attend
from mirada.errors import MiradaError
from mirada.look import patterns, reduce

T = 13


@pytest.fixture(scope="module", params=["gpt2", "bert", "gemma2"])
def tape(request):
    m = mirada.build(request.param, size="tiny", seed=3, dtype=torch.float64, layers=3)
    ids = torch.randint(3, 200, (2, T), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :4] = 0
    with m.record() as tape, torch.no_grad():
        m(input_ids=ids, attention_mask=mask)
    return tape


@pytest.fixture(params=[True, False], ids=["in blocks", "at once"])
def blocks(request, monkeypatch):
    """Rows at a time: a few, so that every figure crosses borders, or all."""
    if request.param:
        monkeypatch.setattr(patterns, "CELLS", 5 * 2 * 4 * T)


def steps():
    return torch.arange(T) - torch.arange(T)[:, None]


def test_rows(tape, blocks):
    p, found = tape.pattern(1), reduce.rowwise(tape, 1)
    assert torch.allclose(found["entropy"], -(p * p.clamp(min=1e-300).log()).sum(-1), atol=1e-12)
    assert torch.allclose(found["distance"], (p * steps().abs()).sum(-1), atol=1e-12)
    assert torch.allclose(found["first"], p[..., 0]) and torch.allclose(
        found["strongest"], p.max(-1).values)
    assert torch.allclose(found["itself"], p.diagonal(dim1=2, dim2=3))
    one = reduce.rowwise(tape, 1, ["entropy"], heads=[2])
    assert torch.allclose(one["entropy"], found["entropy"][:, 2:3]) and len(one) == 1


def test_offsets_count_only_tokens(tape, blocks):
    p, at = tape.pattern(2), [-3, -1, 0, 1]
    weight, hits = reduce.offsets(tape, 2, at)
    for b, first in ((0, 4), (1, 0)):
        for n, k in enumerate(at):
            queries = [i for i in range(first, T) if first <= i + k < T]
            looked = torch.stack([p[b, :, i, i + k] for i in queries]).mean(0)
            assert torch.allclose(weight[b, :, n], looked, atol=1e-12)
            best = torch.stack([p[b, :, i].argmax(-1) == i + k for i in queries]).double().mean(0)
            assert torch.allclose(hits[b, :, n], best)


def test_tops_and_tiles(tape, blocks):
    p = tape.pattern(1)
    values, keys, rest = tape.topk(1, k=3)
    assert torch.allclose(values, p.topk(3, -1).values)
    assert torch.allclose(p.gather(3, keys), values)
    assert torch.allclose(rest + values.sum(-1), p.sum(-1), atol=1e-12)
    some = tape.topk(1, k=3, heads=[1], rows=range(2, 5))
    assert torch.allclose(some[0], values[:, 1:2, 2:5])
    small = tape.pooled(5)
    assert small.shape == (3, 2, 4, 5, 5) and tape.pooled(64).shape == (3, 2, 4, T, T)
    assert torch.allclose(tape.pooled(64)[1], p)
    for r in range(5):
        rows = [i for i in range(T) if i * 5 // T == r]
        low, high = rows[0], rows[-1] + 1
        across = torch.nn.functional.adaptive_max_pool2d(p, (T, 5))
        assert torch.allclose(small[1][:, :, r], across[:, :, low:high].amax(2))


def test_rollout_is_the_product_of_the_layers(tape, blocks):
    product, expected = torch.eye(T, dtype=torch.float64).expand(2, T, T), []
    expected.append(product[:, -1])
    for layer in (2, 1, 0):
        step = tape.pattern(layer).mean(1) + torch.eye(T, dtype=torch.float64)
        product = product @ (step / step.sum(-1, keepdim=True))
        expected.append(product[:, -1])
    found = reduce.rollout(tape)
    assert (found - torch.stack(expected[::-1])).abs().max() < 1e-12
    assert (found.sum(-1) - 1).abs().max() < 1e-12


def test_no_block_is_larger_than_allowed(tape, blocks, monkeypatch):
    made, plain = [], Attend.weights
    monkeypatch.setattr(Attend, "weights", staticmethod(
        lambda call, rows=None: made.append(plain(call, rows)) or made[-1]))
    reduce.rowwise(tape, 1)
    tape.pooled(4)
    assert max(w.numel() for w in made) <= max(patterns.CELLS, 2 * 4 * T)
    if patterns.CELLS < 1000:
        assert max(w.shape[2] for w in made) <= 5 and len(made) == 4 * 3


def test_what_cannot_be_reduced_is_said():
    m = mirada.build("t5", size="tiny", seed=2)
    ids = torch.randint(3, 200, (1, 7))
    with m.record() as tape, torch.no_grad():
        m(input_ids=ids, decoder_input_ids=ids[:, :4])
    assert set(reduce.rowwise(tape, 0, stack="cross")) == {"entropy", "first", "strongest"}
    assert tape.pooled(3, stack="cross").shape == (2, 1, 4, 3, 3)
    for wrong in (lambda: reduce.offsets(tape, 0, [1], stack="cross"),
                  lambda: reduce.rowwise(tape, 0, ["distance"], stack="cross"),
                  lambda: reduce.rollout(tape, stack="cross")):
        with pytest.raises(MiradaError, match="one text at another"):
            wrong()
    with pytest.raises(MiradaError, match="no figure of a row"):
        reduce.rowwise(tape, 0, ["entropie"])

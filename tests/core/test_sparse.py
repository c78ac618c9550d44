"""The sparse kernel: exactly dense attention with the pattern's mask, gradients too."""

import pytest
import torch

import mirada
from mirada.core.attend import KERNELS, Call, choose
from mirada.core.cache import KV
from mirada.core.mask import Blocked, Mask, Random, Strided

PATTERNS = [Strided(1), Strided(3), Strided(4), Strided(20), Blocked(1), Blocked(4), Blocked(4, 2),
            Blocked(5, 5), Blocked(40, 3)]


def made(pattern, T: int, causal: bool, groups=2, **more) -> Call:
    draws = torch.Generator().manual_seed(T)
    q, k, v = (torch.randn(2, h, T, w, generator=draws, dtype=torch.float64).requires_grad_()
               for h, w in ((4, 8), (groups, 8), (groups, 5)))
    return Call(q, KV(k, v), 8**-0.5, Mask(causal=causal, patterns=(pattern,)), **more)


@pytest.mark.scope("1.16.1")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_it_is_dense_attention_with_that_mask(pattern, causal):
    """Lengths below, at and above a stride, whole blocks and broken ones."""
    for T in (1, 2, 5, 7, 12, 13, 16, 31):
        c = made(pattern, T, causal)
        assert choose(c) == "sparse"
        leaves, found = (c.q, c.kv.k, c.kv.v), []
        for name in ("sparse", "exact"):
            out = KERNELS[name].run(c)
            found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for a, b in zip(*found, strict=True):
            assert (a - b).abs().max() < 1e-12, T


def test_what_it_cannot_it_says():
    c = made(Strided(3), 9, True)
    can = KERNELS["sparse"].cannot
    for more in (dict(cap=2.0), dict(sinks=torch.zeros(4)), dict(dropout=0.1)):
        assert can(made(Strided(3), 9, True, **more)) == (
            "it has no bias, soft cap, sinks or dropout")
    both = Mask(patterns=(Strided(3), Strided(2)))
    for mask in (Mask(causal=True), Mask(patterns=(Random(0.5),)), both):
        assert "not one strided or fixed" in can(Call(c.q, c.kv, 1.0, mask))
    hides = Mask(window=4), Mask(padding=torch.ones(2, 9).bool()), Mask(
        segments=((torch.zeros(2, 9), torch.zeros(2, 9)),))
    for mask in hides:
        assert "more than the pattern" in can(Call(c.q, c.kv, 1.0, c.mask & mask))
    behind = Mask(causal=True, patterns=(Strided(3),), start=4)
    assert "earlier calls" in can(Call(c.q, c.kv, 1.0, behind))


def test_it_stays_where_its_call_lies():
    q = torch.empty(1, 4, 9, 8, device="meta")
    for pattern in (Strided(4), Blocked(4)):
        out = KERNELS["sparse"].run(Call(q, KV(q, q), 1.0, Mask(patterns=(pattern,))))
        assert out.device.type == "meta" and out.shape == q.shape


@pytest.mark.scope("1.16.1")
@pytest.mark.parametrize("kind, sizes", [("strided", {"stride": 8}),
                                         ("fixed", {"stride": 8, "summary": 2})])
def test_a_model_runs_it_and_a_recording_agrees(kind, sizes):
    m = mirada.build("gpt2:tiny", seed=0, dtype=torch.float64)
    m = mirada.edit.attention_pattern(m, kind, **sizes)
    ids = torch.randint(0, 1024, (2, 50), generator=torch.Generator().manual_seed(1))
    with m.record() as tape:
        sparse = m(input_ids=ids).logits
    assert 0 < tape.selfcheck < 1e-13, "the weights shown are those that the kernel used"
    with mirada.kernel("sparse"):
        assert torch.equal(m(input_ids=ids).logits, sparse)
    with mirada.kernel("exact"):
        assert (m(input_ids=ids).logits - sparse).abs().max() < 1e-12
    cache = m.new_cache()
    parts = [m(input_ids=ids[:, a:b], cache=cache).logits for a, b in ((0, 20), (20, 50))]
    assert (torch.cat(parts, 1) - sparse).abs().max() < 1e-12

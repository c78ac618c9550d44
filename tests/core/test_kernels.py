"""Every kernel x mask x grouped heads x dtype against `exact`, and `exact` against plain loops."""

import itertools
import warnings
from dataclasses import replace

import pytest
import torch

import mirada
from core import plain
from mirada.core import attend
from mirada.core.attend import KERNELS, PREFERENCE, Attend, Call, Kernel, choose, kernel
from mirada.core.bias import Alibi, Bias
from mirada.core.cache import KV
from mirada.core.mask import Blocked, Mask, Random, Strided
from mirada.errors import MiradaError

B, H, T, S, K, V = 2, 4, 6, 8, 8, 5
TOLERANCE = {  # the largest difference from `exact` computed in float64 from the same numbers
    torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 3e-2, torch.float16: 3e-3}
PADDING = torch.ones(B, S).bool()
PADDING[0, :3] = False
PADDING[1, 6:] = False
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 1, 1, 1]])
MASKS = {
    "all": (Mask(), S),
    "causal square": (Mask(causal=True), T),
    "causal behind a cache": (Mask(causal=True, start=S - T), S),
    "window": (Mask(causal=True, window=3, start=S - T), S),
    "window both ways": (Mask(window=2), S),
    "prefix": (Mask(causal=True, prefix=torch.tensor([2, 4])), S),
    "padding": (Mask(padding=PADDING), S),
    "causal padding": (Mask(causal=True, padding=PADDING), S),  # some rows see nothing
    "segments": (Mask(segments=((DOCUMENTS[:, :T], DOCUMENTS),)), S),
    "slots": (Mask(causal=True, start=torch.tensor([1, 2]),
                   slots=torch.tensor([[0, 1, 2, 3, 4, 5, 6, -1], [0, 1, 2, 3, 4, 5, 6, 7]])), S),
    "strided": (Mask(causal=True, patterns=(Strided(2),)), T),
    "strided behind a cache": (Mask(causal=True, patterns=(Strided(3),), start=S - T), S),
    "blocks both ways": (Mask(patterns=(Blocked(4),)), T),
    "random": (Mask(causal=True, patterns=(Random(0.5),)), T),
}
VARIANTS = {"plain": {}, "bias": {"bias": Alibi(H)}, "cap": {"cap": 2.0},
            "sinks": {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])},
            "all of them": {"bias": Alibi(H), "cap": 2.0,
                            "sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}}
DTYPES = list(TOLERANCE)


def call(name: str, groups: int, dtype: torch.dtype, variant: str = "plain") -> Call:
    mask, keys = MASKS[name]
    mask = replace(mask, memo={})
    torch.manual_seed(1)
    q, k, v = (torch.randn(B, h, n, w).to(dtype) for h, n, w in
               ((H, T, K), (groups, keys, K), (groups, keys, V)))
    more = dict(VARIANTS[variant])
    if "bias" in more:
        more["bias"] = Bias(more["bias"], mask)
    return Call(q, KV(k, v), K**-0.5, mask, **more)


def as_float64(c: Call) -> Call:
    k, v = c.kv.dense()
    return Call(c.q.double(), KV(k.double(), v.double()), c.scale, c.mask, c.bias, c.cap, c.sinks)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", MASKS)
def test_exact_is_the_definition(name, groups, variant):
    c = call(name, groups, torch.float64, variant)
    k, v = c.kv.dense()
    seen = plain.visible(c.mask, B, T, k.shape[2])
    bias = None if c.bias is None else c.bias.dense(c.q, k)
    wanted = plain.weights(c.q, k, c.scale, seen, bias, c.cap, c.sinks)
    weights = Attend.weights(c)
    assert torch.allclose(weights, wanted, atol=1e-14)
    wanted = plain.attention(c.q, k, v, c.scale, seen, bias, c.cap, c.sinks)
    assert torch.allclose(KERNELS["exact"].run(c), wanted, atol=1e-14)
    for r0, r1 in ((0, 2), (2, 5), (5, 6)):
        assert torch.allclose(Attend.weights(c, (r0, r1)), weights[:, :, r0:r1], atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("which", KERNELS)
def test_every_kernel_gives_what_exact_gives(which, name, groups, dtype):
    """What a kernel cannot do it must say, and then it must not be chosen."""
    for variant in VARIANTS:
        c = call(name, groups, dtype, variant)
        if KERNELS[which].cannot(c):
            assert choose(c) != which
            with kernel(which), pytest.raises(MiradaError, match=f"'{which}' cannot run this"):
                choose(c)
            continue
        got = KERNELS[which].run(c)
        wanted = KERNELS["exact"].run(as_float64(c))
        assert got.shape == (B, H, T, V) and got.dtype == dtype
        assert (got.double() - wanted).abs().max() <= TOLERANCE[dtype], variant


def test_what_this_machine_could_not_exercise_is_named():
    """A kernel that no call of the table can reach here would be untested: it is named, loudly."""
    calls = [call(*c) for c in itertools.product(MASKS, (1, 2, 4), DTYPES, VARIANTS)]
    untested = [name for name, k in KERNELS.items() if all(k.cannot(c) for c in calls)
                and name != "rows"]  # which only trains: test_rows.py
    if untested:
        warnings.warn(f"attention kernels not exercised on this machine: {untested}", stacklevel=1)
    assert not {"exact", "sdpa", "sparse"} & set(untested)
    assert not any(KERNELS["exact"].cannot(c) for c in calls)


def test_sdpa_says_what_it_has_not():
    assert KERNELS["sdpa"].cannot(call("all", 4, torch.float32)) is None
    assert KERNELS["sdpa"].cannot(call("all", 4, torch.float32, "bias")) is None
    assert "cap" in KERNELS["sdpa"].cannot(call("all", 4, torch.float32, "cap"))
    assert "sinks" in KERNELS["sdpa"].cannot(call("all", 4, torch.float32, "sinks"))


def test_the_first_that_can_goes_first():
    assert choose(call("all", 4, torch.float32)) == PREFERENCE[2] == "sdpa"
    assert choose(call("all", 4, torch.float32, "cap")) == "exact"
    assert choose(call("strided", 4, torch.float32)) == PREFERENCE[0] == "sparse"
    assert choose(call("strided behind a cache", 4, torch.float32)) == "sdpa"
    assert set(PREFERENCE) <= set(KERNELS)


def test_a_pinned_kernel_runs_or_raises_and_only_within_its_context(monkeypatch):
    ran = []
    for name in list(KERNELS):
        run = KERNELS[name].run
        spy = Kernel(lambda c, name=name, run=run: ran.append(name) or run(c), KERNELS[name].cannot)
        monkeypatch.setitem(attend.KERNELS, name, spy)
    c = call("all", 4, torch.float32)
    seams = dict(scale=c.scale, mask=c.mask)
    Attend()(c.q, c.kv, **seams)
    with mirada.kernel("exact"):
        Attend()(c.q, c.kv, **seams)
        with kernel("sdpa"):
            Attend()(c.q, c.kv, **seams)
        Attend()(c.q, c.kv, **seams)
    Attend()(c.q, c.kv, **seams)
    assert ran == ["sdpa", "exact", "sdpa", "exact", "sdpa"]
    with kernel("sdpa"), pytest.raises(MiradaError, match="'sdpa' cannot run this attention: it"):
        Attend()(c.q, c.kv, **seams, cap=3.0)
    with pytest.raises(MiradaError, match="no attention kernel is called 'flash9'; there are sdpa"):
        with kernel("flash9"):
            raise AssertionError("not reached")
    assert choose(c) == "sdpa"


def test_the_causal_short_cut_of_sdpa_builds_no_mask():
    c = call("causal square", 4, torch.float32)
    KERNELS["sdpa"].run(c)
    assert not c.mask.memo
    padded = call("causal padding", 4, torch.float32)
    KERNELS["sdpa"].run(padded)
    assert padded.mask.memo


@pytest.mark.parametrize("name", [n for n in KERNELS if n != "sparse"])  # which has none
def test_dropout_keeps_the_mean_and_zeroes_whole_weights(name):
    q = torch.zeros(1, 1, 400, 4)
    v = torch.eye(4)[None, None]
    out = KERNELS[name].run(Call(q, KV(torch.zeros(1, 1, 4, 4), v), 1.0, Mask(), dropout=0.25))
    kept = out[0, 0]  # with v the identity, a row is its four weights
    assert kept.unique().tolist() == pytest.approx([0, 1 / 3])
    assert abs((kept == 0).float().mean() - 0.25) < 0.06


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_gradients_are_the_same_through_every_kernel(groups):
    grads = {}
    for name in KERNELS:
        c = as_float64(call("causal padding", groups, torch.float32))
        if KERNELS[name].cannot(c):
            continue
        leaves = [t.requires_grad_() for t in (c.q, *c.kv.dense())]
        KERNELS[name].run(c).pow(2).sum().backward()
        grads[name] = [t.grad for t in leaves]
    assert len(grads) >= 3
    for name, found in grads.items():
        for mine, wanted in zip(found, grads["exact"], strict=True):
            assert torch.isfinite(mine).all()
            assert (mine - wanted).abs().max() < 1e-13, name

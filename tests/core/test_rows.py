"""The kernel that learns by rows: exactly attention and its gradient, every mask, in any dtype."""

from dataclasses import replace

import pytest
import torch

import mirada
from core.test_kernels import MASKS, H, K, T, V
from mirada.core.attend import KERNELS, Attend, Call, choose, kernel
from mirada.core.cache import KV
from mirada.core.mask import Mask
from mirada.kernels import rows


def made(mask: Mask, S: int, groups=4, length=T, dtype=torch.float64, **more) -> Call:
    draws = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, h, n, w, generator=draws, dtype=torch.float64).to(dtype)
               for h, n, w in ((H, length, K), (groups, S, K), (groups, S, V)))
    for one in (q, k, v):
        one.requires_grad_()
    return Call(q, KV(k, v), 0.4, replace(mask, memo={}), **more)


def told(name: str, call: Call) -> list[torch.Tensor]:
    """What a kernel gives, and the gradient of its inputs."""
    out = KERNELS[name].run(call)
    weigh = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weigh).sum(), (call.q, call.kv.k, call.kv.v))]


@pytest.mark.parametrize("size", [1, 4, 128])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("name", MASKS)
def test_it_is_exact_attention(name, groups, size, monkeypatch):
    monkeypatch.setattr(rows, "ROWS", size)
    call = made(*MASKS[name], groups)
    for mine, wanted in zip(told("rows", call), told("exact", call), strict=True):
        assert torch.isfinite(mine).all() and (mine - wanted).abs().max() < 1e-13


@pytest.mark.parametrize("mask", [Mask(causal=True), Mask(), Mask(causal=True, window=70)])
def test_in_bfloat16_it_errs_as_little_as_written_out_attention(mask):
    """Against the same numbers in float64; sdpa, which keeps scores in float32, errs half."""
    call = made(mask, 300, length=300, dtype=torch.bfloat16)
    leaves = [t.detach().double().requires_grad_() for t in (call.q, call.kv.k, call.kv.v)]
    wanted = told("exact", Call(leaves[0], KV(*leaves[1:]), call.scale, call.mask))
    for name, most in (("rows", 8e-3), ("exact", 8e-3)):
        for got, want in zip(told(name, call), wanted, strict=True):
            assert got.dtype == torch.bfloat16
            assert float(((got - want).norm() / want.norm()).detach()) < most, name


def test_it_runs_where_a_processor_learns_in_bfloat16_and_nowhere_else():
    call = made(Mask(causal=True), T, dtype=torch.bfloat16)
    assert choose(call) == "rows"
    with torch.no_grad():
        assert choose(call) == "sdpa"
    assert choose(made(Mask(causal=True), T)) == "sdpa"
    assert choose(replace(call, cap=2.0)) == "exact"
    long = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16).expand(1, 1, 5000, 8).requires_grad_()
    for mask, name in ((Mask(causal=True), "rows"), (Mask(), "rows"),
                       (Mask(causal=True, window=9), "tiled")):  # no dense mask of that size
        assert choose(Call(long, KV(long, long), 1.0, mask)) == name
    with kernel("rows"), pytest.raises(mirada.MiradaError, match="it is for training"):
        choose(replace(call, q=call.q.detach()))


def test_dropout_keeps_the_mean_and_its_gradient_is_that_of_what_was_left():
    eye = torch.eye(4, dtype=torch.float64)[None, None]
    q = torch.zeros(1, 1, 400, 4, dtype=torch.float64, requires_grad=True)
    call = Call(q, KV(torch.zeros_like(eye), eye.clone().requires_grad_()), 1.0, Mask(),
                dropout=0.25)
    out = KERNELS["rows"].run(call)  # with v the identity, a row is its four weights
    kept = out[0, 0]
    assert kept.unique().tolist() == pytest.approx([0, 1 / 3])
    assert abs(float((kept == 0).double().mean()) - 0.25) < 0.06
    grad = torch.randn(1, 1, 400, 4, dtype=torch.float64)
    (dv,) = torch.autograd.grad(out, call.kv.v, grad)
    assert torch.allclose(dv[0, 0], kept.detach().T @ grad[0, 0], atol=1e-12)
    torch.manual_seed(0)
    call = made(Mask(causal=True), T, dropout=0.5)
    inputs = (call.q, call.kv.k, call.kv.v)

    def same(q, k, v):
        torch.manual_seed(1)
        return KERNELS["rows"].run(replace(call, q=q, kv=KV(k, v)))

    assert torch.autograd.gradcheck(same, inputs)


def test_a_model_learns_by_it_as_by_the_others():
    model = mirada.build("llama:tiny", seed=0, dtype=torch.bfloat16).train()
    ids = torch.arange(40).view(2, 20)
    grads = {}
    for name in ("rows", "sdpa"):
        model.zero_grad()
        with kernel(name):
            model(input_ids=ids, labels=ids).loss.backward()
        grads[name] = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    gap = (grads["rows"] - grads["sdpa"]).norm() / grads["sdpa"].norm()
    assert 0 < float(gap) < 0.05
    ran = []
    for module in model.modules():
        if isinstance(module, Attend):
            module.register_forward_hook(lambda m, args, out: ran.append(out.grad_fn.name()))
    model(input_ids=ids, labels=ids)
    assert ran and all("Rows" in name for name in ran)

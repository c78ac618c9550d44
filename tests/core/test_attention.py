"""Attention: eq. 1 step by step, its heads, its seams, self and cross, against torch and by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from core import plain
from torch import nn
from transformers.models.marian.modeling_marian import MarianAttention

from mirada.core.attend import Attend, Call, kernel
from mirada.core.attention import Attention, CrossAttention, split
from mirada.core.cache import KV, Fixed, Growing
from mirada.core.context import Ctx
from mirada.core.mask import Mask
from mirada.core.norm import RMSNorm

CAUSAL = Mask(causal=True)


def doubled(module: nn.Module) -> nn.Module:
    """float64, evaluation, every parameter off its default."""
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return module


def pattern(attention: Attention, x, ctx) -> torch.Tensor:
    """(B, H, T, S), from the values that enter the kernel."""
    q, kv, mask = attention.look(x, ctx, None)
    bias = attention.score_bias(ctx, mask)
    return Attend.weights(Call(q, kv, attention.scale, mask, bias, attention.cap, attention.sinks))


@pytest.mark.scope("1.1.1")
def test_queries_keys_and_values_have_the_widths_asked_for():
    attention = doubled(Attention(12, 3, head_dim=5, value_dim=7, bias="qkv"))
    x, ctx = torch.randn(2, 4, 12).double(), Ctx()
    q, kv, _ = attention.look(x, ctx, None)
    assert q.shape == kv.k.shape == (2, 3, 4, 5) and kv.v.shape == (2, 3, 4, 7)
    assert torch.equal(q[:, 1], x @ attention.q.weight[5:10].T + attention.q.bias[5:10])
    assert torch.equal(kv.v[:, 2], x @ attention.v.weight[14:].T + attention.v.bias[14:])
    assert attention.o.weight.shape == (12, 21) and attention.o.bias is None
    out = plain.attention(q, kv.k, kv.v, 5**-0.5, torch.ones(2, 1, 4, 4).bool())
    wanted = out.transpose(1, 2).flatten(2) @ attention.o.weight.T
    assert torch.allclose(attention(x, ctx), wanted, atol=1e-12)


@pytest.mark.parametrize("letters", ["", "q", "k", "v", "o", "qv", "qkvo"])
def test_which_projections_have_a_bias(letters):
    attention = Attention(8, 2, bias=letters)
    have = {name for name in "qkvo" if getattr(attention, name).bias is not None}
    assert have == set(letters)


def test_equation_1_step_by_step_is_what_torch_computes():
    q, k, v = torch.randn(3, 2, 4, 6, 8, dtype=torch.float64)
    scores = q @ k.transpose(-2, -1)
    scaled = scores / 8**0.5
    weights = scaled.softmax(-1)
    output = weights @ v
    assert torch.allclose(Attend.weights(Call(q, KV(k, v), 8**-0.5, Mask())), weights, atol=1e-14)
    assert torch.allclose(output, F.scaled_dot_product_attention(q, k, v), atol=1e-14)
    for name in ("exact", "sdpa"):
        with kernel(name):
            ours = Attend()(q, KV(k, v), scale=8**-0.5, mask=Mask())
        assert torch.allclose(ours, output, atol=1e-14), name


def test_the_guides_worked_example_as_it_should_read():
    q = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]])
    k = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [1, 0, 0, 1]])
    assert (q @ k.T).tolist() == [[2, 1, 1], [0, 1, 1], [1, 0, 2]]

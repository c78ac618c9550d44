"""Attention: eq. 1 step by step, heads, seams, self and cross, against torch and by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.models.marian.modeling_marian import MarianAttention

from core import plain
from mirada.core.attend import Attend, Call, kernel
from mirada.core.attention import Attention, CrossAttention, split
from mirada.core.cache import KV, Fixed, Growing
from mirada.core.context import Ctx
from mirada.core.mask import Mask
from mirada.core.norm import RMSNorm

CAUSAL = Mask(causal=True)


def doubled(module: nn.Module) -> nn.Module:
    """float64, evaluation, every parameter off its default."""
    module = module.double().eval().requires_grad_(False)
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
    second = x @ attention.q.weight[5:10].T + attention.q.bias[5:10]
    third = x @ attention.v.weight[14:].T + attention.v.bias[14:]
    assert torch.allclose(q[:, 1], second) and torch.allclose(kv.v[:, 2], third)
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
    q = torch.tensor([[1.0, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 1]])  # and K is the same
    scores = q @ q.T
    assert scores.tolist() == [[2, 1, 1], [1, 2, 1], [1, 1, 3]]  # the guide says 2 in two corners
    weights = Attend.weights(Call(q[None, None], KV(q[None, None], q[None, None]), 0.5, Mask()))
    wanted = torch.tensor([[0.4519, 0.2741, 0.2741], [0.2741, 0.4519, 0.2741],
                           [0.2119, 0.2119, 0.5761]])
    assert torch.allclose(weights[0, 0], wanted, atol=5e-5)


@pytest.mark.scope("1.1.1", "1.1.8")
@pytest.mark.parametrize("source", [None, 7])
@pytest.mark.parametrize("bias", ["", "qkvo"])
def test_torchs_own_multi_head_attention(source, bias):
    theirs = doubled(nn.MultiheadAttention(12, 3, bias=bool(bias), kdim=source, vdim=source,
                                           batch_first=True))
    ours = CrossAttention(12, 3, source=source, bias=bias).double()
    _copy_from_torch(theirs, ours)
    x, memory = torch.randn(2, 4, 12).double(), torch.randn(2, 6, source or 12).double()
    absent = torch.zeros(2, 6).bool()
    absent[0, 4:] = True
    wanted, weights = theirs(x, memory, memory, key_padding_mask=absent, average_attn_weights=False)
    ctx = Ctx(memory=memory, memory_mask=Mask(padding=~absent))
    assert torch.allclose(ours(x, ctx), wanted, atol=1e-12)
    assert torch.allclose(pattern(ours, x, ctx), weights, atol=1e-12)


def _copy_from_torch(theirs: nn.MultiheadAttention, ours: Attention) -> None:
    d = theirs.embed_dim
    parts = (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight)
    if theirs.in_proj_weight is not None:
        parts = theirs.in_proj_weight.split(d)
    state = dict(zip(("q.weight", "k.weight", "v.weight"), parts, strict=True))
    if theirs.in_proj_bias is not None:
        biases = theirs.in_proj_bias.split(d)
        state |= dict(zip(("q.bias", "k.bias", "v.bias"), biases, strict=True))
    state |= {f"o.{name}": p for name, p in theirs.out_proj.named_parameters()}
    ours.load_state_dict(state)


@pytest.mark.scope("1.1.8")
def test_heads_one_by_one_are_the_joined_form():
    attention = doubled(Attention(512, 8))
    assert attention.q.weight.shape == (512, 512) and attention.scale == 64**-0.5
    x, ctx = torch.randn(1, 3, 512).double(), Ctx()
    q, kv, mask = attention.look(x, ctx, None)
    together = attention.attend(q, kv, scale=attention.scale, mask=mask)
    heads = []
    for h in range(8):
        rows = slice(64 * h, 64 * (h + 1))
        one = [x @ p.weight[rows].T for p in (attention.q, attention.k, attention.v)]
        heads.append(F.scaled_dot_product_attention(*one))
        assert torch.allclose(together[:, h], heads[-1], atol=1e-10), h
    joined = torch.cat(heads, -1) @ attention.o.weight.T
    assert torch.allclose(attention(x, ctx), joined, atol=1e-9)


@pytest.mark.scope("1.1.5")
@pytest.mark.parametrize("name", ["exact", "sdpa"])
def test_nothing_leaks_from_the_future_to_the_bit(name):
    attention = doubled(Attention(16, 4, kv_heads=2, mask=CAUSAL)).float()
    x = torch.randn(2, 9, 16)
    with kernel(name):
        before = attention(x, Ctx())
        for t in range(1, 9):
            changed = x.clone()
            changed[:, t:] = torch.randn_like(x[:, t:]) * 100
            after = attention(changed, Ctx())
            assert torch.equal(after[:, :t], before[:, :t]), t
            assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.scope("1.1.6")
def test_without_a_mask_the_last_token_changes_the_first_output():
    attention = doubled(Attention(16, 4))
    x = torch.randn(1, 5, 16).double()
    changed = x.clone()
    changed[:, -1] += 1
    assert (attention(x, Ctx()) - attention(changed, Ctx()))[:, 0].abs().max() > 1e-3
    assert (pattern(attention, x, Ctx()) > 0).all()


@pytest.mark.scope("1.1.5")
@pytest.mark.parametrize("name", ["exact", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_that_sees_nothing_is_zero_with_finite_gradients(name, dtype):
    seen = torch.tensor([[False, False, True], [True, True, True]])
    mask = Mask(causal=True, padding=seen)
    q, k, v = (torch.randn(2, 2, 3, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    with kernel(name):
        z = Attend()(q, KV(k, v), scale=0.5, mask=mask)
    assert (z[0, :, :2] == 0).all() and (z[0, :, 2] != 0).any()
    z.sum().backward()
    for t in (q, k, v):
        assert torch.isfinite(t.grad).all()
    assert (q.grad[0, :, :2] == 0).all() and (v.grad[0, :, :2] == 0).all()
    weights = Attend.weights(Call(q, KV(k, v), 0.5, mask))
    assert (weights[0, :, :2] == 0).all()
    assert torch.allclose(weights[1].sum(-1).double(), torch.ones(2, 3).double(), atol=1e-2)


def test_the_layers_own_mask_and_the_passs_both_hold():
    attention = doubled(Attention(8, 2, mask=Mask(causal=True, window=2)))
    padding = torch.tensor([[1, 1, 1, 0, 1]]).bool()
    x, ctx = torch.randn(1, 5, 8).double(), Ctx(mask=Mask(padding=padding))
    both = Mask(causal=True, window=2, padding=padding)
    wanted = plain.visible(both, 1, 5, 5).expand(1, 2, 5, 5)
    assert torch.equal(pattern(attention, x, ctx) > 0, wanted)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_heads_are_full_heads_with_the_groups_repeated(groups):
    grouped = doubled(Attention(16, 4, kv_heads=groups, head_dim=6, bias="kv"))
    full = Attention(16, 4, head_dim=6, bias="kv").double()
    state = copy.deepcopy(grouped.state_dict())
    for name in ("k.weight", "k.bias", "v.weight", "v.bias"):
        each = state[name].unflatten(0, (groups, 6))
        state[name] = each.repeat_interleave(4 // groups, 0).flatten(0, 1)
    full.load_state_dict(state)
    assert grouped.k.weight.shape == (groups * 6, 16)
    x = torch.randn(2, 5, 16).double()
    assert torch.allclose(grouped(x, Ctx()), full(x, Ctx()), atol=1e-12)


def test_scale_sinks_and_soft_cap_enter_the_scores():
    attention = doubled(Attention(8, 2, scale=0.3, cap=1.5, sinks=True, mask=CAUSAL))
    x = torch.randn(2, 4, 8).double() * 3
    q, kv, mask = attention.look(x, Ctx(), None)
    wanted = plain.weights(q, kv.k, 0.3, plain.visible(mask, 2, 4, 4), cap=1.5,
                           sinks=attention.sinks)
    got = pattern(attention, x, Ctx())
    assert torch.allclose(got, wanted, atol=1e-12)
    assert (got.sum(-1) < 1).all(), "a sink takes weight"
    wanted = (wanted @ kv.v).transpose(1, 2).flatten(2) @ attention.o.weight.T
    assert torch.allclose(attention(x, Ctx()), wanted, atol=1e-12)
    assert attention.sinks.shape == (2,) and Attention(8, 2).sinks is None
    assert "scale=0.3" in repr(attention) and "kv_heads" not in repr(attention)


class PerHead(nn.Module):
    """A qk_norm seam as families fill it."""

    def __init__(self, K: int):
        super().__init__()
        self.q, self.k = RMSNorm(K), RMSNorm(K)

    def forward(self, q, k):
        return self.q(q), self.k(k)


class Doubling(nn.Module):
    """A gate seam that shows what it is given."""

    def forward(self, z, x):
        return z * x.mean(-1, keepdim=True)


def test_norm_comes_before_rotation_and_the_gate_before_the_output_projection():
    order = []

    class Turn(nn.Module):
        def forward(self, q, k, positions):
            order.append(("rotary", positions))
            return q * 2, k * 3

    class Norm(PerHead):
        def forward(self, q, k):
            order.append(("norm", None))
            return super().forward(q, k)

    attention = doubled(Attention(8, 2, qk_norm=Norm(4), rotary=Turn(), gate=Doubling()))
    x, positions = torch.randn(1, 3, 8).double(), torch.arange(3)[None]
    out = attention(x, Ctx(positions))
    assert [name for name, _ in order] == ["norm", "rotary"] and order[1][1] is positions
    q, k, v = (split(p(x), 2) for p in (attention.q, attention.k, attention.v))

    def rms(t, norm):
        return norm.weight * t / (t.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()

    q, k = 2 * rms(q, attention.qk_norm.q), 3 * rms(k, attention.qk_norm.k)
    z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert torch.allclose(out, (z * x.mean(-1, keepdim=True)) @ attention.o.weight.T, atol=1e-12)


def test_a_cache_changes_nothing_and_is_asked_for_its_mask_first():
    attention = doubled(Attention(8, 2, mask=Mask(causal=True, window=3)))
    x, cache = torch.randn(2, 6, 8).double(), Growing()
    whole = attention(x, Ctx())
    parts = [attention(x[:, a:b], Ctx(), cache) for a, b in ((0, 3), (3, 4), (4, 6))]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12) and cache.held == 6


def _cross_and_marian():
    theirs = doubled(MarianAttention(12, 3, is_decoder=True, config=transformers.MarianConfig(
        attn_implementation="eager")))
    ours = CrossAttention(12, 3, bias="qkvo").double()
    ours.load_state_dict({name.replace("_proj", "").replace("out.", "o."): p
                          for name, p in theirs.state_dict().items()})
    return theirs, ours


@pytest.mark.scope("1.1.7")
def test_cross_attention_reads_another_source_with_its_own_padding():
    theirs, ours = _cross_and_marian()
    x, memory = torch.randn(2, 4, 12).double(), torch.randn(2, 6, 12).double()
    real = torch.ones(2, 6).bool()
    real[1, 3:] = False
    hidden = torch.zeros(2, 1, 4, 6).double().masked_fill(~real[:, None, None], float("-inf"))
    wanted = theirs(x, key_value_states=memory, attention_mask=hidden)[0]
    ctx = Ctx(mask=Mask(causal=True, padding=torch.zeros(2, 4).bool()), memory=memory,
              memory_mask=Mask(padding=real))
    assert torch.allclose(ours(x, ctx), wanted, atol=1e-12)  # the stream's own mask plays no part
    narrow = copy.deepcopy(ours)
    narrow.mask = Mask(window=2)
    assert torch.equal(pattern(narrow, x, ctx)[0, 0] > 0,
                       plain.visible(Mask(window=2), 1, 4, 6)[0, 0])


@pytest.mark.scope("1.1.7")
def test_cross_attentions_keys_are_computed_once_a_source():
    _, ours = _cross_and_marian()
    x, memory, count = torch.randn(2, 4, 12).double(), torch.randn(2, 6, 12).double(), []
    for p in (ours.k, ours.v):
        p.register_forward_hook(lambda *a: count.append(1))
    ctx = Ctx(memory=memory)
    whole, cache = ours(x, ctx), Fixed()
    count.clear()
    steps = [ours(x[:, t:t + 1], ctx, cache) for t in range(4)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-12)
    assert len(count) == 2 and cache.held == 6


def test_cross_attention_norms_queries_and_keys_also_from_a_cache():
    ours = doubled(CrossAttention(8, 2, qk_norm=PerHead(4)))
    x, memory = torch.randn(1, 3, 8).double(), torch.randn(1, 5, 8).double()
    ctx, cache = Ctx(memory=memory), Fixed()
    whole = ours(x, ctx)
    q, k = ours.qk_norm(split(ours.q(x), 2), split(ours.k(memory), 2))
    wanted = F.scaled_dot_product_attention(q, k, split(ours.v(memory), 2))
    assert torch.allclose(whole, wanted.transpose(1, 2).flatten(2) @ ours.o.weight.T, atol=1e-12)
    for t in range(3):
        assert torch.allclose(ours(x[:, t:t + 1], ctx, cache), whole[:, t:t + 1], atol=1e-12)


def test_dropout_of_the_weights_is_for_training_only():
    attention = doubled(Attention(8, 2))
    x = torch.randn(1, 40, 8).double()
    plain_out = attention(x, Ctx())
    attention.attend.dropout = 0.5
    assert torch.equal(attention(x, Ctx()), plain_out)
    attention.train()
    assert not torch.allclose(attention(x, Ctx()), plain_out)
    attention.attend.dropout = 0.0
    assert torch.equal(attention(x, Ctx()), plain_out)


def test_split_puts_heads_before_tokens():
    x = torch.arange(12.0).reshape(1, 2, 6)
    assert split(x, 3)[0, 1].tolist() == [[2, 3], [8, 9]]


def test_a_block_of_rows_is_that_block_of_the_whole():
    q = torch.randn(1, 2, 6, 4)
    for mask in (Mask(causal=True, window=3), Mask(), Mask(causal=True, start=2)):
        call = Call(q, KV(q, q), 0.5, mask)
        whole = Attend.weights(call)
        assert whole.shape == (1, 2, 6, 6)
        for r0, r1 in ((0, 1), (2, 5), (0, 6)):
            assert torch.equal(Attend.weights(call, (r0, r1)), whole[:, :, r0:r1])

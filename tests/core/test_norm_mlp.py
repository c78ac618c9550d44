"""Norms by their formulas, and every activation by the reference's table, in float64."""

import math

import pytest
import torch
from torch import nn
from transformers.activations import ACT2CLS, ACT2FN
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP, XIELU, Activation, MoE, activation
from mirada.core.norm import LayerNorm, QKNorm, RMSNorm
from parity.harness import wide


@pytest.mark.scope("1.3.5")
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm_is_its_formula(eps):
    norm, x = LayerNorm(6, eps).double(), torch.randn(2, 3, 6).double() * 3 + 1
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean = x.sum(-1, keepdim=True) / 6
    var = ((x - mean) ** 2).sum(-1, keepdim=True) / 6
    wanted = norm.weight * (x - mean) / (var + eps) ** 0.5 + norm.bias
    assert torch.allclose(norm(x), wanted, atol=1e-14)
    plain = nn.LayerNorm(6, eps).double()
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), plain(x))


@pytest.mark.scope("1.3.5")
@pytest.mark.parametrize("offset, reference", [(0.0, LlamaRMSNorm), (1.0, GemmaRMSNorm)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_is_its_formula_and_the_references(offset, reference, dtype):
    norm, theirs = RMSNorm(6, 1e-3, offset).to(dtype), reference(6, 1e-3).to(dtype)
    assert torch.equal(norm.weight, torch.full((6,), 1.0 - offset, dtype=dtype))
    nn.init.normal_(norm.weight)
    theirs.load_state_dict(norm.state_dict())
    x = (torch.randn(2, 3, 6) * 3).to(dtype)
    if dtype == torch.float64:
        weight = norm.weight + offset
        wanted = weight * x / (x.pow(2).sum(-1, keepdim=True) / 6 + 1e-3).sqrt()
        assert torch.allclose(norm(x), wanted, atol=1e-14)
        with wide():
            assert torch.allclose(norm(x), theirs(x), atol=1e-14)
    else:
        assert torch.equal(norm(x), theirs(x)) and norm(x).dtype == dtype


def test_norms_are_taken_wide_of_narrow_numbers():
    x = torch.full((1, 64), 300.0, dtype=torch.float16)  # its square overflows float16
    assert torch.allclose(RMSNorm(64).half()(x), torch.ones(1, 64).half())
    assert RMSNorm(4).eps == 1e-6 and "eps=1e-06" in repr(RMSNorm(4))


POINTS = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([0.0, -1e-6, 1e-6])]).double()


@pytest.mark.scope("1.3.3")
@pytest.mark.parametrize("name", sorted(ACT2CLS))
def test_every_activation_of_the_reference_by_its_name(name):
    ours = activation(name).double()
    with wide():
        theirs = ACT2FN[name].double()
        for p in theirs.parameters():
            nn.init.normal_(p)
        ours.load_state_dict(theirs.state_dict())  # strict: the same weights under the same names
        x = POINTS.clone().requires_grad_()
        wanted = theirs(x)
        slope, = torch.autograd.grad(wanted.sum(), x)
    mine = POINTS.clone().requires_grad_()
    got = ours(mine)
    got_slope, = torch.autograd.grad(got.sum(), mine)
    assert (got - wanted).abs().max() < 1e-12
    kinks = torch.isclose(POINTS.abs() % 0.5, torch.zeros(1).double(), atol=1e-9)
    assert (got_slope - slope)[~kinks].abs().max() < 1e-10


def test_the_table_of_activations_is_the_references():
    assert set(ACTIVATIONS) | set(LEARNED) == set(ACT2CLS)
    assert not set(ACTIVATIONS) & set(LEARNED)
    with pytest.raises(KeyError):
        activation("unheard_of")
    assert isinstance(activation("silu"), Activation) and repr(activation("silu")) == (
        "Activation(silu)")
    assert activation("prelu") is not activation("prelu"), "each has weights of its own"


def test_the_smooth_ones_by_their_formulas():
    x = 0.7
    normal = 0.5 * (1 + math.erf(x / math.sqrt(2)))
    tanh = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    short = 0.5 * x * (1 + math.tanh(0.7978845608 * x * (1 + 0.044715 * x * x)))
    laplace = 0.5 * (1 + math.erf((x - 0.707107) / (0.282095 * math.sqrt(2))))
    wanted = {"gelu": x * normal, "gelu_new": tanh, "gelu_pytorch_tanh": tanh, "gelu_fast": short,
              "quick_gelu": x / (1 + math.exp(-1.702 * x)), "silu": x / (1 + math.exp(-x)),
              "relu2": x * x, "laplace": laplace,
              "sqrtsoftplus": math.sqrt(math.log(1 + math.exp(x)))}
    for name, value in wanted.items():
        got = activation(name)(torch.tensor(x, dtype=torch.float64)).item()
        assert got == pytest.approx(value, abs=1e-13), name


def test_xielu_starts_at_its_papers_values_and_learns():
    act = XIELU().double()
    up, down = nn.functional.softplus(act.alpha_p), nn.functional.softplus(act.alpha_n)
    assert up.item() == pytest.approx(0.8, abs=1e-6) and down.item() == pytest.approx(0.3, abs=1e-6)
    x = torch.tensor([2.0, -2.0]).double()
    wanted = [up.item() * 4 + 0.5 * 2,
              (math.expm1(-2) + 2) * (0.5 + down.item()) + 0.5 * -2]
    assert act(x).tolist() == pytest.approx(wanted, abs=1e-9)
    act(x).sum().backward()
    assert act.alpha_p.grad.abs() > 0 and act.alpha_n.grad.abs() > 0


@pytest.mark.scope("1.3.3")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_the_network_is_its_formula_plain_and_gated(gated, bias):
    mlp, x = MLP(768, 3072, "silu", gated=gated, bias=bias).double(), torch.randn(2, 768).double()
    up = x @ mlp.up.weight.T + (mlp.up.bias if bias else 0)
    if gated:
        gate = x @ mlp.gate.weight.T + (mlp.gate.bias if bias else 0)
        h = gate * torch.sigmoid(gate) * up
    else:
        h = up * torch.sigmoid(up)
    wanted = h @ mlp.down.weight.T + (mlp.down.bias if bias else 0)
    assert torch.allclose(mlp(x), wanted, atol=1e-12)
    assert mlp.up.weight.shape == (3072, 768) and mlp.down.weight.shape == (768, 3072)
    assert (mlp.gate is not None) == gated and (mlp.down.bias is not None) == bias


@pytest.mark.parametrize("top", [1, 2, 4])
def test_each_token_goes_through_the_experts_its_router_likes_best(top):
    moe = MoE(6, [MLP(6, 5, "silu", gated=True, bias=False) for _ in range(4)], top).double()
    x = torch.randn(2, 5, 6).double()
    out = moe(x)
    for b in range(2):
        for t in range(5):
            logits = x[b, t] @ moe.router.weight.T
            best = sorted(range(4), key=lambda e: -logits[e].item())[:top]
            share = [math.exp(logits[e].item()) for e in best]
            wanted = sum(s / sum(share) * moe.experts[e](x[b, t])
                         for s, e in zip(share, best, strict=True))
            assert torch.allclose(out[b, t], wanted, atol=1e-13)
    assert out.shape == x.shape and moe.router.bias is None
    assert moe.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def experts(dtype=torch.float64, top=2):
    torch.manual_seed(3)
    moe = MoE(6, [MLP(6, 10, "silu", gated=True, bias=False) for _ in range(4)], top).to(dtype)
    return moe, torch.randn(2, 5, 6, dtype=dtype)


def test_an_expert_that_nobody_takes_learns_nothing():
    moe, x = experts(top=1)
    with torch.no_grad():
        moe.router.weight.copy_(torch.zeros(4, 6))
        moe.router.weight[2] = x.sum((0, 1))
    moe(x[:, :1].abs() * x.sum((0, 1)).sign()).sum().backward()
    grads = [expert.up.weight.grad.abs().max() for expert in moe.experts]
    assert grads[2] > 0 and not any(grads[e] for e in (0, 1, 3))


def test_experts_weigh_in_float32_and_answer_in_the_streams_dtype():
    moe, x = experts(torch.bfloat16)
    wide, _ = experts(torch.float64)
    wide.load_state_dict({n: t.double() for n, t in moe.state_dict().items()})
    got = moe(x)
    assert got.dtype == torch.bfloat16 and got.shape == x.shape
    assert (got.double() - wide(x.double())).abs().max() < 0.02 * got.abs().max()


def test_queries_and_keys_have_norms_of_their_own():
    norm = QKNorm(RMSNorm(6, 1e-3), RMSNorm(6, 1e-3)).double()
    nn.init.normal_(norm.q.weight)
    nn.init.normal_(norm.k.weight)
    q, k = torch.randn(1, 4, 3, 6).double(), torch.randn(1, 2, 3, 6).double()
    got = norm(q, k)
    assert torch.equal(got[0], norm.q(q)) and torch.equal(got[1], norm.k(k))
    assert not torch.equal(norm.q(k), norm.k(k))

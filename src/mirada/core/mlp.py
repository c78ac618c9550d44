"""The position-wise network: plain (Vaswani et al., 1706.03762), gated (Shazeer, 2002.05202), and
experts of which each token takes a few (Shazeer et al., 1701.06538)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SQRT_2_PI = math.sqrt(2.0 / math.pi)


def _gelu_tanh_written_out(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(_SQRT_2_PI * (x + 0.044715 * x.pow(3))))


def _gelu_short_constant(x: Tensor) -> Tensor:
    # differs from the tanh form by a constant cut at ten digits: models were trained with it
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def _laplace(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


class XIELU(nn.Module):
    """Learned expanded integral of ELU (2411.13010); alphas are stored before softplus."""

    def __init__(self):
        super().__init__()
        self.alpha_p, self.alpha_n = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.register_buffer("beta", torch.empty(()))
        self.register_buffer("eps", torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.beta.fill_(0.5)
        self.eps.fill_(-1e-6)
        self.alpha_p.fill_(math.log(math.expm1(0.8)))
        self.alpha_n.fill_(math.log(math.expm1(0.8 - 0.5)))

    def forward(self, x: Tensor) -> Tensor:
        up, down = F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n)
        below = (torch.expm1(torch.minimum(x, self.eps)) - x) * down + self.beta * x
        return torch.where(x > 0, up * x * x + self.beta * x, below)


ACTIVATIONS = {  # the field's names; several name the same function
    "gelu": F.gelu, "gelu_python": F.gelu,
    "gelu_new": _gelu_tanh_written_out, "gelu_accurate": _gelu_tanh_written_out,
    "gelu_python_tanh": _gelu_tanh_written_out,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": _gelu_short_constant,
    "gelu_10": lambda x: F.gelu(x).clip(-10, 10),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu, "relu2": lambda x: F.relu(x).square(), "relu6": F.relu6,
    "leaky_relu": F.leaky_relu, "hardswish": F.hardswish, "linear": lambda x: x,
    "mish": F.mish, "sigmoid": torch.sigmoid, "silu": F.silu, "swish": F.silu,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(), "tanh": torch.tanh, "laplace": _laplace,
}
FUSED = {  # speed: in training, one kernel that keeps x alone; equal but for the last bit
    _gelu_tanh_written_out: lambda x: F.gelu(x, approximate="tanh"),
}
LEARNED = {"prelu": nn.PReLU, "xielu": XIELU}  # these have weights of their own


class Activation(nn.Module):
    """An activation function by its name in config files."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.fn = name, ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return FUSED.get(self.fn, self.fn)(x) if self.training else self.fn(x)

    def extra_repr(self) -> str:
        return self.name


def activation(name: str) -> nn.Module:
    """The module for an activation's name; raises KeyError for a name that nobody uses."""
    return LEARNED[name]() if name in LEARNED else Activation(name)


class MLP(nn.Module):
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)).

    d, hidden: widths D and F. act: a name of ACTIVATIONS. bias: on all projections.
    """

    def __init__(self, d: int, hidden: int, act: str, *, gated=False, bias=True):
        super().__init__()
        self.up = nn.Linear(d, hidden, bias=bias)
        self.gate = nn.Linear(d, hidden, bias=bias) if gated else None
        self.act = activation(act)
        self.down = nn.Linear(hidden, d, bias=bias)
        self.dropout = 0.0  # on the hidden layer

    def forward(self, x: Tensor, ctx=None, cache=None) -> Tensor:
        h = self.act(self.up(x)) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        h = F.dropout(h, self.dropout, self.training)  # (B, T, F)
        return self.down(h)


class MoE(nn.Module):
    """Each token through the `top` experts that the router likes best, weighed by how much.

    experts: modules (N, D) -> (N, D). The router's output is its logits, (B * T, E).
    """

    def __init__(self, d: int, experts: list[nn.Module], top: int):
        super().__init__()
        self.router = nn.Linear(d, len(experts), bias=False)
        self.experts, self.top = nn.ModuleList(experts), top

    def forward(self, x: Tensor, ctx=None, cache=None) -> Tensor:
        rows = x.flatten(0, -2)  # (B * T, D)
        logits = self.router(rows)
        wide = torch.promote_types(x.dtype, torch.float32)
        weight, chosen = logits.softmax(-1, dtype=wide).topk(self.top, -1)  # (B * T, top)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(rows)
        for e, expert in enumerate(self.experts):
            row, place = (chosen == e).nonzero(as_tuple=True)
            out = out.index_add(0, row, expert(rows[row]) * weight[row, place, None])
        return out.view_as(x)

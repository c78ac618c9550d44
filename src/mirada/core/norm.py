"""Normalisations of the residual stream and what else may stand in a `Residual`'s slots."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """gamma * (x - mean) / sqrt(var + eps) + beta over the last axis (Ba et al., 1607.06450)."""

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) (Zhang & Sennrich, 1910.07467).

    offset: added to the weight (Gemma stores weight - 1). Statistics are taken in float32 or wider.
    """

    def __init__(self, d: int, eps: float = 1e-6, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((d,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.offset:  # the offset weight multiplies before the stream narrows again
            return (wide * (self.offset + self.weight.to(wide.dtype))).to(x.dtype)
        return self.weight * wide.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class QKNorm(nn.Module):
    """Queries and keys, each through a norm of its own before they turn (Henry et al., 2010.04245).

    q, k: norms over a head's channels.
    """

    def __init__(self, q: nn.Module, k: nn.Module):
        super().__init__()
        self.q, self.k = q, k

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q(q), self.k(k)


class LayerScale(nn.Module):
    """One learned factor a channel, near zero at first (Touvron et al., 2103.17239)."""

    def __init__(self, d: int, value: float = 1e-5):
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.full((d,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class DropPath(nn.Module):
    """Drops a whole branch for a random part of the batch (Huang et al., 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.rate, self.training)


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """x (B, ...) with whole rows left out at random, the others as much larger."""
    if not training or rate == 0.0:
        return x
    keep = x.new_empty(x.shape[:1] + (1,) * (x.ndim - 1)).bernoulli_(1 - rate)
    return x * keep / (1 - rate)

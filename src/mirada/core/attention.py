"""Attention with its six seams: projections, qk_norm, rotary, score_bias, attend, gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attend import Attend
from .cache import KV
from .context import Ctx
from .mask import Mask


class Absent(nn.Module):
    """An empty seam: hands q and k on (qk_norm, rotary)."""

    def forward(self, q: Tensor, k: Tensor, positions=None) -> tuple[Tensor, Tensor]:
        return q, k


class NoBias(nn.Module):
    """An empty score_bias seam."""

    def forward(self, ctx: Ctx, mask: Mask) -> None:
        return None


class NoGate(nn.Module):
    """An empty gate seam."""

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return z


class Attention(nn.Module):
    """Multi-head attention over the last axis but one (Vaswani et al., 1706.03762, section 3.2).

    d: width D. heads: H. kv_heads: G, fewer than H for grouped or multi-query attention
    (2305.13245, 1911.02150). head_dim: K, d // heads when None. value_dim: Kv, K when None.
    source: width of what keys and values are read from, d when None.
    bias: which of the projections q, k, v, o have one, as "qkvo", "qv", "".
    scale: factor of the scores, K ** -0.5 when None. cap, sinks: see attend.Call.
    mask: this layer's own, and-ed with the context's.
    """

    def __init__(self, d: int, heads: int, *, kv_heads=None, head_dim=None, value_dim=None,
                 source=None, bias="", scale=None, cap=None, sinks=False, mask=None,
                 qk_norm=None, rotary=None, score_bias=None, gate=None):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        K = head_dim or d // heads
        Kv = value_dim or K
        self.q = nn.Linear(d, heads * K, bias="q" in bias)
        self.k = nn.Linear(source or d, self.kv_heads * K, bias="k" in bias)
        self.v = nn.Linear(source or d, self.kv_heads * Kv, bias="v" in bias)
        self.qk_norm = qk_norm or Absent()
        self.rotary = rotary or Absent()
        self.score_bias = score_bias or NoBias()
        self.attend = Attend()
        self.gate = gate or NoGate()
        self.o = nn.Linear(heads * Kv, d, bias="o" in bias)
        self.scale = K**-0.5 if scale is None else scale
        self.cap = cap
        self.sinks = nn.Parameter(torch.zeros(heads)) if sinks else None
        self.mask = mask or Mask()

    def look(self, x: Tensor, ctx: Ctx, cache) -> tuple[Tensor, KV, Mask]:
        """Queries (B, H, T, K), what they look at, and which of it they may see."""
        q, k = split(self.q(x), self.heads), split(self.k(x), self.kv_heads)
        v = split(self.v(x), self.kv_heads)
        q, k = self.rotary(*self.qk_norm(q, k), ctx.positions)
        mask = ctx.mask & self.mask
        if cache is None:
            return q, KV(k, v), mask
        mask = cache.mask(mask, q.shape[2])
        return q, cache.update(k, v), mask

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        q, kv, mask = self.look(x, ctx, cache)
        z = self.attend(q, kv, scale=self.scale, mask=mask, bias=self.score_bias(ctx, mask),
                        cap=self.cap, sinks=self.sinks)  # (B, H, T, Kv)
        z = z.transpose(1, 2).flatten(2)  # (B, T, H * Kv)
        return self.o(self.gate(z, x))

    def extra_repr(self) -> str:
        groups = "" if self.kv_heads == self.heads else f", kv_heads={self.kv_heads}"
        return f"heads={self.heads}{groups}, scale={self.scale:.6g}"


class CrossAttention(Attention):
    """Queries from the stream, keys and values from ctx.memory; a cache is filled once a source."""

    def look(self, x: Tensor, ctx: Ctx, cache) -> tuple[Tensor, KV, Mask]:
        q, mask = split(self.q(x), self.heads), ctx.memory_mask & self.mask
        if cache is not None and cache.held:
            q, _ = self.qk_norm(q, cache.k)  # the cached keys were normed when they entered
            return q, KV(cache.k, cache.v), mask
        k, v = split(self.k(ctx.memory), self.kv_heads), split(self.v(ctx.memory), self.kv_heads)
        q, k = self.qk_norm(q, k)
        return q, KV(k, v) if cache is None else cache.fill(k, v), mask


def split(x: Tensor, heads: int) -> Tensor:
    """(B, T, H * K) -> (B, H, T, K)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)

"""Exact attention by tiles with an online softmax: memory grows with the length, not its square.

FlashAttention's algorithm 1 (2205.14135) in plain torch, with the bias, the soft cap, the sinks and
any mask; keys that no query of a tile can see are not read. The backward pass computes each tile
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from .attend import Call

ROWS, KEYS = 256, 1024  # queries and keys of a tile


def tiled(call: Call) -> Tensor:
    """(B, H, T, Kv), as every kernel."""
    k, v = call.kv.dense()
    T, parts = call.q.shape[2], []
    for r0 in range(0, T, ROWS):
        r1 = min(r0 + ROWS, T)
        s0, s1 = call.mask.span(r0, r1, k.shape[2])
        if torch.is_grad_enabled():
            part = checkpoint(_rows, call, call.q, k, v, r0, r1, s0, s1, use_reentrant=False)
        else:
            part = _rows(call, call.q, k, v, r0, r1, s0, s1)
        parts.append(part)
    return torch.cat(parts, 2)


def _rows(call: Call, q: Tensor, k: Tensor, v: Tensor, r0: int, r1: int, s0: int,
          s1: int) -> Tensor:
    """Queries r0..r1, which see keys s0..s1 at most: (B, H, R, Kv)."""
    B, H, T, _ = q.shape
    G, S = k.shape[1], k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    q = q[:, :, r0:r1].to(wide) * call.scale
    visible = (None if call.mask.trivial(T, S) else
               call.mask.rows(r0, r1, T, S, k.device, slice(s0, s1)))
    bias = None if call.bias is None else call.bias.rows(call.q, k, r0, r1)
    most = q.new_full((B, H, r1 - r0, 1), torch.finfo(wide).min)
    total, out = torch.zeros_like(most), q.new_zeros(B, H, r1 - r0, v.shape[3])
    for at in range(s0, s1, KEYS):
        end = min(at + KEYS, s1)
        scores = _grouped(q, k[:, :, at:end].to(wide).transpose(2, 3), G)
        if call.cap is not None:
            scores = call.cap * torch.tanh(scores / call.cap)
        if bias is not None:
            scores = scores + bias[..., at:end]
        if visible is not None:
            scores = scores.masked_fill(~visible[..., at - s0 : end - s0], -torch.inf)
        higher = torch.maximum(most, scores.amax(-1, keepdim=True)).detach()
        weights, fade = (scores - higher).exp(), (most - higher).exp()
        total = total * fade + weights.sum(-1, keepdim=True)
        weights = F.dropout(weights, call.dropout)
        out = out * fade + _grouped(weights, v[:, :, at:end].to(wide), G)
        most = higher
    if call.sinks is not None:
        sinks = call.sinks[None, :, None, None].to(wide)
        higher = torch.maximum(most, sinks).detach()
        fade = (most - higher).exp()
        total, out = total * fade + (sinks - higher).exp(), out * fade
    seen = total > 0
    return torch.where(seen, out / torch.where(seen, total, 1.0), 0.0).to(v.dtype)


def _grouped(x: Tensor, y: Tensor, G: int) -> Tensor:
    """x (B, H, R, .) @ y (B, G, ., .): each of G's heads serves H / G of x's."""
    B, H, R, _ = x.shape
    return (x.reshape(B, G, H // G * R, -1) @ y).reshape(B, H, R, -1)

"""The Sparse Transformer's two patterns without the pairs they hide (Child et al., 1904.10509).

Each pattern is two small dense attentions, near and far, that share no pair and are joined by their
sums: about T * (2 * stride + T / stride) scores where dense attention has T * T.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A call is core.attend.Call; its pattern a Strided, or a Blocked, which has a summary.


def cannot(call) -> str | None:
    """The reason this kernel cannot run a call, or None."""
    mask, T = call.mask, call.q.shape[2]
    if len(mask.patterns) != 1 or not hasattr(mask.patterns[0], "stride"):
        return "its mask is not one strided or fixed pattern"
    others = (mask.window, mask.prefix, mask.everywhere, mask.padding, mask.slots)
    if mask.segments or any(x is not None for x in others):
        return "its mask hides more than the pattern does"
    if torch.is_tensor(mask.start) or mask.start or call.kv.dense()[0].shape[2] != T:
        return "there are keys of earlier calls"
    more = (call.bias, call.cap, call.sinks)
    return "it has no bias, soft cap, sinks or dropout" if call.dropout or any(
        x is not None for x in more) else None


def run(call) -> Tensor:
    """(B, H, T, Kv), as every kernel."""
    (k, v), (pattern,) = call.kv.dense(), call.mask.patterns
    B, H, T, _ = call.q.shape
    wide = torch.promote_types(call.q.dtype, torch.float32)
    parts = _fixed if hasattr(pattern, "summary") else _strided
    q, k, v = (x.to(wide).repeat_interleave(H // x.shape[1], 1) for x in (call.q, k, v))
    q, k, v = (F.pad(x, (0, 0, 0, -T % pattern.stride)).unflatten(2, (-1, pattern.stride))
               for x in (q * call.scale, k, v))  # (B, H, N, stride, K)
    (a, a_sum, a_top), (b, b_sum, b_top) = parts(q, k, v, pattern, call.mask.causal, T)
    top = torch.maximum(a_top, b_top)
    a_fade, b_fade = (a_top - top).exp(), (b_top - top).exp()
    total = (a_sum * a_fade + b_sum * b_fade).clamp(min=torch.finfo(wide).tiny)
    out = (a * a_fade + b * b_fade) / total
    return out.flatten(2, 3)[:, :, :T].to(call.q.dtype)


def _strided(q: Tensor, k: Tensor, v: Tensor, pattern, causal: bool, T: int):
    """Near: one's block and the one before (and after), less than a stride away. Far: the same
    place in other blocks."""
    N, s = q.shape[2:4]
    sides = (-1, 0) if causal else (-1, 0, 1)
    at = torch.arange(N * s, device=q.device).view(N, s)
    beside = torch.cat([at + side * s for side in sides], 1)[:, None]  # (N, 1, sides * s)
    seen = ((at[..., None] - beside).abs() < s) & (beside >= 0) & (beside < T)
    if causal:
        seen = seen & (beside <= at[..., None])
    keys, values = (torch.cat([_shifted(x, side) for side in sides], 3) for x in (k, v))
    near = _part(q, keys, values, seen)
    q, k, v = (x.transpose(2, 3) for x in (q, k, v))  # (B, H, stride, N, K)
    block = torch.arange(N, device=q.device)
    other = block[:, None] > block if causal else block[:, None] != block
    far = _part(q, k, v, other & (at.T[:, None] < T))
    return near, tuple(x.transpose(2, 3) for x in far)


def _fixed(q: Tensor, k: Tensor, v: Tensor, pattern, causal: bool, T: int):
    """Near: one's own block. Far: the last places of the other blocks."""
    N, s = q.shape[2:4]
    at = torch.arange(N * s, device=q.device).view(N, s)
    seen = at[:, None] < T
    near = _part(q, k, v, seen & (at[:, None] <= at[..., None]) if causal else
                 seen.expand(N, s, s))
    far = at[:, -pattern.summary :].flatten()  # (N * summary,)
    theirs, block = far // s, at // s
    other = theirs < block[..., None] if causal else theirs != block[..., None]
    k, v = (x[:, :, :, -pattern.summary :].flatten(2, 3)[:, :, None] for x in (k, v))
    return near, _part(q, k, v, other & (far < T))


def _part(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(scores - top) v, the sum of those exponentials, and top, a row's largest score."""
    scores = (q @ k.transpose(-1, -2)).masked_fill(~seen, torch.finfo(q.dtype).min)
    top = scores.amax(-1, keepdim=True).detach()
    weights = (scores - top).exp().masked_fill(~seen, 0.0)  # a row that sees nothing sums to 0
    return weights @ v, weights.sum(-1, keepdim=True), top


def _shifted(x: Tensor, side: int) -> Tensor:
    """Block n of x becomes what block n + side is; beyond the ends, zeros."""
    if side == 0:
        return x
    out = torch.zeros_like(x)
    if side < 0:
        out[:, :, 1:] = x[:, :, :-1]
    else:
        out[:, :, :-1] = x[:, :, 1:]
    return out

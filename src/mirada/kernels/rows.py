"""Attention that learns in bfloat16 on a processor: by rows, its gradient by products of batches.

The scores of some rows are made, used, forgotten, and made again in the backward pass, as in
FlashAttention (2205.14135). Each step is one product of all heads, which is what a processor's
bfloat16 units are fast at: up to twice as fast as torch's own kernel, forward and backward. The
price: scores are rounded to the dtype of q before the softmax, as where attention is written out
under autocast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 128  # queries at a time: measured, 64 and 256 are slower

# A call is core.attend.Call.


def cannot(call) -> str | None:
    """The reason this kernel cannot run a call, or None."""
    if any(x is not None for x in (call.bias, call.cap, call.sinks)):
        return "it has no bias, soft cap or sinks"
    if call.q.device.type != "cpu" or call.q.dtype != torch.bfloat16 or type(call.q) is not Tensor:
        return "it is for bfloat16 on a processor"
    if not (torch.is_grad_enabled() and call.q.requires_grad):
        return "it is for training"
    return None


def run(call) -> Tensor:
    """(B, H, T, Kv), as every kernel."""
    k, v = (x.repeat_interleave(call.q.shape[1] // x.shape[1], 1) for x in call.kv.dense())
    return _Rows.apply(call.q, k, v, call.scale, list(_blocks(call, k.shape[2])), call.dropout)


def _blocks(call, S: int):
    """(r0, r1, s0, s1, hidden, blind) of each block of rows: its queries, the keys they may see,
    what is added to the last of their scores (0 or the lowest number), and which rows see none."""
    q, T = call.q, call.q.shape[2]
    lowest = torch.finfo(q.dtype).min  # not -inf: a row that sees nothing must not become NaN
    causal = call.mask.only_causal(T, S)
    visible = None if causal else call.mask.dense(T, S, q.device)
    triangle = q.new_full((min(ROWS, T),) * 2, lowest).triu(1) if causal else None
    for r0 in range(0, T, ROWS):
        r1 = min(r0 + ROWS, T)
        s0, s1 = call.mask.span(r0, r1, S)
        hidden = None if triangle is None else triangle[: r1 - r0, : r1 - r0]
        blind = None
        if visible is not None:
            seen = visible[:, :, r0:r1, s0:s1]
            hidden = q.new_zeros(seen.shape).masked_fill_(~seen, lowest)
            none = ~seen.any(-1, keepdim=True)
            blind = none if bool(none.any()) else None
        yield r0, r1, s0, s1, hidden, blind


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, scale, blocks, rate):
        q, k, v = (q * scale).contiguous(), k.contiguous(), v.contiguous()
        out = q.new_empty(*q.shape[:3], v.shape[3])
        kept = []  # which weights of each block dropout leaves
        for block in blocks:
            r0, r1, s0, s1 = block[:4]
            p = _weights(q, k, *block)
            if rate:
                kept.append(torch.empty_like(p, dtype=torch.bool).bernoulli_(1 - rate))
                p.mul_(kept[-1])
            out[:, :, r0:r1] = p @ v[:, :, s0:s1]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.blocks, ctx.more = scale, blocks, 1 / (1 - rate)
        return out.mul_(ctx.more) if rate else out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, *kept = ctx.saved_tensors
        grad = grad.contiguous() if ctx.more == 1 else grad * ctx.more
        wide = torch.promote_types(q.dtype, torch.float32)
        dq, dk, dv = torch.empty_like(q), *(torch.zeros_like(x, dtype=wide) for x in (k, v))
        for n, block in enumerate(ctx.blocks):
            r0, r1, s0, s1 = block[:4]
            g, p = grad[:, :, r0:r1], _weights(q, k, *block)
            left = p * kept[n] if kept else p
            dv[:, :, s0:s1] += left.mT @ g
            dp = g @ v[:, :, s0:s1].mT
            dp = dp.mul_(kept[n]) if kept else dp
            ds = torch._softmax_backward_data(dp, p, -1, p.dtype)  # p (dp - sum of p dp)
            torch.mul(ds @ k[:, :, s0:s1], ctx.scale, out=dq[:, :, r0:r1])
            dk[:, :, s0:s1] += ds.mT @ q[:, :, r0:r1]
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _weights(q: Tensor, k: Tensor, r0, r1, s0, s1, hidden, blind) -> Tensor:
    """(B, H, r1 - r0, s1 - s0); q is scaled."""
    scores = q[:, :, r0:r1] @ k[:, :, s0:s1].mT
    if hidden is not None:
        scores[..., -hidden.shape[-1] :] += hidden
    p = scores.softmax(-1)
    return p if blind is None else p.masked_fill_(blind, 0.0)

"""The one place that names attention kernels: which there are, what each can do, who goes first.

A kernel is a function with a predicate; the first capable one in PREFERENCE runs. `Attend.weights`
is the one exact function that the recorder and every check use.
Layout: q (B, H, T, K), k (B, G, S, K), v (B, G, S, Kv), with H a multiple of G (grouped heads).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.errors import MiradaError
from mirada.kernels import rows, sparse

from .cache import KV
from .mask import Mask
from .tiled import tiled


@dataclass(frozen=True, eq=False)
class Call:
    """One call of attention, complete: what a kernel computes from and a recorder keeps."""

    q: Tensor
    kv: KV
    scale: float
    mask: Mask
    bias: Any | None = None  # a value with rows(q, k, r0, r1) and dense(q, k)
    cap: float | None = None  # scores -> cap * tanh(scores / cap) (Gemma 2)
    sinks: Tensor | None = None  # (H,) logits that take weight and give nothing
    dropout: float = 0.0


_pinned: ContextVar[str | None] = ContextVar("kernel", default=None)


@contextmanager
def kernel(name: str):
    """Within this context every attention runs the named kernel, or raises if it cannot."""
    if name not in KERNELS:
        raise MiradaError(f"no attention kernel is called {name!r}; there are {', '.join(KERNELS)}")
    token = _pinned.set(name)
    try:
        yield
    finally:
        _pinned.reset(token)


def pinned() -> str | None:
    """The name of the kernel that this context asks for."""
    return _pinned.get()


class Attend(nn.Module):
    """softmax(scale * q k^T + bias, masked) v: eq. 1 of Vaswani et al., 1706.03762."""

    def __init__(self):
        super().__init__()
        self.dropout = 0.0

    def forward(self, q, kv, *, scale, mask, bias=None, cap=None, sinks=None) -> Tensor:
        """(B, H, T, Kv). kv: a KV value; a query that sees no key at all gets zeros."""
        dropout = self.dropout if self.training else 0.0
        call = Call(q, kv, scale, mask, bias, cap, sinks, dropout)
        return KERNELS[choose(call)].run(call)

    @staticmethod
    def weights(call: Call, rows: tuple[int, int] | None = None) -> Tensor:
        """The attention weights of rows r0..r1 (all when None): (B, H, R, S), each row sums to 1,
        or to 0 where nothing is visible; with sinks, to 1 less what the sink took."""
        k, _ = call.kv.dense()
        T, S = call.q.shape[2], k.shape[2]
        r0, r1 = rows or (0, T)
        scores = _grouped(call.q[:, :, r0:r1], k.transpose(2, 3)) * call.scale  # (B, H, R, S)
        if call.cap is not None:
            scores = call.cap * torch.tanh(scores / call.cap)
        if call.bias is not None:
            scores = scores + call.bias.rows(call.q, k, r0, r1)
        return _softmax(scores, _block(call.mask, r0, r1, T, S, k.device), call.sinks)


def choose(call: Call) -> str:
    """The name of the kernel that runs this call."""
    pinned = _pinned.get()
    if pinned is not None:
        reason = KERNELS[pinned].cannot(call)
        if reason:
            raise MiradaError(f"the kernel {pinned!r} cannot run this attention: {reason}")
        return pinned
    name = next(name for name in PREFERENCE if not KERNELS[name].cannot(call))
    T, S = call.q.shape[2], call.kv.k.shape[2]
    if T * S <= LARGEST or name == "sparse":
        return name
    plain = call.bias is None and (call.mask.trivial(T, S) or call.mask.only_causal(T, S))
    return name if plain and name in ("rows", "sdpa") else "tiled"


def _block(mask: Mask, r0: int, r1: int, T: int, S: int, device) -> Tensor | None:
    if (r0, r1) == (0, T):
        return mask.dense(T, S, device)
    return None if mask.trivial(T, S) else mask.rows(r0, r1, T, S, device)


def _softmax(scores: Tensor, visible: Tensor | None, sinks: Tensor | None) -> Tensor:
    if visible is not None:  # finfo.min, not -inf: a row that sees nothing must not become NaN
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, sink.to(scores.dtype)], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    return weights if visible is None else weights.masked_fill(~visible, 0.0)


def _grouped(x: Tensor, y: Tensor) -> Tensor:
    """x (B, H, ., .) @ y (B, G, ., .): each of G's heads serves H / G of x's, without a copy."""
    B, H, G = x.shape[0], x.shape[1], y.shape[1]
    if H == G:
        return x @ y
    return (x.reshape(B, G, H // G, *x.shape[2:]) @ y[:, :, None]).flatten(1, 2)


def _exact(call: Call) -> Tensor:
    weights = F.dropout(Attend.weights(call), call.dropout)
    return _grouped(weights, call.kv.dense()[1])


def _sdpa(call: Call) -> Tensor:
    k, v = call.kv.dense()
    T, S, H = call.q.shape[2], k.shape[2], call.q.shape[1]
    causal = call.bias is None and call.mask.only_causal(T, S)
    allowed = None if causal else call.mask.dense(T, S, k.device)
    if call.bias is not None:
        bias = call.bias.dense(call.q, k).to(call.q.dtype)
        allowed = bias if allowed is None else bias.masked_fill(~allowed, float("-inf"))
    return F.scaled_dot_product_attention(
        call.q, k, v, attn_mask=allowed, dropout_p=call.dropout, is_causal=causal,
        scale=call.scale, enable_gqa=H != k.shape[1],
    )


def _sdpa_cannot(call: Call) -> str | None:
    if call.cap is not None:
        return "it has no soft cap"
    return "it has no sinks" if call.sinks is not None else None


@dataclass(frozen=True)
class Kernel:
    """run(call) -> (B, H, T, Kv); cannot(call) -> the reason it cannot, or None."""

    run: Callable[[Call], Tensor]
    cannot: Callable[[Call], str | None]


KERNELS: dict[str, Kernel] = {
    "sdpa": Kernel(_sdpa, _sdpa_cannot),
    "exact": Kernel(_exact, lambda call: None),
    "tiled": Kernel(tiled, lambda call: None),
    "sparse": Kernel(sparse.run, sparse.cannot),
    "rows": Kernel(rows.run, rows.cannot),
}
PREFERENCE = ["sparse", "rows", "sdpa", "exact"]  # speed
LARGEST = 1 << 24  # pairs of a query and a key for which a dense mask is still built

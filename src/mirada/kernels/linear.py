"""Attention in time that grows with the length alone: FAVOR+, the positive orthogonal random
features of Performer (Choromanski et al., 2009.14794).

exp(q . k) is the mean of phi_w(q) phi_w(k) over random vectors w. With m of them drawn, the sum
over keys of phi(k) v is taken once for all queries: n * m products of vectors, not n * n.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 128  # tokens whose looks at each other are taken as a square; between chunks go sums


def draw(count: int, width: int, generator: torch.Generator, orthogonal: bool = True) -> Tensor:
    """(count, width) float64, each row from N(0, I); orthogonal: at right angles to the others of
    its block of `width` rows, which lowers the error and leaves the mean (section 2.4)."""
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64)
    if not orthogonal:
        return rows
    blocks = torch.randn(-(-count // width), width, width, generator=generator,
                         dtype=torch.float64)
    turns, r = torch.linalg.qr(blocks)
    turns = turns * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # else not every turn is as likely
    return turns.mT.flatten(0, 1)[:count] * rows.norm(dim=1, keepdim=True)


def positive(x: Tensor, w: Tensor, query: bool = False) -> Tensor:
    """(..., T, m): exp(w . x - |x|^2 / 2), lemma 1 but for the 1 / sqrt(m).

    query: rows are divided by their largest, which normalising takes away. Keys are not, so that
    none changes what is made of another: a key longer than about 17 in float32 counts as little as
    that type can say.
    """
    logs = x @ w.mT
    if query:
        return (logs - logs.amax(-1, keepdim=True).detach()).exp()
    least = math.log(torch.finfo(x.dtype).tiny)
    return (logs - x.square().sum(-1, keepdim=True) / 2).clamp(least, -0.7 * least).exp()


def trigonometric(x: Tensor, w: Tensor, query: bool = False) -> Tensor:
    """(..., T, 2m): exp(|x|^2 / 2) cos(w . x) and with sin, eq. 4 but for the 1 / sqrt(m). To be
    compared with: its weights can be negative, and their sum near nothing."""
    angles = x @ w.mT
    turned = torch.cat([angles.cos(), angles.sin()], -1)
    if query:
        return turned
    most = -0.7 * math.log(torch.finfo(x.dtype).tiny)
    return turned * (x.square().sum(-1, keepdim=True) / 2).clamp(max=most).exp()


FEATURES = {"positive": positive, "trigonometric": trigonometric}


def linear(q: Tensor, k: Tensor, v: Tensor, causal: bool, real: Tensor | None = None) -> Tensor:
    """(B, H, T, Kv): the mean of v weighed by q . k, of features q (B, H, T, M), k (B, G, S, M).

    causal: query t sees the keys up to S - T + t. real: (B, S) bool, False for keys that nobody
    sees. A query that sees none gets zeros.
    """
    k = k if real is None else k * real[:, None, :, None]
    v = torch.cat([v, v.new_ones(*v.shape[:3], 1)], -1)  # the last column sums the weights
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    out = before(q, k, v) if causal else q @ (k.mT @ v)
    total = out[..., -1:]
    return out[..., :-1] / total.masked_fill(total == 0, 1.0)


def before(q: Tensor, k: Tensor, v: Tensor, chunk: int = CHUNK) -> Tensor:
    """(B, H, T, C): what each query weighs of the keys at or before it; k and v (B, H, S, .) begin
    S - T places earlier. Prefix sums (section 2.5.1), by chunks: no later key changes a bit."""
    T, past = q.shape[2], k.shape[2] - q.shape[2]
    held = k[:, :, :past].mT @ v[:, :, :past]  # (B, H, M, C)
    size = min(chunk, T)
    q, k, v = (F.pad(x, (0, 0, 0, -T % size)).unflatten(2, (-1, size))
               for x in (q, k[:, :, past:], v[:, :, past:]))  # (B, H, N, size, .)
    each = k.mT @ v  # (B, H, N, M, C)
    sums = torch.cat([held[:, :, None], each[:, :, :-1]], 2).cumsum(2)
    out = q @ sums + (q @ k.mT).tril() @ v
    return out.flatten(2, 3)[:, :, :T]

"""Relative positions as score biases: values that give any block of rows, dense last.

A bias module's forward(ctx, mask) returns a `Bias`; its `rows(q, k, qi, ki)` computes the block of
queries with indices qi (R,) or (B, R) against keys with indices ki (S,) or (B, S).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.errors import MiradaError

from .attend import Attend, Call
from .attention import split
from .mask import Mask
from .position import sinusoid


@dataclass(frozen=True, eq=False)
class Bias:
    """What is added to the scores of one call, not yet computed."""

    of: nn.Module
    mask: Mask  # the geometry: which index each query and key has

    def rows(self, q: Tensor, k: Tensor, r0: int, r1: int) -> Tensor:
        """(1 or B, H, r1 - r0, S). q: all T queries."""
        qi = self.mask.queries(q.shape[2], q.device)[..., r0:r1]
        return self.of.rows(q[:, :, r0:r1], k, qi, self.mask.keys(k.shape[2], k.device))

    def dense(self, q: Tensor, k: Tensor) -> Tensor:
        """(1 or B, H, T, S). A bias that reads no content is built once a pass."""
        T, S = q.shape[2], k.shape[2]
        if not self.of.fixed:
            return self.rows(q, k, 0, T)
        memo, where = self.mask.memo, (id(self.mask.start), id(self.mask.slots))
        key = (id(self.of), T, S, q.dtype, *where)
        if key not in memo:
            memo[key] = (self.rows(q, k, 0, T), self.mask)
        return memo[key][0]


class ScoreBias(nn.Module):
    """A filled score_bias seam. fixed: depends on indices only, not on q and k."""

    fixed = True

    def forward(self, ctx, mask: Mask) -> Bias:
        return Bias(self, mask)


def _distance(qi: Tensor, ki: Tensor) -> Tensor:
    """Key minus query: (1 or B, 1, R, S)."""
    return ki.reshape(-1, 1, 1, ki.shape[-1]) - qi.reshape(-1, 1, qi.shape[-1], 1)


class Alibi(ScoreBias):
    """-slope * distance, one slope a head (Press et al., 2108.12409). Any number of heads."""

    def __init__(self, heads: int, steepest: float = 8.0):
        super().__init__()
        power = 2 ** math.floor(math.log2(heads))
        first = [2 ** (-steepest * i / power) for i in range(1, power + 1)]
        between = [2 ** (-steepest * i / (2 * power)) for i in range(1, 2 * power, 2)]
        self.slopes = (first + between)[:heads]

    def rows(self, q: Tensor, k: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
        slopes = q.new_tensor(self.slopes)[:, None, None]  # (H, 1, 1)
        return -slopes * _distance(qi, ki).abs()


class Buckets(ScoreBias):
    """A learned value per head and bucket of distance (Raffel et al., 1910.10683, section 2.1).

    Near distances have a bucket each, far ones share by logarithm up to `farthest`.
    Its module is shared by a stack's layers, so the table has one name and is built once a pass.
    """

    def __init__(self, heads: int, buckets=32, farthest=128, both_ways=True):
        super().__init__()
        near = buckets // (4 if both_ways else 2)
        if near < 1 or farthest <= near:
            raise MiradaError(f"{buckets} buckets give the nearest {near} distances one each, and "
                              f"the others share up to {farthest}: that must lie farther")
        self.table = nn.Embedding(buckets, heads)
        self.buckets, self.farthest, self.both_ways = buckets, farthest, both_ways

    def bucket(self, distance: Tensor) -> Tensor:
        """Key minus query -> bucket."""
        count, first = self.buckets, torch.zeros_like(distance)
        if self.both_ways:
            count //= 2
            first = (distance > 0) * count
        far = distance.abs() if self.both_ways else (-distance).clamp(min=0)
        near = count // 2
        log = (far.float().clamp(min=1) / near).log() / math.log(self.farthest / near)
        log = near + (log * (count - near)).long()
        return first + torch.where(far < near, far, log.clamp(max=count - 1))

    def rows(self, q: Tensor, k: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
        buckets = self.bucket(_distance(qi, ki))[:, 0]  # (b, R, S)
        return self.table(buckets).permute(0, 3, 1, 2)  # (b, H, R, S)


class Window2D(ScoreBias):
    """A learned value per head and 2-D offset in a window (Liu et al., Swin, 2103.14030)."""

    def __init__(self, window: tuple[int, int], heads: int):
        super().__init__()
        self.window = window
        height, width = window
        self.table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), heads))

    def rows(self, q: Tensor, k: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
        height, width = self.window
        down = _distance(ki // width, qi // width).transpose(2, 3)  # query row minus key row
        right = _distance(ki % width, qi % width).transpose(2, 3)
        index = (down + height - 1) * (2 * width - 1) + right + width - 1  # (b, 1, R, S)
        return self.table[index[:, 0]].permute(0, 3, 1, 2)  # (b, H, R, S)


class Places(nn.Embedding):
    """A vector of width D for each of `count` relative positions, normed or not."""

    def __init__(self, count: int, d: int, norm: nn.Module | None = None):
        super().__init__(count, d)
        self.norm = norm or nn.Identity()

    def forward(self) -> Tensor:
        return self.norm(self.weight)  # (count, D)


class Disentangled(ScoreBias):
    """Content-to-position and position-to-content terms (He et al., 2006.03654, eq. 4).

    table: Places, one for each distance query - key from -span to span - 1 (farther ones share the
    last), shared by the layers. key, query: projections of them, or None where that term is off;
    pass the attention's own to share them. scale: the attention's. buckets: 0, or how many the
    distances up to `farthest` fall into, half of them by logarithm (2111.09543).
    differs: the paper's third term takes delta(j, i); its authors' code, and this, delta(i, j).
    Memory: B * H * T numbers a term for each place that a text reaches, at most 2 span.
    """

    fixed = False

    def __init__(self, table: Places, heads: int, scale: float, *, key=None, query=None,
                 buckets=0, farthest=0):
        super().__init__()
        near = buckets // 2
        if buckets and not 1 <= near < farthest - 1:
            raise MiradaError(f"{buckets} buckets give the nearest {near} distances one each, and "
                              f"the others share up to {farthest}: that must lie farther")
        self.table, self.key, self.query = table, key, query
        self.heads, self.span, self.scale = heads, table.num_embeddings // 2, scale
        self.buckets, self.farthest = buckets, farthest

    def index(self, qi: Tensor, ki: Tensor) -> Tensor:
        """Row of the table for each pair, delta(i, j): (1 or B, 1, R, S)."""
        distance = -_distance(qi, ki)  # query minus key
        if self.buckets:
            near, size = self.buckets // 2, distance.abs()
            log = (size.clamp(min=near).float() / near).log()  # both of one width: at the farthest
            log = log / log.new_tensor((self.farthest - 1) / near).log()  # exactly 1
            far = ((log * (near - 1)).ceil().long() + near) * distance.sign()
            distance = torch.where(size < near, distance, far)
        return (distance + self.span).clamp(0, 2 * self.span - 1)

    def rows(self, q: Tensor, k: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
        where, index = _reached(self.table(), self.index(qi, ki))
        index, total = index.expand(len(q), self.heads, -1, -1), q.new_zeros(())
        if self.key is not None:
            c2p = q @ split(self.key(where)[None], self.heads).transpose(2, 3)  # (B, H, R, rows)
            total = total + c2p.gather(3, index)
        if self.query is not None:
            p2c = k @ split(self.query(where)[None], self.heads).transpose(2, 3)  # (B, H, S, rows)
            total = total + p2c.gather(3, index.transpose(2, 3)).transpose(2, 3)
        return total * self.scale


def _reached(table: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:  # speed
    """The rows of a table that are read, and the index among those: a short text reads few."""
    if index.device.type != "cpu":  # to ask would make the device wait
        return table, index
    low, high = int(index.min()), int(index.max())
    return table[low : high + 1], index - low


class Shaw(ScoreBias):
    """q . a[clip(distance)]: the key half of Shaw et al., 1803.02155, eq. 4."""

    fixed = False

    def __init__(self, head_dim: int, clip: int, scale: float):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2 * clip + 1, head_dim))
        self.clip, self.scale = clip, scale

    def rows(self, q: Tensor, k: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
        index = _distance(qi, ki).clamp(-self.clip, self.clip) + self.clip
        return (q @ self.table.T).gather(3, index.expand(*q.shape[:2], -1, -1)) * self.scale


class ShawAttend(Attend):
    """The value half of Shaw et al., eq. 3: each weight also brings a vector of its distance.

    It needs the weights themselves, so it always runs the exact form.
    """

    def __init__(self, head_dim: int, clip: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(2 * clip + 1, head_dim))
        self.clip = clip

    def forward(self, q, kv, *, scale, mask, bias=None, cap=None, sinks=None) -> Tensor:
        weights = self.weights(Call(q, kv, scale, mask, bias, cap, sinks))  # (B, H, T, S)
        weights = F.dropout(weights, self.dropout, self.training)
        v = kv.dense()[1]
        index = _distance(mask.queries(q.shape[2], q.device), mask.keys(v.shape[2], v.device))
        index = (index.clamp(-self.clip, self.clip) + self.clip).expand(*q.shape[:2], -1, -1)
        by_distance = weights.new_zeros(*weights.shape[:3], len(self.table))
        by_distance = by_distance.scatter_add(3, index, weights)
        return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1) + by_distance @ self.table


class Recurrent(ScoreBias):
    """Transformer-XL's terms b, c and d: (q + v) . r(distance) + u . k (Dai et al., 1901.02860).

    Distances are sinusoids through a projection of this layer; u and v are its learned vectors.
    """

    fixed = False

    def __init__(self, d: int, heads: int, head_dim: int, scale: float):
        super().__init__()
        self.d, self.heads, self.scale = d, heads, scale
        self.r = nn.Linear(d, heads * head_dim, bias=False)
        self.u = nn.Parameter(torch.zeros(heads, head_dim))
        self.v = nn.Parameter(torch.zeros(heads, head_dim))

    def rows(self, q: Tensor, k: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
        distance = -_distance(qi, ki)  # query minus key
        low, high = int(distance.min()), int(distance.max())
        steps = torch.arange(low, high + 1, device=q.device)
        r = split(self.r(sinusoid(steps, self.d, halves=True, dtype=q.dtype))[None], self.heads)
        by_distance = (q + self.v[:, None]) @ r.transpose(2, 3)  # (B, H, R, high - low + 1)
        index = (distance - low).expand(*q.shape[:2], -1, -1)
        content = self.u[:, None] @ k.transpose(2, 3)  # (B, H, 1, S)
        return (by_distance.gather(3, index) + content) * self.scale

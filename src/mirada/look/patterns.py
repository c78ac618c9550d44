"""Patterns made from what a tape kept: exact weights of the rows and heads that are asked for, in
float32 or wider, in tiles, and a score taken apart."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mirada.core.attend import Attend, Call
from mirada.core.attention import Attention
from mirada.core.bias import Bias
from mirada.core.cache import KV
from mirada.core.context import Ctx
from mirada.core.mask import Mask
from mirada.errors import MiradaError

CELLS = 1 << 22  # weights computed at a time: 16 MB in float32, and a few times that on the way
MOST_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Taken:
    """One call of one attention, as kept: q (B, H, T, K), the new keys (B, G, T', K).

    x and ctx: what the attention read, in place of q and k under keep="resid".
    """

    q: Tensor | None
    k: Tensor | None
    x: Tensor | None
    ctx: Ctx | None
    length: int  # T
    grows: bool  # the keys join those of earlier calls (a cache), else they are all there are
    scale: float
    mask: Mask
    bias: Bias | None
    cap: float | None
    sinks: Tensor | None
    v: Tensor | None  # new values, where they were asked for
    error: float  # largest difference of weights . values from the kernel's output


@dataclass(frozen=True)
class Terms:
    """One score taken apart: (q . k) * scale, through the cap, + bias; hidden where not seen."""

    q: Tensor  # (K,) as enters the kernel: normed and rotated
    k: Tensor  # (K,) of the head's group
    scale: float
    bias: float
    cap: float | None
    seen: bool  # False: the mask hides this key, whatever the score
    weight: float

    @property
    def products(self) -> Tensor:
        """(K,) each channel's part of the score."""
        return self.q.double() * self.k.double() * self.scale

    @property
    def score(self) -> float:
        """What the softmax is given."""
        dot = self.products.sum()
        if self.cap is not None:
            dot = self.cap * torch.tanh(dot / self.cap)
        return dot.item() + self.bias if self.seen else float("-inf")

    def data(self) -> dict:
        """For programs."""
        numbers = {name: getattr(self, name).tolist() for name in ("q", "k", "products")}
        return {**vars(self), **numbers, "score": self.score}


def value_lengths(attention: Attention, v: Tensor, heads: list[int]) -> Tensor:
    """(B, H, S): ||v W_o|| of each head's values, v (B, G, S, Kv)."""
    group, Kv = attention.heads // v.shape[1], v.shape[3]
    wide = torch.promote_types(v.dtype, torch.float32)
    lengths = []
    for head in heads:
        part = v.new_zeros(*v.shape[:1], v.shape[2], attention.heads * Kv)  # (B, S, H * Kv)
        part[..., head * Kv : (head + 1) * Kv] = v[:, head // group]
        with torch.no_grad():  # through the module, which may be quantized; less its bias
            brought = attention.o(part) - attention.o(part.new_zeros(1, 1, part.shape[2]))
        lengths.append(brought.to(wide).norm(dim=-1))
    return torch.stack(lengths, 1)


def one_batch(rows: Iterable[int]) -> None:
    """Raises MiradaError where the steps of a generation have different rows."""
    if len(set(rows)) > 1:
        raise MiradaError("rows were copied between the steps of this generation, so they have no "
                          "pattern of their own: record without num_beams and "
                          "num_return_sequences")


def calls_before(calls: list[Taken], start: int) -> list[Taken]:
    """The calls of a cached run up to its first `start` queries."""
    kept = []
    for call, at in starts(calls):
        n = start - at
        if n >= call.length:
            kept.append(call)
        elif n > 0:
            kept.append(_shortened(call, n))
    return kept


def _shortened(t: Taken, n: int) -> Taken:
    if t.q is None:
        positions = t.ctx.positions
        ctx = replace(t.ctx, positions=None if positions is None else positions[:, :n])
        return replace(t, x=t.x[:, :n], ctx=ctx, length=n, v=_cut(t.v, n, t.grows))
    return replace(t, q=t.q[:, :, :n], k=_cut(t.k, n, t.grows), v=_cut(t.v, n, t.grows), length=n)


def _cut(keys: Tensor | None, n: int, grows: bool) -> Tensor | None:
    return keys[:, :, :n] if grows and keys is not None else keys


def starts(calls: list[Taken]) -> Iterator[tuple[Taken, int]]:
    at = 0
    for call in calls:
        yield call, at
        at += call.length


class Reading:
    """Queries and keys of one layer's chosen heads, in float32 or wider, from which rows of its
    pattern are made."""

    def __init__(self, taken: list[Taken], each: list[tuple[Tensor, Tensor]], heads: list[int],
                 attend: Attend):
        if taken[0].grows and first(taken[0]):
            raise MiradaError(f"the recording began when {first(taken[0])} tokens were already in "
                              "the cache: begin it with the prompt; of texts that an engine writes "
                              "in turns, record one alone")
        one_batch(len(q) for q, _ in each)
        self.taken, self.heads, self.attend = taken, heads, attend
        self.q = [q for q, _ in each]
        grown = taken[0].grows and len(taken) > 1
        self.k = torch.cat([k for _, k in each], 2) if grown else each[0][1]
        wide = torch.promote_types(self.k.dtype, torch.float32)
        H, G = self.q[0].shape[1], self.k.shape[1]
        some = heads != list(range(H))
        group = [h // (H // G) for h in heads] if some else slice(None)
        self.some_q = [(q[:, heads] if some else q).to(wide).contiguous() for q in self.q]
        self.some_k = self.k[:, group].to(wide).contiguous()

    def rows(self, rows=None) -> Tensor:
        """(B, H, R, S) of some queries, all when None."""
        total, S = sum(t.length for t in self.taken), self.k.shape[2]
        wanted = listed(rows, total, "row")
        out = self.some_k.new_zeros(len(self.k), len(self.heads), len(wanted), S)
        for n, (t, at) in enumerate(starts(self.taken)):
            here = [(n, r - at) for n, r in enumerate(wanted) if at <= r < at + t.length]
            for place, r0, r1 in stretches(here):
                made = self._made(n, r0, r1)
                out[:, :, place : place + r1 - r0, : made.shape[3]] = made
        return out

    def calls(self) -> Iterator[tuple[int, Call]]:
        """(first row, call) of each call, whole as it entered the kernel, all heads."""
        for n, (t, at) in enumerate(starts(self.taken)):
            S = first(t) + t.length if t.grows else self.k.shape[2]
            yield at, self._call(t, self.q[n], self.k[:, :, :S])

    def terms(self, i: int, j: int, row: int) -> Terms:
        """The first chosen head's score of query i and key j in one row of the batch, taken apart.
        Raises MiradaError where the attention is no softmax of scores."""
        if not is_plain(self.attend):
            raise MiradaError("this attention is more than a softmax of scores, so there is no "
                              "score to take apart")
        head, weight = self.heads[0], self.rows(i)[row, 0, 0, j].item()
        n, t, at = next((n, t, i - before) for n, (t, before) in enumerate(starts(self.taken))
                        if i < before + t.length)
        S = first(t) + t.length if t.grows else self.k.shape[2]
        call, bias, seen = self._call(t, self.q[n], self.k[:, :, :S]), 0.0, False
        if j < S:
            if call.bias is not None:
                block = call.bias.rows(call.q, call.kv.k, at, at + 1)  # (1 or B, H, 1, S)
                bias = block[row % len(block), head, 0, j].item()
            allowed = call.mask.rows(at, at + 1, t.length, S, self.k.device)  # (1 or B, 1, 1, S)
            seen = bool(allowed[row % len(allowed), 0, 0, j])
        group = head // (call.q.shape[1] // self.k.shape[1])
        return Terms(call.q[row, head, at], self.k[row, group, j], t.scale, bias, t.cap, seen,
                     weight)

    def _made(self, n: int, r0: int, r1: int) -> Tensor:
        """Rows r0..r1 of call n, against the keys up to the last that they see."""
        t = self.taken[n]
        if not is_plain(self.attend):
            S = first(t) + t.length if t.grows else self.k.shape[2]
            return implied(self.attend, self._call(t, self.q[n], self.k[:, :, :S]))[
                :, self.heads, r0:r1]
        m = t.mask
        ends = m.causal and m.prefix is None and m.everywhere is None and not m.segments
        S = first(t) + (r1 if ends else t.length) if t.grows or ends else self.k.shape[2]
        call = self._call(t, self.q[n], self.k[:, :, :S])
        bias = None if t.bias is None else _SomeHeads(call.bias, call.q, call.kv.k, self.heads)
        k = self.some_k[:, :, :S]
        sinks = None if t.sinks is None else t.sinks[self.heads]
        return weights(replace(call, q=self.some_q[n], kv=KV(k, k), bias=bias, sinks=sinks), r0, r1)

    def _call(self, t: Taken, q: Tensor, k: Tensor) -> Call:
        mask = in_order(t.mask, k.shape[2])
        bias = None if t.bias is None else replace(t.bias, mask=mask)
        return Call(q, KV(k, k), t.scale, mask, bias, t.cap, t.sinks)


def together(cells: int) -> int:
    """How many rows are computed at a time, of so many weights each."""
    return max(1, min(MOST_ROWS, CELLS // cells))


@torch.no_grad()
def weights(call: Call, r0: int, r1: int) -> Tensor:
    """Rows r0..r1 of a call's weights, (B, H, R, S), in float32 or wider; tile by tile, so that
    what is in between stays small."""
    wide = torch.promote_types(call.q.dtype, torch.float32)
    if call.q.dtype != wide:
        bias = None if call.bias is None else _SomeHeads(call.bias, call.q, call.kv.k, slice(None))
        k = call.kv.k.to(wide)
        call = replace(call, q=call.q.to(wide), kv=KV(k, k), bias=bias)
    rows = together(call.q.shape[0] * call.q.shape[1] * call.kv.k.shape[2])
    tiles = [Attend.weights(call, (a, min(a + rows, r1))) for a in range(r0, r1, rows)]
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2)


@torch.no_grad()
def implied(attend: Attend, call: Call) -> Tensor:
    """(B, H, T, S) of an attention that has no matrix, or one that is not all it does: (i, j) is
    the factor with which value j enters output i, found by giving it unit values.

    It must be linear in its values, as all are: softmax attention gives its own weights so. Costs
    S / K passes of the kernel and holds the whole matrix.
    """
    B, G, S, K = call.kv.k.shape
    given = dict(scale=call.scale, mask=call.mask, bias=call.bias, cap=call.cap, sinks=call.sinks)
    none = call.kv.k.new_zeros(B, G, S, K)
    constant = attend(call.q, KV(call.kv.k, none), **given)  # what it brings besides values
    columns = []
    for at in range(0, S, K):
        unit = none.clone()
        width = min(K, S - at)
        unit[:, :, at : at + width, :width] = torch.eye(width, dtype=unit.dtype)
        columns.append((attend(call.q, KV(call.kv.k, unit), **given) - constant)[..., :width])
    return torch.cat(columns, 3)


def is_plain(attend: Attend) -> bool:
    """True where softmax weights over the keys are all that an attention does."""
    return type(attend).forward is Attend.forward


@dataclass(frozen=True, eq=False)
class _SomeHeads:
    """A bias value seen through a choice of heads, reading q and k in the model's own dtype."""

    bias: Bias
    q: Tensor
    k: Tensor
    heads: list[int] | slice

    def rows(self, q: Tensor, k: Tensor, r0: int, r1: int) -> Tensor:
        return self.bias.rows(self.q, self.k, r0, r1)[:, self.heads]


def in_order(mask: Mask, S: int) -> Mask:
    """The mask a cache gave, for the first S keys laid out by index instead of by slot."""
    padding, slots = mask.padding, mask.slots
    if slots is not None and padding is not None and slots.ndim == 1:
        # a rolling cache: what it dropped lies outside every window
        padding = torch.cat([padding.new_ones(len(padding), int(slots[0])), padding], 1)
    if padding is not None:
        padding = padding[:, :S]
    start = int(torch.as_tensor(mask.start).reshape(-1)[0])
    return replace(mask, start=start, slots=None, padding=padding, memo=UserDict())


def first(t: Taken) -> int:
    """Index of the call's first query among all keys of its run."""
    start = torch.as_tensor(t.mask.start).reshape(-1)
    if (start != start[0]).any():
        raise MiradaError("the rows of this cache have different lengths; an aligned pattern "
                          "needs rows of one length (pad on the left)")
    return int(start[0])


def listed(chosen, count: int, what: str) -> list[int]:
    if chosen is None:
        return list(range(count))
    if isinstance(chosen, slice):
        return list(range(count))[chosen]
    listed = [chosen] if isinstance(chosen, int) else list(chosen)
    for n in listed:
        if not -count <= n < count:
            raise MiradaError(f"{what} {n} does not exist: there are {count}")
    return [n % count for n in listed]


def stretches(pairs: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(place, row) pairs -> (place, first row, end row) of runs of consecutive rows."""
    begin = 0
    for n in range(1, len(pairs) + 1):
        if n == len(pairs) or pairs[n][1] != pairs[n - 1][1] + 1:
            yield pairs[begin][0], pairs[begin][1], pairs[n - 1][1] + 1
            begin = n

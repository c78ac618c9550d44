"""Which query may look at which key, as a value: structure reaches the kernel, dense comes last."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Strided:
    """The nearest `stride` places and every stride-th one (Child et al., 1904.10509, sec. 4.2)."""

    stride: int

    def __call__(self, q: Tensor, k: Tensor) -> Tensor:
        return ((q - k).abs() < self.stride) | ((q - k) % self.stride == 0)


@dataclass(frozen=True)
class Blocked:
    """One's own block of `stride` places and the last `summary` of each block, through which
    blocks hear of each other: the fixed pattern of Child et al., 1904.10509."""

    stride: int
    summary: int = 1

    def __call__(self, q: Tensor, k: Tensor) -> Tensor:
        return (q // self.stride == k // self.stride) | (
            k % self.stride >= self.stride - self.summary)


@dataclass(frozen=True)
class Random:
    """Each pair by a coin that shows True with chance `share`, and oneself (as in 2007.14062).

    The coin depends on the two places and the seed only, so that a pass in parts, with a cache or
    of a longer text tosses the same.
    """

    share: float
    seed: int = 0

    def __call__(self, q: Tensor, k: Tensor) -> Tensor:
        x = (q * 0x9E3779B1 ^ k * 0x85EBCA6B ^ self.seed * 0xC2B2AE35) & 0xFFFFFFFF
        for shift in (15, 13):  # two rounds of a 32-bit mixer, within 64 bits
            x = ((x ^ (x >> shift)) * 0x2C1B3C6D) & 0xFFFFFFFF
        return ((x ^ (x >> 16)) < self.share * 2**32) | (q == k)


@dataclass(frozen=True, eq=False)
class Mask:
    """A set of allowed (query, key) pairs. Fields are and-ed; `prefix` widens `causal`.

    causal: a query sees keys at or before it.
    window: a query sees keys closer than this many steps (both ways when not causal).
    prefix: (B,) or int: the first keys of each row, seen by every query (prefix LM).
    everywhere: (B, S) bool, keys that no window hides.
    padding: (B, S) bool, True where the key is real.
    segments: pairs of ids ((B, T), (B, S)); only equal ids meet (packed texts, shifted windows).
    patterns: Strided, Blocked or Random: sparse sets of pairs, by the two places alone.
    start: index of query 0 among the keys: an int, or (B,) when rows differ.
    slots: (S,) or (B, S): the index each key slot holds, -1 an empty slot; None: slot s holds s.
    memo: dense masks of this pass, so that layers that share a mask build it once.
    """

    causal: bool = False
    window: int | None = None
    prefix: Tensor | int | None = None
    everywhere: Tensor | None = None
    padding: Tensor | None = None
    segments: tuple[tuple[Tensor, Tensor], ...] = ()
    patterns: tuple[Strided | Blocked | Random, ...] = ()
    start: int | Tensor = 0
    slots: Tensor | None = None
    memo: UserDict = field(default_factory=UserDict, repr=False)  # no dict: FSDP walks those

    def __and__(self, other: Mask) -> Mask:
        """Both must allow. The left side's geometry and memo travel on."""
        windows = [w for w in (self.window, other.window) if w is not None]
        return replace(
            self,
            causal=self.causal or other.causal,
            window=min(windows, default=None),
            prefix=_one(self.prefix, other.prefix, "prefix"),
            everywhere=_one(self.everywhere, other.everywhere, "everywhere"),
            padding=_both(self.padding, other.padding),
            segments=self.segments + other.segments,
            patterns=self.patterns + other.patterns,
        )

    def queries(self, T: int, device=None) -> Tensor:
        """Index of each query among the keys: (T,) or (B, T)."""
        steps = torch.arange(T, device=device)
        if torch.is_tensor(self.start):  # a cache that holds nothing yet does not know the device
            return steps + self.start.to(device=device)[:, None]
        return steps + self.start

    def keys(self, S: int, device=None) -> Tensor:
        """Index that each key slot holds: (S,) or (B, S)."""
        if self.slots is None:
            return torch.arange(S, device=device)
        return self.slots.to(device=device)

    def trivial(self, T: int, S: int) -> bool:
        """True when every query is known to see every key, so that no mask need be built."""
        if self.padding is not None or self.slots is not None or self.segments or self.patterns:
            return False
        if torch.is_tensor(self.start):
            return not self.causal and self.window is None
        newest = self.start == S - 1 and T == 1  # a decoding step: all keys are its past
        near = self.window is None or max(S, self.start + T) <= self.window
        return near and (newest or not self.causal)

    def only_causal(self, T: int, S: int) -> bool:
        """True when the mask is exactly the lower triangle of a square."""
        square = self.causal and T == S and not torch.is_tensor(self.start) and self.start == 0
        near = self.window is None or self.window >= S
        others = (self.prefix, self.padding, self.slots)
        return (square and near and not self.segments and not self.patterns
                and all(o is None for o in others))

    def span(self, r0: int, r1: int, S: int) -> tuple[int, int]:
        """The keys s0..s1 outside of which queries r0..r1 see none, as far as structure tells."""
        if self.slots is not None or torch.is_tensor(self.start) or self.prefix is not None:
            return 0, S
        first, last = self.start + r0, self.start + r1 - 1
        near = self.window if self.everywhere is None else None
        low = 0 if near is None else max(0, first - near + 1)
        high = last + 1 if self.causal else S if near is None else last + near
        return low, min(S, high)

    def dense(self, T: int, S: int, device=None) -> Tensor | None:
        """(1 or B, 1, T, S) bool, or None when all is allowed. Built once a pass."""
        if self.trivial(T, S):
            return None
        values = (self.prefix, self.everywhere, self.padding, self.slots, self.start)
        ids = map(id, (*values, *sum(self.segments, ())))
        key = (T, S, self.causal, self.window, self.patterns, *ids)
        if key not in self.memo:  # the values travel along: an id means nothing once its owner died
            self.memo[key] = (self.rows(0, T, T, S, device), self)
        return self.memo[key][0]

    def rows(self, r0: int, r1: int, T: int, S: int, device=None, keys: slice = slice(None)
             ) -> Tensor:
        """Rows r0..r1 of the dense mask, of all keys or some: (1 or B, 1, r1 - r0, S) bool."""
        q = self.queries(T, device)[..., r0:r1]
        k = self.keys(S, device)[..., keys]
        q, k = q.reshape(-1, 1, q.shape[-1], 1), k.reshape(-1, 1, 1, k.shape[-1])
        ok = k >= 0
        if self.causal:
            ok = ok & _visible(q, k, self.prefix)
        if self.window is not None:
            near = (q - k).abs() < self.window
            ok = ok & (near if self.everywhere is None else
                       near | self.everywhere[:, None, None, keys])
        if self.padding is not None:
            ok = ok & self.padding[:, None, None, keys]
        for qs, ks in self.segments:
            ok = ok & (qs[:, None, r0:r1, None] == ks[:, None, None, keys])
        for pattern in self.patterns:
            ok = ok & pattern(q, k)
        return ok.expand(-1, -1, r1 - r0, -1)


def _visible(q: Tensor, k: Tensor, prefix: Tensor | int | None) -> Tensor:
    if prefix is None:
        return k <= q
    edge = prefix.reshape(-1, 1, 1, 1) if torch.is_tensor(prefix) else prefix
    return (k <= q) | (k < edge)


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a & b if a is not None and b is not None else (b if a is None else a)


def _one(a, b, name: str):
    if a is not None and b is not None and a is not b:
        raise ValueError(f"two masks both set {name}; put it in one of them")
    return b if a is None else a

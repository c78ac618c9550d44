"""Key/value caches of one attention layer. Keys are stored after rotation.

The protocol: `length` (B,), `update(k, v) -> KV`, `mask(mask, T)`, `crop(lengths)`,
`reorder(index)`. `mask` is asked before `update`: it places T new queries behind what is held.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mirada.errors import MiradaError

from .mask import Mask


@dataclass(frozen=True, eq=False)
class KV:
    """What attention looks at. k: (B, G, S, K); v: (B, G, S, Kv).

    new: the keys that entered at this call, (B, G, T, K): a recorder keeps these, never a buffer
    that later steps overwrite.
    """

    k: Tensor
    v: Tensor
    new: Tensor | None = None

    def dense(self) -> tuple[Tensor, Tensor]:
        """Plain tensors, for kernels that know no other form."""
        return self.k, self.v

    @property
    def fresh(self) -> Tensor:
        return self.k if self.new is None else self.new


class Held:
    """The keys and values of a layer's rows; None before the first came."""

    k: Tensor | None = None
    v: Tensor | None = None

    @property
    def held(self) -> int:
        """Places along the key axis."""
        return 0 if self.k is None else self.k.shape[2]

    def reorder(self, index: Tensor) -> None:
        """Row b becomes what row index[b] was; index may be longer than the batch (beams)."""
        if self.k is not None:
            self.k, self.v = self.k[index], self.v[index]


class Growing(Held):
    """Holds every key so far; each update returns new, longer tensors."""

    @property
    def length(self) -> Tensor:
        """(B,) keys held by each row."""
        rows = 0 if self.k is None else self.k.shape[0]
        return torch.full((rows,), self.held)

    def mask(self, mask: Mask, T: int) -> Mask:
        return replace(mask, start=self.held)

    def update(self, k: Tensor, v: Tensor) -> KV:
        if self.k is None:
            self.k, self.v = k, v
        else:
            self.k, self.v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
        return KV(self.k, self.v, k)

    def crop(self, lengths: Tensor | int) -> None:
        """Forget all but the first `lengths` keys, the same number in each row."""
        n = _equal(lengths)
        if not 0 <= n <= self.held:
            raise MiradaError(f"cannot crop to {n} keys: the cache holds {self.held}")
        if self.k is not None:
            self.k, self.v = self.k[:, :, :n], self.v[:, :, :n]


class Fixed(Held):
    """Cross-attention's: filled once a source, then only read; all of it stays visible."""

    def fill(self, k: Tensor, v: Tensor) -> KV:
        self.k, self.v = k, v
        return KV(k, v)

    def crop(self, lengths: Tensor | int) -> None:
        """The source does not shrink when the answer does."""


class Static(Held):
    """A buffer of fixed size, written in place; rows may hold different lengths.

    size: most keys a row can hold. Nothing is allocated after the first update.
    """

    def __init__(self, size: int):
        self.size, self.length = size, torch.zeros(0, dtype=torch.long)

    def mask(self, mask: Mask, T: int) -> Mask:
        slots = torch.arange(self.size)
        ends = (self.length if self.length.numel() else torch.zeros(1, dtype=torch.long)) + T
        slots = torch.where(slots < ends[:, None], slots, -1)  # (B, S); -1: not written yet
        device = None if self.k is None else self.k.device
        padding = mask.padding
        if padding is not None:  # the buffer is longer than what was written: unwritten are absent
            padding = torch.nn.functional.pad(padding, (0, self.size - padding.shape[1]))
        start = (ends - T).to(device)
        return replace(mask, start=start, slots=slots.to(device), padding=padding)

    def update(self, k: Tensor, v: Tensor) -> KV:
        B, T = k.shape[0], k.shape[2]
        if self.k is None:
            self.k = k.new_zeros(B, k.shape[1], self.size, k.shape[3])
            self.v = v.new_zeros(B, v.shape[1], self.size, v.shape[3])
            self.length = torch.zeros(B, dtype=torch.long)
        needed = int(self.length.max()) + T
        if needed > self.size:
            raise MiradaError(f"the cache has room for {self.size} keys and {needed} are needed: "
                             "make it larger or crop it")
        at = (self.length[:, None] + torch.arange(T)).to(k.device)[:, None, :, None]  # (B, 1, T, 1)
        self.k = self.k.scatter_(2, at.expand_as(k), k)
        self.v = self.v.scatter_(2, at.expand_as(v), v)
        self.length = self.length + T
        return KV(self.k, self.v, k)

    def crop(self, lengths: Tensor | int) -> None:
        """Forget all but the first `lengths` keys; rows may differ."""
        lengths = torch.as_tensor(lengths).expand_as(self.length)
        if ((lengths < 0) | (lengths > self.length)).any():
            raise MiradaError(f"cannot crop to {lengths.tolist()} keys: the rows hold "
                             f"{self.length.tolist()}")
        self.length = lengths.clone()

    def reorder(self, index: Tensor) -> None:
        super().reorder(index)
        if self.k is not None:
            self.length = self.length[index.cpu()]


class Rolling(Held):
    """Keeps the last `window - 1` keys and a margin, for sliding-window layers: O(window) memory.

    margin: how many of the newest tokens `crop` can take back.
    """

    def __init__(self, window: int, margin: int = 0):
        self.keep, self.margin = window - 1 + margin, margin
        self.seen = 0  # keys ever written; the buffer holds the last of them

    @property
    def length(self) -> Tensor:
        """(B,) keys ever written by each row."""
        return torch.full((0 if self.k is None else self.k.shape[0],), self.seen)

    def mask(self, mask: Mask, T: int) -> Mask:
        device = None if self.k is None else self.k.device
        first = self.seen - self.held
        slots = torch.arange(first, self.seen + T, device=device)
        padding = None if mask.padding is None else mask.padding[:, first:]
        return replace(mask, start=self.seen, slots=slots, padding=padding)

    def update(self, k: Tensor, v: Tensor) -> KV:
        all_k = k if self.k is None else torch.cat([self.k, k], 2)
        all_v = v if self.v is None else torch.cat([self.v, v], 2)
        self.seen += k.shape[2]
        drop = max(all_k.shape[2] - self.keep, 0)  # a slice would keep the dropped keys alive
        self.k = all_k[:, :, drop:].clone() if drop else all_k
        self.v = all_v[:, :, drop:].clone() if drop else all_v
        return KV(all_k, all_v, k)

    def crop(self, lengths: Tensor | int) -> None:
        """Take back the newest tokens, at most `margin` of them once older keys were dropped."""
        n = _equal(lengths)
        back = self.seen - n
        needed = self.keep - self.margin if self.seen > self.held else 0
        if back < 0 or self.held - back < needed:
            raise MiradaError(f"cannot crop {self.seen} keys to {n}: a rolling cache with margin "
                             f"{self.margin} has dropped what lies before")
        if back:
            self.k, self.v, self.seen = self.k[:, :, :-back], self.v[:, :, :-back], n


def _equal(lengths: Tensor | int) -> int:
    low, high = torch.as_tensor(lengths).aminmax()
    if low != high:
        raise MiradaError("this cache keeps rows of one length; Static takes rows that differ")
    return int(high)

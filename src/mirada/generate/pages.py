"""A paged key/value cache: blocks of one pool, given to rows as they grow (2309.06180)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from mirada.core.cache import KV
from mirada.core.mask import Mask


class Pages:
    """Whose turn it is and where they keep their keys: shared by the caches of all layers.

    blocks: how many the pool has; size: keys in a block. tables (B, n): the blocks of each row of
    this pass, in order, of which row b holds length[b] keys.
    """

    def __init__(self, blocks: int, size: int):
        self.blocks, self.size = blocks, size
        self.turn(torch.zeros(0, 0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 0)

    def turn(self, tables: Tensor, length: Tensor, new: int) -> None:
        """These rows come next, with `new` tokens each, for which their tables have room."""
        self.tables, self.length = tables, length
        slots = torch.arange(tables.shape[1] * self.size, device=tables.device)
        self.slots = torch.where(slots < (length + new)[:, None], slots, -1)  # (B, S)
        at = length[:, None] + torch.arange(new, device=tables.device)  # (B, T)
        self.block = tables.gather(1, at // self.size) if new else at
        self.within = at % self.size


class Paged:
    """One layer's keys and values in the pool of its Pages: (blocks, G, size, K)."""

    def __init__(self, pages: Pages):
        self.pages = pages
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    @property
    def length(self) -> Tensor:
        return self.pages.length

    @property
    def tables(self) -> Tensor:
        """(B, n): the blocks of this pass's rows."""
        return self.pages.tables

    @property
    def held(self) -> Tensor:
        """(B, m): those of them that hold keys already, by which a recording knows the rows."""
        return self.pages.tables[:, : -(-int(self.pages.length.max()) // self.pages.size)]

    def mask(self, mask: Mask, T: int) -> Mask:
        return replace(mask, start=self.pages.length, slots=self.pages.slots)

    def update(self, k: Tensor, v: Tensor) -> KV:
        p = self.pages
        if self.k is None:
            self.k = k.new_zeros(p.blocks, k.shape[1], p.size, k.shape[3])
            self.v = v.new_zeros(p.blocks, v.shape[1], p.size, v.shape[3])
        for pool, new in ((self.k, k), (self.v, v)):
            pool[p.block, :, p.within] = new.transpose(1, 2)
        return KV(self._rows(self.k), self._rows(self.v), k)

    def _rows(self, pool: Tensor) -> Tensor:
        """(B, G, n * size, K): each row's blocks, one behind the other."""
        return pool[self.pages.tables].transpose(1, 2).flatten(2, 3)

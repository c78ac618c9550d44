"""The native runtime's cache, as a search sees it: rows that grow together in pages of a pool."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from mirada.errors import MiradaError


class Rows:
    """A batch of sequences that grow together, as a search feeds them: tables, pages, copies.

    length (B,): tokens that each row holds. Copies of a row share its pages; one that is not full
    is copied before it is written to. A page is free again when no row names it. memory (B,):
    tokens of each row's source, whose keys lie in the same pages; none of a decoder alone.
    """

    def __init__(self, native, cache: str | None = None, codes: int | None = None):
        """cache: how keys and values are kept, one of kernels.native.CACHES; codes: bits of the
        activations, 8 or 16; None: as native's."""
        self.native = native.fork(cache, codes)
        self.tables: list[list[int]] = []
        self.length: list[int] = []
        self.memory: list[int] = []
        self._shares = False  # two rows may name one page that is not full

    def remember(self, states: Tensor, real: Tensor | None) -> None:
        """Each row has a source: states (B, S, D), of which real (B, S) count, all when None."""
        real = states.new_ones(states.shape[:2]).bool() if real is None else real.bool()
        self.memory = real.sum(1).tolist()
        self.tables = [[] for _ in self.memory]
        for row, length in enumerate(self.memory):
            self._widen(row, length)
        self.native.remember(states[real], self.memory, self._table())

    def __call__(self, ids: list[list[int]], keep: int = 1) -> Tensor:
        """Take in these tokens of each row; scores (B, keep, V) after each of the last."""
        self.length = self.length or [0] * len(ids)
        self.tables = self.tables or [[] for _ in ids]
        self._part([len(new) for new in ids])
        self._room(ids)
        flat, positions, rows, score = [], [], [], []
        for row, new in enumerate(ids):
            past = self.length[row]
            self._widen(row, past + len(new))
            flat += new
            positions += range(past, past + len(new))
            rows += [row] * len(new)
            score += range(len(flat) - keep, len(flat))
            self.length[row] = past + len(new)
        scores = self.native.step(*map(_ints, (flat, positions, rows)), self._table(),
                                  _ints(score), _ints(self.memory) if self.memory else None)
        return scores.view(len(ids), keep, -1)

    def _table(self) -> Tensor:
        wide = max(map(len, self.tables))
        return _ints([table + [0] * (wide - len(table)) for table in self.tables])

    def _widen(self, row: int, length: int) -> None:
        while len(self.tables[row]) * self.native.block < length:
            self.tables[row].append(self._page())

    def _room(self, ids: list[list[int]]) -> None:
        """Pages for all of these tokens at once and a quarter more: each time that the pool grows,
        the old one and the new one are there together."""
        block, used = self.native.block, {page for table in self.tables for page in table}
        wanted = sum(max(0, -(-(length + len(new)) // block) - len(table)) for length, new, table
                     in zip(self.length, ids, self.tables, strict=True))  # a source may need more
        if len(used) + wanted > len(self.native.pool):
            self.native.reserve(max(8, (len(used) + wanted) * 5 // 4))

    def _page(self) -> int:
        used = {page for table in self.tables for page in table}
        free = next((n for n in range(len(self.native.pool)) if n not in used), None)
        if free is None:
            free = len(self.native.pool)
            self.native.reserve(max(8, 2 * free))
        return free

    def reorder(self, index) -> None:
        """Row b becomes what row index[b] was; index may be longer than the batch."""
        index = [int(i) for i in index]
        self.tables = [list(self.tables[i]) for i in index]
        self.length = [self.length[i] for i in index]
        self.memory = [self.memory[i] for i in index] if self.memory else []
        self._shares = True

    def _part(self, new: list[int]) -> None:
        """A page of its own for each row that will write `new` tokens into a shared one. Pages that
        only a source fills stay shared until then."""
        if not self._shares:
            return
        users, block = Counter(page for table in self.tables for page in table), self.native.block
        for table, length, more in zip(self.tables, self.length, new, strict=True):
            for n in range(length // block, min(len(table), -(-(length + more) // block))):
                if users[table[n]] > 1:
                    users[table[n]] -= 1
                    mine = self._page()
                    self.native.pool[mine] = self.native.pool[table[n]]
                    table[n] = mine
        self._shares = bool(self.memory)

    def crop(self, lengths: int | list[int]) -> None:
        """Forget all but the first `lengths` tokens, of each row its own or of all the same."""
        wanted = [lengths] * len(self.length) if isinstance(lengths, int) else lengths
        if any(not 0 <= n <= held for n, held in zip(wanted, self.length, strict=True)):
            raise MiradaError(f"cannot crop to {lengths} tokens: the rows hold {self.length}")
        self.length, self._shares = wanted, True
        kept = list(map(max, wanted, self.memory)) if self.memory else wanted
        self.tables = [table[: -(-n // self.native.block)]
                       for table, n in zip(self.tables, kept, strict=True)]


def _ints(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)

"""The blocks of a paged cache: who holds which, and which prefixes they still know (2309.06180)."""

from __future__ import annotations

from collections import OrderedDict


class Pool:
    """Counts the holders of each block, and finds prompts that begin as an earlier one did.

    A full block has a name: the serial of the block before it, and its tokens. A block that nobody
    holds keeps its name until it is given out again, those longest unheld first.
    """

    def __init__(self, blocks: int, size: int):
        self.size, self.holders = size, [0] * blocks
        self.unheld: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))
        self.known: dict[tuple, int] = {}  # name -> block
        self.names: list[tuple | None] = [None] * blocks
        self.serials = [0] * blocks  # of what the block holds; 0: nothing named
        self.last = 0

    @property
    def free(self) -> int:
        return len(self.unheld)

    def take(self) -> int:
        """A block for new keys; what it knew is forgotten."""
        block, _ = self.unheld.popitem(last=False)
        name = self.names[block]
        if name is not None:
            del self.known[name]
        self.names[block], self.serials[block], self.holders[block] = None, 0, 1
        return block

    def hold(self, block: int) -> None:
        self.holders[block] += 1
        self.unheld.pop(block, None)

    def release(self, table: list[int]) -> None:
        """Give a row's blocks back, the last first: beginnings are worth more than ends."""
        for block in reversed(table):
            self.holders[block] -= 1
            if not self.holders[block]:
                self.unheld[block] = None
                if self.names[block] is None:
                    self.unheld.move_to_end(block, last=False)

    def name(self, table: list[int], at: int, tokens: list[int]) -> None:
        """Block `at` of a table is full, with these tokens behind the blocks before it."""
        before = self.serials[table[at - 1]] if at else -1
        name = (before, tuple(tokens))
        if before and name not in self.known and self.names[table[at]] is None:
            self.last += 1
            self.known[name], self.names[table[at]] = table[at], name
            self.serials[table[at]] = self.last

    def find(self, tokens: list[int]) -> list[int]:
        """The known blocks that tokens begin with."""
        found: list[int] = []
        before = -1
        for start in range(0, len(tokens) - self.size + 1, self.size):
            block = self.known.get((before, tuple(tokens[start : start + self.size])))
            if block is None:
                break
            found.append(block)
            before = self.serials[block]
        return found

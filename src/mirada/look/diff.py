"""What differs between two architectures, in words and in their drawn trees."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from mirada.look.describe import describe

LINES = str.maketrans("├└│─", "    ")  # a last child's other corner is no difference


@dataclass(frozen=True)
class Difference:
    """same, changed: aspects; tree: lines marked -, + or blank. Printed, it is a page."""

    a: str
    b: str
    same: dict[str, str]
    changed: dict[str, tuple[str, str]]
    tree: list[str]

    def data(self) -> dict:
        """For programs."""
        return dict(vars(self))

    def __str__(self) -> str:
        width = max([6, *map(len, [*self.changed, *self.same])])
        column = max([len(self.a), *(len(a) for a, _ in self.changed.values())]) + 2
        lines = [f"{'':{width}}  {self.a:{column}}{self.b}"]
        lines += [f"{aspect:{width}}  {a:{column}}{b}" for aspect, (a, b) in self.changed.items()]
        if self.same:
            lines += ["", "the same in both"]
            lines += [f"{aspect:{width}}  {words}" for aspect, words in self.same.items()]
        return "\n".join([*lines, "", f"- {self.a}   + {self.b}", *self.tree])


def diff(a, b) -> Difference:
    """The Difference between two models, each a model, "family:size" or a path."""
    left, right = describe(a), describe(b)
    facts = [d.facts | {"parameters": f"{d.parameters:,}"} for d in (left, right)]
    for one in facts:  # how it would run here is no part of what it is
        one.pop("runs", None)
    aspects = list(dict.fromkeys([*facts[0], *facts[1]]))
    both = {k: tuple(f.get(k, "none") for f in facts) for k in aspects}
    old, new = ([line.translate(LINES) for line in d.tree] for d in (left, right))
    tree = [line for line in difflib.ndiff(old, new) if not line.startswith("?")]
    return Difference(
        _called(a, left.name), _called(b, right.name),
        {k: x for k, (x, y) in both.items() if x == y},
        {k: (x, y) for k, (x, y) in both.items() if x != y}, tree)


def _called(given, name: str) -> str:
    return given if isinstance(given, str) else name

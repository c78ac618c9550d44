"""The row language: which tensor of a file is which of ours, read both ways.

A row is (file pattern, our pattern) or (file patterns, our patterns, operation). In a pattern
`{i}` stands for a number, `{p}` and other names for one word, and `(a|b)` for several tensors.
Our paths are those of the model: `body.` is left out, a head's begin with `head.`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor

from mirada.errors import MiradaError


class Same:
    """The tensor as it is. rowwise: whole rows move, so that rows of blocks can move as well."""

    @property
    def rowwise(self) -> bool:
        return True

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors


class Transposed(Same):
    """A matrix stored [in, out]."""

    @property
    def rowwise(self) -> bool:
        return False

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.transpose(0, -1) for t in tensors]  # a bias stays as it is

    save = load


@dataclass(frozen=True)
class Split(Same):
    """One tensor of the file is several of ours along axis 0; sizes: equal when None."""

    parts: int
    sizes: tuple[int, ...] | None = None
    transposed: bool = False

    @property
    def rowwise(self) -> bool:
        return not self.transposed

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        whole = tensors[0].transpose(0, -1) if self.transposed else tensors[0]
        sizes = self.sizes or whole.shape[0] // self.parts
        return list(whole.split(sizes))

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        whole = torch.cat(tensors)
        return [whole.transpose(0, -1) if self.transposed else whole]


@dataclass(frozen=True)
class Stacked(Same):
    """One tensor of the file is several of ours, one for each index of axis 0."""

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(tensors[0].unbind(0))

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.stack(tensors)]


@dataclass(frozen=True)
class Behind(Same):
    """A table whose first rows nobody reads, and the file has not; they come back as zeros."""

    first: int

    @property
    def rowwise(self) -> bool:
        return not self.first

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat([t.new_zeros(self.first, *t.shape[1:]), t]) for t in tensors]

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t[self.first :] for t in tensors]


@dataclass(frozen=True)
class Interleaved(Same):
    """One tensor whose rows go head by head: q, k, v of head 0, then of head 1 ..."""

    heads: int
    parts: int = 3

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        apart = tensors[0].unflatten(0, (self.heads, self.parts, -1))
        return [part.flatten(0, 1) for part in apart.unbind(1)]

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        apart = [t.unflatten(0, (self.heads, -1)) for t in tensors]
        return [torch.stack(apart, 1).flatten(0, 2)]


@dataclass(frozen=True)
class RotaryPairs(Same):
    """Rows of a head reordered from pairs (0, 1) ... to (i, i + K / 2), as GGUF has q and k."""

    heads: int

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2) for t in tensors]

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.unflatten(0, (self.heads, 2, -1)).transpose(1, 2).flatten(0, 2) for t in tensors]


@dataclass(frozen=True)
class Shifted(Same):
    """A vector that the file has with `by` added."""

    by: float
    @property
    def rowwise(self) -> bool:
        return False

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t - self.by for t in tensors]

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t + self.by for t in tensors]


@dataclass(frozen=True)
class Leading(Same):
    """A tensor that ours has behind `axes` axes of length one."""

    axes: int

    @property
    def rowwise(self) -> bool:
        return False

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.view((1,) * self.axes + t.shape) for t in tensors]

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        return [t.view(t.shape[self.axes :]) for t in tensors]


SAME, TRANSPOSED = Same(), Transposed()


@dataclass(frozen=True)
class Row:
    files: tuple[str, ...]
    ours: tuple[str, ...]
    op: Same = SAME


@dataclass(frozen=True)
class Step:
    """A row bound to names: these tensors of the file become these of the model."""

    files: tuple[str, ...]
    ours: tuple[str, ...]
    op: Same


@dataclass(frozen=True)
class Plan:
    """How one file fills one model. duplicates: file tensors that repeat a shared one."""

    steps: list[Step]
    duplicates: list[Step]
    derived: list[str]
    carried: list[str]
    bare: bool  # the file's names lack the family's prefix


@dataclass(frozen=True)
class Weights:
    """A family's map.

    prefix: what headed files put before the body's names ("bert."); bare files leave it out.
    renames: older spellings (old, new), each tried as a suffix of a file's names. Where both stand
    in a file, the older is a duplicate.
    derived: file pattern -> function(name) giving a tensor that is recomputed, never read.
    carried: file patterns of tensors we do not use, written back as they came.
    """

    rows: list[tuple]
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    derived: dict[str, Callable[[str], Tensor]] = field(default_factory=dict)
    carried: tuple[str, ...] = ()

    def plan(self, paths: dict[str, str], present: Iterable[str], ignore=(), where="") -> Plan:
        """paths: every path of the model -> the first path of the same tensor. Raises with the
        names of all tensors that the file lacks or the model has no place for."""
        present = list(present)
        bare = bool(self.prefix) and not any(n.startswith(self.prefix) for n in present)
        spelled = {self.modern(n): n for n in present} | {n: n for n in present}
        steps, missing = [], []
        for step in self.bind(paths, bare):
            files = tuple(spelled.get(f, f) for f in step.files)
            absent = [f for f in files if f not in spelled.values()]
            alias = all(paths[o] != o for o in step.ours)
            if not absent:
                steps.append((alias, Step(files, step.ours, step.op)))
            elif not alias:
                missing += absent
        used = {f: step for _, step in steps for f in step.files}
        copies = {n: Step((n,), s.ours, s.op) for n in present if n not in used
                  and (s := used.get(spelled[self.modern(n)])) and len(s.files) == 1}
        rest = [n for n in present if n not in used and n not in copies]
        derived = [n for n in rest if self._in(self.derived, n, bare)]
        carried = [n for n in rest if self._in(self.carried, n, bare) and n not in derived]
        ignored = [n for n in rest if any(re.search(i, n) for i in ignore)]
        unused = [n for n in rest if n not in {*derived, *carried, *ignored}]
        _complain(missing, unused, where)
        return Plan([s for a, s in steps if not a],
                    [s for a, s in steps if a] + [*copies.values()], derived, carried, bare)

    def bind(self, paths: dict[str, str], bare: bool) -> list[Step]:
        """Every row with its placeholders filled from the model's own paths; each path once."""
        steps, taken = [], set()
        for row in map(_row, self.rows):
            pattern = _compile(row.ours[0])
            for path in paths:
                match = pattern.fullmatch(path)
                if match is None:
                    continue
                ours = tuple(o.format(**match.groupdict()) for o in row.ours)
                files = tuple(self._bare(f, bare).format(**match.groupdict()) for f in row.files)
                if taken & set(ours) or not set(ours) <= set(paths):
                    raise ValueError(f"the row for {row.files} claims {ours} wrongly")
                taken.update(ours)
                steps.append(Step(files, ours, row.op))
        nameless = [p for p, first in paths.items() if p == first and p not in taken]
        if nameless:
            raise ValueError(f"no row names {nameless}")
        return steps

    def derive(self, name: str, bare: bool) -> Tensor:
        """The tensor of a derived name."""
        pattern = next(p for p in self.derived if _compile(self._bare(p, bare)).fullmatch(name))
        return self.derived[pattern](name)

    def modern(self, name: str) -> str:
        """A file's name in today's spelling."""
        for old, new in self.renames:
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name

    def _bare(self, pattern: str, bare: bool) -> str:
        return pattern.removeprefix(self.prefix) if bare else pattern

    def _in(self, patterns: Iterable[str], name: str, bare: bool) -> bool:
        return any(_compile(self._bare(p, bare)).fullmatch(name) for p in patterns)


def _row(row: tuple) -> Row:
    files, ours, *op = row
    return Row(_expand(files), _expand(ours), *op)


def _expand(pattern: str) -> tuple[str, ...]:
    parts = re.split(r"\(([^)]*)\)", pattern)
    choices = [p.split("|") if n % 2 else [p] for n, p in enumerate(parts)]
    return tuple("".join(choice) for choice in product(*choices))


def _compile(pattern: str) -> re.Pattern:
    parts = re.split(r"\{(\w+)\}", pattern)
    seen: set[str] = set()
    for n in range(1, len(parts), 2):
        name = parts[n]
        kind = r"\d+" if len(name) == 1 and name in "ijen" else r"[^.]+"
        parts[n] = f"(?P={name})" if name in seen else f"(?P<{name}>{kind})"
        seen.add(name)
    parts[::2] = map(re.escape, parts[::2])
    return re.compile("".join(parts))


def _complain(missing: list[str], unused: list[str], where: str) -> None:
    if not missing and not unused:
        return
    said = []
    if missing:
        said.append(f"lacks {len(missing)} tensors that the architecture needs: {_some(missing)}")
    if unused:
        said.append(f"has {len(unused)} tensors that it has no place for: {_some(unused)}")
    raise MiradaError(f"{where} {' and '.join(said)}. Is the architecture in its config the right "
                      "one? Tensors to leave unread can be named with ignore=[...]")


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(map(repr, sorted(names)[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"

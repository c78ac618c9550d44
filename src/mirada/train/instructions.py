"""Many tasks told in words and learned as one (FLAN, 2109.01652, sec. 2; FLAN-T5, 2210.11416)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from mirada.errors import MiradaError

from .seq2seq import TextToText, edges

PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Task:
    """rows: what is asked about, by name of column. templates: (instruction, answer), with a column
    where {its name} stands; one is drawn each time, so that the task and not its words is learned.
    """

    name: str
    rows: Sequence[dict[str, str]]
    templates: Sequence[tuple[str, str]]

    def __post_init__(self):
        if not self.rows or not self.templates:
            raise MiradaError(f"task {self.name!r} has no "
                              f"{'templates' if self.rows else 'rows'}")
        for pair in self.templates:
            filled(pair, self.rows[0], self.name)


class Instructions(TextToText):
    """Tasks in proportion to their rows, none counted as more than `most` of them: an epoch has
    min(rows, most) examples of each (2109.01652, sec. 2.4: 3,000)."""

    def __init__(self, tasks: Sequence[Task], length: int, model, most: int = 3000):
        super().__init__(model)
        if not tasks:
            raise MiradaError("there is no task to learn: give one or more")
        self.tasks, self.length, self.tokenizer = list(tasks), length, model.tokenizer
        self.sizes = [min(len(task.rows), most) for task in tasks]
        self.stops = list(accumulate(self.sizes))
        self.count = self.stops[-1]
        self.first, self.last = edges(model.tokenizer)

    def rates(self) -> dict[str, float]:
        """The share of each task in an epoch."""
        return {task.name: size / self.count
                for task, size in zip(self.tasks, self.sizes, strict=True)}

    def example(self, index: int, draw) -> tuple[str, str]:
        """(instruction, answer). Of a task with more than `most` rows any row comes."""
        which = next(n for n, stop in enumerate(self.stops) if index < stop)
        task, size = self.tasks[which], self.sizes[which]
        at = index - self.stops[which] + size
        row = task.rows[at if size == len(task.rows) else draw.randrange(len(task.rows))]
        return filled(draw.choice(task.templates), row, task.name)

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        source, target = map(self._ids, self.example(index, draw))
        return source, target

    def _ids(self, text: str) -> list[int]:
        room = self.length - len(self.first) - len(self.last)
        ids = self.tokenizer.encode(text, special=False, parse_special=False).ids
        return self.first + ids[:room] + self.last


def filled(pair: Sequence[str], row: dict[str, str], task: str) -> tuple[str, str]:
    """A template with a row's columns in their places."""
    absent = [name for part in pair for name in PLACE.findall(part) if name not in row]
    if absent:
        raise MiradaError(f"task {task!r}: a template asks for {absent[0]!r}, and a row has "
                          f"{', '.join(row)}")
    asked, answer = (PLACE.sub(lambda found: row[found[1]], part) for part in pair)
    return asked, answer

"""Texts longer than the context: read in windows, cut, or refused, as the caller says; no text is
cut without that."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mirada.errors import MiradaError
from mirada.model import Model

from . import inputs
from .inputs import Row
from .spans import windows

if TYPE_CHECKING:
    from .task import Task

POLICIES = ("stride", "truncate", "refuse")
SENTENCE = re.compile(r"[.!?…。]+\s+|\n+")  # where one ends
SLACK = 4  # tokens that a piece may have more, read by itself


def options(task: Task, given: dict) -> dict:
    """given with long= as the options it stands for. Raises MiradaError where the task has no
    such way: each names those that it has in LONG."""
    policy = given.get("long")
    if policy is None:
        return given
    if policy not in POLICIES:
        raise MiradaError(f"long is {policy!r}; it can be {', '.join(POLICIES)}")
    if policy not in task.LONG:
        raise MiradaError(f"{task.name} has no long={policy}; it has {', '.join(task.LONG)}")
    return given | {"truncation": policy == "truncate"}


def parts(model: Model, text: str, pair: str | None, told: dict) -> list[Row]:
    """The rows that one text or pair is read in: with told["long"] "stride" windows over it (of a
    pair over the longer) that share told["stride"] tokens, else one row."""
    if told.get("long") != "stride":
        return [inputs.row(model, text, pair, told)]
    encoding = model.tokenizer.encode(text, pair)
    if not len(encoding):
        raise MiradaError("a text is empty, and this tokenizer adds nothing to it: leave it out")
    longer = int(encoding.sequence.count(1) > encoding.sequence.count(0))
    return windows(encoding, longer, inputs.limit(model, told), told.get("stride") or 0)


def weights(rows: list[Row]) -> list[float]:
    """The share of each window in what stands for them all: its tokens of all windows' tokens."""
    total = sum(map(len, rows))
    return [len(row) / total for row in rows]


def pieces(model: Model, prefix: str, text: str, most: int | None = None) -> list[str]:
    """A text in pieces that the model can read behind `prefix`, of `most` tokens together where
    that is less: each ends with a sentence where one ends in its second half, else with a token;
    none overlap."""
    most, tokenizer = inputs.limit(model, {"max_length": most}), model.tokenizer
    if most is None or len(tokenizer.encode(prefix + text)) <= most:
        return [text]
    room = most - len(tokenizer.encode(prefix)) - SLACK
    if room < 1:
        raise MiradaError(f"the {most} tokens that this model reads have no place for a text "
                          f"behind the prefix {prefix!r}")
    offsets, at, found = tokenizer.encode(text, special=False).offsets, 0, []
    while at < len(offsets):
        start, end = offsets[at][0], offsets[min(at + room, len(offsets)) - 1][1]
        if at + room < len(offsets):
            ends = [start + one.end() for one in SENTENCE.finditer(text[start:end])]
            end = next((e for e in reversed(ends) if e > (start + end) // 2), end)
        found.append(text[start:end].strip())
        at = next((i for i in range(at + 1, len(offsets)) if offsets[i][0] >= end), len(offsets))
    if len(found) < 2:
        return [text]
    return [part for piece in found if piece for part in pieces(model, prefix, piece, most)]

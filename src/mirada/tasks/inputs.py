"""From texts to batches of like length and back: nothing is cut unseen, the order is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mirada.edit.lowered import lowered
from mirada.errors import MiradaError
from mirada.model import Model, Output
from mirada.text.tokenizer import Encoding

FULL = 512  # tokens with which one core is as fast as with more


class Cut(UserWarning):
    """A text was cut, because its caller asked for that."""


@dataclass
class Row:
    """One text as the model reads it.

    ids, types: a number a token. encoding: what they were taken from, at: where in it; None of
    ids that stand for no single text (a chat's).
    """

    ids: list[int]
    types: list[int]
    encoding: Encoding | None = None
    at: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def part(encoding: Encoding, at: list[int]) -> Row:
    """The tokens of an encoding at the places `at`."""
    return Row([encoding.ids[i] for i in at], [encoding.type_ids[i] for i in at], encoding, at)


def limit(model: Model, told: dict) -> int | None:
    """Tokens that a text may have: max_length, the tokenizer's limit or the context, the least."""
    known = (told.get("max_length"), model.tokenizer.max_length, model.context)
    return min((n for n in known if n is not None), default=None)


def row(model: Model, text: str, pair: str | None, told: dict, first: bool = False) -> Row:
    """One text or pair, encoded. Cut only if told["truncation"], with a warning; of a pair the
    longer loses, or with first=True the first. Raises MiradaError where it does not fit."""
    encoding, most = model.tokenizer.encode(text, pair), limit(model, told)
    if not len(encoding):
        raise MiradaError("a text is empty, and this tokenizer adds nothing to it: leave it out")
    count = len(encoding)
    if told.get("truncation") and most is not None and count > most:
        warnings.warn(f"a text of {count} tokens was cut to {most}", Cut, stacklevel=2)
        return part(encoding, shortened(encoding, most, first, model.tokenizer.truncation_side))
    if model.context is not None and count > model.context:
        raise MiradaError(f"a text has {count} tokens, and the context of this model is "
                          f"{model.context}: shorten it, or ask for truncation=True")
    return Row(encoding.ids, encoding.type_ids, encoding, list(range(count)))


def shortened(encoding: Encoding, most: int, first: bool, side: str) -> list[int]:
    """Places of at most `most` tokens, the special ones kept."""
    texts = [[i for i, s in enumerate(encoding.sequence) if s == which] for which in (0, 1)]
    excess = len(encoding) - most
    for _ in range(excess):
        longer = texts[0] if first or len(texts[0]) > len(texts[1]) else texts[1]
        if not longer:
            raise MiradaError(f"{most} tokens are too few for the text: {excess} must go, and "
                              "there are not so many")
        longer.pop(0 if side == "left" else -1)
    kept = {*texts[0], *texts[1]}
    return [i for i, s in enumerate(encoding.sequence) if s is None or i in kept]


def buckets(rows: list, size: int) -> Iterator[list[int]]:
    """Indices of the rows in batches, longest first, so that a batch has few pads."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def alike(rows: list, size: int, most: float = 0.75) -> Iterator[list[int]]:
    """Buckets parted again where a row is much shorter than the first and the rows before it fill
    a matrix product: on a CPU a pad takes as long as a token."""
    for places in buckets(rows, size):
        some: list[int] = []
        for i in places:
            if some and len(rows[i]) < most * (longest := len(rows[some[0]])) and (
                    len(some) * longest >= FULL):
                yield some
                some = []
            some.append(i)
        yield some


def padded(model: Model, rows: list[Row], side: str = "right") -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and, where the model reads them, token_type_ids; (B, T) each."""
    tokenizer = model.tokenizer
    width, pad = max(map(len, rows)), tokenizer.pad_id
    pad = min(tokenizer.eos_ids, default=0) if pad is None else pad

    def column(lists: list[list[int]], fill: int) -> torch.Tensor:
        gaps = [[fill] * (width - len(one)) for one in lists]
        return torch.tensor([gap + one if side == "left" else one + gap
                             for one, gap in zip(lists, gaps, strict=True)], device=model.device)

    batch = {"input_ids": column([r.ids for r in rows], pad),
             "attention_mask": column([[1] * len(r) for r in rows], 0)}
    if model.kind == "encoder" and "token_type_ids" in tokenizer.inputs:
        batch["token_type_ids"] = column([r.types for r in rows], 0)
    return batch


@torch.inference_mode()
def forward(model: Model, rows: list[Row], size: int,
            take: Callable[[Output, int, Row], Any]) -> list:
    """take(output, b, row) of each row, in order; b: its place in the batch it ran in."""
    found: list = [None] * len(rows)
    model = lowered(model)
    batches = alike(rows, size) if model.device.type == "cpu" else buckets(rows, size)
    for places in batches:
        out = model(**padded(model, [rows[i] for i in places]))
        for b, i in enumerate(places):
            found[i] = take(out, b, rows[i])
    return found

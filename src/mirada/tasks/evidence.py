"""The attention that went with an answer: where the model looked, which is not why it answered
(Jain and Wallace, 1902.10186)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mirada.model import Model

from . import inputs
from .inputs import Row

NOTE = "where the last layer looked, the mean of its heads; attention is not an explanation"
MOST = 8  # tokens that are named for each one of a text that was written


class Look:
    """One more pass over a row, in which the last layer's queries and keys are kept, and nothing
    else: memory grows with the row's length, not with its square.

    written: the ids that an encoder-decoder wrote; its cross-attention is what is seen then.
    """

    @torch.inference_mode()
    def __init__(self, model: Model, row: Row, written: Sequence[int] | None = None):
        self.model, self.row = model, row
        stack = model.decoder if model.encoder_decoder else model.body
        self.layer = len(stack.order) - 1
        labels = {} if written is None else {
            "labels": torch.tensor([list(written)], device=model.device)}
        with model.record(layers=[self.layer]) as self.tape:
            model(**inputs.padded(model, [row]), **labels)

    def __call__(self, places: Sequence[int], what: str, most: int | None = None) -> dict:
        """How much the queries at `places` looked at each token, the mean over them: {"what",
        "note", "tokens": [{"token", "text", "start", "end", "weight"}, ...]}.

        text: 0 or 1 of a pair, None for a special token, without start and end in characters; the
        same for ids that stand for no single text. The weights of all tokens add up to 1. most:
        only so many, the highest first.
        """
        cross = "cross" in self.tape.stacks and (self.model.encoder_decoder or list(places) == [0])
        pattern = self.tape.pattern(self.layer, rows=list(places),
                                    stack="cross" if cross else None)[0]  # (H, R, S)
        weights = pattern.float().mean((0, 1)).tolist()
        tokens = [self._token(i, weight) for i, weight in enumerate(weights[: len(self.row)])]
        if most is not None:
            tokens = sorted(tokens, key=lambda token: -token["weight"])[:most]
        return {"what": what, "note": NOTE, "tokens": tokens}

    def _token(self, i: int, weight: float) -> dict:
        own, encoding = self.row.ids[i], self.row.encoding
        found: dict = {"token": self.model.tokenizer.token(own), "index": i}
        if encoding is not None:
            at = self.row.at[i]
            found["text"] = encoding.sequence[at]
            if found["text"] is not None:
                found["start"], found["end"] = encoding.offsets[at]
        return found | {"weight": weight}


def pooled(model: Model, row: Row) -> dict:
    """Of the position that a classifier reads: the first token, a decoder's or encoder-decoder's
    last, or where its config says so the mean of all."""
    if model.kind != "encoder":
        return Look(model, row)([len(row) - 1], "the last token, which the classifier reads")
    if model.origin.raw.get("classifier_pooling") == "mean":
        return Look(model, row)(range(len(row)), "all tokens, whose mean the classifier reads")
    return Look(model, row)([0], "the first token, which the classifier reads")


def span(model: Model, row: Row, first: int, last: int) -> dict:
    """Of the tokens first to last of a row, which an answer is made of."""
    return Look(model, row)(range(first, last + 1), "the tokens of the answer")


def characters(look: Look, start: int, end: int) -> dict:
    """Of the tokens that stand for characters start to end of a row's text."""
    row = look.row
    places = [n for n, i in enumerate(row.at) if row.encoding.sequence[i] is not None
              and row.encoding.offsets[i][0] < end and row.encoding.offsets[i][1] > start]
    return look(places, "the tokens of the name")


def written(model: Model, row: Row, ids: list[int]) -> list[dict]:
    """Of each token that was written behind a row (of an encoder-decoder: in answer to it), at the
    moment it was chosen: the tokens most looked at."""
    ids = ids[1:] if model.encoder_decoder else ids  # its first one was given
    ends = {*model.tokenizer.eos_ids, model.tokenizer.pad_id}  # and what follows one fills a row
    ids = ids[: next((n + 1 for n, own in enumerate(ids) if own in ends), len(ids))]
    if not ids:
        return []
    if model.encoder_decoder:
        look, first = Look(model, row, ids), 0
    else:
        whole = Row(row.ids + ids[:-1], [0] * (len(row) + len(ids) - 1))
        look, first = Look(model, whole), len(row) - 1
    return [look([first + n], f"the position that {model.tokenizer.token(own)!r} was written from",
                 MOST) for n, own in enumerate(ids)]

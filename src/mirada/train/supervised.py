"""What a pretrained model is tuned to: labels of texts, of words, spans, numbers, likeness.

Classes, tags and spans as in BERT (1810.04805, sec. 4); likeness as in Sentence-BERT (1908.10084,
sec. 3): the cosine of two mean-pooled texts against a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from .language import padded
from .loss import IGNORED, token_loss, wide

WINDOW, SHARED = 384, 128  # tokens of a window over a long passage, and those two neighbours share


@dataclass(frozen=True)
class Example:
    """One row. text: of tags, the words with a space between; of spans, the question. pair: the
    second text; of spans, the passage. label: a name, a number, a list of tags, or the answer's
    (first, last + 1) characters in the passage, None where it has none."""

    text: str
    pair: str | None
    label: Any


class _Texts:
    """Texts, or pairs of them, and a label each; tokenised as they are drawn."""

    def __init__(self, model, examples: list[Example]):
        self.examples, self.tokenizer = examples, needed(model)
        self.types = model.kind == "encoder"
        known = [n for n in (model.context, self.tokenizer.max_length) if n is not None]
        self.most = min(known, default=None)
        self.count = len(examples)

    def sample(self, index: int, draw) -> Example:
        return self.examples[index]

    def read(self, samples: list[Example]) -> dict[str, Tensor]:
        """A batch as the model takes it; what is longer than its context is cut."""
        found = self.tokenizer([one.text for one in samples], [one.pair for one in samples],
                               truncate=self.most)
        if not self.types:
            found.pop("token_type_ids", None)
        return found

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["labels"]))


class Classes(_Texts):
    """One of the labels (names, in the order of the head's outputs) a text or pair."""

    def __init__(self, model, examples: list[Example], labels: list[str]):
        super().__init__(model, examples)
        self.ids = {name: n for n, name in enumerate(labels)}

    def batch(self, samples: list[Example]) -> dict[str, Tensor]:
        return self.read(samples) | {"labels": torch.tensor([self.ids[o.label] for o in samples])}

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        logits, labels = _logits(model, batch)
        right = float((logits.argmax(-1) == labels).float().mean())
        return F.cross_entropy(logits, labels, reduction="sum"), {"accuracy": right}


class Numbers(_Texts):
    """A number a text or pair, told by a head with one output: squared error."""

    def batch(self, samples: list[Example]) -> dict[str, Tensor]:
        return self.read(samples) | {"labels": torch.tensor([float(o.label) for o in samples])}

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        logits, labels = _logits(model, batch)
        return F.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="sum"), {}


class Likeness(_Texts):
    """The cosine of two texts, each the mean of its tokens, against a number from -1 to 1."""

    def batch(self, samples: list[Example]) -> dict[str, Tensor]:
        both = [self.read([Example(text, None, None) for text in side])
                for side in zip(*((one.text, one.pair) for one in samples), strict=True)]
        found = {f"{name}_{n}": t for n, one in enumerate(both) for name, t in one.items()}
        return found | {"labels": torch.tensor([float(one.label) for one in samples])}

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        a, b = (self._vectors(model, {name[:-2]: t.to(model.device) for name, t in batch.items()
                                      if name.endswith(f"_{n}")}) for n in (0, 1))
        told = F.cosine_similarity(a, b)  # (B,)
        return F.mse_loss(told, batch["labels"].to(told), reduction="sum"), {}

    def _vectors(self, model, given: dict[str, Tensor]) -> Tensor:
        x = model(**given).last_hidden_state.float()  # (B, T, D)
        real = given["attention_mask"][..., None]
        return (x * real).sum(1) / real.sum(1)


class Tags:
    """A tag for each word, learnt at its first token; the others of a word do not count."""

    def __init__(self, model, examples: list[Example], labels: list[str]):
        tokenizer = needed(model)
        ids = {name: n for n, name in enumerate(labels)}
        known = [n for n in (model.context, tokenizer.max_length) if n is not None]
        self.rows = [_tagged(tokenizer, one, ids, min(known, default=None)) for one in examples]
        self.count, self.pad = len(self.rows), tokenizer.pad_id or 0
        self.types = model.kind == "encoder" and "token_type_ids" in tokenizer.inputs

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        return self.rows[index]

    def batch(self, samples: list) -> dict[str, Tensor]:
        columns = {"input_ids": ([ids for ids, _ in samples], self.pad),
                   "labels": ([labels for _, labels in samples], IGNORED)}
        if self.types:
            columns["token_type_ids"] = [[0] * len(ids) for ids, _ in samples], 0
        return padded(columns)

    def weight(self, batch: dict[str, Tensor]) -> float:
        return max(1.0, float((batch["labels"] != IGNORED).sum()))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        logits, labels = _logits(model, batch)
        return token_loss(logits, labels), {}


class Spans:
    """Where the answer begins and ends in a passage, which is read in windows; a window without
    the answer points at its first token ([CLS]), as SQuAD 2 has it (1806.03822)."""

    def __init__(self, model, examples: list[Example]):
        tokenizer = needed(model)
        known = [n for n in (model.context, tokenizer.max_length) if n is not None]
        most = min([WINDOW, *known])
        self.windows = [w for one in examples for w in windows(tokenizer, one, most)]
        self.count, self.pad = len(self.windows), tokenizer.pad_id or 0
        self.types = model.kind == "encoder" and "token_type_ids" in tokenizer.inputs

    def sample(self, index: int, draw) -> tuple[list[int], list[int], int, int]:
        return self.windows[index]

    def batch(self, samples: list) -> dict[str, Tensor]:
        columns = {"input_ids": ([one[0] for one in samples], self.pad)}
        if self.types:
            columns["token_type_ids"] = [one[1] for one in samples], 0
        ends = torch.tensor([one[2:] for one in samples])  # (B, 2)
        return padded(columns) | {"labels": ends}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["labels"]))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {name: t.to(model.device) for name, t in batch.items()}
        ends = given.pop("labels")
        out = model(**given)
        each = [F.cross_entropy(wide(out[name]), ends[:, n], reduction="sum")
                for n, name in enumerate(("start_logits", "end_logits"))]
        return (each[0] + each[1]) / 2, {}


def needed(model):
    """The model's tokenizer. Raises MiradaError where it has none."""
    if model.tokenizer is None:
        raise MiradaError(f"{model.origin.path or model.architecture} has no tokenizer, so there "
                          "is none to read text with")
    return model.tokenizer


def first_tokens(tokenizer, text: str) -> list[int]:
    """The place of the first token of each word of a text; words stand between single spaces. Of a
    word without any (its letters are dropped) the place behind the last token."""
    found = tokenizer.encode(text)
    tokens = [(start, end, place) for place, (start, end) in enumerate(found.offsets)
              if not found.special_mask[place] and end > start]
    places, at, n = [], 0, 0
    for word in text.split(" "):
        while n < len(tokens) and tokens[n][1] <= at:
            n += 1
        here = n < len(tokens) and tokens[n][0] < at + len(word)
        places.append(tokens[n][2] if here else len(found))
        at += len(word) + 1
    return places


def _tagged(tokenizer, one: Example, ids: dict[str, int], most: int | None
            ) -> tuple[list[int], list[int]]:
    """(ids, a label a token) of one text, its end cut off where the model reads no more."""
    found = tokenizer.encode(one.text)
    labels = [IGNORED] * (len(found) + 1)  # the last: of words without any token
    for tag, place in zip(one.label, first_tokens(tokenizer, one.text), strict=True):
        labels[place] = ids[tag]
    room = (most or len(found)) - found.special_mask.count(1)
    words = [i for i, special in enumerate(found.special_mask) if not special][:room]
    kept = {*words, *(i for i, special in enumerate(found.special_mask) if special)}
    return ([i for n, i in enumerate(found.ids) if n in kept],
            [i for n, i in enumerate(labels) if n in kept])


def windows(tokenizer, one: Example, most: int) -> list[tuple[list[int], list[int], int, int]]:
    """(ids, type ids, first and last token of the answer) of each window over a passage; (0, 0)
    where the answer is not whole in it. Raises MiradaError where the question fills them."""
    found = tokenizer.encode(one.text, one.pair)
    inside = [i for i, which in enumerate(found.sequence) if which == 1]
    room = most - (len(found) - len(inside))
    if room < 16:
        raise MiradaError(f"the question {one.text[:40]!r} leaves {max(room, 0)} of {most} tokens "
                          "for its passage: shorten it")
    step = max(1, room - min(SHARED, room // 2))
    rows = []
    for start in range(0, max(1, len(inside)), step):
        kept = {*inside[start : start + room]}
        at = [i for i, which in enumerate(found.sequence) if which != 1 or i in kept]
        first, last = (0 if i is None else at.index(i) for i in _ends(
            found.offsets, [i for i in at if i in kept], one.label))
        rows.append(([found.ids[i] for i in at], [found.type_ids[i] for i in at], first, last))
        if start + room >= len(inside):
            break
    return rows


def _ends(offsets: list, kept: list[int], label) -> tuple[int | None, int | None]:
    """The first and last token that hold the answer, if all of it is among those kept."""
    if label is None:
        return None, None
    held = [i for i in kept if offsets[i][1] > label[0] and offsets[i][0] < label[1]]
    whole = held and offsets[held[0]][0] <= label[0] and offsets[held[-1]][1] >= label[1]
    return (held[0], held[-1]) if whole else (None, None)


def _logits(model, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores, and the labels beside them."""
    given = {name: t.to(model.device) for name, t in batch.items()}
    labels = given.pop("labels")
    return wide(model(**given).logits), labels


@torch.no_grad()  # inference_mode would leave tensors that no later gradient may pass
def mean_loss(model, objective, batch: int = 32) -> float:
    """The objective's loss over all its samples, nothing dropped; the model's mode is kept."""
    was = model.training
    model.eval()
    try:
        total = weight = 0.0
        for start in range(0, objective.count, batch):
            some = objective.batch([objective.sample(n, None) for n in range(
                start, min(start + batch, objective.count))])
            total += float(objective.loss(model, some)[0])
            weight += objective.weight(some)
    finally:
        model.train(was)
    return total / weight

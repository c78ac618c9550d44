"""Pairs of texts: does one follow the other (BERT, 1810.04805, sec. 3.1), do both stand in their
order (ALBERT, 1909.11942, sec. 3.1), and which belong together (1705.00652, sec. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from .corpus import Corpus
from .distill import seen
from .language import hide, padded, row_means, token_losses
from .loss import IGNORED, wide
from .sentences import Windows, around, sentences, stops

HEADS = ("seq_relationship_logits", "sop_logits", "logits")  # of a pair, by family


class SentencePairs:
    """[CLS] a [SEP] b [SEP], where b is what follows a (label 0), or in half of the samples not
    (label 1): kind "next": it is of another document; "order": it is what stands before a.

    A model with a head for hidden tokens too (...ForPreTraining) is given those beside. The loss is
    the mean over rows of both.
    """

    def __init__(self, corpus: Corpus, length: int, model, kind: str = "next",
                 share: float = 0.15):
        if kind not in ("next", "order"):
            raise MiradaError(f"no kind of pair is called {kind!r}; there are next, order")
        self.tokenizer = model.tokenizer
        if None in (self.tokenizer.cls_id, self.tokenizer.sep_id):
            raise MiradaError("pairs are told apart by [CLS] and [SEP], and this tokenizer has "
                              "none of them")
        self.kind, self.share = kind, share
        self.hides = model.architecture.endswith("ForPreTraining")
        self.room = length - 3
        self.windows = Windows(corpus, self.room, self.tokenizer.eos_ids)
        self.count, self.stops = len(self.windows), stops(self.tokenizer)
        if kind == "next" and self.count == 1:
            raise MiradaError("there is one stretch of text only, and none that does not follow it")

    def sample(self, index: int, draw) -> tuple[list[int], list[int], list[int], int]:
        a, b = self._two(index, draw)
        other = draw.random() < 0.5
        if other and self.kind == "next":
            b = self._elsewhere(index, draw)[: self.room - len(a)]
        elif other:
            a, b = b, a
        cls, sep = self.tokenizer.cls_id, self.tokenizer.sep_id
        ids = [cls, *a, sep, *b, sep]
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        labels = [IGNORED] * len(ids)
        if self.hides:
            ids, labels = hide(ids, draw, self.share, self.tokenizer.mask_id, self.tokenizer.size,
                               self.tokenizer.special_ids)
        return ids, types, labels, int(other)

    def _two(self, index: int, draw) -> tuple[list[int], list[int]]:
        """A window, parted between two of its sentences."""
        parts = sentences(self.windows[index], self.stops)
        at = draw.randrange(1, len(parts))
        return [i for p in parts[:at] for i in p], [i for p in parts[at:] for i in p]

    def _elsewhere(self, index: int, draw) -> list[int]:
        """The second half of a window of another document, or where there is one, of another."""
        while True:
            other = draw.randrange(self.count)
            if other != index and (len(self.windows.ends) == 1 or self.windows.document(other)
                                   != self.windows.document(index)):
                return self._two(other, draw)[1]

    def batch(self, samples: list) -> dict[str, Tensor]:
        ids, types, labels, other = map(list, zip(*samples, strict=True))
        pad = self.tokenizer.pad_id or 0
        made = padded({"input_ids": (ids, pad), "token_type_ids": (types, 0),
                       "labels": (labels, IGNORED)})
        return made | {"other": torch.tensor(other)}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["input_ids"]))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        labels, other = given.pop("labels"), given.pop("other")
        out = model(**given)
        pair = wide(next(out[name] for name in HEADS if name in out))
        loss = F.cross_entropy(pair, other, reduction="sum")
        if self.hides:
            told = token_losses(out["prediction_logits"], labels)
            loss = loss + row_means(told, labels != IGNORED)
        right = float((pair.argmax(-1) == other).float().mean())
        return loss, {"pairs right": right}


class Together:
    """Pairs that stand in a corpus by turns, told from all others of the batch: the first of each
    is nearest to its own second, by the cosine of mean token vectors over `temperature`.

    A batch read in parts has the negatives of each part only.
    """

    def __init__(self, corpus: Corpus, length: int, model, temperature: float = 0.05):
        if len(corpus.ends) % 2:
            raise MiradaError("a text of a pair is missing: the corpus holds an odd number")
        self.corpus, self.temperature = corpus, temperature
        self.count = len(corpus.ends) // 2
        self.first, self.last = around(model.tokenizer)
        self.room = length - len(self.first) - len(self.last)
        self.ends, self.pad = model.tokenizer.eos_ids, model.tokenizer.pad_id or 0

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        return self._whole(2 * index), self._whole(2 * index + 1)

    def _whole(self, place: int) -> list[int]:
        ids = [i for i in self.corpus.document(place).tolist() if i not in self.ends]
        return self.first + ids[: self.room] + self.last

    def batch(self, samples: list) -> dict[str, Tensor]:
        """input_ids (2 B, T): all first texts, then all second ones."""
        return padded({"input_ids": ([a for a, _ in samples] + [b for _, b in samples], self.pad)})

    def weight(self, batch: dict[str, Tensor]) -> float:
        return len(batch["input_ids"]) / 2

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        a, b = embedded(model, given).chunk(2)
        scores = a @ b.T / self.temperature  # (B, B)
        own = torch.arange(len(a), device=a.device)
        right = float((scores.argmax(1) == own).float().mean())
        return F.cross_entropy(scores, own, reduction="sum"), {"pairs right": right}


def embedded(model, given: dict[str, Tensor]) -> Tensor:
    """(B, D) mean vectors of the real tokens, each of length 1."""
    x = seen(model, given)[1]
    real = given["attention_mask"][..., None].to(x.dtype)  # (B, T, 1)
    return F.normalize(wide((x * real).sum(1) / real.sum(1)), dim=-1)

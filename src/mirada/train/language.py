"""Language modelling: the next token (GPT), and the hidden one (BERT, 1810.04805, sec. 3.1)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from .corpus import Corpus
from .loss import IGNORED, told_loss, wide


class NextToken:
    """Each token is told from those before it; documents are packed and do not see each other.

    Sample i is the i-th stretch of `length` tokens. Its first token, and the first of each
    document in it, is only read.
    """

    def __init__(self, corpus: Corpus, length: int):
        self.corpus, self.length = corpus, length
        self.count = max(1, len(corpus.tokens) // length)
        if len(corpus.tokens) < 2:
            raise MiradaError("a text of one token has no next one to learn")

    def sample(self, index: int, draw) -> tuple[np.ndarray, np.ndarray]:
        start = index * self.length
        stop = min(start + self.length, len(self.corpus.tokens))
        ids = np.asarray(self.corpus.tokens[start:stop], dtype=np.int64)
        return ids, self.corpus.segments(start, stop)

    def batch(self, samples: list) -> dict[str, Tensor]:
        width = max(len(ids) for ids, _ in samples)
        ids = np.zeros((len(samples), width), np.int64)
        segments = np.full((len(samples), width), -1)
        for row, (tokens, of) in enumerate(samples):
            ids[row, : len(tokens)], segments[row, : len(tokens)] = tokens, of
        begins = np.concatenate([np.ones((len(ids), 1), bool), np.diff(segments) != 0], 1)
        places = np.arange(width) - np.maximum.accumulate(np.where(begins, np.arange(width), 0), 1)
        labels = np.where(begins | (segments < 0), IGNORED, ids)
        return {name: torch.from_numpy(value) for name, value in (
            ("input_ids", ids), ("segment_ids", segments), ("position_ids", places),
            ("labels", labels))}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float((batch["labels"] != IGNORED).sum())

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        labels = given.pop("labels")
        if int((given["segment_ids"] != given["segment_ids"][:, :1]).sum()) == 0:
            del given["segment_ids"], given["position_ids"]  # one document: the plain causal mask
        return told_loss(model, given, F.pad(labels[:, 1:], (0, 1), value=IGNORED)), {}


class HiddenToken:
    """A share of the tokens is hidden and told from all others: of those chosen, 80 % become the
    mask token, 10 % another token, 10 % stay (1810.04805, sec. 3.1). They are
    chosen anew each epoch (RoBERTa's dynamic masking, 1907.11692).
    """

    def __init__(self, corpus: Corpus, length: int, tokenizer, share: float = 0.15):
        if tokenizer.mask_id is None:
            raise MiradaError("hiding tokens needs a mask token, and this tokenizer has none")
        self.corpus, self.share, self.tokenizer = corpus, share, tokenizer
        self.fates = (0.8, 0.1)
        around = [i for i in (tokenizer.cls_id, tokenizer.sep_id) if i is not None]
        self.room = length - len(around)
        self.first = [] if tokenizer.cls_id is None else [tokenizer.cls_id]
        self.last = [] if tokenizer.sep_id is None else [tokenizer.sep_id]
        self.count = max(1, len(corpus.tokens) // self.room)
        self.pad = tokenizer.pad_id or 0

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        start = index * self.room
        tokens = [int(i) for i in self.corpus.tokens[start : start + self.room]]
        ids, labels = hide(tokens, draw, self.share, self.tokenizer.mask_id, self.tokenizer.size,
                           self.tokenizer.special_ids, self.fates)
        edge = [IGNORED] * len(self.first), [IGNORED] * len(self.last)
        return self.first + ids + self.last, edge[0] + labels + edge[1]

    def batch(self, samples: list) -> dict[str, Tensor]:
        return padded({"input_ids": ([ids for ids, _ in samples], self.pad),
                       "labels": ([labels for _, labels in samples], IGNORED)})

    def weight(self, batch: dict[str, Tensor]) -> float:
        return max(1.0, float((batch["labels"] != IGNORED).sum()))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        labels = given.pop("labels")
        return told_loss(model, given, labels), {}


def hide(tokens: list[int], draw, share: float, mask: int, vocab: int, special: set[int],
         fates: tuple[float, float] = (0.8, 0.1)) -> tuple[list[int], list[int]]:
    """(what the model reads, what it must tell); at least one token is hidden where one can be.

    fates: of the chosen, the shares that become the mask and any token; the rest stay.
    """
    can = [at for at, i in enumerate(tokens) if i not in special]
    if not can:
        return tokens, [IGNORED] * len(tokens)
    chosen = [at for at in can if draw.random() < share] or [draw.choice(can)]
    ids, labels = list(tokens), [IGNORED] * len(tokens)
    for at in chosen:
        labels[at] = tokens[at]
        fate = draw.random()
        if fate < fates[0]:
            ids[at] = mask
        elif fate < fates[0] + fates[1]:
            ids[at] = draw.randrange(vocab)
    return ids, labels


def row_means(losses: Tensor, counts: Tensor) -> Tensor:
    """Each row's mean of losses (B, T) where counts (B, T) says so, summed over the rows: so that
    several losses with denominators of their own add up alike in a batch and in its parts."""
    counts = counts.to(losses.dtype)
    return ((losses * counts).sum(1) / counts.sum(1).clamp(min=1)).sum()


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T) cross-entropies, in float32 or wider; 0 where labels are IGNORED."""
    return F.cross_entropy(wide(logits.transpose(1, 2)), labels, ignore_index=IGNORED,
                           reduction="none")


def padded(columns: dict[str, tuple[list[list[int]], int]]) -> dict[str, Tensor]:
    """Rows of unequal length on the right filled up: name -> (rows, what they are filled with);
    and the attention_mask, 1 where the first column is real."""
    rows = next(iter(columns.values()))[0]
    width = max(map(len, rows))
    out = {name: torch.tensor([row + [fill] * (width - len(row)) for row in every])
           for name, (every, fill) in columns.items()}
    out["attention_mask"] = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows])
    return out

"""Instruction tuning: a conversation is read, and its answers alone are learned (2203.02155)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from .language import padded
from .loss import IGNORED, told_loss


class Answers:
    """Rows of (ids, labels): labels are the ids that are learned, IGNORED where one only reads."""

    def __init__(self, rows: Sequence[tuple[list[int], list[int]]], pad: int = 0):
        self.rows, self.pad, self.count = list(rows), pad, len(rows)

    @classmethod
    def of(cls, model, conversations: Sequence[list[dict]], length: int,
           system: str | None = None) -> Answers:
        """Conversations (messages with role and content) through the model's chat template.

        length: tokens that are kept of each; those of which no answer is left are left out.
        system: a system message for those that have none. Raises MiradaError.
        """
        rows = [answered(model.tokenizer, with_system(messages, system), length)
                for messages in conversations]
        rows = [row for row in rows if any(label != IGNORED for label in row[1][1:])]
        if not rows:
            raise MiradaError(f"no conversation has an answer within {length} tokens: give "
                              "messages with the role assistant, or a longer length")
        return cls(rows, model.tokenizer.pad_id or 0)

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        return self.rows[index]

    def batch(self, samples: list) -> dict[str, Tensor]:
        return padded({"input_ids": ([ids for ids, _ in samples], self.pad),
                       "labels": ([labels for _, labels in samples], IGNORED)})

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float((batch["labels"][:, 1:] != IGNORED).sum())

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        told = F.pad(given.pop("labels")[:, 1:], (0, 1), value=IGNORED)  # by the token before
        return told_loss(model, given, told), {}


class Mixture:
    """Several sets of one kind of rows, each sample from a set by its share.

    shares: None: by their sizes, none counted as more than `most` rows (1910.10683, sec. 3.5.2).
    """

    def __init__(self, sets: Sequence[Answers], shares: Sequence[float] | None = None,
                 most: int | None = None):
        self.sets = list(sets)
        self.shares = list(shares or [min(one.count, most or one.count) for one in sets])
        if len(self.shares) != len(self.sets) or min(self.shares, default=0) <= 0:
            raise MiradaError(f"{len(self.sets)} sets need as many shares, each above 0")
        self.count = sum(one.count for one in self.sets)
        self.batch, self.weight, self.loss = sets[0].batch, sets[0].weight, sets[0].loss

    def sample(self, index: int, draw):
        one = draw.choices(self.sets, self.shares)[0]
        return one.sample(draw.randrange(one.count), draw)


def answered(tokenizer, messages: list[dict], length: int) -> tuple[list[int], list[int]]:
    """(ids, labels) of a conversation. What an assistant's message adds behind the prompt for it is
    learned, to the end token that stops it; a template that rewrites earlier turns is refused."""
    ids = tokenizer.chat(messages, add_generation_prompt=False)
    labels = [IGNORED] * len(ids)
    for n, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.chat(messages[:n]) if n else []
        upto = tokenizer.chat(messages[: n + 1], add_generation_prompt=False)
        if ids[: len(upto)] != upto or upto[: len(before)] != before:
            raise MiradaError("this chat template writes a turn otherwise once another follows: "
                              "train on conversations of a single answer")
        ends = [at for at in range(len(before), len(upto)) if upto[at] in tokenizer.eos_ids]
        stop = ends[-1] + 1 if ends else len(upto)  # what follows the end is never written
        labels[len(before) : stop] = ids[len(before) : stop]
    return ids[:length], labels[:length]


def talk(*turns: str) -> list[dict]:
    """Messages of a user and an assistant by turns."""
    return [{"role": ("user", "assistant")[n % 2], "content": text}
            for n, text in enumerate(turns)]


def with_system(messages: list[dict], system: str | None) -> list[dict]:
    """The messages, under a system message where they have none."""
    if system is None or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]

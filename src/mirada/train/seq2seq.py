"""Text to text: a target is written from a source, as in translating and summarising."""

from __future__ import annotations

from torch import Tensor

from mirada.errors import MiradaError

from .corpus import Corpus
from .language import padded
from .loss import IGNORED, told_loss
from .sentences import around


class TextToText:
    """What every such objective shares; each says what a sample, (source ids, target ids), is.

    smoothing: the share of the target that all tokens divide (see token_loss).
    """

    def __init__(self, model, smoothing: float = 0.0):
        if not model.encoder_decoder:
            raise MiradaError(f"{model.architecture} reads and writes in one: text to text needs "
                              "an encoder-decoder, as t5, bart or transformer")
        self.pad = getattr(model.config, "pad", None) or 0
        self.smoothing = smoothing

    def batch(self, samples: list) -> dict[str, Tensor]:
        read = padded({"input_ids": ([source for source, _ in samples], self.pad)})
        told = padded({"labels": ([target for _, target in samples], IGNORED)})
        return read | {"labels": told["labels"]}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float((batch["labels"] != IGNORED).sum())

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        labels = given.pop("labels")
        given["decoder_input_ids"] = model.shifted(labels)
        return told_loss(model, given, labels, self.smoothing), {}


class Translate(TextToText):
    """Pairs that stand in a corpus by turns: source, target, source, target (1409.3215, and
    smoothing 0.1 as 1706.03762, sec. 5.4). Both are cut at `length` tokens."""

    def __init__(self, corpus: Corpus, length: int, model, smoothing: float = 0.1):
        super().__init__(model, smoothing)
        if len(corpus.ends) % 2:
            raise MiradaError("a source or a target is missing: the corpus holds an odd number of "
                              "texts")
        self.corpus, self.length, self.count = corpus, length, len(corpus.ends) // 2
        self.first, self.last = edges(model.tokenizer)
        self.ends = model.tokenizer.eos_ids

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        return self._whole(2 * index), self._whole(2 * index + 1)

    def _whole(self, place: int) -> list[int]:
        ids = [i for i in self.corpus.document(place).tolist() if i not in self.ends]
        room = self.length - len(self.first) - len(self.last)
        return self.first + ids[:room] + self.last


def edges(tokenizer) -> tuple[list[int], list[int]]:
    """What stands around a text that is read or written; a target always ends in an end token."""
    first, last = around(tokenizer)
    if not last:
        if not tokenizer.eos_ids:
            raise MiradaError("this tokenizer has no end token, so a written text would not end")
        last = [min(tokenizer.eos_ids)]
    return first, last

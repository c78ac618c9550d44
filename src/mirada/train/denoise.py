"""BART's denoising: a text is broken in five ways and the decoder writes it whole (1910.13461,
sec. 2.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mirada.errors import MiradaError

from .corpus import Corpus
from .sentences import Windows, sentences, stops
from .seq2seq import TextToText, edges


def hide(tokens: list[int], draw, share: float, mask: int) -> list[int]:
    """Token masking: a share of the tokens becomes the mask."""
    chosen = _chosen(tokens, draw, share)
    return [mask if at in chosen else i for at, i in enumerate(tokens)]


def delete(tokens: list[int], draw, share: float) -> list[int]:
    """Token deletion: a share of the tokens is gone, and nothing says where."""
    chosen = _chosen(tokens, draw, share)
    return [i for at, i in enumerate(tokens) if at not in chosen]


def infill(tokens: list[int], draw, share: float, mask: int, mean: float = 3.0) -> list[int]:
    """Text infilling: spans with Poisson(mean) tokens, a share of the text in all, become one mask
    each; an empty span is a mask put in. Every order of spans and kept tokens is equally likely."""
    wanted, spans = round(share * len(tokens)), []
    while sum(spans) < wanted:
        spans.append(min(poisson(mean, draw), wanted - sum(spans)))
    order = spans + [-1] * (len(tokens) - wanted)  # -1: one token that is kept
    draw.shuffle(order)
    out, at = [], 0
    for size in order:
        out.append(tokens[at] if size < 0 else mask)
        at += abs(size)
    return out


def permute(tokens: list[int], draw, stops: set[int]) -> list[int]:
    """Sentence permutation: the sentences in any order."""
    parts = sentences(tokens, stops)
    draw.shuffle(parts)
    return [i for part in parts for i in part]


def rotate(tokens: list[int], draw) -> list[int]:
    """Document rotation: the text begins at any of its tokens; what stood before comes last."""
    at = draw.randrange(len(tokens))
    return tokens[at:] + tokens[:at]


def poisson(mean: float, draw) -> int:
    """A number drawn from Poisson's distribution (Knuth)."""
    limit, product, count = math.exp(-mean), draw.random(), 0
    while product > limit:
        product *= draw.random()
        count += 1
    return count


def _chosen(tokens: list[int], draw, share: float) -> set[int]:
    return set(draw.sample(range(len(tokens)), round(share * len(tokens))))


NOISES = ("mask", "delete", "infill", "permute", "rotate")


class Denoise(TextToText):
    """The text is written whole from what some of NOISES left of it, in the order they are named.

    Infilling and permuting are what BART itself was trained with (sec. 5: 30 % of the tokens).
    """

    def __init__(self, corpus: Corpus, length: int, model,
                 noises: Sequence[str] = ("permute", "infill"), share: float = 0.3,
                 mean: float = 3.0):
        super().__init__(model)
        unknown = [name for name in noises if name not in NOISES]
        if unknown or not noises:
            raise MiradaError(f"no noise is called {unknown[0] if unknown else ''!r}; there are "
                              f"{', '.join(NOISES)}")
        mask = model.tokenizer.mask_id
        if mask is None and {"mask", "infill"} & {*noises}:
            raise MiradaError("masking and infilling need a mask token, and this tokenizer has "
                              "none: choose among delete, permute and rotate")
        self.first, self.last = edges(model.tokenizer)
        room = length - len(self.first) - len(self.last)
        self.windows = Windows(corpus, room, model.tokenizer.eos_ids)
        self.count = len(self.windows)
        ends = stops(model.tokenizer)
        every = {"mask": lambda tokens, draw: hide(tokens, draw, share, mask),
                 "delete": lambda tokens, draw: delete(tokens, draw, share),
                 "infill": lambda tokens, draw: infill(tokens, draw, share, mask, mean),
                 "permute": lambda tokens, draw: permute(tokens, draw, ends), "rotate": rotate}
        self.noises = [every[name] for name in noises]

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        whole = self.windows[index]
        broken = whole
        for noise in self.noises:
            broken = noise(broken, draw)
        return self.first + broken + self.last, self.first + whole + self.last

"""Gap sentences: the sentences that say most about the rest are hidden and written (PEGASUS,
1912.08777, sec. 3.1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from mirada.errors import MiradaError

from .corpus import Corpus
from .sentences import Windows, sentences, stops
from .seq2seq import TextToText, edges

MASK = "<mask_1>"


def rouge1(one: list, other: list, unique: bool = False) -> float:
    """ROUGE-1's F of two texts: the harmonic mean of the shares of each that the other has.

    unique: each word counts once, however often it stands (Uniq; else Orig).
    """
    a, b = (Counter(set(text) if unique else text) for text in (one, other))
    shared = sum((a & b).values())
    return 2 * shared / (sum(a.values()) + sum(b.values())) if shared else 0.0


def independent(parts: list[list], count: int, unique: bool = False) -> list[int]:
    """The `count` sentences that are each most like all others (Ind), in their order."""
    scores = [rouge1(part, _rest(parts, {at}), unique) for at, part in enumerate(parts)]
    best = sorted(range(len(parts)), key=lambda at: (-scores[at], at))
    return sorted(best[:count])


def sequential(parts: list[list], count: int, unique: bool = False) -> list[int]:
    """One after another, each the one that makes those chosen most like the rest (Seq)."""
    chosen: set[int] = set()
    while len(chosen) < count:
        def score(at: int) -> float:
            together = chosen | {at}
            said = [word for i in sorted(together) for word in parts[i]]
            return rouge1(said, _rest(parts, together), unique)

        chosen.add(max((at for at in range(len(parts)) if at not in chosen), key=score))
    return sorted(chosen)


def _rest(parts: list[list], without: set[int]) -> list:
    return [word for at, part in enumerate(parts) if at not in without for word in part]


SELECT: dict[str, Callable[[list[list], int, bool], list[int]]] = {
    "independent": independent, "sequential": sequential}


class GapSentences(TextToText):
    """A share of a text's sentences is hidden, a mask for each, and the decoder writes them.

    differs: likeness is that of token ids, where the paper compares words.
    """

    def __init__(self, corpus: Corpus, length: int, model, share: float = 0.3,
                 select: str = "independent", unique: bool = False):
        super().__init__(model)
        if select not in SELECT:
            raise MiradaError(f"no way to select sentences is called {select!r}; there are "
                              f"{', '.join(SELECT)}")
        self.share, self.select, self.unique = share, SELECT[select], unique
        self.mask = model.tokenizer.id(MASK)
        self.first, self.last = edges(model.tokenizer)
        room = length - len(self.first) - len(self.last)
        self.windows = Windows(corpus, room, model.tokenizer.eos_ids)
        self.count, self.stops = len(self.windows), stops(model.tokenizer)

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        parts = sentences(self.windows[index], self.stops)
        hidden = self.select(parts, max(1, round(self.share * len(parts))), self.unique)
        source = [i for at, part in enumerate(parts)
                  for i in ([self.mask] if at in hidden else part)]
        target = [i for at in hidden for i in parts[at]]
        return self.first + source + self.last, self.first + target + self.last

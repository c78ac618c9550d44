"""Documents in windows that a model can read, and the sentences in one, told from token ids."""

from __future__ import annotations

import numpy as np

from mirada.errors import MiradaError

from .corpus import Corpus

STOPS = ".!?…。！？"


class Windows:
    """Every document cut into even stretches of at most `room` tokens; no stretch spans two.

    without: ids left out, as the end token that stands behind each document. A document of fewer
    than two tokens has no window. Keeps 16 bytes a document in memory.
    """

    def __init__(self, corpus: Corpus, room: int, without: set[int]):
        if room < 4:
            raise MiradaError(f"a window of {room} tokens is too short: raise length")
        self.corpus = corpus
        ends = np.asarray(corpus.ends, dtype=np.int64)
        closed = np.isin(corpus.tokens[ends - 1], sorted(without))
        self.sizes = np.diff(ends, prepend=0) - closed
        counts = np.where(self.sizes < 2, 0, -(-self.sizes // room))
        self.ends = np.cumsum(counts)  # windows up to and with each document

    def __len__(self) -> int:
        return int(self.ends[-1])

    def document(self, index: int) -> int:
        """Which document a window is of."""
        return int(np.searchsorted(self.ends, index, side="right"))

    def __getitem__(self, index: int) -> list[int]:
        document = self.document(index)
        first = int(self.ends[document - 1]) if document else 0
        size, count = int(self.sizes[document]), int(self.ends[document]) - first
        start, stop = (size * at // count for at in (index - first, index - first + 1))
        return self.corpus.document(document)[start:stop].tolist()


def stops(tokenizer) -> set[int]:
    """The ids of tokens that end a sentence: their text ends in a full stop or the like."""
    return {i for i in range(tokenizer.size) if i not in tokenizer.special_ids
            and tokenizer.token(i).rstrip("\"'»”)").endswith(tuple(STOPS))}


def sentences(tokens: list[int], stops: set[int]) -> list[list[int]]:
    """The sentences in order; together they are the tokens. A text in which none ends before its
    own end is cut in the middle, so that there are two wherever there are two tokens."""
    found: list[list[int]] = [[]]
    for at, i in enumerate(tokens):
        found[-1].append(i)
        following = tokens[at + 1] if at + 1 < len(tokens) else i
        if i in stops and following not in stops:  # "..." ends one sentence
            found.append([])
    found = [sentence for sentence in found if sentence]
    if len(found) == 1 and len(tokens) > 1:
        return [tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]]
    return found


def around(tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a family puts before and behind a text."""
    encoded = tokenizer.encode("a")
    real = [at for at, special in enumerate(encoded.special_mask) if not special]
    return encoded.ids[: real[0]], encoded.ids[real[-1] + 1 :]

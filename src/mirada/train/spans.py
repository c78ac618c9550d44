"""Spans cut out of a text and written by the decoder: T5's (1910.10683, sec. 3.1.4) and UL2's
mixture of denoisers (2205.05131, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mirada.errors import MiradaError

from .corpus import Corpus
from .seq2seq import TextToText, edges

SENTINELS = tuple(f"<extra_id_{n}>" for n in range(100))


def cut(tokens: list[int], draw, density: float, mean: float) -> list[tuple[int, int]]:
    """(start, stop) of the spans to cut out: round(density * T) tokens in round(that / mean) spans,
    kept and cut stretches by turns, a kept one first; each way to part them is equally likely."""
    length = len(tokens)
    noise = min(max(round(length * density), 1), length - 1)
    count = min(max(round(noise / mean), 1), noise, length - noise)
    stops, at = [], 0
    for kept, lost in zip(parted(length - noise, count, draw), parted(noise, count, draw),
                          strict=True):
        stops.append((at + kept, at + kept + lost))
        at += kept + lost
    return stops


def parted(items: int, into: int, draw) -> list[int]:
    """The sizes of `into` parts of a row of items, none empty, all ways equally likely."""
    cuts = [0, *sorted(draw.sample(range(1, items), into - 1)), items]
    return [stop - start for start, stop in zip(cuts, cuts[1:], strict=False)]


def corrupt(tokens: list[int], spans: list[tuple[int, int]],
            sentinels: Sequence[int]) -> tuple[list[int], list[int]]:
    """(source, target): each span's place is held by a sentinel in the source; the target is each
    sentinel with the tokens it stands for."""
    if len(spans) > len(sentinels):
        raise MiradaError(f"{len(spans)} spans are cut out and the tokenizer has "
                          f"{len(sentinels)} sentinels: shorten the samples, or lengthen the spans")
    source, target, at = [], [], 0
    for sentinel, (start, stop) in zip(sentinels, spans, strict=False):
        source += [*tokens[at:start], sentinel]
        target += [sentinel, *tokens[start:stop]]
        at = stop
    return source + tokens[at:], target


def lengths(read: int, density: float = 0.15, mean: float = 3.0) -> tuple[int, int]:
    """(tokens, written): how many tokens of text fill a source of `read` tokens when spans are cut
    out, and how long the target then is; one end token is counted in each."""

    def made(tokens: int) -> tuple[int, int]:
        noise = round(tokens * density)
        spans = round(noise / mean)
        return tokens - noise + spans + 1, noise + spans + 1

    tokens = read
    while made(tokens + 1)[0] <= read:
        tokens += 1
    return tokens, made(tokens)[1]


def sentinels(tokenizer) -> list[int]:
    """Ids of <extra_id_0> and on, as many as there are. Raises MiradaError where there are none."""
    try:
        found = [tokenizer.id(SENTINELS[0])]
    except MiradaError:
        raise MiradaError("cutting spans needs sentinels (<extra_id_0> ...), and this tokenizer "
                          "has none: take T5's, or let one be made with them") from None
    for name in SENTINELS[1:]:
        try:
            found.append(tokenizer.id(name))
        except MiradaError:
            break
    return found


class Stretches(TextToText):
    """A corpus in stretches that fill a source of `length` tokens, whatever documents they span."""

    def __init__(self, corpus: Corpus, length: int, model, room: int):
        super().__init__(model)
        if room < 2:
            raise MiradaError(f"length {length} is too short to cut spans out: raise it")
        self.corpus, self.room = corpus, room
        self.count = max(1, len(corpus.tokens) // room)
        self.sentinels, self.ends = sentinels(model.tokenizer), model.tokenizer.eos_ids
        self.last = edges(model.tokenizer)[1]

    def tokens(self, index: int) -> list[int]:
        """Those of stretch `index`, without the ends of documents."""
        stretch = self.corpus.tokens[index * self.room : (index + 1) * self.room].tolist()
        kept = [i for i in stretch if i not in self.ends]
        return kept if len(kept) > 1 else stretch


class Spans(Stretches):
    """T5's objective: 15 % of the tokens in spans of 3 on the average; see lengths()."""

    def __init__(self, corpus: Corpus, length: int, model, density: float = 0.15,
                 mean: float = 3.0):
        super().__init__(corpus, length, model, lengths(length, density, mean)[0])
        self.density, self.mean = density, mean

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        tokens = self.tokens(index)
        source, target = corrupt(tokens, cut(tokens, draw, self.density, self.mean),
                                 self.sentinels)
        return source + self.last, target + self.last


@dataclass(frozen=True)
class Denoiser:
    """One of UL2's. mode: what the source begins with. mean: a span's tokens; None: the text's end
    is cut off, `density` of it on the average, and written on (S)."""

    mode: str
    density: float
    mean: float | None


# 2205.05131, section 3.1: R, S and X, each as likely as the others, under the modes' names of the
# published model
DENOISERS = (
    Denoiser("[NLU]", 0.15, 3), Denoiser("[NLU]", 0.15, 8), Denoiser("[S2S]", 0.25, None),
    Denoiser("[NLG]", 0.5, 3), Denoiser("[NLG]", 0.5, 8), Denoiser("[NLG]", 0.15, 64),
    Denoiser("[NLG]", 0.5, 64),
)
MODES = tuple(dict.fromkeys(d.mode for d in DENOISERS))


class Mixture(Stretches):
    """UL2's objective: for each sample one of the denoisers, named to the model by its mode."""

    def __init__(self, corpus: Corpus, length: int, model,
                 denoisers: Sequence[Denoiser] = DENOISERS):
        said = {d.mode: model.tokenizer.encode(d.mode, special=False).ids for d in denoisers}
        most = 1 + max(map(len, said.values()))  # the source's end, and its mode
        super().__init__(corpus, length, model, length - most)
        self.denoisers, self.said = tuple(denoisers), said

    def sample(self, index: int, draw) -> tuple[list[int], list[int]]:
        tokens, chosen = self.tokens(index), draw.choice(self.denoisers)
        if chosen.mean is None:
            spans = [ending(tokens, draw, chosen.density)]
        else:
            spans = cut(tokens, draw, chosen.density, chosen.mean)
        source, target = corrupt(tokens, spans, self.sentinels)
        return self.said[chosen.mode] + source + self.last, target + self.last


def ending(tokens: list[int], draw, density: float) -> tuple[int, int]:
    """The span to the text's end whose share is uniform with the mean `density`."""
    most = min(len(tokens) - 1, max(1, round(2 * density * len(tokens))))
    return len(tokens) - draw.randint(1, most), len(tokens)

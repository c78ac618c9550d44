"""Fill in the middle: a decoder reads what stands before and behind, and then writes what stands
between (Bavarian et al., 2207.14255)."""

from __future__ import annotations

import numpy as np

from mirada.errors import MiradaError

from .corpus import Corpus
from .language import NextToken

MARKS = (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
         ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # CodeGemma, Qwen2.5-Coder
         ("▁<PRE>", "▁<SUF>", "▁<MID>"))  # CodeLlama


def split(text: str, draw) -> tuple[str, str, str]:
    """prefix, middle and suffix at two characters' edges, all pairs of edges equally likely."""
    start, stop = sorted(draw.randint(0, len(text)) for _ in range(2))
    return text[:start], text[start:stop], text[stop:]


def arranged(prefix: list[int], middle: list[int], suffix: list[int], marks: tuple[int, int, int],
             spm: bool) -> list[int]:
    """PSM: <pre> prefix <suf> suffix <mid> middle. SPM: <pre> <suf> suffix <mid> prefix middle,
    the form that shares its marks with PSM (appendix D)."""
    pre, suf, mid = marks
    if spm:
        return [pre, suf, *suffix, mid, *prefix, *middle]
    return [pre, *prefix, suf, *suffix, mid, *middle]


def marks(tokenizer) -> tuple[int, int, int]:
    """The ids of prefix, suffix and middle. Raises MiradaError where the tokenizer has none."""
    for names in MARKS:
        try:
            pre, suf, mid = map(tokenizer.id, names)
        except MiradaError:
            continue
        return pre, suf, mid
    raise MiradaError("filling in needs marks of the prefix, suffix and middle, and this tokenizer "
                      f"has none of {', '.join(' '.join(names) for names in MARKS)}")


class FillMiddle(NextToken):
    """The next token, of documents of which a share is rearranged, half of these as SPM; marks and
    all else are learned alike. An end token stays behind the middle, and says where that ends."""

    def __init__(self, corpus: Corpus, length: int, tokenizer, share: float = 0.5,
                 spm: float = 0.5):
        super().__init__(corpus, length - 3)  # so that one document has room for its marks
        self.most, self.tokenizer, self.share, self.spm = length, tokenizer, share, spm
        self.marks = marks(tokenizer)

    def sample(self, index: int, draw) -> tuple[np.ndarray, np.ndarray]:
        ids, segments = super().sample(index, draw)
        parts = [self._document(ids[segments == of].tolist(), draw) for of in np.unique(segments)]
        made = [(i, of) for of, part in enumerate(parts) for i in part][: self.most]
        tokens, of = zip(*made, strict=True)
        return np.array(tokens, dtype=np.int64), np.array(of)

    def _document(self, ids: list[int], draw) -> list[int]:
        """One document's tokens, rearranged or not, its outermost gone if they are too many."""
        end = ids[-1:] if ids[-1] in self.tokenizer.eos_ids else []
        if draw.random() >= self.share:
            return ids
        text = self.tokenizer.decode(ids[: len(ids) - len(end)])
        prefix, middle, suffix = map(self._ids, split(text, draw))
        over = len(prefix) + len(middle) + len(suffix) + len(end) + 3 - self.most
        if over > 0:  # parts cut at a character may have more tokens: the outermost go
            behind = min(over, len(suffix))
            suffix, prefix = suffix[: len(suffix) - behind], prefix[over - behind :]
        return arranged(prefix, middle, suffix, self.marks, draw.random() < self.spm) + end

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, special=False, parse_special=False).ids

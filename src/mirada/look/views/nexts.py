"""next_token: the table of what may come next, TokenId, Token, Probs, over the whole vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mirada.errors import MiradaError
from mirada.look import draw, logits, patterns
from mirada.look.views.view import View, spoken
from mirada.look.views.words import WORDS

NAMED = 200  # tokens whose text a page holds, the likeliest


@dataclass(frozen=True, eq=False, repr=False)
class Next(View):
    """What a model says at one place: a logit (V,) for each token, the likeliest first in `ids`."""

    tokens: list[str]
    position: int
    logits: np.ndarray  # (V,) float32
    ids: list[int]
    words: list[str]
    k: int = 10
    lang: str = "en"

    kind = "next"

    @property
    def probs(self) -> np.ndarray:
        """(V,) at temperature 1, over the whole vocabulary."""
        raised = np.exp(self.logits.astype(np.float64) - self.logits.max())
        return raised / raised.sum()

    def contents(self, lang: str):
        about = {"tokens": self.tokens, "position": self.position, "ids": self.ids,
                 "texts": self.words, "count": len(self.logits), "k": self.k}
        title = f"{WORDS[lang]['next_title']} · “{self.tokens[self.position].strip()}”"
        return title, about, [np.ascontiguousarray(self.logits, "<f4").tobytes()]

    def data(self) -> dict:
        """For programs: the table."""
        probs = self.probs
        return {"pos": self.position, "after": self.tokens[self.position],
                "rows": [{"id": n, "token": word, "prob": float(probs[n])}
                         for n, word in zip(self.ids[: self.k], self.words, strict=False)]}

    def figure(self):
        """The k likeliest as bars."""
        words, rows = WORDS[self.lang], self.data()["rows"]
        figure = draw.canvas(6.4, 1.2 + 0.3 * len(rows))
        axes = draw.dressed(figure.subplots(), f"{words['next_title']}: "
                            f"{draw.short(repr(self.tokens[self.position]), 40)}",
                            words["probability"])
        axes.barh(range(len(rows)), [r["prob"] for r in rows], color=draw.INKS[0], height=0.7)
        for n, r in enumerate(rows):
            axes.annotate(f"{r['prob']:.1%}", (r["prob"], n), (4, 0), textcoords="offset points",
                          va="center", fontsize=8, color=draw.INK)
        axes.set_yticks(range(len(rows)), [draw.short(repr(r["token"]), 24) for r in rows])
        axes.margins(x=0.14)
        axes.invert_yaxis()
        return figure

    def __str__(self) -> str:
        lines = [f"{'TokenId':>8}  {'Probs':>7}  Token"]
        lines += [f"{r['id']:8d}  {r['prob']:7.2%}  {r['token']!r}" for r in self.data()["rows"]]
        return "\n".join(lines)

    __repr__ = __str__


@torch.no_grad()
def next_token(tape, *, k: int = 10, pos: int = -1, row: int = 0, run: int = -1,
               lang: str = "en") -> Next:
    """What the recorded pass said after token `pos` (at it, of a masked model or a classifier).

    tape: recorded with resid=True. k: rows of the table. Raises MiradaError.
    """
    stack = logits.answering(tape)
    x = tape.resid(-1, stack, run)
    (row,) = patterns.listed(row, len(x), "row of the batch")
    said = logits.read_out(tape, x, stack, run)[row].float().cpu()  # (T, V), a classifier's (1, V)
    if k < 1:
        raise MiradaError(f"k is {k}: the table has at least one row")
    if len(said) == x.shape[1]:
        tokens = logits.tokens(tape, stack, row, run)
        (pos,) = patterns.listed(pos, len(said), "token")
    else:
        tokens, pos = ["answer"], 0
    best = said[pos].topk(min(max(NAMED, k), said.shape[1])).indices.tolist()
    return Next(tokens, pos, said[pos].numpy(), best, logits.names(tape.model, best), k,
                spoken(lang))

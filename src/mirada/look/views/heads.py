"""Head view and model view: who looks at whom, a layer's heads as lines, all heads as small maps.

Names and arguments are bertviz's (Vig, 1906.05714), so that code written for it runs by changing
the import; a tape may stand where it takes weights.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from mirada.errors import MiradaError
from mirada.look import patterns
from mirada.look.views import drawings, given
from mirada.look.views.given import Arm
from mirada.look.views.view import View, spoken
from mirada.look.views.words import WORDS

STATED = 0.004  # how far a weight kept as a byte's root may be from what it was, at most
SMALL = (128, 64, 32, 16)  # sides of the model view's maps, the first that fits
CELLS = 12 << 20  # of all its maps together


class Heads(View):
    """Attention to look at: arms (one for each stack), and which layer and heads open first."""

    def __init__(self, kind: str, arms: list[Arm], layer: int | None = None, heads=None,
                 lang: str = "en", display_mode: str | None = None):
        arm, self.kind, self.arms, self.lang = arms[0], kind, arms, spoken(lang)
        self.layer = arm.layers[0] if layer is None else layer
        if self.layer not in arm.layers:
            raise MiradaError(f"layer {self.layer} is not there; there are {arm.layers}")
        numbers = range(len(arm.heads)) if heads is None else heads
        self.heads = patterns.listed(list(numbers), len(arm.heads), "head")
        if display_mode not in (None, "light", "dark"):
            raise MiradaError(f"display_mode is {display_mode!r}: it is 'light' or 'dark'")
        self.display_mode, self._cell = display_mode, None

    def contents(self, lang: str):
        size, arms = self._size(), []
        about = {"arms": arms, "layer": self.layer, "heads": self.heads, "clipped": 0,
                 "theme": self.display_mode, "stated": STATED}
        at = 0
        for arm in self.arms:
            H, T, S = arm.shape
            rows, cols = (T, S) if size is None else (min(size, T), min(size, S))
            tile = [_widest(T, rows), _widest(S, cols)]
            arms.append({"name": arm.name, "queries": arm.queries, "keys": arm.keys, "at": at,
                         "rows": rows, "cols": cols, "tile": tile, "layers": arm.layers,
                         "heads": arm.heads, "split": arm.split,
                         "resting": [given.resting(arm.queries)[0], given.resting(arm.keys)[0]],
                         "special": given.resting(arm.keys)[1], "lengths": self._lengths(arm)})
            at += len(arm.layers) * H * rows * cols
        arm, words = self.arms[0], WORDS[lang]
        title = (f"{words[self.kind + '_title']} · {words['layers']}: {len(arm.layers)} · "
                 f"{words['heads']}: {len(arm.heads)} · {words['tokens']}: {len(arm.queries)}")
        return title, about, self._bytes(about, size)

    def _lengths(self, arm: Arm) -> list | None:
        """(L, H, S) how long what a key brings is, for the lines of weight times it."""
        if arm.lengths is None or self.kind != "heads":
            return None
        return [[[float(f"{x:.3g}") for x in head] for head in arm.lengths(n).tolist()]
                for n in arm.layers]

    def _size(self) -> int | None:
        """Side of the model view's maps, None where they are whole."""
        if self.kind != "model":
            return None
        longest = max(max(arm.shape[1:]) for arm in self.arms)
        maps = sum(len(arm.layers) * len(arm.heads) for arm in self.arms)
        fits = [n for n in SMALL if maps * min(n, longest) ** 2 <= CELLS]
        size = fits[0] if fits else SMALL[-1]
        return None if longest <= size else size

    def _bytes(self, about: dict, size: int | None) -> Iterator[bytes]:
        for arm in self.arms:
            for layer in arm.layers:
                made, outside = rooted(arm.read(layer) if size is None else arm.pool(layer, size))
                about["clipped"] += outside
                yield made

    def data(self) -> dict[str, np.ndarray]:
        """name of the stack ("attention" where there is but one) -> weights (L, H, T, S)."""
        return {arm.name or "attention": np.stack([arm.read(n).numpy() for n in arm.layers])
                for arm in self.arms}

    def figure(self):
        """The first stack: lines of the layer and heads that open first, or all heads' maps."""
        arm = self.arms[0]
        if self.kind == "model":
            size = self._size() or max(arm.shape[1:])
            return drawings.grid([arm.pool(n, size) for n in arm.layers], arm.layers, arm.heads,
                                 self.lang)
        return drawings.lines(arm.read(self.layer), arm.queries, arm.keys, self.heads, self.layer,
                              self.lang)

    def __str__(self) -> str:
        name = {"heads": "head view", "model": "model view"}[self.kind]
        shapes = [f"{arm.name + ', ' if arm.name else ''}layers {len(arm.layers)}, heads "
                  f"{len(arm.heads)}, tokens {len(arm.queries)}"
                  + (f" to {len(arm.keys)}" if len(arm.keys) != len(arm.queries) else "")
                  for arm in self.arms]
        return "\n".join([f"{name}: {'; '.join(shapes)}",
                          "Attention shows where a head looks, not why the model answers."])

    __repr__ = __str__

    def _repr_html_(self) -> str | None:
        shell = notebook()
        if self._cell is not None and shell is not None and self._cell == shell.execution_count:
            return None  # shown already by the call that made it, which ends this cell
        return super()._repr_html_()


def _widest(count: int, cells: int) -> int:
    """Most places that one cell of a pooled side stands for; neighbours may share one."""
    return max(-(-(n + 1) * count // cells) - n * count // cells for n in range(cells))


def rooted(weights: Tensor) -> tuple[bytes, int]:
    """round(255 sqrt(w)) of each weight, a byte, and how many lay outside 0 to 1: a linear byte
    would lose 0.36 of a row's sum in small weights, the root 0.007."""
    outside = ((weights < 0) | (weights > 1 + 1e-4)).sum().item()
    return weights.clamp(0, 1).sqrt().mul(255).round().byte().numpy().tobytes(), outside


def notebook():
    """IPython's shell where this runs inside one, else None."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def head_view(attention=None, tokens=None, sentence_b_start=None, prettify_tokens=True, layer=None,
              heads=None, encoder_attention=None, decoder_attention=None, cross_attention=None,
              encoder_tokens=None, decoder_tokens=None, include_layers=None, html_action="view", *,
              stack=None, row=0, run=-1, display_mode=None, lang="en") -> Heads:
    """Lines from each token to those it looked at, one colour a head.

    attention: a tape, or weights (1, H, n, n) a layer as any library hands them out; tokens: their
    n texts (a tape knows its own). A tape recorded with v=True also shows weight times what the key
    brings, weight * ||v W_o|| (2004.10102). sentence_b_start: first token of a second sentence,
    which gives a filter A to B. layer, heads: what opens first. encoder_, decoder_,
    cross_attention with encoder_tokens, decoder_tokens: of an encoder-decoder. include_layers: the
    only ones that the page holds. html_action: "view" also shows it at once in a notebook, "return"
    does not. stack, row, run: of a tape. lang: en or es. Raises MiradaError.
    """
    arms = given.arms(attention, tokens, sentence_b_start, prettify_tokens=prettify_tokens,
                      encoder_attention=encoder_attention, decoder_attention=decoder_attention,
                      cross_attention=cross_attention, encoder_tokens=encoder_tokens,
                      decoder_tokens=decoder_tokens, include_layers=include_layers, stack=stack,
                      row=row, run=run)
    return _shown(Heads("heads", arms, layer, heads, lang, display_mode), html_action)


def model_view(attention=None, tokens=None, sentence_b_start=None, prettify_tokens=True,
               display_mode=None, encoder_attention=None, decoder_attention=None,
               cross_attention=None, encoder_tokens=None, decoder_tokens=None, include_layers=None,
               include_heads=None, html_action="view", *, stack=None, row=0, run=-1,
               lang="en") -> Heads:
    """Every head of every layer as a small map; a click opens one. Arguments as head_view's;
    display_mode: "light" or "dark", the reader's own when None. Long texts are pooled: each cell
    the largest weight of its tile, which the page says. Raises MiradaError."""
    arms = given.arms(attention, tokens, sentence_b_start, prettify_tokens=prettify_tokens,
                      encoder_attention=encoder_attention, decoder_attention=decoder_attention,
                      cross_attention=cross_attention, encoder_tokens=encoder_tokens,
                      decoder_tokens=decoder_tokens, include_layers=include_layers,
                      include_heads=include_heads, stack=stack, row=row, run=run)
    return _shown(Heads("model", arms, lang=lang, display_mode=display_mode), html_action)


def _shown(view: Heads, html_action: str) -> Heads:
    """The view; in a notebook shown at once as bertviz does, wherever in its cell it was made."""
    if html_action not in ("view", "return"):
        raise MiradaError(f"html_action is {html_action!r}: it is 'view' or 'return'")
    shell = notebook()
    if html_action == "view" and shell is not None:
        sys.modules["IPython"].display.display(view)
        view._cell = shell.execution_count
    return view

"""attention_map: one head as the guides draw it, keys across and queries down."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mirada.look import draw, figures, patterns, record
from mirada.look.views import given
from mirada.look.views.view import spoken
from mirada.look.views.words import WORDS


def attention_map(attention, tokens=None, layer: int = 0, head: int = 0, ax=None, lang="en", *,
                  keys=None, stack=None, row: int = 0, run: int = -1):
    """A matplotlib figure of one head's weights; its layer's other heads small beside it.

    attention: a tape; weights (1, H, T, S) a layer; one such tensor; or one matrix (T, S). tokens,
    keys: texts of queries and keys, a tape's own or their numbers when None. ax: draw the one map
    there, the figure being that of ax. Any stack, text or image patches: a tape's pass decides.
    lang: of the labels, en or es. Raises MiradaError.
    """
    words = WORDS[spoken(lang)]
    weights, queries, texts = _one(attention, tokens, keys, layer, stack, row, run)
    (head,) = patterns.listed(head, len(weights), "head")
    if ax is not None:
        return _upon(ax, weights[head].numpy(), queries, texts, words)
    figure = figures.attention_map(weights, queries, texts, head=head)
    large = figure.get_axes()[0]
    large.set_xlabel(words["keys"])
    large.set_ylabel(words["queries"])
    return figure


def _one(attention, tokens, keys, layer, stack, row, run):
    """(H, T, S) of one layer, and the texts of both sides."""
    if isinstance(attention, record.Tape):
        stack, layer = attention.site(layer, stack)
        (arm,) = given.arms(attention, tokens, stack=stack, row=row, run=run)
        return arm.read(layer), arm.queries, list(keys or arm.keys)
    if isinstance(attention, np.ndarray | Tensor) and attention.ndim == 2:
        attention = [attention[None]]
    elif isinstance(attention, np.ndarray | Tensor) and attention.ndim in (3, 4):
        attention = [attention]
    weights = given.layers(attention, "attention")
    (layer,) = patterns.listed(layer, len(weights), "layer")
    _, T, S = weights[layer].shape
    queries = list(tokens) if tokens is not None else [str(n) for n in range(T)]
    if keys is None:
        keys = queries if T == S else [str(n) for n in range(S)]
    given.fit(queries, list(keys), T, S, "tokens")
    return weights[layer], queries, list(keys)


def _upon(axes, weights: np.ndarray, queries: list[str], keys: list[str], words: dict):
    axes.imshow(weights, cmap=draw.heat(), vmin=0, vmax=1, interpolation="nearest",
                aspect="equal" if len(queries) == len(keys) else "auto")
    draw.dressed(axes, "", words["keys"], words["queries"])
    for ticks, labels, turn in ((axes.set_xticks, keys, 90), (axes.set_yticks, queries, 0)):
        shown = range(0, len(labels), -(-len(labels) // figures.MOST_LABELS))
        ticks(list(shown), [draw.short(labels[n], 14) for n in shown], rotation=turn)
    return axes.figure

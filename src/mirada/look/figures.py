"""Pictures of attention: one head large, its layer's heads small beside it (matplotlib)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mirada.errors import MiradaError
from mirada.look import draw
from mirada.look.draw import CLOTH, EDGE, INK

MOST_LABELS = 60  # tokens past which labels on an axis are thinned out
BESIDE = 0.8  # width of the small heads' half, of the large one's
FAINT = 0.01  # a look weaker than this is no link
WRITTEN = 20  # tokens up to which weights are written into the cells


@dataclass(frozen=True)
class Link:
    """One strong look: query token -> key token, in one head."""

    layer: int
    head: int
    query: int
    key: int
    weight: float


def links(tape, *, stack: str | None = None, most: int = 10, near: bool = False) -> list[Link]:
    """The strongest looks of row 0 over all layers and heads, at most one a head.

    near: count looks at the first token, at the query itself and at its neighbours too; most heads
    rest there, which says little about the text.
    """
    found = []
    for layer in tape.layers(stack):
        weights = tape.pattern(layer, stack=stack)[0].clone()  # (H, T, S)
        if not near:
            weights[:, :, 0] = 0
            for beside in (-1, 0, 1):
                weights.diagonal(beside, dim1=1, dim2=2).zero_()
        best, where = weights.flatten(1).max(1)
        for head, (weight, at) in enumerate(zip(best.tolist(), where.tolist(), strict=True)):
            query, key = divmod(at, weights.shape[2])
            found.append(Link(layer, head, query, key, weight))
    found = [link for link in found if link.weight >= FAINT]
    return sorted(found, key=lambda link: -link.weight)[:most]


def attention_map(weights: Tensor, tokens: list[str], keys: list[str] | None = None, *,
                  head: int = 0, title: str = ""):
    """A matplotlib figure of one layer: head `head` large, all heads small beside it.

    weights: (H, T, S); tokens: the T queries' texts; keys: the S keys', the same when None.
    Axes as people draw them: keys across ("Key positions"), queries down ("Query positions").
    Raises MiradaError where labels and weights do not fit, or matplotlib is missing.
    """
    weights = weights.detach().to("cpu", torch.float32)
    H, T, S = weights.shape
    keys = tokens if keys is None else keys
    if len(tokens) != T or len(keys) != S:
        raise MiradaError(f"{len(tokens)} query and {len(keys)} key labels for weights of shape "
                          f"{tuple(weights.shape)}")
    side = min(max(4.8, 0.3 * max(T, S) + 1.6), 11)
    figure = draw.canvas((1 + BESIDE) * side, side)
    from matplotlib.colors import PowerNorm
    # One scale for all heads; its root, so that what is faint can still be seen.
    ink = dict(cmap=draw.heat(), norm=PowerNorm(0.5, 0, 1),
               aspect="equal" if T == S else "auto", interpolation="nearest")
    left, right = figure.subfigures(1, 2, width_ratios=[1, BESIDE]).flat
    picture = _large(left, weights[head], tokens, keys, title or f"Head {head}", ink)
    small = _all(right, weights, head, ink)
    scale = draw.bar(right, picture, small, "Attention weight (a row sums to 1)", location="bottom",
                     aspect=32, pad=0.04, ticks=[0, 0.05, 0.2, 0.5, 1], format="{x:.0%}")
    scale.ax.get_xticklabels()[-1].set_ha("right")
    return figure


def _large(figure, weights: Tensor, tokens: list[str], keys: list[str], title: str, ink: dict):
    figure.set_facecolor(CLOTH)
    axes = figure.subplots()
    picture = axes.imshow(weights.numpy(), **ink)
    axes.set_title(title, fontsize=13, color=INK, pad=10, loc="left", fontweight="bold")
    axes.set_xlabel("Key positions", color=INK, fontsize=10, labelpad=8)
    axes.set_ylabel("Query positions", color=INK, fontsize=10, labelpad=8)
    size = 9 if max(weights.shape) <= 40 else 7
    for set_ticks, labels, turn in ((axes.set_xticks, keys, 90), (axes.set_yticks, tokens, 0)):
        step = -(-len(labels) // MOST_LABELS)
        shown = range(0, len(labels), step)
        named = [draw.short(labels[n], 14) for n in shown]
        set_ticks(list(shown), named, rotation=turn, fontsize=size)
    _framed(axes)
    if max(weights.shape) <= WRITTEN:
        for t, row in enumerate(weights.tolist()):
            for s, weight in enumerate(row):
                if weight >= 0.10:
                    axes.text(s, t, f"{weight:.2f}"[1:] if weight < 0.995 else "1", fontsize=8,
                              ha="center", va="center", color=CLOTH if weight > 0.3 else INK)
    return picture


def _all(figure, weights: Tensor, head: int, ink: dict):
    """Every head small, the large one's number in bold."""
    figure.set_facecolor(CLOTH)
    said = f"All {len(weights)} heads of this layer" if len(weights) > 1 else "The only head"
    figure.suptitle(said, fontsize=10, color=INK)
    across = max(range(1, len(weights) + 1), key=lambda n: min(  # the largest squares
        BESIDE / n, 0.85 / math.ceil(len(weights) / n)))
    grid = figure.subplots(-(-len(weights) // across), across, squeeze=False)
    for n, axes in enumerate(grid.flat):
        if n >= len(weights):
            axes.set_axis_off()
            continue
        axes.imshow(weights[n].numpy(), **ink)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{n}", fontsize=9, pad=3, color=INK,
                       fontweight="bold" if n == head else "normal")
        _framed(axes, INK if n == head else EDGE)
    return grid


def _framed(axes, color: str = EDGE) -> None:
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_edgecolor(color)
        spine.set_linewidth(0.8)

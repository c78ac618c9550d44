"""Pictures of attention: one head large, its layer's heads small beside it (matplotlib)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mirada.errors import MiradaError

INK, CLOTH = "#1c1a27", "#fbfaf7"
MOST_LABELS = 60  # tokens past which labels on an axis are thinned out


@dataclass(frozen=True)
class Link:
    """One strong look: query token -> key token, in one head."""

    layer: int
    head: int
    query: int
    key: int
    weight: float


def links(tape, *, stack: str | None = None, most: int = 10, sink: bool = False) -> list[Link]:
    """The strongest looks of row 0 over all layers and heads, at most one a head.

    sink: count looks at the first token and at the query itself too; most heads rest there, which
    says little about the text.
    """
    found = []
    for layer in tape.layers(stack):
        weights = tape.pattern(layer, stack=stack)[0].clone()  # (H, T, S)
        if not sink:
            weights[:, :, 0] = 0
            if weights.shape[1] == weights.shape[2]:
                weights.diagonal(dim1=1, dim2=2).zero_()
        best, where = weights.flatten(1).max(1)
        for head, (weight, at) in enumerate(zip(best.tolist(), where.tolist(), strict=True)):
            found.append(Link(layer, head, *divmod(at, weights.shape[2]), weight))
    return sorted(found, key=lambda link: -link.weight)[:most]


def attention_map(weights: Tensor, tokens: list[str], keys: list[str] | None = None, *,
                  head: int = 0, title: str = ""):
    """A matplotlib figure of one layer: head `head` large, all heads small beside it.

    weights: (H, T, S); tokens: the T queries' texts; keys: the S keys', the same when None.
    Axes as people draw them: keys across ("Key positions"), queries down ("Query positions").
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MiradaError("pictures need matplotlib: pip install 'mirada[look]'") from None
    weights = weights.detach().to("cpu", torch.float32)
    H, T, S = weights.shape
    keys = tokens if keys is None else keys
    if len(tokens) != T or len(keys) != S:
        raise MiradaError(f"{len(tokens)} query and {len(keys)} key labels for weights of shape "
                          f"{tuple(weights.shape)}")
    across = min(4, H)
    down = -(-H // across)
    side = min(max(4.5, 0.34 * max(T, S) + 1.8), 14)
    figure = Figure(figsize=(side * 1.08 + 0.62 * side, side), facecolor=CLOTH, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.08, 0.62])
    _large(left, weights[head], tokens, keys, title or f"Head {head}")
    right.set_facecolor(CLOTH)
    right.suptitle(f"All {H} heads of this layer", fontsize=10, color=INK)
    small = right.subplots(down, across, squeeze=False)
    for n, axes in enumerate(small.flat):
        axes.set_axis_off()
        if n < H:
            axes.imshow(weights[n] ** 0.5, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"{n}", fontsize=9, pad=2, color=INK,
                           fontweight="bold" if n == head else "normal")
    return figure


def _large(figure, weights: Tensor, tokens: list[str], keys: list[str], title: str) -> None:
    axes = figure.subplots()
    figure.set_facecolor(CLOTH)
    picture = axes.imshow(weights, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
    axes.set_title(title, fontsize=12, color=INK, pad=10)
    axes.set_xlabel("Key positions", color=INK)
    axes.set_ylabel("Query positions", color=INK)
    for set_ticks, labels, turn in ((axes.set_xticks, keys, 90), (axes.set_yticks, tokens, 0)):
        step = -(-len(labels) // MOST_LABELS)
        shown = range(0, len(labels), step)
        set_ticks(list(shown), [_short(labels[n]) for n in shown], rotation=turn, fontsize=9)
    axes.tick_params(length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("Attention weight (a row sums to 1)", color=INK, fontsize=9)
    bar.outline.set_visible(False)
    if max(weights.shape) <= 24:
        for t, row in enumerate(weights.tolist()):
            for s, weight in enumerate(row):
                if weight >= 0.10:
                    axes.text(s, t, f"{weight:.2f}"[1:] if weight < 0.995 else "1", fontsize=7,
                              ha="center", va="center", color="white" if weight > 0.45 else INK)


def _short(token: str, most: int = 14) -> str:
    """A token as a label: no dollar (matplotlib would typeset it), no overlong word."""
    shown = token if len(token) <= most else token[: most - 1] + "…"
    return shown.replace("$", r"\$")

"""The views as matplotlib pictures: lines between two columns, small maps, channels as bars."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mirada.look import draw
from mirada.look.views.words import WORDS

LINES = 6000  # most that one picture draws
LABELS = 60  # most tokens named along a side
INKS = ("#3b6fd4", "#d9642c", "#2f9e68", "#c2388f", "#8a63d2", "#b58900", "#1899ad", "#d33f49",
        "#6b8e23", "#a0522d", "#5f7fae", "#e07ba8")  # of heads, as on the pages


def lines(weights: Tensor, queries: list[str], keys: list[str], heads: list[int], layer: int,
          lang: str = "en"):
    """A layer's chosen heads (H, T, S): queries left, keys right, the strongest lines between."""
    from matplotlib.collections import LineCollection
    words, (_, T, S) = WORDS[lang], weights.shape
    rows = max(T, S)
    figure = draw.canvas(6.4, min(1.4 + 0.24 * rows, 16))
    axes = figure.subplots()
    chosen = weights[heads].numpy()
    order = np.argsort(-chosen.ravel(), kind="stable")[:LINES]
    at = np.stack(np.unravel_index(order[chosen.ravel()[order] > 0][::-1], chosen.shape))
    h, q, k = at  # the strongest last, on top
    w = chosen[h, q, k]
    ends = np.stack([np.stack([np.zeros_like(w), q], 1), np.stack([np.ones_like(w), k], 1)], 1)
    axes.add_collection(LineCollection(
        ends, colors=[INKS[heads[n] % len(INKS)] for n in at[0]], linewidths=0.4 + 2.6 * w,
        alpha=np.clip(w, 0.04, 1)))
    for side, x, texts, turn in (("right", -0.02, queries, T), ("left", 1.02, keys, S)):
        for n in range(0, turn, -(-turn // LABELS)):
            axes.text(x, n, draw.short(texts[n]), ha=side, va="center", fontsize=8, color=draw.INK)
    share = w.sum() / max(chosen.sum(), 1e-9)
    said = "" if share > 0.999 else f" ({share:.0%})"
    shown = f"{words['heads']} {', '.join(map(str, heads))}" if len(heads) < len(weights) else (
        f"{words['heads']}: {words['all'].lower()}")
    axes.set_title(f"{words['layer']} {layer} · {shown}{said}", fontsize=11, color=draw.INK,
                   loc="left", fontweight="bold")
    axes.set_xlim(-0.45, 1.45)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_axis_off()
    return figure


def grid(maps: list[Tensor], layers: list[int], heads: list[int], lang: str = "en"):
    """Every head's map (H, R, C) of every layer in one picture: layers down, heads across."""
    words, (H, R, C) = WORDS[lang], maps[0].shape
    gap = max(1, max(R, C) // 12)
    sheet = np.full((len(maps) * (R + gap), H * (C + gap)), np.nan, dtype=np.float32)
    for row, layer in enumerate(maps):
        for head, cells in enumerate(layer.numpy()):
            sheet[row * (R + gap) :, head * (C + gap) :][:R, :C] = np.sqrt(cells.clip(0, 1))
    figure = draw.canvas(min(1.2 + 0.72 * H, 16), min(1.3 + 0.72 * len(maps) * R / C, 22))
    axes = draw.dressed(figure.subplots(), "", words["head"], words["layer"])
    axes.imshow(sheet, cmap=draw.heat(), vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([n * (C + gap) + C / 2 for n in range(H)], heads)
    axes.set_yticks([n * (R + gap) + R / 2 for n in range(len(maps))], layers)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def channels(q: np.ndarray, k: np.ndarray, scale: float, query: str, key: str, weight: float,
             lang: str = "en"):
    """One query and one key (K,): both, their products, and how these add up to the score."""
    words, products = WORDS[lang], q * k * scale
    figure = draw.canvas(7.4, 6.2)
    rows = figure.subplots(4, 1, sharex=True)
    bars = {f"q · {draw.short(query)}": q, f"k · {draw.short(key)}": k,
            f"{words['product']} × {scale:.4g}": products,
            f"{words['sum']}: {products.sum():.3f} → {words['weight'].lower()} {weight:.1%}":
                products.cumsum()}
    for axes, (title, values), n in zip(rows, bars.items(), (5, 2, 1, 0), strict=True):
        draw.dressed(axes, title)
        axes.bar(range(len(values)), values, color=draw.INKS[n], width=0.85)
        axes.axhline(0, color=draw.INK, linewidth=0.6)
    rows[-1].set_xlabel(words["channel"], color=draw.INK, fontsize=9)
    return figure

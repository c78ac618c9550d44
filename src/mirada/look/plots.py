"""The guides' other figures: where positions lie in their vectors, how a learning rate goes over
the steps, and what attention costs as a text grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.core.position import Learned, Sinusoid, sinusoid
from mirada.errors import MiradaError

from . import draw
from .describe import resolve
from .sites import stacks

LENGTHS = tuple(2**n for n in range(5, 14))


@dataclass(frozen=True, eq=False)
class Positions(draw.Drawn):
    """The vectors (n, d) that say where a token stands; kind: where they come from."""

    kind: str
    vectors: Tensor

    @property
    def likeness(self) -> Tensor:
        """(n, n) cosines of the positions."""
        unit = F.normalize(self.vectors.double(), dim=-1)
        return unit @ unit.T

    def data(self) -> dict:
        """For programs."""
        return {"kind": self.kind, "vectors": self.vectors.tolist(),
                "likeness": self.likeness.tolist()}

    def __str__(self) -> str:
        n, d = self.vectors.shape
        near = [self.likeness.diagonal(k).mean().item() for k in (1, 2, 8, 32) if k < n]
        said = ", ".join(f"{x:.2f} at {k}" for k, x in zip((1, 2, 8, 32), near, strict=False))
        return f"{n} positions of {d} numbers, {self.kind}; cosine by distance: {said or 'none'}"

    def figure(self):
        """The vectors as a heat map, and beside it how alike two positions are."""
        figure = draw.canvas(12, 4.6)
        left, right = figure.subplots(1, 2, width_ratios=[5, 3])
        most = self.vectors.abs().max().item() or 1.0
        draw.dressed(left, f"Position vectors, {self.kind}", "Dimension", "Position")
        whole = left.imshow(self.vectors.float().numpy(), cmap="PuOr_r", vmin=-most, vmax=most,
                            aspect="auto", interpolation="nearest")
        draw.dressed(right, "Cosine of two positions", "Position", "Position")
        alike = right.imshow(self.likeness.numpy(), cmap="PuOr_r", vmin=-1, vmax=1,
                             interpolation="nearest")
        for axes, picture in ((left, whole), (right, alike)):
            draw.bar(figure, picture, axes, aspect=30, pad=0.02)
        return figure


@torch.no_grad()
def positions(of=512, count: int = 128) -> Positions:
    """The position vectors of a model that adds them to its embeddings, or the sinusoids of
    1706.03762 for a width `of`; the first `count`. Raises MiradaError for a model whose positions
    are elsewhere: rotations and score biases add no vectors."""
    if isinstance(of, int):
        return Positions(f"sinusoids of width {of}", sinusoid(torch.arange(count), of))
    model = resolve(of)
    if model.device.type == "meta":
        raise MiradaError("this model was built without numbers: give a path, or a model with them")
    table = getattr(next(iter(stacks(model).values())).embed, "position", None)
    if not isinstance(table, Learned | Sinusoid):
        raise MiradaError(f"{model.family} adds no position vectors to its tokens; where it turns "
                          "or biases scores instead, see mirada describe")
    count = min(count, model.context or count)
    kind = "learned" if isinstance(table, Learned) else "sinusoids"
    made = table(torch.arange(count, device=model.device)).float().cpu()
    return Positions(f"{kind}, of {model.family}", made)


@dataclass(frozen=True)
class Lines(draw.Drawn):
    """Named lines over one axis. rows: name -> a value at each of xs."""

    title: str
    across: str
    down: str
    xs: list[int]
    rows: dict[str, list[float]]
    log: bool = False
    note: str = ""

    def data(self) -> dict:
        """For programs."""
        return dict(vars(self))

    def __str__(self) -> str:
        shown = range(0, len(self.xs), max(1, len(self.xs) // 8))
        head = [self.across.lower(), *(str(self.xs[n]) for n in shown)]
        body = [[name, *(f"{row[n]:.3g}" for n in shown)] for name, row in self.rows.items()]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = ["  ".join(c.rjust(w) if n else c.ljust(w) for n, (c, w) in
                           enumerate(zip(row, widths, strict=True))) for row in [head, *body]]
        return "\n".join([f"{self.title} ({self.down.lower()})", *lines,
                          *([self.note] if self.note else [])])

    def figure(self):
        """The lines as a matplotlib figure."""
        figure = draw.canvas(8, 4.2)
        axes = draw.dressed(figure.subplots(), self.title, self.across, self.down)
        for n, (name, row) in enumerate(self.rows.items()):
            axes.plot(self.xs, row, color=draw.INKS[n % len(draw.INKS)], linewidth=1.8, label=name)
        if self.log:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(self.xs, [f"{x:,}" for x in self.xs])
            axes.minorticks_off()
        axes.grid(color=draw.EDGE, linewidth=0.5)
        axes.legend(frameon=False, fontsize=9, labelcolor=draw.INK)
        return figure


def rates(recipes: Mapping[str, Any], steps: int = 10_000, points: int = 400) -> Lines:
    """How learning rates go over a run. recipes: name -> mirada.train.optim.Recipe, or a function
    of (step, steps) that gives a rate; steps: of the run. Raises MiradaError."""
    if steps < 2 or not recipes:
        raise MiradaError("a curve needs two steps or more, and a recipe")
    xs = sorted({round(n * (steps - 1) / (points - 1)) for n in range(points)})
    return Lines("Learning rate", "Step", "Rate", xs,
                 {name: [_rate(r, x, steps) for x in xs] for name, r in recipes.items()})


def _rate(recipe, step: int, steps: int) -> float:
    if callable(recipe):
        return float(recipe(step, steps))
    return recipe.rate * recipe.at(step, steps)


def costs(d: int = 512, lengths: Sequence[int] = LENGTHS) -> Lines:
    """What one layer multiplies and adds as a text grows: looks grow with its square, all else in
    step with it. d: the width, of the layer and of a recurrent one beside it."""
    rows = {"looks, n² · d": [2 * n * n * d for n in lengths],
            "projections, n · d²": [4 * n * d * d for n in lengths],
            "a recurrent layer, n · d²": [2 * n * d * d for n in lengths]}
    return Lines(f"What a layer of width {d} costs", "Tokens", "Multiply-adds", list(lengths),
                 {name: [float(x) for x in row] for name, row in rows.items()}, log=True,
                 note=f"Looks overtake the projections at {2 * d:,} tokens; a recurrent layer "
                      "takes its steps one after another, this one takes them at once.")

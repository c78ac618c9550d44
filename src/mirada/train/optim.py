"""Optimizers, which weights they decay, and how the learning rate moves.

AdamW: 1711.05101. Layer-wise rates: ULMFiT, 1801.06146, sec. 3.2. Warm-up and decay by the inverse
root: Vaswani et al., 1706.03762, eq. 3.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import nn

from mirada.errors import MiradaError

from . import pieces

BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


@dataclass(frozen=True)
class Recipe:
    """How weights are moved. rate: the highest learning rate. warmup: steps to reach it. schedule:
    a name of SCHEDULES. clip: the norm that gradients are cut to; None: they are not. layer_decay:
    each block's rate over that of the block above (1: all alike). unfreeze: steps until one more
    block trains, from the head down to the embeddings (ULMFiT, sec. 3.3: an epoch); 0: all do."""

    rate: float = 3e-4
    schedule: str = "cosine"
    warmup: int = 0
    floor: float = 0.1  # the lowest share of `rate` that cosine and linear come down to
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decay: float = 0.01
    decoupled: bool = True  # AdamW; False: Adam, whose decay goes through the moments
    clip: float | None = 1.0
    layer_decay: float = 1.0
    unfreeze: int = 0
    width: int = 512  # of the model, which the inverse-root schedule is scaled by

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise MiradaError(f"no schedule is called {self.schedule!r}; there are "
                              f"{', '.join(SCHEDULES)}")
        for name, value in (("rate", self.rate), ("eps", self.eps), ("clip", self.clip or 1)):
            if not (isinstance(value, int | float) and 0 < value < math.inf):
                raise MiradaError(f"{name} is {value!r}; it must be a number above 0")
        if not 0 < self.layer_decay <= 1:
            raise MiradaError(f"layer_decay is {self.layer_decay}; it must be above 0, at most 1")
        if type(self.unfreeze) is not int or self.unfreeze < 0:
            raise MiradaError(f"unfreeze is {self.unfreeze!r}; it is a whole number of steps")

    def at(self, step: int, steps: int) -> float:
        """The share of `rate` at a step (0 is the first) of a run of `steps`."""
        return SCHEDULES[self.schedule](self, step + 1, steps)


def noam(step: int, width: int, warmup: int) -> float:
    """d^-0.5 min(s^-0.5, s w^-1.5): the rate itself, not a share (1706.03762, eq. 3)."""
    return width**-0.5 * min(step**-0.5, step * warmup**-1.5)


def _noam(r: Recipe, step: int, steps: int) -> float:
    return noam(step, r.width, max(1, r.warmup)) / r.rate


def _warm(r: Recipe, step: int) -> float:
    return min(1.0, step / r.warmup) if r.warmup else 1.0


def _done(r: Recipe, step: int, steps: int) -> float:
    """How much of the way behind the warm-up is gone, 0 to 1."""
    return min(1.0, max(0.0, (step - r.warmup) / max(1, steps - r.warmup)))


def _cosine(r: Recipe, step: int, steps: int) -> float:
    fall = 0.5 * (1 + math.cos(math.pi * _done(r, step, steps)))
    return _warm(r, step) * (r.floor + (1 - r.floor) * fall)


def _linear(r: Recipe, step: int, steps: int) -> float:
    return _warm(r, step) * (1 - (1 - r.floor) * _done(r, step, steps))


def _inverse_root(r: Recipe, step: int, steps: int) -> float:
    return _warm(r, step) * min(1.0, (max(1, r.warmup) / step) ** 0.5)


SCHEDULES = {
    "constant": lambda r, step, steps: _warm(r, step), "cosine": _cosine, "linear": _linear,
    "inverse_sqrt": _inverse_root, "noam": _noam,
}
PRESETS = {  # the guides' numbers, and where they come from
    "transformer": Recipe(rate=1.0, schedule="noam", warmup=4000, betas=(0.9, 0.98), eps=1e-9,
                          decay=0.0, decoupled=False, clip=None),
    "finetune": Recipe(rate=2e-5, schedule="linear", floor=0.0, decay=0.01),
    "guide": Recipe(rate=5e-5, schedule="linear", floor=0.0, betas=(0.9, 0.98), eps=1e-9,
                    decay=0.01, clip=1.0),
    "pretrain": Recipe(rate=6e-4, warmup=200, betas=(0.9, 0.95), decay=0.1),
}


@dataclass(frozen=True)
class Group:
    """Weights that move alike: their names, their share of the rate, whether they decay, and the
    step from which they train."""

    names: tuple[str, ...]
    share: float
    decays: bool
    opens: int = 0


def groups(model: nn.Module, recipe: Recipe) -> list[Group]:
    """The trainable weights of a model. Biases, norms and other vectors do not decay; with
    layer_decay, a block's rate is that of the one above it times the decay, the head's is 1 and
    the embeddings come below the first block."""
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not params:
        raise MiradaError("nothing trains: every weight of this model is frozen")
    depth = 1 + max((int(m[1]) for n, _ in model.named_parameters() if (m := BLOCK.search(n))),
                    default=-1)
    places: dict[str, int] = {}
    for name in params:
        block = BLOCK.search(name)
        below = depth + 1 if ".embed." in f".{name}" else 0  # embeddings; else norm and head
        places[name] = depth - int(block[1]) if block else below
    top = min(places.values())  # trains from the start, even where only lower ones are to train
    found: dict[tuple[float, bool, int], list[str]] = {}
    for name, above in places.items():
        key = (recipe.layer_decay**above, params[name].ndim >= 2 and recipe.decay > 0,
               recipe.unfreeze * (above - top))
        found.setdefault(key, []).append(name)
    return [Group(tuple(names), *key) for key, names in found.items()]


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """torch's own AdamW or Adam over `groups`, in one pass over memory."""
    params = dict(model.named_parameters())
    alone = not any(pieces.cut(p) for p in params.values())  # whole and cut ones share no pass
    kind = torch.optim.AdamW if recipe.decoupled else torch.optim.Adam
    return kind([{"params": [params[n] for n in g.names], "share": g.share, "opens": g.opens,
                  "weight_decay": recipe.decay if g.decays else 0.0}
                 for g in groups(model, recipe)],
                lr=recipe.rate, betas=recipe.betas, eps=recipe.eps, fused=alone, foreach=False)


def set_rate(opt: torch.optim.Optimizer, recipe: Recipe, step: int, steps: int) -> float:
    """Set every group's learning rate for a step, and whether it trains by now; the rate of the
    group with share 1."""
    rate = recipe.rate * recipe.at(step, steps)
    for group in opt.param_groups:
        group["lr"] = rate * group["share"]
        for p in group["params"]:
            p.requires_grad_(step >= group["opens"])
    return rate


def table(model: nn.Module, recipe: Recipe) -> str:
    """Which weights move how fast, for people."""
    count = {n: p.numel() for n, p in model.named_parameters()}
    from_step = f"{'from step':>9}  " if recipe.unfreeze else ""
    lines = [f"{'rate':>10}  {'decay':>6}  {from_step}{'weights':>12}  first of them"]
    for g in sorted(groups(model, recipe), key=lambda g: (g.opens, -g.share, not g.decays)):
        opens = f"{g.opens + 1:9,}  " if recipe.unfreeze else ""
        lines.append(f"{recipe.rate * g.share:10.2e}  {recipe.decay if g.decays else 0:6.3g}  "
                     f"{opens}{sum(count[n] for n in g.names):12,}  {g.names[0]}")
    return "\n".join(lines)

"""Switch residual connections off, to see what they are for (He et al., 1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.core.block import ParallelBlock, Residual
from mirada.core.context import Ctx
from mirada.model import Model

from .share import blocks, share


class NoResidual(Residual):
    """x -> out(post(f(pre(x)))): what a residual would add, and nothing else."""

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        y = self.post(self.f(self.pre(x), ctx, cache))
        return self.out(F.dropout(y, self.dropout, self.training))


class NoResidualParallel(ParallelBlock):
    """The sum of the branches, without the stream that they read."""

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        h, y = self.norm(x), torch.zeros_like(x)
        for name in self.names:
            y = y + getattr(self, name)(h, ctx, cache.get(name) if cache else None)
        return y


def without_residual(model: Model, layers: Sequence[int] | None = None) -> Model:
    """The model with every sublayer's output in place of the stream, not added to it.

    layers: places in each stack's order, all when None. Weights and their names stay.
    """
    other = share(model, "its residual connections were switched off")
    for block in blocks(other, layers):
        for module in [block, *block.children()]:  # the same parts, another way through them
            if isinstance(module, Residual):
                module.__class__ = NoResidual
            elif isinstance(module, ParallelBlock):
                module.__class__ = NoResidualParallel
    return other

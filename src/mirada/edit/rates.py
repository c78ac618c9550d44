"""Dropout: units left out at random, in training only (Srivastava et al., JMLR 15, 2014), and whole
sublayers (stochastic depth; Huang et al., 1603.09382)."""

from __future__ import annotations

from mirada.core.block import Residual, Stack
from mirada.errors import MiradaError
from mirada.model import Model

from .share import share


def dropout(model: Model, rate: float) -> Model:
    """The model with `rate` wherever its embedding, blocks and head can drop; 0 ends it.

    Files do not keep it: a model that is loaded drops nothing. Raises MiradaError.
    """
    if not 0 <= rate < 1:
        raise MiradaError(f"dropout is {rate}; it is a share of units, from 0 to below 1")
    other = share(model)
    for module in other.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = float(rate)
    return other


def drop_path(model: Model, rate: float) -> Model:
    """The model whose sublayers are each left out, for a random part of a batch: from never in the
    first block to `rate` in the last, evenly between (1603.09382, eq. 4); 0 ends it.

    Files do not keep it. Raises MiradaError.
    """
    if not 0 <= rate < 1:
        raise MiradaError(f"drop_path is {rate}; it is a chance, from 0 to below 1")
    other = share(model)
    stacks = [m for m in other.modules() if isinstance(m, Stack)]
    for blocks in (stack.blocks for stack in stacks):
        for n, block in enumerate(blocks):
            for part in block.children():
                if type(part) is Residual:
                    part.drop_path = rate * n / max(len(blocks) - 1, 1)
    if rate and not any(getattr(m, "drop_path", 0.0) for m in other.modules()):
        raise MiradaError(f"no sublayer of {model.architecture} can be left out: its blocks add "
                          "theirs in a way of their own, or are only one")
    return other

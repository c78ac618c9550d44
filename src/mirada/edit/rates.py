"""Dropout: units left out at random, in training only (Srivastava et al., JMLR 15, 2014)."""

from __future__ import annotations

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

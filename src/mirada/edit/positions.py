"""Learned positions for another length, or no positions at all."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attend import Attend
from mirada.core.attention import Absent, Attention, NoBias
from mirada.core.bias import ShawAttend
from mirada.core.embed import Patches, Tokens
from mirada.core.position import Learned
from mirada.errors import MiradaError
from mirada.model import Model

from .share import share


def resize_positions(model: Model, context: int, how: str = "interpolate") -> Model:
    """The model with learned positions for `context` tokens; it saves and loads like any other.

    how: "interpolate": the old vectors are stretched (or pressed) over the new length, so that
    each place keeps its share of the way; "repeat": the first places keep their vectors, and past
    the old end they begin again (as in 2004.05150, section 5). Neither was trained so: quality
    returns with some tuning. Raises MiradaError.
    """
    if how not in STRETCHES:
        raise MiradaError(f"positions are resized by {' or '.join(STRETCHES)}, not {how!r}")
    if type(context) is not int or context < 1:
        raise MiradaError(f"context is {context!r}: it must be a whole number from 1")
    if not any(isinstance(m, Learned) for m in model.modules()):
        raise MiradaError(f"{model.architecture} has no learned positions to resize")
    other = share(model)
    for module in other.modules():
        if isinstance(module, Learned):
            old, first = module.weight.detach(), module.offset
            rows = torch.cat([old[:first], STRETCHES[how](old[first:], context)])
            module.weight = nn.Parameter(rows, module.weight.requires_grad)
            module.context, module.num_embeddings = context, len(rows)
    other.config = replace(model.config, context=context)
    return other


def _interpolate(rows: Tensor, count: int) -> Tensor:
    """(P, D) -> (count, D), both ends kept."""
    wide = F.interpolate(rows.T[None].float(), count, mode="linear", align_corners=True)
    return wide[0].T.to(rows.dtype)


def _repeat(rows: Tensor, count: int) -> Tensor:
    return rows[torch.arange(count, device=rows.device) % len(rows)]


STRETCHES = {"interpolate": _interpolate, "repeat": _repeat}


def without_positions(model: Model) -> Model:
    """The model with nothing that tells places apart: no vectors added, no rotation, no bias by
    distance. What is left of order is a causal mask or a window, if it has one."""
    other = share(model, "its positions were taken out")
    for module in other.modules():
        if isinstance(module, Tokens):
            module.position = None
        elif isinstance(module, Patches) and module.position is not None:
            module.position = nn.Parameter(torch.zeros_like(module.position))
        elif isinstance(module, Attention):
            module.rotary, module.score_bias = Absent(), NoBias()
            if isinstance(module.attend, ShawAttend):
                module.attend = Attend()
    return other

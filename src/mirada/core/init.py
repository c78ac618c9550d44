"""Every initialiser, one table: how `build` fills a model that no file fills."""

from __future__ import annotations

import math

import torch
from torch import nn

from .attention import Attention
from .bias import Buckets
from .mlp import XIELU
from .norm import LayerNorm, LayerScale, RMSNorm

NORMS = (LayerNorm, RMSNorm, LayerScale)


@torch.no_grad()
def normal(model: nn.Module, std: float = 0.02, *, residual: int = 0, embed: float | None = None):
    """N(0, std) weights, zero biases, norms as built.

    residual: number of writes into the stream; o and down are narrowed by its square root (GPT-2).
    embed: another std for the embedding tables.
    """
    for path, module in model.named_modules():
        if isinstance(module, NORMS):
            continue
        for name, p in module.named_parameters(recurse=False):
            if name == "bias":
                p.zero_()
            elif isinstance(module, nn.Embedding):
                p.normal_(0, std if embed is None else embed)
            elif p.ndim > 1:
                last = path.rpartition(".")[2] in ("o", "down") and residual
                p.normal_(0, std / math.sqrt(residual) if last else std)


@torch.no_grad()
def scaled(model: nn.Module, factor: float = 1.0):
    """Each projection by its fan-in, tables N(0, factor), zero biases (T5, 1910.10683).

    Where scores are not scaled by K ** -0.5, q is; a score bias is as wide as a projection.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(0, factor * module.in_features**-0.5)
            if module.bias is not None:
                module.bias.zero_()
    for module in model.modules():
        if isinstance(module, nn.Embedding):  # last: a head that shares its table gets the table's
            module.weight.normal_(0, factor)
    for module in model.modules():
        if isinstance(module, Attention):
            d, K = module.q.in_features, module.q.out_features // module.heads
            module.q.weight.mul_(K**-0.5 / module.scale)
            if isinstance(module.score_bias, Buckets):
                module.score_bias.table.weight.normal_(0, factor * d**-0.5)


@torch.no_grad()
def reset(model: nn.Module):
    """What the modules' own constructors give, for a model that was built without memory."""
    for module in model.modules():
        if isinstance(module, (LayerNorm, nn.PReLU, XIELU)):
            module.reset_parameters()
        elif isinstance(module, RMSNorm):
            module.weight.fill_(1.0 - module.offset)
        elif isinstance(module, LayerScale):
            module.weight.fill_(module.value)
        else:
            for p in module.parameters(recurse=False):
                p.zero_()

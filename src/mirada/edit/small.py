"""Quantize a model: each projection's weight rounded into blocks (see kernels.pack).

Without data every weight goes to the nearest number of its block. With calibration texts, GPTQ
(Frantar et al., 2210.17323) lets the weights not yet rounded make up for those that were.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn
from tqdm import tqdm

from mirada.core.linear import KEPT, keeps, kept, replaced
from mirada.errors import MiradaError
from mirada.kernels.blocks import LAYOUTS, fitting
from mirada.kernels.pack import pack
from mirada.model import Model

from .frozen import frozen
from .gptq import calibrated
from .share import share

WORDS = {"int8": "I8", "int4": "Q4_0", "nf4": "NF4", "nf4d": "NF4D", "fp4": "FP4"}
WIDE = (r"(^|\.)router$",)  # a few weights that decide which of the others run


def quantize(model: Model, to: str = "int8", *, tables: str | None = None,
             skip: Iterable[str] = (), calibrate: str | None = None) -> Model:
    """The model with the projections of its blocks in `to`; the one given stays.

    to: int8 (one scale a row), int4 (Q4_0), nf4, nf4d (its scales in 8 bits), fp4, or a type of
    kernels.blocks as GGUF names it. tables: a type for the token table and the language-model head;
    they stay wide when None, as do norms, biases, routers, poolers and classifiers. skip: regular
    expressions of paths that stay wide too. Rows that no block fits stay wide; rows of no whole
    256 take a type of 32 (kernels.blocks.SHORTER). int8 multiplies in eight bits too: faster than
    float32, and a little further from it than the weights alone, which Q8_0 is. calibrate: a text
    of some thousand words from which int4 learns its rounding (edit.gptq). Quantized weights do
    not train: all is frozen.
    Raises MiradaError for an unknown type or a model that is quantized already.
    """
    _check(model, to, tables)
    other = share(model)
    chosen = _chosen(other, to, tables, skip)
    if calibrate is not None:
        calibrated(other, {m: t for m, t in chosen.items() if not _table(other, m)}, calibrate)
        chosen = {m: t for m, t in chosen.items() if _table(other, m)}
    made: dict[tuple[int, str], torch.Tensor] = {}  # a tied table is packed once
    new = {}
    for module, type in tqdm(chosen.items(), "quantize", disable=None, leave=False):
        of = id(module.weight), type
        if of not in made:
            made[of] = pack(module.weight, type)
        new[module] = kept(module, made[of], type)
        if isinstance(module, nn.Embedding):
            new[module].dtype = module.weight.dtype
    replaced(other, new)
    return frozen(other)


def type_of(word: str) -> str:
    """The block type that a user's word means."""
    type = WORDS.get(word.lower(), word.upper())
    if type not in LAYOUTS:
        raise MiradaError(f"{word!r} is no type to quantize to; there are {', '.join(WORDS)} and "
                          f"{', '.join(LAYOUTS)}")
    return type


def _check(model: Model, to: str, tables: str | None) -> None:
    for word in (to, tables or to):
        type_of(word)
    if model.device.type == "meta":
        raise MiradaError("this model was built without memory: there are no numbers to quantize")
    if any(isinstance(m, KEPT) for m in model.modules()):
        raise MiradaError("this model is quantized already, and rounding twice loses twice: load "
                          "it with dtype=torch.float32, or take the model it was made from")


def _table(model: Model, module: nn.Module) -> bool:
    """True for the token table and a language model's head."""
    embed = getattr(model.decoder, "embed", None)
    return module in (getattr(model.head, "out", None), getattr(embed, "token", None))


def _chosen(model: Model, to: str, tables: str | None, skip: Iterable[str]) -> dict:
    """Module -> the type it gets."""
    chosen = {}
    for path, module in model.named_modules():
        path = path.removeprefix("body.")
        word = tables if _table(model, module) else to if ".blocks." in f".{path}" else None
        wide = word is None or not keeps(module) or any(re.search(p, path) for p in (*WIDE, *skip))
        type = None if wide else fitting(type_of(word), module.weight.shape[1])
        if type is not None:
            chosen[module] = type
    if not chosen:
        raise MiradaError("nothing of this model can be quantized so: no projection is left, or no "
                          "row is a whole number of blocks")
    return chosen

"""How every edit begins: the modules anew, the tensors not, so that the model given stays."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from mirada.core.block import Stack
from mirada.errors import MiradaError
from mirada.model import Model


def share(model: Model, unsaved: str | None = None) -> Model:
    """A copy that holds the same tensors, for an edit to change.

    unsaved: what the edit does that no file can say, in words; `save` refuses with them.
    """
    kept = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    kept |= {id(x): x for x in (model.origin, model._tokenizer)}
    kept[id(model.native)] = None  # a program is of the tree it was lowered from
    other = copy.deepcopy(model, kept)
    edits = model.origin.edits + ((unsaved,) if unsaved else ())
    other.origin = replace(model.origin, edits=edits)
    return other


def stacks(model: Model) -> list[Stack]:
    """The encoder and the decoder, two towers, or the only stack."""
    inner = [part for part in model.body.children() if isinstance(part, Stack)]
    return inner or [model.body]


def blocks(model: Model, layers: Sequence[int] | None = None) -> Iterator[nn.Module]:
    """Each block of each stack once, or those that run at the places `layers` of its order."""
    for stack in stacks(model):
        count = len(stack.order)
        wrong = [n for n in layers or () if not -count <= n < count]
        if wrong:
            raise MiradaError(f"layer {wrong[0]} does not exist: there are {count}")
        chosen = stack.order if layers is None else [stack.order[n] for n in layers]
        yield from (stack.blocks[index] for index in dict.fromkeys(chosen))

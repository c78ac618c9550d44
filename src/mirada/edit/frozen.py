"""Which weights of a model train: none, or those of some parts (feature extraction)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mirada.errors import MiradaError
from mirada.model import Model

from .share import share


def freeze(model: Model, train: Sequence[str] = ("head",)) -> Model:
    """The model with its weights frozen but for those whose path begins with a word of `train`:
    "head", "blocks.11", "decoder". What a family froze stays so. Raises MiradaError."""
    wanted = {n for n, p in model.named_parameters() if p.requires_grad and any(
        f"{n.removeprefix('body.')}.".startswith(f"{word}.") for word in train)}
    if not wanted:
        raise MiradaError(f"no weight of {model.architecture} lies under {' or '.join(train)}")
    other = frozen(share(model))
    for name, p in other.named_parameters():
        p.requires_grad_(name in wanted)
    return other


def frozen(model: Model) -> Model:
    """The same numbers, none to be trained; the parameters that others hold stay as they are."""
    still: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                new = still.setdefault(p, nn.Parameter(p.detach(), requires_grad=False))
                module._parameters[name] = new
    return model

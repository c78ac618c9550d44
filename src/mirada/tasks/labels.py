"""Names of what a classifier tells apart, and how its scores become probabilities."""

from __future__ import annotations

from torch import Tensor

from mirada.errors import MiradaError
from mirada.model import Model

FUNCTIONS = {"sigmoid": lambda x: x.sigmoid(), "softmax": lambda x: x.softmax(-1),
             "none": lambda x: x}


def names(model: Model, count: int) -> list[str]:
    """The label of each of `count` outputs: the file's id2label, else LABEL_0 ..."""
    given = model.origin.raw.get("id2label")
    if not given:
        return [f"LABEL_{n}" for n in range(count)]
    found = {str(n): str(label) for n, label in given.items()}
    if found.keys() != {str(n) for n in range(count)}:
        raise MiradaError(f"id2label in the config names {len(found)} labels "
                          f"({', '.join(found)}), and the head has {count} outputs, 0 to "
                          f"{count - 1}: correct config.json")
    return [found[str(n)] for n in range(count)]


def probabilities(model: Model, logits: Tensor, function: str | None) -> Tensor:
    """Scores (..., labels) by `function`: "sigmoid", "softmax" or "none"; when None as the config's
    problem_type says, else sigmoid for one label and softmax for more."""
    if function is None:
        kinds = {"regression": "none", "multi_label_classification": "sigmoid"}
        by_count = "sigmoid" if logits.shape[-1] == 1 else "softmax"
        function = kinds.get(model.origin.raw.get("problem_type") or "", by_count)
    if not isinstance(function, str) or function.lower() not in FUNCTIONS:
        raise MiradaError(f"function_to_apply is {function!r}; it can be {', '.join(FUNCTIONS)}")
    return FUNCTIONS[function.lower()](logits)

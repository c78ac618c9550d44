"""What stood where the mask is (Devlin et al., 1810.04805)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from mirada.errors import MiradaError

from . import inputs
from .inputs import Row
from .task import Task


class FillMask(Task):
    """Text with the mask token -> [{"score", "token", "token_str", "sequence"}, ...], best first;
    a list of such lists where a text has several masks.

    top_k: how many, 5 unless told. targets: words to choose among, a text or a list.
    """

    HEADS = ("ForMaskedLM", "ForPreTraining")
    DOES = "names hidden words"
    OPTIONS = ("top_k", "targets")

    def fits(self) -> bool:
        return super().fits() and hasattr(self.model.head, "out")  # some pretrain a detector

    def __call__(self, inputs: Any, **options) -> Any:
        found = super().__call__(inputs, **options)
        return found[0] if isinstance(inputs, list) and len(inputs) == 1 else found

    def run(self, items: list, told: dict) -> list:
        mask = self.tokenizer.mask_id
        if mask is None:
            raise MiradaError("fill-mask needs a mask token, and this tokenizer has none")
        rows = [inputs.row(self.model, text, None, told) for text in items]
        for text, row in zip(items, rows, strict=True):
            if mask not in row.ids:
                raise MiradaError(f"the text {text[:40]!r} has no mask: write "
                                  f"{self.tokenizer.token(mask)} where a word is wanted")
        targets = None if told.get("targets") is None else self._ids(told["targets"])

        def take(out, b: int, length: int) -> Tensor:
            logits = out["logits"] if "logits" in out else out["prediction_logits"]
            at = [i for i, token in enumerate(rows_in[b].ids) if token == mask]
            return logits[b, at].float().softmax(-1).cpu()

        found = []
        for row in rows:
            found.append(row)
        return [self._result(row, chances, targets, told.get("top_k", 5))
                for row, chances in zip(rows, inputs.forward(
                    self.model, rows, self.batch_size, take), strict=True)]

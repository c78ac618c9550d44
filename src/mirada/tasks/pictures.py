"""What pictures are given: labels, or vectors of their patches (Dosovitskiy et al., 2010.11929)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mirada.edit.lowered import lowered
from mirada.errors import MiradaError
from mirada.model import Model, Output

from .features import headless
from .labels import names, probabilities
from .task import Task

TOP = 5  # labels that a picture is given where nobody says how many


class Pictures(Task):
    """A task that reads pictures: paths, PIL pictures, arrays or tensors, see mirada.image.read; or
    records that hold one under "image"."""

    TEXTS = False

    def one(self, inputs: Any) -> bool:
        return not isinstance(inputs, list | tuple | Iterator | Dataset) and getattr(
            inputs, "ndim", 3) < 4

    @torch.inference_mode()
    def passes(self, model: Model, items: list) -> Iterator[Output]:
        """What the model gives for each batch of them."""
        for n in range(0, len(items), self.batch_size):
            pictures = [item.get("image") if isinstance(item, dict) else item
                        for item in items[n : n + self.batch_size]]
            batch = self.model.processor(pictures)["pixel_values"]
            yield model(pixel_values=batch.to(model.device))


class ImageClassification(Pictures):
    """Picture -> [{"label", "score"}], the likeliest first; a list of pictures: a list of these.

    top_k: so many labels, TOP when None. function_to_apply: see labels.probabilities.
    """

    HEADS = ("ForImageClassification", "ForImageClassificationWithTeacher")
    DOES = "labels pictures"
    OPTIONS = ("top_k", "function_to_apply")

    def run(self, items: list, told: dict) -> list:
        top_k = TOP if told.get("top_k") is None else told["top_k"]
        if type(top_k) is not int or top_k < 1:
            raise MiradaError(f"top_k is {top_k!r}; it must be a whole number from 1")
        return [self._labelled(logits.float().cpu(), told, top_k)
                for out in self.passes(lowered(self.model), items) for logits in out.logits]

    def _labelled(self, logits: Tensor, told: dict, top_k: int) -> list[dict]:
        scores = probabilities(self.model, logits, told.get("function_to_apply")).tolist()
        found = [{"label": label, "score": score} for label, score in
                 zip(names(self.model, len(scores)), scores, strict=True)]
        return sorted(found, key=lambda one: -one["score"])[:top_k]


class ImageFeatureExtraction(Pictures):
    """Picture -> [[[number, ...], ...]], (1, T, D) in nested lists: the last hidden state of each
    patch, behind those of the class token. pool=True: (1, D), what the model's pooler makes of
    them. return_tensors=True: tensors."""

    DOES = "sees pictures"
    OPTIONS = ("pool", "return_tensors")

    def fits(self) -> bool:
        return self.model.kind == "vision"

    def run(self, items: list, told: dict) -> list:
        model = lowered(self.model)
        name = "pooler_output" if told.get("pool") else "last_hidden_state"
        model = model if told.get("pool") else headless(model)
        states: list[Tensor] = []
        for out in self.passes(model, items):
            if name not in out:
                raise MiradaError(f"{self.model.architecture} has no pooler: leave pool out")
            states += out[name].cpu().split(1)
        return states if told.get("return_tensors") else [state.tolist() for state in states]

"""Labels for pictures that no model was trained on: the one whose text lies nearest (CLIP,
2103.00020, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError
from mirada.generate.text import needed
from mirada.model import Model

from . import inputs
from .pictures import Pictures

TEMPLATE = "This is a photo of {}."


class ZeroShotImageClassification(Pictures):
    """Picture -> [{"score", "label"}] of every candidate label, the likeliest first.

    candidate_labels: a list, or names between commas. hypothesis_template: with {} for the label;
    of several, each label's vectors are averaged (section 3.1.4: 3.5 points on ImageNet).
    """

    HEADS = ("CLIPModel",)
    DOES = "matches texts with pictures"
    OPTIONS = ("candidate_labels", "hypothesis_template", "truncation", "max_length", "padding")

    def __init__(self, name: str, model: Model, batch_size: int = 32, **options):
        super().__init__(name, model, batch_size, **options)
        self.tokenizer = needed(model)

    def __call__(self, inputs: Any, candidate_labels=None, **options) -> Any:
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **options)

    @torch.inference_mode()
    def run(self, items: list, told: dict) -> list:
        labels, templates = _labels(told), _templates(told)
        texts = self._texts(labels, templates, told)  # (labels, P)
        factor = self.model.head.scale.exp().float().cpu()
        return [_ranked(labels, (texts @ picture * factor).softmax(0))
                for out in self.passes(self.model, items)
                for picture in out.image_embeds.float().cpu()]

    def _texts(self, labels: list[str], templates: list[str], told: dict) -> Tensor:
        """A unit vector a label, the mean of its templates'."""
        rows = [inputs.row(self.model, template.replace("{}", label), None, told)
                for label in labels for template in templates]
        found = inputs.forward(self.model, rows, self.batch_size,
                               lambda out, b, row: out.text_embeds[b].float().cpu())
        return F.normalize(torch.stack(found).unflatten(0, (len(labels), -1)).mean(1), dim=-1)


def _ranked(labels: list[str], scores: Tensor) -> list[dict]:
    found = [{"score": score, "label": label}
             for score, label in zip(scores.tolist(), labels, strict=True)]
    return sorted(found, key=lambda one: -one["score"])


def _labels(told: dict) -> list[str]:
    labels = told.get("candidate_labels")
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not labels or not all(isinstance(label, str) for label in labels):
        raise MiradaError("zero-shot-image-classification needs candidate_labels: a list of names, "
                          "or names between commas")
    return list(labels)


def _templates(told: dict) -> list[str]:
    said = told.get("hypothesis_template", TEMPLATE)
    templates = [said] if isinstance(said, str) else list(said)
    bad = [one for one in templates if not isinstance(one, str) or "{}" not in one]
    if bad or not templates:
        raise MiradaError(f"hypothesis_template {(bad or ['[]'])[0]!r} must be a text with {{}} "
                          "where the label goes, or several")
    return templates

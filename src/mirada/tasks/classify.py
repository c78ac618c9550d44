"""Labels for whole texts: those a model was trained on, or any that it is told (zero-shot, Yin et
al., 1909.00161: is "This example is {label}." entailed by the text?)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from mirada.errors import MiradaError
from mirada.model import Output

from . import evidence, inputs, long
from .labels import names, probabilities
from .task import Task


def first(out: Output, b: int, row: inputs.Row) -> Tensor:
    return out.logits[b].float().cpu()


class TextClassification(Task):
    """Text, or {"text", "text_pair"} -> {"label", "score"}; a text alone gives a list of one.

    top_k: so many labels, best first, None for all: a list for each text. function_to_apply: see
    labels.probabilities. return_all_scores: all, in the config's order (its older name).
    long="stride": of a text longer than the context, the mean of its windows' probabilities, each
    weighted by its tokens; stride: tokens that neighbours share (0). evidence=True: the best label
    has "evidence", a list of what evidence.pooled gives, one a window.
    """

    HEADS = ("ForSequenceClassification", "ForNextSentencePrediction")
    DOES = "labels whole texts"
    OPTIONS = ("top_k", "function_to_apply", "return_all_scores", "stride",
               "evidence")
    LONG = long.POLICIES

    def __call__(self, inputs: Any, **options) -> Any:
        found = super().__call__(inputs, **options)
        return [found] if isinstance(inputs, str) and "top_k" not in options else found

    def run(self, items: list, told: dict) -> list:
        top_k = told.get("top_k", 1)
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise MiradaError(f"top_k is {top_k!r}; it must be a whole number from 1, or None")
        parts = [long.parts(self.model, *_pair(item), told) for item in items]
        rows = [row for some in parts for row in some]
        logits = iter(inputs.forward(self.model, rows, self.batch_size, first))
        return [self._result(some, [next(logits) for _ in some], told, top_k) for some in parts]

    def _result(self, rows: list[inputs.Row], logits: list[Tensor], told: dict,
                top_k: int | None):
        """Of one text, from the logits of each of its windows."""
        every = probabilities(self.model, torch.stack(logits), told.get("function_to_apply"))
        scores = (torch.tensor(long.weights(rows)) @ every).tolist()
        labels = names(self.model, len(scores))
        found = [{"label": label, "score": score}
                 for label, score in zip(labels, scores, strict=True)]
        if told.get("evidence"):
            best = max(found, key=lambda one: one["score"])
            best["evidence"] = [evidence.pooled(self.model, row) for row in rows]
        if told.get("return_all_scores") and "top_k" not in told:
            return found
        found.sort(key=lambda one: -one["score"])
        return found[:top_k] if "top_k" in told else found[0]


def _pair(item) -> tuple[str, str | None]:
    if isinstance(item, dict):
        if "text" not in item or not item.keys() <= {"text", "text_pair"}:
            raise MiradaError(f"a pair to classify has the keys text and text_pair, and this one "
                              f"has {', '.join(map(str, item))}")
        return item["text"], item.get("text_pair")
    return item, None


class ZeroShotClassification(Task):
    """Text -> {"sequence", "labels", "scores"}, the likeliest label first.

    candidate_labels: a list, or names between commas. hypothesis_template: with {} for the label.
    multi_label: each label for itself, against its contradiction, in place of one among them.
    """

    HEADS = ("ForSequenceClassification",)
    DOES = "says whether one text follows from another"
    OPTIONS = ("candidate_labels", "hypothesis_template", "multi_label")

    def __call__(self, inputs: Any, candidate_labels=None, **options) -> Any:
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        return super().__call__(inputs, **options)

    def run(self, items: list, told: dict) -> list:
        labels, claims = _claims(told)
        rows = [inputs.row(self.model, text, claim, told, first=True)
                for text in items for claim in claims]
        logits = inputs.forward(self.model, rows, self.batch_size, first)
        some = len(labels)
        return [self._result(text, labels, torch.stack(logits[n * some : (n + 1) * some]), told)
                for n, text in enumerate(items)]

    def _result(self, text: str, labels: list[str], logits: Tensor, told: dict) -> dict:
        entails = self._entails(logits.shape[-1])
        if told.get("multi_label") or len(labels) == 1:
            against = -1 if entails == 0 else 0
            scores = logits[:, [against, entails]].softmax(-1)[:, 1]
        else:
            scores = logits[:, entails].softmax(0)
        order = scores.argsort(descending=True).tolist()
        return {"sequence": text, "labels": [labels[i] for i in order],
                "scores": scores[order].tolist()}

    def _entails(self, count: int) -> int:
        known = names(self.model, count)
        found = next((n for n, label in enumerate(known) if label.lower().startswith("entail")), -1)
        if found < 0:
            warnings.warn(f"none of the labels {', '.join(known)} begins with \"entail\": the last "
                          "is taken for it; name it in the config's id2label", stacklevel=2)
        return found


def _claims(told: dict) -> tuple[list[str], list[str]]:
    """The labels, and the sentence that each one stands for."""
    labels, template = told.get("candidate_labels"), told.get("hypothesis_template",
                                                              "This example is {}.")
    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    if not labels:
        raise MiradaError("zero-shot-classification needs candidate_labels: a list of names, or "
                          "names between commas")
    if "{}" not in template:
        raise MiradaError(f"hypothesis_template {template!r} must have {{}} where the label goes")
    return list(labels), [template.replace("{}", label) for label in labels]

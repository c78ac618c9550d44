"""Distillation: a small model learns what a large one would say (Hinton et al., 1503.02531): of
hidden tokens (DistilBERT, 1910.01108, sec. 2) and of pictures (DeiT, 2012.12877, sec. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from .corpus import Corpus
from .language import HiddenToken, row_means, token_losses
from .loss import IGNORED, wide
from .pictures import Labelled, Pictures


def seen(model, given: dict[str, Tensor]) -> tuple[dict, Tensor]:
    """A pass's outputs, and the stream x (B, T, D) that its head read."""
    caught: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    try:
        out = model(**given)
    finally:
        hook.remove()
    return out, caught[0]


def softened(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(B, ...) KL(teacher || student) of logits (B, ..., V) over a temperature, times its square,
    so that the gradient's size does not depend on it (1503.02531, sec. 2)."""
    ours, theirs = (F.log_softmax(wide(x) / temperature, -1) for x in (student, teacher))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * temperature**2


class Distill(HiddenToken):
    """Hidden tokens, with a teacher: the mean over rows of 5 KL + 2 cross-entropy + 1 (1 - cosine
    of both streams), each a mean over the row's tokens; the weights are those of DistilBERT's
    program.

    teacher: a model with the student's vocabulary, whose weights stay. weights: of KL,
    cross-entropy and cosine; where the streams differ in width, set the last to 0.
    """

    def __init__(self, corpus: Corpus, length: int, model, teacher, share: float = 0.15,
                 temperature: float = 2.0, weights: tuple[float, float, float] = (5.0, 2.0, 1.0)):
        super().__init__(corpus, length, model.tokenizer, share)
        if teacher.config.vocab != model.config.vocab:
            raise MiradaError(f"the teacher knows {teacher.config.vocab} tokens and the student "
                              f"{model.config.vocab}: both must read with one tokenizer")
        if weights[2] and teacher.config.d != model.config.d:
            raise MiradaError(f"the teacher's stream is {teacher.config.d} wide and the student's "
                              f"{model.config.d}: set the weight of the cosine to 0")
        self.teacher = teacher.eval().requires_grad_(False)
        self.temperature, self.weights = temperature, tuple(weights)

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["input_ids"]))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        labels, real = given.pop("labels"), given["attention_mask"] == 1
        self.teacher.to(model.device)
        with torch.no_grad():
            theirs, x = seen(self.teacher, given)
        out, y = seen(model, given)
        terms = [row_means(softened(out["logits"], theirs["logits"], self.temperature), real),
                 row_means(token_losses(out["logits"], labels), labels != IGNORED)]
        if self.weights[2]:
            terms.append(row_means(1 - F.cosine_similarity(wide(y), wide(x), dim=-1), real))
        loss = sum(w * term for w, term in zip(self.weights, terms, strict=False))
        names = ("kl", "hidden", "cosine")
        return loss, {n: float(t.detach()) / len(real) for n, t in zip(names, terms, strict=False)}


class Taught(Pictures):
    """Labels of pictures, with a teacher that sees the same ones: (1 - share) of the loss is the
    label's, `share` the teacher's.

    A model with a distillation token answers its teacher there (distillation_logits) and the label
    at its class token (cls_logits); any other does both by its logits. hard: the teacher's choice
    counts as a label (eq. 3), else all that it thinks, over a temperature (eq. 2). share: None for
    the paper's, 0.5 of hard and 0.1 of soft. teacher: what gives logits of the same labels, such
    as a CNN; its weights stay.
    """

    def __init__(self, data: Labelled, teacher, processor=None, *, hard: bool = True,
                 share: float | None = None, temperature: float = 3.0, **options):
        super().__init__(data, processor, **options)
        self.share = (0.5 if hard else 0.1) if share is None else share
        if not 0 <= self.share <= 1 or not temperature > 0:
            raise MiradaError(f"share is {self.share}, from 0 to 1, and temperature {temperature}, "
                              "above 0: correct them")
        self.teacher, self.hard = teacher.eval().requires_grad_(False), hard
        self.temperature = temperature

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        pixels, labels = (batch[n].to(model.device) for n in ("pixel_values", "labels"))
        out = model(pixel_values=pixels)
        own, taught = (wide(out.get(n, out["logits"])) for n in ("cls_logits",
                                                                 "distillation_logits"))
        with torch.no_grad():
            theirs = wide(self.teacher.to(model.device)(pixel_values=pixels)["logits"])
        if theirs.shape != taught.shape:
            raise MiradaError(f"the teacher tells {theirs.shape[-1]} labels apart and the student "
                              f"{taught.shape[-1]}: both must know the same ones")
        if self.hard:
            copied = F.cross_entropy(taught, theirs.argmax(-1), reduction="sum")
        else:
            copied = softened(taught, theirs, self.temperature).sum()
        told = F.cross_entropy(own, labels, reduction="sum", label_smoothing=self.smoothing)
        right = [float((x.argmax(-1) == labels).float().mean()) for x in (out["logits"], theirs)]
        return (1 - self.share) * told + self.share * copied, {
            "accuracy": right[0], "teacher": right[1], "label": float(told.detach()) / len(labels),
            "copied": float(copied.detach()) / len(labels)}


@torch.no_grad()
def begin(student, teacher) -> None:
    """Give a student its teacher's weights, where both have a tensor of the name and shape; of the
    blocks every n-th (sec. 3: one of two layers)."""
    ours, theirs = len(student.body.blocks), len(teacher.body.blocks)
    if ours > theirs:
        raise MiradaError(f"the student has {ours} blocks and its teacher {theirs}: a student has "
                          "as many at most")
    from_of = {f"blocks.{at}.": f"blocks.{at * theirs // ours}." for at in range(ours)}
    known, state = teacher.state(), student.state()
    for name, tensor in state.items():
        block = next((b for b in from_of if name.startswith(b)), None)
        found = known.get(name if block is None else from_of[block] + name[len(block) :])
        if found is not None and found.shape == tensor.shape:
            tensor.copy_(found)

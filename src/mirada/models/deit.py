"""DeiT: a ViT whose second token learns what a teacher says (Touvron et al., 2012.12877)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.core.context import Ctx, Inputs
from mirada.core.heads import Classifier, First, Pooled, Pooler
from mirada.core.init import normal
from mirada.core.mlp import activation
from mirada.models import vit
from mirada.models.vit import Config
from mirada.weights.rows import Same, Weights

KIND = "vision"
TOKENS = 2  # class and distillation


@dataclass(frozen=True)
class Tokens(Same):
    """The two tokens, each a tensor of the file, are one of ours."""

    @property
    def rowwise(self) -> bool:
        return False

    def load(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat(tensors, 1)]  # (1, 2, D)

    def save(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(tensors[0].split(1, 1))


class Taught(nn.Module):
    """A classifier of each token, and the mean of what they say (section 3)."""

    def __init__(self, c: Config):
        super().__init__()
        self.own, self.taught = nn.Linear(c.d, c.labels), nn.Linear(c.d, c.labels)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        own, taught = self.own(x[:, 0]), self.taught(x[:, 1])  # (B, labels) each
        return {"logits": (own + taught) / 2, "cls_logits": own, "distillation_logits": taught}


def build(c: Config, *, masks=False):
    return vit.build(c, masks=masks, first=TOKENS)


HEADS = {
    "DeiTForImageClassificationWithTeacher": lambda c, body: Taught(c),
    "DeiTForImageClassification": lambda c, body: Classifier(c.d, c.labels, First()),
    "DeiTModel": lambda c, body: Pooled(
        Pooler(c.d, activation(c.pool_act), c.pooled) if c.pooler else None),
    "DeiTForMaskedImageModeling": lambda c, body: vit.Reconstruction(c),
}
BODIES = {"DeiTForMaskedImageModeling": lambda c: build(c, masks=True)}


def weights(c: Config) -> Weights:
    tokens = ("deit.embeddings.(cls|distillation)_token", "embed.cls", Tokens())
    return Weights([
        tokens, *vit.trunk("deit.")[1:],
        ("deit.pooler.dense.{p}", "head.pool.dense.{p}"),
        ("deit.pooler.activation.{p}", "head.pool.act.{p}"),
        ("classifier.{p}", "head.score.{p}"),
        ("(cls|distillation)_classifier.{p}", "head.(own|taught).{p}"),
        ("decoder.0.{p}", "head.pixels.{p}"),
    ], prefix="deit.", carried=("deit.embeddings.mask_token", "deit.pooler.{p}",
                                "deit.pooler.{p}.{n}", "classifier.{p}", "{of}_classifier.{p}"))


def init(model, c: Config) -> None:
    normal(model, 0.02)
    for p in model.body.embed.parameters(recurse=False):  # as in the reference; the authors draw
        nn.init.zeros_(p)


INERT = vit.INERT
SIZES = {
    "base": Config(labels=1000),
    "small": Config(d=384, heads=6, hidden=1536, labels=1000),
    "ti": Config(d=192, heads=3, hidden=768, labels=1000),
    "base-384": Config(image=384, labels=1000),
    "tiny": vit.SIZES["tiny"],
}

"""CLIP's vision tower: a ViT that norms the patches before its blocks (2103.00020, section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mirada.core.block import Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Patches
from mirada.core.heads import Pooled
from mirada.core.init import normal
from mirada.core.mlp import ACTIVATIONS, LEARNED
from mirada.core.norm import LayerNorm
from mirada.errors import MiradaError
from mirada.models import clip_text
from mirada.models.clip_text import Projected
from mirada.weights.config import key, size
from mirada.weights.rows import Leading, Weights

KIND, MODEL_TYPE = "vision", "clip_vision_model"


@dataclass(frozen=True)
class Config:
    image: int = key("image_size", 224, low=1)  # pixels
    patch: int = key("patch_size", 32, low=1)
    channels: int = size("num_channels", 3)
    d: int = size("hidden_size", 768)
    layers: int = size("num_hidden_layers", 12, high=2048)
    heads: int = size("num_attention_heads", 12)
    hidden: int = size("intermediate_size", 3072)
    act: str = key("hidden_act", "quick_gelu", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("layer_norm_eps", 1e-5, low=0)
    projection: int = key("projection_dim", 512, low=1)


class NormedPatches(Patches):
    """Patches whose projection has no bias, and which are normed with their positions."""

    def __init__(self, c: Config):
        super().__init__((c.image, c.image), (c.patch, c.patch), c.channels, c.d)
        self.project.register_parameter("bias", None)
        self.norm = LayerNorm(c.d, c.eps)

    def forward(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        return self.norm(super().forward(inputs, ctx))


class NormedFirst(nn.Module):
    """The class token, normed; the stream itself is handed on as it left the last block."""

    def __init__(self, c: Config):
        super().__init__()
        self.norm = LayerNorm(c.d, c.eps)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        return self.norm(x[:, 0])


def build(c: Config) -> Stack:
    if c.image < c.patch:
        raise MiradaError(f"a picture of {c.image} pixels holds no patch of {c.patch}: image_size "
                          "must be at least patch_size")
    return Stack(NormedPatches(c), clip_text.blocks(c))


def projected(c: Config, out: int) -> Projected:
    return Projected("image_embeds", c.d, out, NormedFirst(c))


HEADS = {
    "CLIPVisionModel": lambda c, body: Pooled(NormedFirst(c)),
    "CLIPVisionModelWithProjection": lambda c, body: projected(c, c.projection),
}


def rows(ours: str = "", head: str = "head.") -> list[tuple]:
    table = "vision_model.embeddings."
    return [
        (table + "class_embedding", ours + "embed.cls", Leading(2)),
        (table + "position_embedding.weight", ours + "embed.position", Leading(1)),
        (table + "patch_embedding.weight", ours + "embed.project.weight"),
        ("vision_model.pre_layrnorm.{p}", ours + "embed.norm.{p}"),  # so spelled
        *clip_text.tower("vision_model.", ours),
        ("vision_model.post_layernorm.{p}", head + "pool.norm.{p}"),
        ("vision_model.post_layernorm.{p}", head + "pool.pick.norm.{p}"),
        ("visual_projection.weight", head + "pool.dense.weight"),
    ]


def derived(c: Config) -> dict:
    """Older files hold the positions' numbers."""
    count = 1 + (c.image // c.patch) ** 2
    return {"vision_model.embeddings.position_ids": lambda name: torch.arange(count)[None]}


def weights(c: Config) -> Weights:
    return Weights(rows(), prefix="vision_model.", derived=derived(c))


@torch.no_grad()
def begin(stack: Stack) -> None:
    """The tower's own widths, over what `normal` gave it."""
    stack.embed.cls.normal_(0, stack.embed.cls.shape[-1] ** -0.5)
    clip_text.narrowed(stack)


@torch.no_grad()
def init(model, c: Config) -> None:
    normal(model, 0.02)
    begin(model.body)
    if isinstance(model.head, Projected):
        model.head.pool.dense.weight.normal_(0, c.d**-0.5)


INERT = clip_text.INERT
_14 = Config(patch=14, d=1024, layers=24, heads=16, hidden=4096, projection=768)
SIZES = {
    "base-32": Config(), "base-16": Config(patch=16),
    "large-14": _14, "large-14-336": replace(_14, image=336),
    "tiny": Config(image=32, patch=8, d=64, layers=2, heads=4, hidden=128, projection=32),
}

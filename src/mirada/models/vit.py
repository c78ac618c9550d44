"""ViT: a pre-norm encoder over picture patches (Dosovitskiy et al., 2010.11929)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Patches
from mirada.core.heads import Classifier, First, Pooled, Pooler
from mirada.core.init import normal
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP, activation
from mirada.core.norm import LayerNorm
from mirada.errors import MiradaError
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "vision"
NAMES = {*ACTIVATIONS, *LEARNED}


@dataclass(frozen=True)
class TrunkConfig:
    """What a ViT has in common with its kin."""

    image: int | tuple[int, int] = key("image_size", 224, low=1)  # pixels; pairs: height, width
    patch: int | tuple[int, int] = key("patch_size", 16, low=1)
    channels: int = size("num_channels", 3)
    d: int = size("hidden_size", 768)
    layers: int = size("num_hidden_layers", 12, high=2048)
    heads: int = size("num_attention_heads", 12)
    hidden: int = size("intermediate_size", 3072)
    act: str = key("hidden_act", "gelu", choices=NAMES)
    eps: float = key("layer_norm_eps", 1e-12, low=0)


@dataclass(frozen=True)
class Config(TrunkConfig):
    qkv_bias: bool = key("qkv_bias", True)
    stride: int = key("encoder_stride", 16, low=1)  # pixels a patch becomes when reconstructed
    pooled: int | None = key("pooler_output_size", None, low=1)  # d when None
    pool_act: str = key("pooler_act", "tanh", choices=NAMES)
    pooler: bool = True
    labels: int = 2

    def settle(self, names) -> Config:
        """The files do not say whether a bare body has a pooler; its tensors do."""
        return replace(self, pooler=any(name.endswith("pooler.dense.weight") for name in names))


def build(c: Config, *, masks=False, first=1) -> Stack:
    """masks: the embedding has a vector for hidden patches. first: learned tokens before them."""
    embed = Patches(*sides(c), c.channels, c.d, hidden=masks, first=first)
    return Stack(embed, blocks(c, "qkvo" if c.qkv_bias else "o"), LayerNorm(c.d, c.eps))


def blocks(c: TrunkConfig, biases: str) -> list[Block]:
    return [Block(attn=Residual(Attention(c.d, c.heads, bias=biases), pre=LayerNorm(c.d, c.eps)),
                  mlp=Residual(MLP(c.d, c.hidden, c.act), pre=LayerNorm(c.d, c.eps)))
            for _ in range(c.layers)]


def sides(c: TrunkConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """A picture's height and width, and a patch's. Raises MiradaError where no patch fits."""
    image, patch = _pair(c.image), _pair(c.patch)
    if image[0] < patch[0] or image[1] < patch[1]:
        raise MiradaError(f"a picture of {image} pixels holds no patch of {patch}: image_size must "
                          "be at least patch_size")
    return image, patch


def _pair(pixels: int | tuple[int, int]) -> tuple[int, int]:
    return (pixels, pixels) if isinstance(pixels, int) else pixels


class Reconstruction(nn.Module):
    """The picture that the patches stand for, and how wrong it is where they were hidden: each
    patch's vector becomes stride x stride pixels (SimMIM, 2111.09886)."""

    def __init__(self, c: Config):
        super().__init__()
        self.patch, self.stride, self.channels = _pair(c.patch), c.stride, c.channels
        self.pixels = nn.Conv2d(c.d, c.stride**2 * c.channels, 1)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        rows, columns = (n // p for n, p in zip(inputs.pixel_values.shape[2:], self.patch,
                                                strict=True))
        grid = x[:, -rows * columns :].transpose(1, 2)  # (B, D, N)
        grid = grid.unflatten(2, (rows, columns))  # (B, D, rows, columns)
        picture = F.pixel_shuffle(self.pixels(grid), self.stride)  # (B, C, Y, X)
        if inputs.bool_masked_pos is None:
            return {"reconstruction": picture}
        if self.patch != (self.stride, self.stride):
            raise MiradaError(f"patches of {self.patch} pixels become squares of {self.stride}: to "
                              "hide patches, patch_size must equal encoder_stride")
        hidden = inputs.bool_masked_pos.unflatten(1, (rows, columns))[:, None]
        hidden = F.interpolate(hidden.to(picture.dtype), scale_factor=self.stride)  # (B, 1, Y, X)
        wrong = (inputs.pixel_values - picture).abs() * hidden
        loss = wrong.sum() / (hidden.sum() + 1e-5) / self.channels
        return {"loss": loss, "reconstruction": picture}


HEADS = {
    "ViTForImageClassification": lambda c, body: Classifier(c.d, c.labels, First()),
    "ViTModel": lambda c, body: Pooled(
        Pooler(c.d, activation(c.pool_act), c.pooled) if c.pooler else None),
    "ViTForMaskedImageModeling": lambda c, body: Reconstruction(c),
}
BODIES = {"ViTForMaskedImageModeling": lambda c: build(c, masks=True)}


def trunk(prefix: str, layer: str = "encoder.layer.{i}.") -> list[tuple]:
    """The rows of the embedding and the blocks, as this kin's files spell them."""
    return [
        (prefix + "embeddings.cls_token", "embed.cls"),
        (prefix + "embeddings.mask_token", "embed.hidden"),
        (prefix + "embeddings.position_embeddings", "embed.position"),
        (prefix + "embeddings.patch_embeddings.projection.{p}", "embed.project.{p}"),
        *rows(prefix + layer, "blocks.{i}."),
        (prefix + "layernorm.{p}", "norm.{p}"),
    ]


def rows(layer: str, ours: str) -> list[tuple]:
    """The rows of a block; its projections one by one, for a kin's keys have no bias."""
    return [
        (layer + "layernorm_(before|after).{p}", ours + "(attn|mlp).pre.{p}"),
        *((f"{layer}attention.attention.{name}.{{p}}", f"{ours}attn.f.{name[0]}.{{p}}")
          for name in ("query", "key", "value")),
        (layer + "(attention.output|intermediate|output).dense.{p}",
         ours + "(attn.f.o|mlp.f.up|mlp.f.down).{p}"),
        (layer + "mlp.activation_fn.{p}", ours + "mlp.f.act.{p}"),
    ]


def weights(c: Config) -> Weights:
    return Weights([
        *trunk("vit."),
        ("vit.pooler.dense.{p}", "head.pool.dense.{p}"),
        ("vit.pooler.activation.{p}", "head.pool.act.{p}"),
        ("classifier.{p}", "head.score.{p}"),
        ("decoder.0.{p}", "head.pixels.{p}"),
    ], prefix="vit.", carried=("vit.embeddings.mask_token", "vit.pooler.{p}", "vit.pooler.{p}.{n}"))


def init(model, c: Config) -> None:
    normal(model, 0.02)
    for table in (model.body.embed.cls, model.body.embed.position):
        nn.init.trunc_normal_(table, std=0.02)
    if model.body.embed.hidden is not None:
        nn.init.zeros_(model.body.embed.hidden)


INERT = {"hidden_dropout_prob": ANY, "attention_probs_dropout_prob": ANY}
SIZES = {
    "base": Config(labels=1000),
    "large": Config(d=1024, layers=24, heads=16, hidden=4096, labels=1000),
    "huge": Config(patch=14, d=1280, layers=32, heads=16, hidden=5120, labels=1000),
    "tiny": Config(image=32, patch=8, d=64, layers=2, heads=4, hidden=128, stride=8, labels=10),
}

"""Swin: windows that shift, over a grid that halves by stages (Liu et al., 2103.14030)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.bias import Window2D
from mirada.core.block import Block, Residual, Stack
from mirada.core.heads import Classifier, Mean, Pooled
from mirada.core.init import normal
from mirada.core.mlp import ACTIVATIONS, MLP
from mirada.core.norm import LayerNorm
from mirada.errors import MiradaError
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

from .grids import Grid, Lined, Merge, Reconstruction, Windows

KIND = "vision"


@dataclass(frozen=True)
class Config:
    image: int | tuple[int, int] = key("image_size", 224, low=1)  # pixels; pairs: height, width
    patch: int | tuple[int, int] = key("patch_size", 4, low=1)
    channels: int = size("num_channels", 3)
    d: int = size("embed_dim", 96)  # of the first stage; each later one is twice as wide
    depths: tuple[int, ...] = key("depths", (2, 2, 6, 2), low=1, high=2048, required=True)
    stage_heads: tuple[int, ...] = key("num_heads", (3, 6, 12, 24), low=1, required=True)
    window: int = size("window_size", 7)  # places of the grid
    ratio: float = key("mlp_ratio", 4.0, low=0)  # of an MLP's width to its stage's
    act: str = key("hidden_act", "gelu", choices=set(ACTIVATIONS))
    eps: float = key("layer_norm_eps", 1e-5, low=0)
    qkv_bias: bool = key("qkv_bias", True)
    absolute: bool = key("use_absolute_embeddings", False)
    stride: int = key("encoder_stride", 32, low=1)  # pixels a last place becomes, reconstructed
    labels: int = 2

    @property
    def layers(self) -> int:
        return sum(self.depths)

    @property
    def heads(self) -> int:
        """Of the first stage."""
        return next(iter(self.stage_heads), 1)

    @property
    def widths(self) -> list[int]:
        return [self.d << n for n in range(len(self.depths))]


def build(c: Config, *, masks=False) -> Stack:
    """masks: the embedding has a vector for hidden patches."""
    if not 0 < len(c.depths) == len(c.stage_heads):
        raise MiradaError(f"depths has {len(c.depths)} stages and num_heads {len(c.stage_heads)}: "
                          "each stage needs one of both")
    blocks = []
    for stage, (d, heads) in enumerate(zip(c.widths, c.stage_heads, strict=True)):
        if d % heads:
            raise MiradaError(f"num_heads: stage {stage + 1} is {d} wide, which cannot be cut into "
                              f"{heads} heads")
        if int(c.ratio * d) < 1:
            raise MiradaError(f"mlp_ratio: {c.ratio} times a width of {d} is no width")
        blocks += [block(c, d, heads, n % 2 * (c.window // 2)) for n in range(c.depths[stage])]
        if stage + 1 < len(c.depths):
            blocks[-1].add_module("merge", Merge(d))
    image, patch = _pair(c.image), _pair(c.patch)
    embed = Grid(image, patch, c.channels, c.d, positions=c.absolute, hidden=masks)
    return Stack(embed, blocks, Lined(c.widths[-1], c.eps))


def block(c: Config, d: int, heads: int, shift: int) -> Block:
    attention = Attention(d, heads, bias="qkvo" if c.qkv_bias else "o",
                          score_bias=Window2D((c.window, c.window), heads))
    return Block(attn=Residual(Windows(attention, c.window, shift), pre=LayerNorm(d, c.eps)),
                 mlp=Residual(MLP(d, int(c.ratio * d), c.act), pre=LayerNorm(d, c.eps)))


def _pair(pixels: int | tuple[int, int]) -> tuple[int, int]:
    return (pixels, pixels) if isinstance(pixels, int) else pixels


HEADS = {
    "SwinForImageClassification": lambda c, body: Classifier(c.widths[-1], c.labels, Mean()),
    "SwinModel": lambda c, body: Pooled(Mean()),
    "SwinForMaskedImageModeling": lambda c, body: Reconstruction(
        c.widths[-1], _pair(c.patch), c.stride, c.channels, joined=2 ** (len(c.depths) - 1)),
}
BODIES = {"SwinForMaskedImageModeling": lambda c: build(c, masks=True)}
BLOCK = [  # of a file's block, and of ours
    ("layernorm_before.{p}", "attn.pre.{p}"),
    ("attention.self.query.{p}", "attn.f.f.q.{p}"),
    ("attention.self.key.{p}", "attn.f.f.k.{p}"),
    ("attention.self.value.{p}", "attn.f.f.v.{p}"),
    ("attention.self.relative_position_bias_table", "attn.f.f.score_bias.table"),
    ("attention.output.dense.{p}", "attn.f.f.o.{p}"),
    ("layernorm_after.{p}", "mlp.pre.{p}"),
    ("intermediate.dense.{p}", "mlp.f.up.{p}"),
    ("output.dense.{p}", "mlp.f.down.{p}"),
]


def weights(c: Config) -> Weights:
    """Files count blocks within their stage, we count them through."""
    rows = [
        ("swin.embeddings.patch_embeddings.projection.{p}", "embed.project.{p}"),
        ("swin.embeddings.norm.{p}", "embed.norm.{p}"),
        ("swin.embeddings.mask_token", "embed.hidden"),
        ("swin.embeddings.position_embeddings", "embed.position"),
        ("swin.layernorm.{p}", "norm.{p}"),
        ("classifier.{p}", "head.score.{p}"),
        ("decoder.0.{p}", "head.pixels.{p}"),
    ]
    at = 0
    for stage, depth in enumerate(c.depths):
        layer = f"swin.encoder.layers.{stage}."
        for n in range(depth):
            rows += [(f"{layer}blocks.{n}.{theirs}", f"blocks.{at + n}.{ours}")
                     for theirs, ours in BLOCK]
        at += depth
        rows += [(layer + "downsample.norm.{p}", f"blocks.{at - 1}.merge.norm.{{p}}"),
                 (layer + "downsample.reduction.{p}", f"blocks.{at - 1}.merge.reduce.{{p}}")]
    index = "swin.encoder.layers.{i}.blocks.{j}.attention.self.relative_position_index"
    return Weights(rows, prefix="swin.", derived={index: lambda name: offsets(c.window)},
                   carried=("swin.embeddings.mask_token",))


def offsets(window: int) -> Tensor:
    """Which row of a bias table each pair of places reads, as older files hold it."""
    at = torch.arange(window**2)
    down, right = (n[:, None] - n + window - 1 for n in (at // window, at % window))
    return down * (2 * window - 1) + right


def init(model, c: Config) -> None:
    normal(model, 0.02)
    tables = [m.table for m in model.modules() if isinstance(m, Window2D)]
    for zero in (*tables, model.body.embed.hidden, model.body.embed.position):
        if zero is not None:
            nn.init.zeros_(zero)


INERT = {"hidden_dropout_prob": ANY, "attention_probs_dropout_prob": ANY, "drop_path_rate": ANY,
         "hidden_size": ANY, "num_layers": ANY,  # both follow from embed_dim and depths
         "stage_names": ANY, "out_features": ANY, "out_indices": ANY,  # of backbones
         "path_norm": True}  # so misspelt in published files: patches are normed
SIZES = {
    "t": Config(labels=1000),
    "s": Config(depths=(2, 2, 18, 2), labels=1000),
    "b": Config(d=128, depths=(2, 2, 18, 2), stage_heads=(4, 8, 16, 32), labels=1000),
    "l": Config(d=192, depths=(2, 2, 18, 2), stage_heads=(6, 12, 24, 48), labels=1000),
    "tiny": Config(image=32, patch=2, d=16, depths=(2, 2), stage_heads=(2, 4), window=4, ratio=2.0,
                   stride=4, labels=10),
}

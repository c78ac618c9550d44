"""BEiT: a ViT that names the visual tokens of hidden patches, places told by a learned value for
each offset (Bao et al., 2106.08254)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.bias import Bias, Window2D
from mirada.core.block import Block, Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Patches
from mirada.core.heads import Classifier, First, LMHead, Pooled
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import LayerNorm, LayerScale
from mirada.errors import MiradaError
from mirada.models import vit
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "vision"


@dataclass(frozen=True)
class Config(vit.TrunkConfig):
    codes: int = size("vocab_size", 8192)  # visual tokens
    masks: bool = key("use_mask_token", False)
    placed: bool = key("use_absolute_position_embeddings", False)
    relative: bool = key("use_relative_position_bias", False)  # a table for each layer
    shared: bool = key("use_shared_relative_position_bias", False)  # one for all
    layer_scale: float = key("layer_scale_init_value", 0.1, low=0)  # 0: none
    mean: bool = key("use_mean_pooling", True)
    pooler: bool = True
    labels: int = 2

    def settle(self, names) -> Config:
        """The files do not say whether a bare body has a pooler; its tensors do, if it has any."""
        found = any(name.endswith("pooler.layernorm.weight") for name in names)
        return replace(self, pooler=found or not self.mean)


class Offsets(Window2D):
    """A learned value per head and 2-D offset between patches, and three more: how the class token
    looks at patches, they at it, and it at itself. A picture of another grid gets the values
    bilinearly stretched; differs: of a grid that is no square the reference swaps rows and columns.
    """

    def __init__(self, grid: tuple[int, int], heads: int):
        super().__init__(grid, heads)
        self.table = nn.Parameter(torch.zeros(len(self.table) + 3, heads))

    def forward(self, ctx: Ctx, mask: Mask) -> Bias:
        if ctx.grid in (None, self.window):
            return super().forward(ctx, mask)
        return Bias(self.stretched(ctx.grid), mask)

    def stretched(self, grid: tuple[int, int]) -> Offsets:
        """These offsets for pictures of another grid."""
        other, (rows, columns) = Offsets(grid, self.table.shape[1]), self.window
        offsets = self.table[:-3].unflatten(0, (2 * rows - 1, 2 * columns - 1))
        size = (2 * grid[0] - 1, 2 * grid[1] - 1)
        offsets = F.interpolate(offsets.permute(2, 0, 1)[None], size, mode="bilinear")
        other._parameters.clear()  # it learns by ours
        other.table = torch.cat([offsets[0].flatten(1).T, self.table[-3:]])
        other.fixed = False  # made anew for each layer: nothing is kept under its name
        return other

    def rows(self, q: Tensor, k: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
        between = super().rows(q, k, (qi - 1).clamp(min=0), (ki - 1).clamp(min=0))
        looks, looked, itself = self.table[-3:, :, None, None]  # (H, 1, 1) each
        query = (qi == 0).reshape(-1, 1, qi.shape[-1], 1)
        key = (ki == 0).reshape(-1, 1, 1, ki.shape[-1])
        ends = torch.where(query & key, itself, torch.where(query, looks, looked))
        return torch.where(query | key, ends, between)  # (b, H, R, S)


class Pictures(Stack):
    """A stack whose biases are told the picture's grid of patches."""

    def forward(self, inputs: Inputs, ctx: Ctx, cache=None) -> Tensor:
        if inputs.pixel_values is not None:
            high, wide = inputs.pixel_values.shape[-2:]
            rows, columns = self.embed.patch
            ctx = replace(ctx, grid=(high // rows, wide // columns))
        return super().forward(inputs, ctx, cache)


def build(c: Config) -> Pictures:
    if c.relative and c.shared:
        raise MiradaError("each layer has its offsets, or all share one table: one must be false "
                          "of use_relative_position_bias and use_shared_relative_position_bias")
    embed = Patches(*vit.sides(c), c.channels, c.d, hidden=c.masks, placed=c.placed)
    table = Offsets(embed.grid, c.heads) if c.shared else None

    def block() -> Block:
        bias = Offsets(embed.grid, c.heads) if c.relative else table
        return Block(attn=_write(c, Attention(c.d, c.heads, bias="qvo", score_bias=bias)),
                     mlp=_write(c, MLP(c.d, c.hidden, c.act)))

    return Pictures(embed, [block() for _ in range(c.layers)],
                    None if c.mean else LayerNorm(c.d, c.eps))


def _write(c: Config, f: nn.Module) -> Residual:
    scale = LayerScale(c.d, c.layer_scale) if c.layer_scale else None
    return Residual(f, pre=LayerNorm(c.d, c.eps), post=scale)


class MeanPatch(nn.Module):
    """The normed mean of the patches; the class token is left out."""

    def __init__(self, c: Config):
        super().__init__()
        self.norm = LayerNorm(c.d, c.eps)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        return self.norm(x[:, 1:].mean(1))


def pool(c: Config) -> nn.Module:
    return MeanPatch(c) if c.mean else First()


class VisualTokens(LMHead):
    """logits (B, N, V) of each patch's visual token."""

    def __init__(self, c: Config):
        super().__init__(c.d, c.codes, bias=True, transform=LayerNorm(c.d, c.eps), shift=False)
        self.loss = hidden

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        return super().forward(x[:, 1:], inputs, ctx)


def hidden(outputs: dict, labels: Tensor, inputs: Inputs) -> Tensor:
    """Mean cross-entropy of the hidden patches' tokens: labels (hidden of the batch,)."""
    if inputs.bool_masked_pos is None:
        raise MiradaError("labels are the visual tokens of hidden patches: say which are hidden "
                          "with bool_masked_pos")
    told = outputs["logits"][inputs.bool_masked_pos.bool()]  # (hidden, V)
    return F.cross_entropy(told, labels)


HEADS = {
    "BeitForImageClassification": lambda c, body: Classifier(c.d, c.labels, pool(c)),
    "BeitModel": lambda c, body: Pooled(pool(c) if c.pooler else None),
    "BeitForMaskedImageModeling": lambda c, body: VisualTokens(c),
}


def weights(c: Config) -> Weights:
    layer, offsets = "beit.encoder.layer.{i}.", "relative_position_bias.relative_position_"
    own, shared = layer + "attention.attention." + offsets, "beit.encoder." + offsets
    return Weights([
        *vit.trunk("beit."),
        (layer + "lambda_1", "blocks.{i}.attn.post.weight"),
        (layer + "lambda_2", "blocks.{i}.mlp.post.weight"),
        (shared + "bias_table", "blocks.0.attn.f.score_bias.table") if c.shared else
        (own + "bias_table", "blocks.{i}.attn.f.score_bias.table"),
        ("beit.pooler.layernorm.{p}", "head.pool.norm.{p}"),
        ("classifier.{p}", "head.score.{p}"),
        ("layernorm.{p}", "head.transform.{p}"),
        ("lm_head.{p}", "head.out.{p}"),
    ], prefix="beit.", carried=("beit.pooler.layernorm.{p}", own + "index", shared + "index"))


def init(model, c: Config) -> None:
    normal(model, 0.02)
    for name, p in model.named_parameters():
        if "embed." in name and "project" not in name or name.endswith("score_bias.table"):
            nn.init.zeros_(p)


INERT = vit.INERT | {"drop_path_rate": ANY} | dict.fromkeys(  # the others are of heads not here
    ("pool_scales", "use_auxiliary_head", "auxiliary_loss_weight", "auxiliary_channels",
     "auxiliary_num_convs", "auxiliary_concat_input", "semantic_loss_ignore_index", "out_features",
     "out_indices", "segmentation_indices", "stage_names", "add_fpn", "reshape_hidden_states"), ANY)
SIZES = {
    "base": Config(relative=True, labels=1000),
    "large": Config(d=1024, layers=24, heads=16, hidden=4096, relative=True, layer_scale=1e-5,
                    labels=1000),
    "base-masked": Config(masks=True, shared=True),
    "large-masked": Config(d=1024, layers=24, heads=16, hidden=4096, masks=True, shared=True,
                           layer_scale=1e-5),
    "tiny": Config(image=32, patch=4, d=64, layers=2, heads=4, hidden=128, codes=64, masks=True,
                   shared=True, labels=10),
}

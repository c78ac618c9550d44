"""MAE: a ViT that sees a quarter of the patches, and a small decoder that paints the others (He et
al., 2111.06377)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mirada.core.block import Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Patches, stretched
from mirada.core.init import normal
from mirada.core.norm import LayerNorm
from mirada.errors import MiradaError
from mirada.models import vit
from mirada.models.patches import cut, even, hide, joined, sincos, take
from mirada.weights.config import key, size
from mirada.weights.rows import Weights

KIND = "vision"


@dataclass(frozen=True)
class Config(vit.TrunkConfig):
    qkv_bias: bool = key("qkv_bias", True)
    decoder_d: int = size("decoder_hidden_size", 512)
    decoder_layers: int = size("decoder_num_hidden_layers", 8, high=2048)
    decoder_heads: int = size("decoder_num_attention_heads", 16)
    decoder_hidden: int = size("decoder_intermediate_size", 2048)
    share: float = key("mask_ratio", 0.75, low=0, high=1)  # of the patches, hidden
    normed: bool = key("norm_pix_loss", False)  # each patch's pixels less their mean, by their std
    spelled: str = "decoder_layers.{i}."

    def settle(self, names) -> Config:
        """The reference of today writes the decoder's blocks under another name than its files."""
        other = any(name.startswith("decoder.decoder_encoder.") for name in names)
        return replace(self, spelled="decoder_encoder.layer.{i}.") if other else self


class Visible(Patches):
    """The patches that are seen, behind the class token: (B, 1 + K, D)."""

    def __init__(self, c: Config):
        super().__init__(*vit.sides(c), c.channels, c.d)
        self.position.requires_grad_(False)  # sines and cosines
        self.share = c.share

    def drawn(self, inputs: Inputs) -> Inputs:
        """The inputs with noise."""
        pixels = self._checked(inputs)
        rows, columns = pixels.shape[2] // self.patch[0], pixels.shape[3] // self.patch[1]
        shape, given = (len(pixels), rows * columns), inputs.noise
        if given is not None and tuple(given.shape) != shape:
            raise MiradaError(f"noise says by its order which patches are seen: it must be "
                              f"{shape}, and is {tuple(given.shape)}")
        noise = torch.rand(shape, device=pixels.device) if given is None else given
        return replace(inputs, noise=noise)

    def forward(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        x = super().forward(inputs, ctx)
        return torch.cat([x[:, :1], take(x[:, 1:], hide(inputs.noise, self.share)[0])], 1)


class Sparse(Stack):
    """The encoder."""

    reads = {"noise"}

    def drawn(self, inputs: Inputs) -> Inputs:
        return self.embed.drawn(inputs)


def build(c: Config) -> Sparse:
    return Sparse(Visible(c), vit.blocks(c, _biases(c)), LayerNorm(c.d, c.eps))


def _biases(c: Config) -> str:
    return "qkvo" if c.qkv_bias else "o"


class Filled(nn.Module):
    """What the encoder made of the seen patches (ctx.memory) in their places, one learned vector
    in all others: (B, 1 + N, D)."""

    def __init__(self, c: Config, embed: Visible):
        super().__init__()
        self.grid, self.patch, self.share = embed.grid, embed.patch, c.share
        self.project = nn.Linear(c.d, c.decoder_d)
        self.hidden = nn.Parameter(torch.zeros(1, 1, c.decoder_d))
        count = 1 + self.grid[0] * self.grid[1]
        self.position = nn.Parameter(torch.zeros(1, count, c.decoder_d), requires_grad=False)

    def forward(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        x, places = self.project(ctx.memory), hide(inputs.noise, self.share)[1]
        (B, N), seen = places.shape, x.shape[1] - 1
        patches = torch.cat([x[:, 1:], self.hidden.expand(B, N - seen, -1)], 1)
        x = torch.cat([x[:, :1], take(patches, places)], 1)  # (B, 1 + N, D)
        if not inputs.interpolate_pos_encoding:
            return x + self.position
        # differs: the reference stretches these as if the patches stood in one row
        shape = inputs.pixel_values.shape[2:]
        return x + stretched(self.position, self.grid,
                             (shape[0] // self.patch[0], shape[1] // self.patch[1]))


class Seen(nn.Module):
    """What the encoder made of the seen patches, and which these were."""

    def __init__(self, c: Config):
        super().__init__()
        self.share = c.share

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        _, places, hidden = hide(inputs.noise, self.share)
        return {"last_hidden_state": x, "mask": hidden.to(x.dtype), "ids_restore": places}


class Painted(nn.Module):
    """Each patch's pixels, row by row with their channels together, and how wrong the hidden are.
    """

    def __init__(self, c: Config, body: Sparse):
        super().__init__()
        small = replace(c, d=c.decoder_d, layers=c.decoder_layers, heads=c.decoder_heads,
                        hidden=c.decoder_hidden)
        self.decoder = Stack(Filled(c, body.embed), vit.blocks(small, _biases(c)),
                             LayerNorm(small.d, c.eps))
        self.patch, self.share, self.normed = body.embed.patch, c.share, c.normed
        self.pixels = nn.Linear(small.d, self.patch[0] * self.patch[1] * c.channels)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        painted = self.pixels(self.decoder(inputs, replace(ctx, memory=x))[:, 1:])
        _, places, hidden = hide(inputs.noise, self.share)
        wanted = cut(inputs.pixel_values.to(x.dtype), self.patch)
        if self.normed:
            mean, std = even(wanted)
            wanted = (wanted - mean) / std
        wrong = (painted - wanted).square().mean(-1) * hidden  # (B, N)
        return {"loss": wrong.sum() / hidden.sum().clamp(min=1), "logits": painted,
                "mask": hidden.to(x.dtype), "ids_restore": places}

    def pictures(self, out: dict, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of what was answered for pixels (B, C, Y, X): these, what was painted in their units, and
        1 where nothing was seen (B, Y, X). What fills no patch is cut off."""
        wanted, painted = cut(pixels, self.patch), out["logits"]
        if self.normed:
            mean, std = even(wanted)
            painted = painted * std + mean
        hidden = out["mask"][..., None].expand(-1, -1, self.patch[0] * self.patch[1])
        grid = (pixels.shape[2] // self.patch[0], pixels.shape[3] // self.patch[1])
        pixels, painted, hidden = (joined(t, grid, self.patch) for t in (wanted, painted, hidden))
        return pixels, painted, hidden[:, 0]


HEADS = {"ViTMAEForPreTraining": Painted, "ViTMAEModel": lambda c, body: Seen(c)}


def weights(c: Config) -> Weights:
    return Weights([
        *vit.trunk("vit."),
        *vit.rows("decoder." + c.spelled, "head.decoder.blocks.{i}."),
        ("decoder.decoder_embed.{p}", "head.decoder.embed.project.{p}"),
        ("decoder.mask_token", "head.decoder.embed.hidden"),
        ("decoder.decoder_pos_embed", "head.decoder.embed.position"),
        ("decoder.decoder_norm.{p}", "head.decoder.norm.{p}"),
        ("decoder.decoder_pred.{p}", "head.pixels.{p}"),
    ], prefix="vit.")


def init(model, c: Config) -> None:
    normal(model, 0.02)
    nn.init.zeros_(model.body.embed.cls)
    embeds = [m for m in model.modules() if isinstance(m, Visible | Filled)]
    for embed in embeds:  # differs: the reference of today begins with none, and never learns any
        with torch.no_grad():
            embed.position[0, 1:] = sincos(embed.grid, embed.position.shape[-1]).flatten(0, 1)
            embed.position[0, 0] = 0
        if embed.hidden is not None:
            nn.init.zeros_(embed.hidden)


INERT = vit.INERT
SIZES = {
    "base": Config(),
    "large": Config(d=1024, layers=24, heads=16, hidden=4096),
    "huge": Config(patch=14, d=1280, layers=32, heads=16, hidden=5120),
    "tiny": Config(image=32, patch=4, d=64, layers=2, heads=4, hidden=128, decoder_d=32,
                   decoder_layers=1, decoder_heads=4, decoder_hidden=64),
}

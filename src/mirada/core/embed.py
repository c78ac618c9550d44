"""How the residual stream begins: tokens and picture patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.errors import MiradaError

from .context import Ctx, Inputs


class Tokens(nn.Module):
    """norm(token * scale + segment + position), (B, T, D).

    positions: a module of positions -> (.., T, D), or None. types: number of segment kinds, or 0.
    project: width D when the table is narrower (ALBERT's factorisation), else None.
    """

    def __init__(self, vocab: int, d: int, *, positions=None, types=0, norm=None, scale=1.0,
                 project=None):
        super().__init__()
        self.token = nn.Embedding(vocab, d)
        self.position = positions
        self.segment = Segments(types, d) if types else None
        self.norm = norm or nn.Identity()
        self.project = nn.Identity() if project is None else nn.Linear(d, project)
        self.scale, self.dropout = scale, 0.0

    def forward(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        x = self.token(inputs.input_ids) if inputs.inputs_embeds is None else inputs.inputs_embeds
        x = x * self.scale
        if self.segment is not None:
            x = x + self.segment(inputs.token_type_ids)
        if self.position is not None:
            x = x + self.position(ctx.positions, dtype=x.dtype)
        return self.project(F.dropout(self.norm(x), self.dropout, self.training))


class Segments(nn.Embedding):
    """One vector a segment kind; all of a text is kind 0 where nothing is said."""

    def forward(self, kinds: Tensor | None) -> Tensor:
        if kinds is None:
            return self.weight[0]
        last = self.num_embeddings - 1
        if kinds.device.type == "cpu" and not 0 <= int(kinds.min()) <= int(kinds.max()) <= last:
            raise MiradaError(f"token_type_ids must lie between 0 and {last} in this model")
        return super().forward(kinds)


class Patches(nn.Module):
    """A picture cut into patches, each projected, behind a class token (2010.11929, eq. 1).

    image, patch: (height, width) in pixels. hidden: a learned vector for masked patches. first:
    how many learned tokens stand before them. placed: positions are added.
    """

    def __init__(self, image, patch, channels: int, d: int, *, hidden=False, first=1, placed=True):
        super().__init__()
        self.image, self.patch = tuple(image), tuple(patch)
        self.grid = (image[0] // patch[0], image[1] // patch[1])
        self.project = nn.Conv2d(channels, d, self.patch, self.patch)
        self.cls = nn.Parameter(torch.zeros(1, first, d))
        count = first + self.grid[0] * self.grid[1]
        self.position = nn.Parameter(torch.zeros(1, count, d)) if placed else None
        self.hidden = nn.Parameter(torch.zeros(1, 1, d)) if hidden else None
        self.dropout = 0.0

    def forward(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        pixels = self._checked(inputs)  # (B, C, Y, X)
        x = self.project(pixels).flatten(2).transpose(1, 2)  # (B, N, D)
        if inputs.bool_masked_pos is not None:
            x = torch.where(inputs.bool_masked_pos[..., None].bool(), self.hidden, x)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)  # (B, first + N, D)
        if self.position is not None:
            x = x + (self.stretch(pixels) if inputs.interpolate_pos_encoding else self.position)
        return F.dropout(x, self.dropout, self.training)

    def _checked(self, inputs: Inputs) -> Tensor:
        pixels, wanted = inputs.pixel_values, (self.project.in_channels, *self.image)
        if pixels is None or pixels.ndim != 4 or pixels.shape[1] != wanted[0]:
            shown = "no pixel_values" if pixels is None else tuple(pixels.shape)
            raise MiradaError(f"this model sees pictures: pixel_values must be (batch, {wanted[0]} "
                              f"channels, height, width), and it was given {shown}")
        if tuple(pixels.shape[1:]) != wanted and not inputs.interpolate_pos_encoding:
            raise MiradaError(f"the pictures have {tuple(pixels.shape[2:])} pixels and the model "
                              f"{self.image}: resize them, or pass interpolate_pos_encoding=True")
        rows, columns = pixels.shape[2] // self.patch[0], pixels.shape[3] // self.patch[1]
        if rows * columns == 0:
            raise MiradaError(f"the pictures have {tuple(pixels.shape[2:])} pixels, fewer than one "
                              f"patch of {self.patch}")
        if inputs.bool_masked_pos is not None and self.hidden is None:
            raise MiradaError("this head has no vector for hidden patches: leave bool_masked_pos "
                              "out, or load with architecture= a head for masked pictures")
        patches, masked = (len(pixels), rows * columns), inputs.bool_masked_pos
        if masked is not None and tuple(masked.shape) != patches:
            raise MiradaError("bool_masked_pos says of each patch whether it is hidden: it must be "
                              f"{patches}, and is {tuple(masked.shape)}")
        return pixels.to(self.project.weight.dtype)

    def stretch(self, pixels: Tensor) -> Tensor:
        """The learned grid, bicubically resized to this picture's: (1, first + N', D)."""
        size = (pixels.shape[2] // self.patch[0], pixels.shape[3] // self.patch[1])
        return stretched(self.position, self.grid, size)


def stretched(table: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Positions of a grid's places, and of tokens before them, for a grid of another size."""
    first = table.shape[1] - grid[0] * grid[1]
    places = table[:, first:].unflatten(1, grid).permute(0, 3, 1, 2)  # (1, D, rows, columns)
    places = F.interpolate(places, size=size, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :first], places.flatten(2).transpose(1, 2)], 1)

"""Pictures as a grid of places, (B, Y, X, D): patches without a class token, attention in windows
that shift, neighbours merged into one, and a picture again (Liu et al., 2103.14030)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Patches
from mirada.core.mask import Mask
from mirada.core.norm import LayerNorm
from mirada.errors import MiradaError


class Grid(Patches):
    """Patches that keep their rows and columns, normed. A picture is padded to whole patches.

    positions: whether a learned vector is added at each place; without one any size will do.
    """

    def __init__(self, image, patch, channels: int, d: int, *, positions=False, hidden=False):
        super().__init__(image, patch, channels, d, hidden=hidden, first=0, placed=positions)
        self.cls, self.norm = None, LayerNorm(d)

    def forward(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        pixels = inputs.pixel_values
        if torch.is_tensor(pixels) and pixels.ndim == 4:  # of others _checked says what is wrong
            high, wide = (-n % p for n, p in zip(pixels.shape[2:], self.patch, strict=True))
            pixels = F.pad(pixels, (0, wide, 0, high))
        stretched = inputs.interpolate_pos_encoding or self.position is None
        pixels = self._checked(replace(inputs, pixel_values=pixels,
                                       interpolate_pos_encoding=stretched))
        x = self.norm(self.project(pixels).permute(0, 2, 3, 1))  # (B, Y, X, D)
        if inputs.bool_masked_pos is not None:
            masked = inputs.bool_masked_pos.bool().unflatten(1, x.shape[1:3])
            x = torch.where(masked[..., None], self.hidden, x)
        if self.position is not None:
            x = x + self.stretch(pixels).unflatten(1, x.shape[1:3])
        return F.dropout(x, self.dropout, self.training)


class Windows(nn.Module):
    """Attention among the window x window places of each window of a grid (section 3.2).

    x (B, Y, X, D) becomes rows of one window each: B * W of them, W windows a picture from the top
    left, line by line, and so are the patterns that a tape shows; `places` says which place of the
    grid each entry is. shift: by how many places the windows lie lower and further right; what
    leaves the grid at one side enters at the other, and the mask's segments keep it apart. A grid
    that one window spans, across or down, is not shifted.

    Trap: a grid that does not divide is padded with zeros, and the padding is looked at as any
    place is. Models were trained so.
    """

    def __init__(self, f: Attention, window: int, shift: int = 0):
        super().__init__()
        self.f, self.window, self.shift = f, window, shift

    @property
    def reach(self) -> int:
        """How many keys a query has, of however large a grid."""
        return self.window**2

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        (B, Y, X, _), w = x.shape, self.window
        shift, x = self._shift(Y, X), self._moved(x)
        high, wide = x.shape[1:3]
        mask = ctx.mask & self._pieces(B, high, wide, shift, ctx.mask, x.device)
        rows = self.f(cut(x, w), replace(ctx, mask=mask))  # (B * W, w * w, D)
        grid = rows.view(B, high // w, wide // w, w, w, -1).transpose(2, 3)
        grid = grid.reshape(B, high, wide, -1).roll((shift, shift), (1, 2))
        return grid[:, :Y, :X]

    def places(self, Y: int, X: int) -> Tensor:
        """(W, window * window): which place of a Y x X grid, counted line by line, each entry of a
        pattern is; -1 where it is padding."""
        numbers = torch.arange(1, Y * X + 1).view(1, Y, X, 1)
        return cut(self._moved(numbers), self.window)[..., 0] - 1

    def _shift(self, Y: int, X: int) -> int:
        return self.shift if min(Y, X) > self.window else 0

    def _moved(self, x: Tensor) -> Tensor:
        """Padded to whole windows, and shifted."""
        Y, X = x.shape[1:3]
        shift = self._shift(Y, X)
        x = F.pad(x, (0, 0, 0, -X % self.window, 0, -Y % self.window))
        return x.roll((-shift, -shift), (1, 2))

    def _pieces(self, B: int, Y: int, X: int, shift: int, mask: Mask, device) -> Mask:
        """The last line and column of shifted windows hold places from two sides of the grid: only
        those of one side meet. Made once a pass, so that such layers share one dense mask."""
        if not shift:
            return Mask()
        key = ("windows", B, Y, X, self.window, shift)
        if key not in mask.memo:
            below, right = (torch.arange(n, device=device) >= n - shift for n in (Y, X))
            sides = cut((2 * below[:, None] + right)[None, ..., None], self.window)[..., 0]
            mask.memo[key] = sides.repeat(B, 1)  # (B * W, w * w)
        return Mask(segments=((mask.memo[key], mask.memo[key]),))

    def extra_repr(self) -> str:
        shifted = f", shifted by {self.shift}" if self.shift else ""
        return f"{self.window} x {self.window} places{shifted}"


def cut(x: Tensor, window: int) -> Tensor:
    """A grid of whole windows, (B, Y, X, D), as rows of one each: (B * W, window * window, D)."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # (B, Y / w, w, X / w, w, D)
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


class Merge(nn.Module):
    """Four neighbours become one place, twice as wide: (B, Y, X, D) -> (B, Y / 2, X / 2, 2 D),
    rounded up (section 3.1). joins: how many places become one."""

    joins = 4

    def __init__(self, d: int):
        super().__init__()
        self.norm = LayerNorm(4 * d)
        self.reduce = nn.Linear(4 * d, 2 * d, bias=False)

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, down::2, right::2] for right in (0, 1) for down in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class Lined(LayerNorm):
    """A norm behind which the places of a grid stand in one line, (B, N, D), as heads read them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(1, 2)


class Reconstruction(nn.Module):
    """The picture that a last grid stands for, and how wrong it is where patches were hidden
    (SimMIM, 2111.09886).

    d: width of a place, which becomes stride x stride pixels. joined: patches in a line of which
    one place was made.
    """

    def __init__(self, d: int, patch: tuple[int, int], stride: int, channels: int, *, joined=1):
        super().__init__()
        self.patch, self.stride, self.channels = patch, stride, channels
        self.joined = joined
        self.pixels = nn.Conv2d(d, stride**2 * channels, 1)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        pixels, (high, wide) = inputs.pixel_values, self.patch
        grid = [-(-n // (p * self.joined)) for n, p in zip(pixels.shape[2:], self.patch,
                                                           strict=True)]
        picture = self.pixels(x.transpose(1, 2).unflatten(2, grid))  # (B, C * stride ** 2, Y, X)
        picture = F.pixel_shuffle(picture, self.stride)
        if inputs.bool_masked_pos is None:
            return {"reconstruction": picture}
        if picture.shape != pixels.shape:
            raise MiradaError(f"pictures of {tuple(pixels.shape[2:])} pixels come back with "
                              f"{tuple(picture.shape[2:])}: to hide patches, encoder_stride must "
                              f"be patch_size times {self.joined}, and divide the picture")
        hidden = inputs.bool_masked_pos.to(picture.dtype).unflatten(
            1, (pixels.shape[2] // high, -1))[:, None]  # (B, 1, rows, columns) of patches
        hidden = hidden.repeat_interleave(high, 2).repeat_interleave(wide, 3)  # of pixels
        wrong = (pixels - picture).abs() * hidden
        loss = wrong.sum() / (hidden.sum() + 1e-5) / self.channels
        return {"loss": loss, "reconstruction": picture}

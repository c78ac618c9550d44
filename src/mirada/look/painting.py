"""What a masked autoencoder paints: the picture, what is seen of it, and what it makes of that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mirada.errors import MiradaError

from . import draw

GREY = 0.5  # what stands for a hidden patch, between black and white


@dataclass(frozen=True, eq=False)
class Reconstructed(draw.Drawn):
    """Pictures (B, C, Y, X) between 0 and 1; hidden (B, Y, X), True where nothing was seen; wrong
    (B,): the mean squared error of the hidden pixels, in the units of pixel_values."""

    original: Tensor
    painted: Tensor
    hidden: Tensor
    wrong: Tensor

    @property
    def seen(self) -> Tensor:
        """The pictures with what was hidden in grey."""
        return torch.where(self.hidden[:, None], torch.tensor(GREY), self.original)

    @property
    def filled(self) -> Tensor:
        """The pictures with what was hidden painted."""
        return torch.where(self.hidden[:, None], self.painted, self.original)

    def data(self) -> dict[str, Any]:
        """For programs."""
        return {"hidden": self.hidden.float().mean((1, 2)).tolist(), "wrong": self.wrong.tolist()}

    def __str__(self) -> str:
        share, wrong = self.hidden.float().mean().item(), self.wrong.mean().item()
        return (f"{len(self.original)} pictures, {share:.0%} of each hidden; mean squared error of "
                f"the hidden pixels {wrong:.3f}")

    def figure(self):
        """A row a picture: original, seen, painted, and painted where it was hidden."""
        shown = {"Original": self.original, "Seen": self.seen, "Painted": self.painted,
                 "Painted where hidden": self.filled}
        count = len(self.original)
        figure = draw.canvas(2.3 * len(shown), 2.3 * count + 0.3)
        grid = figure.subplots(count, len(shown), squeeze=False)
        for row, line in enumerate(grid):
            for axes, (name, pictures) in zip(line, shown.items(), strict=True):
                draw.dressed(axes, name if row == 0 else "")
                axes.imshow(pictures[row].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray",
                            vmin=0, vmax=1, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
        return figure


@torch.no_grad()
def reconstructed(model, pixel_values: Tensor, noise: Tensor | None = None, *, norm=None,
                  interpolate_pos_encoding=False) -> Reconstructed:
    """What a ViTMAEForPreTraining paints of pixel_values (B, C, Y, X).

    noise (B, N): which patches are seen, drawn when None. norm: mean and std that the channels were
    normed by, a number or one a channel each; None: the darkest of the pixels is shown black, the
    brightest white. Where the model paints normed patches, each is given the mean and the spread of
    the one that it stands for (2111.06377, figure 4). Raises MiradaError.
    """
    if not hasattr(model.head, "pictures"):
        raise MiradaError(f"{model.architecture} paints no hidden patches: this is a picture of "
                          "ViTMAEForPreTraining")
    if pixel_values.ndim != 4 or pixel_values.shape[1] not in (1, 3):
        raise MiradaError(f"pixel_values are {tuple(pixel_values.shape)}: drawn are (batch, 1 or 3 "
                          "channels, height, width)")
    out = model(pixel_values=pixel_values, noise=noise,
                interpolate_pos_encoding=interpolate_pos_encoding)
    pixels, painted, hidden = (t.float().cpu() for t in model.head.pictures(out, pixel_values))
    if norm is None:
        mean, std = pixels.min(), (pixels.max() - pixels.min()).clamp(min=1e-6)
        original, shown = ((t - mean) / std for t in (pixels, painted))
    else:
        mean, std = (torch.as_tensor(n, dtype=torch.float32).reshape(-1, 1, 1) for n in norm)
        original, shown = (t * std + mean for t in (pixels, painted))
    apart = (pixels - painted).square().mean(1) * hidden
    wrong = apart.sum((1, 2)) / hidden.sum((1, 2)).clamp(min=1)
    return Reconstructed(original.clamp(0, 1), shown.clamp(0, 1), hidden.bool(), wrong)

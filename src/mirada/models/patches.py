"""Pictures in patches: cut and joined, hidden by noise, told apart by sines and cosines."""

from __future__ import annotations

import torch
from torch import Tensor

from mirada.core.position import sinusoid
from mirada.errors import MiradaError


def cut(pixels: Tensor, patch: tuple[int, int]) -> Tensor:
    """(B, C, Y, X) -> (B, N, pixels of a patch and their channels)."""
    rows, columns = pixels.shape[2] // patch[0], pixels.shape[3] // patch[1]
    pixels = pixels[:, :, : rows * patch[0], : columns * patch[1]]
    grid = pixels.unflatten(3, (columns, patch[1])).unflatten(2, (rows, patch[0]))
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def joined(patches: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """`cut` the other way round: (B, N, ..) -> (B, C, Y, X)."""
    grid_of = patches.unflatten(1, grid).unflatten(3, (*patch, -1))
    return grid_of.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def even(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and spread of each patch's pixels: (B, N, 1) each."""
    std = (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    return patches.mean(-1, keepdim=True), std


def hide(noise: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of noise (B, N): the patches that are seen (B, K), those with the least; each patch's place
    where the seen come first (B, N); and True where one is hidden (B, N)."""
    order = noise.argsort(1)
    places, seen = order.argsort(1), int(noise.shape[1] * (1 - share))
    return order[:, :seen], places, places >= seen


def take(x: Tensor, index: Tensor) -> Tensor:
    """Of x (B, N, D) the vectors at index (B, K)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def sincos(grid: tuple[int, int], d: int) -> Tensor:
    """(rows, columns, d): the column's sinusoids, then the row's, as the published weights have
    them. Raises MiradaError where four does not divide d."""
    if d % 4:
        raise MiradaError(f"a width of {d} cannot hold the sines and cosines of rows and columns: "
                          "make it a multiple of 4")
    down, across = (sinusoid(torch.arange(n), d // 2, halves=True) for n in grid)
    rows, columns = grid
    return torch.cat([across[None].expand(rows, -1, -1), down[:, None].expand(-1, columns, -1)], 2)

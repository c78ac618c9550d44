"""A discrete variational autoencoder: a picture as a grid of codes (Ramesh et al., 2102.12092,
section 2.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.errors import MiradaError


@dataclass(frozen=True)
class Config:
    """codes: how many there are. patch: pixels a side that one stands for, a power of two. width:
    channels of the convolutions; d: width of a code's vector."""

    codes: int = 64
    patch: int = 4
    channels: int = 3
    width: int = 32
    d: int = 32


class DiscreteVAE(nn.Module):
    """Pixels -> scores of the codes -> one code a place -> pixels.

    The choice is relaxed in training: codes are mixed by Gumbel softmax (1611.01144), so that a
    gradient goes through it. Raises MiradaError where Config.patch is no power of two.
    """

    def __init__(self, c: Config):
        super().__init__()
        halves = round(math.log2(c.patch))
        if halves < 1 or 2**halves != c.patch:
            raise MiradaError(f"a code stands for 2, 4, 8 ... pixels a side, not for {c.patch}")
        self.config = c
        down: list[nn.Module] = []
        up: list[nn.Module] = [nn.Conv2d(c.d, c.width, 3, padding=1), nn.ReLU()]
        for n in range(halves):
            down += [nn.Conv2d(c.width if n else c.channels, c.width, 4, 2, padding=1), nn.ReLU()]
            last = n == halves - 1
            up += [nn.ConvTranspose2d(c.width, c.channels if last else c.width, 4, 2, padding=1)]
            up += [] if last else [nn.ReLU()]
        self.encode = nn.Sequential(*down, nn.Conv2d(c.width, c.codes, 3, padding=1))
        self.table = nn.Embedding(c.codes, c.d)
        self.decode = nn.Sequential(*up)

    device = property(lambda self: self.table.weight.device)
    dtype = property(lambda self: self.table.weight.dtype)

    def forward(self, pixels: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """What is painted of pixels (B, C, Y, X), and the scores (B, V, rows, columns). In
        evaluation each place has its one best code."""
        scores = self.encode(pixels)
        if self.training:
            return self._paint(F.gumbel_softmax(scores, temperature, dim=1)), scores
        return self.paint(scores.argmax(1)), scores

    def codes(self, pixels: Tensor) -> Tensor:
        """Each place's code, (B, N), row by row."""
        return self.encode(pixels).argmax(1).flatten(1)

    def paint(self, codes: Tensor) -> Tensor:
        """The picture of codes (B, rows, columns): (B, C, Y, X)."""
        return self.decode(self.table(codes).permute(0, 3, 1, 2))

    @staticmethod
    def divergence(scores: Tensor) -> Tensor:
        """How far the scores of each place are from giving all codes alike, in nats: (B, rows,
        columns) (eq. 1's second term, the prior being even)."""
        log = scores.log_softmax(1)
        return math.log(scores.shape[1]) + (log.exp() * log).sum(1)

    def _paint(self, shares: Tensor) -> Tensor:
        """The picture of codes mixed by shares (B, V, rows, columns)."""
        return self.decode(torch.einsum("bvyx,vd->bdyx", shares, self.table.weight))


def build(seed: int = 0, **changes) -> DiscreteVAE:
    """A model with random weights, as torch's own layers begin; changes: fields of Config."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DiscreteVAE(Config(**changes))

"""Where a token stands: sinusoids, learned tables and rotation. (Score biases are in bias.py.)"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.errors import MiradaError


def sinusoid(positions: Tensor, d: int, *, base=10000.0, halves=False, dtype=None) -> Tensor:
    """(..., d): sin and cos of positions at d / 2 frequencies (Vaswani et al., section 3.5).

    halves: all sines, then all cosines (Marian, Transformer-XL); else alternating as in the paper.
    """
    dtype = dtype or torch.get_default_dtype()
    wide = torch.promote_types(dtype, torch.float32)
    steps = torch.arange(0, d, 2, device=positions.device, dtype=wide)
    angle = positions[..., None].to(wide) / base ** (steps / d)  # (..., ceil(d / 2))
    if halves:
        out = torch.cat([angle.sin(), angle.cos()], -1)
    else:
        out = torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)
    return out[..., :d].to(dtype)


class Sinusoid(nn.Module):
    """Fixed positions, computed when asked: no table, no length limit. offset: of the first."""

    def __init__(self, d: int, *, base=10000.0, halves=False, offset=0):
        super().__init__()
        self.d, self.base, self.halves, self.offset = d, base, halves, offset

    def forward(self, positions: Tensor, dtype=None) -> Tensor:
        return sinusoid(positions + self.offset, self.d, base=self.base, halves=self.halves,
                        dtype=dtype)


class Learned(nn.Embedding):
    """One vector a position up to `context`. offset: unused first rows (BART keeps two)."""

    def __init__(self, context: int, d: int, offset: int = 0):
        super().__init__(context + offset, d)
        self.context, self.offset = context, offset

    def forward(self, positions: Tensor, dtype=None) -> Tensor:
        if positions.device.type == "cpu" and int(positions.max()) >= self.context:
            raise MiradaError(
                f"position {int(positions.max())} is past this model's context of {self.context} "
                "tokens (its positions are learned): shorten the input, or give it more with "
                "mirada.edit.resize_positions")
        return super().forward(positions + self.offset)


@dataclass(frozen=True)
class Linear:
    """Positions pressed together by `factor` (Chen et al., 2306.15595)."""

    factor: float

    def __call__(self, freqs: Tensor, rotary: Rotary, length) -> tuple[Tensor, float]:
        return freqs / self.factor, 1.0


@dataclass(frozen=True)
class Dynamic:
    """The base grows with the length once it passes `original` (NTK-aware scaling)."""

    factor: float
    original: int

    def __call__(self, freqs: Tensor, rotary: Rotary, length) -> tuple[Tensor, float]:
        length = max(int(length()), self.original)
        grow = self.factor * length / self.original - (self.factor - 1)
        base = rotary.base * grow ** (rotary.dim / (rotary.dim - 2))
        return frequencies(rotary.dim, base, freqs), 1.0


@dataclass(frozen=True)
class ByWavelength:
    """Long waves stretched by `factor`, short ones kept, a smooth band between (LLaMA 3.1)."""

    factor: float
    low: float
    high: float
    original: int

    def __call__(self, freqs: Tensor, rotary: Rotary, length) -> tuple[Tensor, float]:
        turns = self.original * freqs / (2 * math.pi)  # how often each wave fits the old context
        smooth = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return (1 - smooth) * freqs / self.factor + smooth * freqs, 1.0


@dataclass(frozen=True)
class Yarn:
    """Interpolation by rotations within the old context, and a temperature (Peng, 2309.00071).

    fast, slow: rotations above which a wave is kept and below which it is fully stretched.
    temperature: factor of cos and sin; None: 0.1 ln(factor) + 1. whole: round the band outward.
    """

    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0
    temperature: float | None = None
    whole: bool = True

    def __call__(self, freqs: Tensor, rotary: Rotary, length) -> tuple[Tensor, float]:
        low, high = self._dim(self.fast, rotary), self._dim(self.slow, rotary)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary.dim - 1)
        steps = torch.arange(rotary.dim // 2, device=freqs.device, dtype=freqs.dtype)
        ramp = ((steps - low) / (high - low or 0.001)).clamp(0, 1)  # 1: stretch
        warm = self.temperature
        if warm is None:
            warm = 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0
        return freqs / self.factor * ramp + freqs * (1 - ramp), warm

    def _dim(self, rotations: float, rotary: Rotary) -> float:
        turns = math.log(self.original / (rotations * 2 * math.pi))
        return rotary.dim * turns / (2 * math.log(rotary.base))


@dataclass(frozen=True)
class ByChannel:
    """Each wave slowed by a factor of its own, by another past `original` (LongRoPE, 2402.13753).
    short, long: dim / 2 factors each; temperature: factor of cos and sin."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    temperature: float = 1.0

    def __call__(self, freqs: Tensor, rotary: Rotary, length) -> tuple[Tensor, float]:
        factors = self.long if int(length()) > self.original else self.short
        return freqs / freqs.new_tensor(factors), self.temperature


def frequencies(dim: int, base: float, like: Tensor) -> Tensor:
    """(dim / 2,) angular steps per position: base ** (-2 i / dim)."""
    return 1.0 / base ** (torch.arange(0, dim, 2, device=like.device).to(like.dtype) / dim)


class Rotary(nn.Module):
    """Turns pairs of channels of q and k by position-dependent angles (Su et al., 2104.09864).

    dim: channels that turn, the first of each head; the rest pass (partial rotation).
    interleaved: pairs are (0, 1), (2, 3) ... (GPT-J); else (i, i + dim / 2) (NeoX, LLaMA).
    scaling: one of the classes above, or None. Angles are computed when asked, in
    float32 or wider, so that casting a model never rounds them. Share one Rotary among layers:
    the last table is kept.
    """

    def __init__(self, dim: int, base: float = 10000.0, *, interleaved=False, scaling=None):
        super().__init__()
        self.dim, self.base, self.interleaved, self.scaling = dim, base, interleaved, scaling
        self._last: tuple = (None, None, None)

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """q (B, H, T, K), k (B, G, T, K), positions (B or 1, T)."""
        cos, sin = self.table(positions, q.dtype)
        return self._turn(q, cos, sin), self._turn(k, cos, sin)

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, each (B or 1, 1, T, dim / 2), of this pass's positions."""
        version = 0 if positions.is_inference() else positions._version
        key = (version, dtype, torch.is_inference_mode_enabled(), self.base, self.scaling)
        kept_for, kept_key, kept = self._last
        if kept_for is not positions or kept_key != key:
            kept = self._angles(positions, dtype)
            self._last = (positions, key, kept)
        return kept

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(dtype, torch.float32)
        freqs = frequencies(self.dim, self.base, positions.new_empty(0, dtype=wide))
        warm = 1.0
        if self.scaling is not None:
            freqs, warm = self.scaling(freqs, self, lambda: positions.max() + 1)
        angle = positions[:, None, :, None].to(wide) * freqs  # (B, 1, T, dim / 2)
        return (angle.cos() * warm).to(dtype), (angle.sin() * warm).to(dtype)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, kept = x[..., : self.dim], x[..., self.dim :]
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        else:
            a, b = turned.chunk(2, -1)
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
        return torch.cat([turned, kept], -1) if kept.shape[-1] else turned

    def extra_repr(self) -> str:
        pairs = ", interleaved" if self.interleaved else ""
        return f"{self.dim}, base={self.base:g}{pairs}, scaling={self.scaling}"

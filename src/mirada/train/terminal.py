"""A run as the terminal shows it: loss, rate, norm, speed, share of the machine, time left."""

from __future__ import annotations

import sys
import time

import torch
from tqdm import tqdm

SIDE = 1024  # of the matrices whose product says what the machine can do


class Terminal:
    """Is given each step's line; draws on a terminal and is silent elsewhere.

    tokens: read in an update. flops: of an update (see `flops`); dtype: what is multiplied.
    """

    def __init__(self, steps: int, done: int, tokens: int, flops: float, dtype: torch.dtype):
        self.tokens, self.flops, self.peak = tokens, flops, 0.0
        self.bar = tqdm(total=steps, initial=done, unit="step", file=sys.stderr, disable=None,
                        dynamic_ncols=True)
        if not self.bar.disable:
            self.peak = peak(dtype)

    def __call__(self, line: dict) -> None:
        self.bar.set_postfix_str(self.words(line), refresh=False)
        self.bar.update()

    def words(self, line: dict) -> str:
        seconds = line["seconds"]
        said = f"loss {line['loss']:.3f}, rate {line['rate']:.1e}, norm {line['norm']:.2f}"
        if seconds > 0:
            said += f", {self.tokens / seconds:,.0f} tokens/s"
        if seconds > 0 and self.peak > 0 and self.flops > 0:
            said += f", {self.flops / seconds / self.peak:.0%} of the machine"
        return said

    def say(self, text: str) -> None:
        """A line above the bar."""
        if not self.bar.disable:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()


def flops(model, tokens: int, length: int) -> float:
    """Of forward and backward: 6 a weight and token, and 12 L D T a token for attention
    (2204.02311, appendix B). A table that is only looked up counts nothing. 0 of two towers, of
    which each reads tokens of its own: what share of the machine they take is not told."""
    if getattr(model, "kind", None) == "dual-encoder":
        return 0.0
    weights = sum(p.numel() for name, p in model.named_parameters()
                  if p.ndim >= 2 and ".embed." not in f".{name}")
    width = getattr(model.config, "d", 0)
    if getattr(model.config, "tied", False):
        weights += model.config.vocab * width
    return tokens * (6.0 * weights + 12.0 * getattr(model.config, "layers", 0) * width * length)


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best of some products of matrices, here and now."""
    a, b = torch.ones(SIDE, SIDE, dtype=dtype), torch.ones(SIDE, SIDE, dtype=dtype)
    times = []
    for _ in range(4):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return 2.0 * SIDE**3 / min(times)

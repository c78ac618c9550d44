"""What torch's caches take, and whether it is there: said before the system ends the process."""

from __future__ import annotations

import torch

from mirada.core.attention import Attention, CrossAttention
from mirada.edit import lower
from mirada.errors import MiradaError
from mirada.model import Model

AHEAD = 256  # tokens that memory is asked for at once


def cost(model: Model, kind: str, length: int, source: int = 0) -> int:
    """Bytes of one row's keys and values: of `length` tokens in a new_cache(kind), and of a source
    that cross-attention reads."""
    stack, total = model.decoder, 0
    for index in stack.order:
        for part in stack.blocks[index].children():
            look = getattr(part, "f", None)
            if isinstance(look, CrossAttention):
                total += source * (look.k.out_features + look.v.out_features)
            elif isinstance(look, Attention):
                window = look.mask.window if kind == "rolling" else None
                kept = min(length, window or length)
                total += kept * (look.k.out_features + look.v.out_features)
    return total * model.dtype.itemsize


class Purse:
    """Asks for the memory of torch's caches, some hundred tokens ahead of what is written.

    rows: at once. most: tokens that a row can come to hold; a static cache takes all of them.
    """

    def __init__(self, model: Model, kind: str, rows: int, most: int, source: int = 0):
        self.model, self.kind, self.rows, self.most = model, kind, rows, most
        self.source, self.sure, self.held = source, 0, 0

    def reach(self, length: int) -> None:
        """Raises MiradaError where rows of so many tokens would find no memory."""
        if length <= self.sure:
            return
        self.sure = self.most if self.kind == "static" else min(length + AHEAD, self.most)
        taken = self.rows * cost(self.model, self.kind, self.sure, self.source)
        there = free(self.model.device)
        if taken - self.held > there:
            raise MiradaError(self._words(taken, there))
        self.held = taken

    def _words(self, taken: int, there: int) -> str:
        one = cost(self.model, "growing", 1)
        windows = self.kind != "rolling" and any(
            isinstance(m, Attention) and m.mask.window for m in self.model.decoder.modules())
        smaller = 'give cache="rolling", which keeps the windows alone' if windows else (
            'the native runtime keeps them in int8 (cache="int8"; mirada describe says why it does '
            "not run here)")
        return (f"keys and values of {self.rows} x {self.sure:,} tokens need {taken / 1e6:,.2f} MB "
                f"({one:,} bytes a token in {self.model.dtype}) and {there / 1e6:,.2f} are free: "
                f"ask for fewer tokens or rows; {smaller}; or shorten the text to a window "
                "(mirada.generate.window.fit)")


def free(device: torch.device) -> int:
    """Bytes that could be had on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return lower.rt.available()

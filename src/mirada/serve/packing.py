"""Numbers as the page reads them: safetensors bytes, weights as the root of a byte, triangles.

A byte of a weight is round(255 * sqrt(w)): small weights stay visible, where a linear byte would
lose 0.36 of a row's sum (0.007 here).
"""

from __future__ import annotations

import numpy
import safetensors.numpy
import torch
from torch import Tensor

from .errors import Refused

ENCODINGS = {"u8sqrt": 1, "f16": 2, "f32": 4}  # bytes a number
ANSWER = 16 << 20  # most bytes of one answer


def encode(x: Tensor, enc: str) -> tuple[numpy.ndarray, float]:
    """x as numbers of an encoding, and the scale: of u8sqrt the number that byte 255 means."""
    if enc == "u8sqrt":
        scale = max(1.0, x.max().item()) if x.numel() else 1.0
        return (x.float() / scale).clamp(min=0).sqrt().mul(255).round().byte().numpy(), scale
    return x.to(torch.float16 if enc == "f16" else torch.float32).numpy(), 1.0


def triangle(x: Tensor, r0: int) -> Tensor:
    """(h, R, S) -> (h, N): of row r its columns 0..r, row after row; r0 is the first row's r."""
    rows = torch.arange(r0, r0 + x.shape[1])[:, None]
    return x[:, torch.arange(x.shape[2]) <= rows]


def packed(tensors: dict[str, numpy.ndarray], **about) -> bytes:
    """safetensors bytes; `about` goes into __metadata__, as text."""
    return safetensors.numpy.save(
        {name: numpy.ascontiguousarray(x) for name, x in tensors.items()},
        {name: str(value) for name, value in about.items() if value is not None})


def check_size(numbers: int, enc: str, advice: str) -> None:
    """Refuses an answer of more than 16 MiB before any of it is computed."""
    size = numbers * ENCODINGS[enc]
    if size > ANSWER:
        raise Refused(413, "too_large", f"this answer would have {size / 2**20:,.0f} MiB and one "
                      f"may have {ANSWER >> 20}", advice=advice)

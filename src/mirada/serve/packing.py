"""Numbers as the page reads them: safetensors bytes, weights as the root of a byte, triangles.

A byte of a weight is round(255 * sqrt(w)): small weights stay visible, where a linear byte would
lose 0.36 of a row's sum (0.007 here).
"""

from __future__ import annotations

import json

import numpy
import torch
from torch import Tensor

from .errors import Refused

ENCODINGS = {"u8sqrt": 1, "f16": 2, "f32": 4}  # bytes a number
DTYPES = {"uint8": "U8", "uint16": "U16", "uint32": "U32", "float16": "F16", "float32": "F32"}
ANSWER = 16 << 20  # most bytes of one answer


def encode(x: Tensor, enc: str) -> tuple[numpy.ndarray, float]:
    """x as numbers of an encoding, and the scale: of u8sqrt the number that byte 255 means."""
    if enc == "u8sqrt":
        scale = max(1.0, x.max().item()) if x.numel() else 1.0
        roots = x.float().sqrt().mul_(255 / scale**0.5).round_()
        return roots.byte().numpy(), scale
    return x.to(torch.float16 if enc == "f16" else torch.float32).numpy(), 1.0


def triangle(x: Tensor, r0: int) -> Tensor:
    """(h, R, S) -> (h, N): of row r its columns 0..r, row after row; r0 is the first row's r."""
    rows = torch.arange(r0, r0 + x.shape[1])[:, None]
    return x[:, torch.arange(x.shape[2]) <= rows]


def packed(tensors: dict[str, numpy.ndarray], **about) -> bytes:
    """safetensors bytes, the same each time; `about` goes into __metadata__, as text."""
    header: dict = {"__metadata__": {k: str(v) for k, v in about.items() if v is not None}}
    parts, at = [], 0
    for name, x in sorted(tensors.items(), key=lambda one: -one[1].itemsize):  # keeps them aligned
        part = numpy.ascontiguousarray(x).tobytes()
        header[name] = {"dtype": DTYPES[x.dtype.name], "shape": list(x.shape),
                        "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    return b"".join([len(told).to_bytes(8, "little"), told, *parts])


def check_size(numbers: int, enc: str, advice: str) -> None:
    """Refuses an answer of more than 16 MiB before any of it is computed."""
    size = numbers * ENCODINGS[enc]
    if size > ANSWER:
        raise Refused(413, "too_large", f"this answer would have {size / 2**20:,.0f} MiB and one "
                      f"may have {ANSWER >> 20}", advice=advice)

"""Quantized blocks (ggml's) and their expansion to numbers, bit for bit as the `gguf` package's.

A row of a tensor is a run of blocks; a block holds 1, 32 or 256 elements: scales and packed codes.
Every value is computed in float32 with one rounding per operation, then converted.
"""

import torch
from torch import Tensor

from mirada.errors import MiradaError

# id -> (name, elements in a block, bytes of a block)
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}
BY_NAME = {name: (elements, size) for name, elements, size in TYPES.values()}
CHUNK = 1 << 20  # elements expanded at a time: bounds the float32 temporaries


def expand(raw: Tensor, type: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Expand blocks to numbers: (..., bytes per row) uint8 -> (..., elements per row) `dtype`.

    type is a name of READABLE. The result is new memory.
    Raises MiradaError for another type or rows that are no whole number of blocks.
    """
    if type not in READABLE:
        raise MiradaError(f"type {type} cannot be expanded; readable are {', '.join(READABLE)}")
    elements, size = BY_NAME[type]
    if raw.dtype != torch.uint8 or raw.ndim < 1 or raw.shape[-1] % size:
        limit = f"whole {size}-byte blocks of uint8, not {tuple(raw.shape)} {raw.dtype}"
        raise MiradaError(f"{type} is expanded from rows of {limit}")
    blocks = raw.reshape(-1, size)  # (blocks, bytes)
    out = torch.empty(len(blocks), elements, dtype=dtype)
    step = CHUNK // elements
    for start in range(0, len(blocks), step):
        out[start : start + step] = READABLE[type](blocks[start : start + step])
    return out.view(*raw.shape[:-1], raw.shape[-1] // size * elements)


def _plain(dtype: torch.dtype):
    return lambda b: b.contiguous().view(dtype).float()


def _half(b: Tensor) -> Tensor:
    """Two bytes a block -> (blocks, 1) float32."""
    return b.clone().view(torch.float16).float()


def _nibbles(b: Tensor, group: int) -> Tensor:
    """Low nibbles, then high ones, of every `group` bytes: (blocks, n) -> (blocks, 2n)."""
    b = b.reshape(len(b), -1, group)
    return torch.cat([b & 15, b >> 4], dim=-1).view(len(b), -1)


def _bits(b: Tensor) -> Tensor:
    """Bit i of byte j at 8j + i: (blocks, n) -> (blocks, 8n)."""
    return (b[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).view(len(b), -1)


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].view(torch.int8).float() * _half(b[:, :2])


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:], 16).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _nibbles(b[:, 4:], 16).float() + _half(b[:, 2:4])


def _q5_0(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 6:], 16) | _bits(b[:, 2:6]) << 4
    return _half(b[:, :2]) * (codes.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    codes = _nibbles(b[:, 8:], 16) | _bits(b[:, 4:8]) << 4
    return _half(b[:, :2]) * codes.float() + _half(b[:, 2:4])


def _scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """The twelve bytes of Q4_K and Q5_K: eight 6-bit scales, eight 6-bit minimums."""
    low, mid, high = b[:, :4], b[:, 4:8], b[:, 8:]
    scale = torch.cat([low & 63, (high & 15) | (low >> 2 & 48)], dim=-1)
    least = torch.cat([mid & 63, (high >> 4) | (mid >> 2 & 48)], dim=-1)
    return scale.float(), least.float()


def _k(b: Tensor, codes: Tensor) -> Tensor:
    """scale * code - minimum, for eight groups of 32 codes."""
    scale, least = _scales(b[:, 4:16])
    scale, least = _half(b[:, :2]) * scale, _half(b[:, 2:4]) * least
    return (scale[:, :, None] * codes.view(-1, 8, 32).float() - least[:, :, None]).view(-1, 256)


def _q4_k(b: Tensor) -> Tensor:
    return _k(b, _nibbles(b[:, 16:], 32))


def _q5_k(b: Tensor) -> Tensor:
    # bit g of byte i is the fifth bit of code i in group g
    fifth = b[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    return _k(b, _nibbles(b[:, 48:], 32) | fifth.view(-1, 256) << 4)


def _q6_k(b: Tensor) -> Tensor:
    low = _nibbles(b[:, :128], 64)
    pairs = b[:, 128:192].view(-1, 2, 1, 32) >> torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    codes = (low | (pairs & 3).reshape(-1, 256) << 4).float() - 32
    scale = _half(b[:, 208:]) * b[:, 192:208].view(torch.int8).float()  # (blocks, 16)
    return (scale[:, :, None] * codes.view(-1, 16, 16)).view(-1, 256)


READABLE = {
    "F32": _plain(torch.float32), "F16": _plain(torch.float16), "BF16": _plain(torch.bfloat16),
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}

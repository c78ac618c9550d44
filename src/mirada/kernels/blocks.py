"""Weights in blocks and their expansion to numbers: ggml's formats bit for bit as the `gguf`
package's, and five of our own: NF4 and FP4 (QLoRA, 2305.14314) and I8 (a row's largest
magnitude, as float32, and its codes: LLM.int8, 2208.07339), which are bitsandbytes' numbers;
NF4D, NF4 whose scales are rounded too (QLoRA's double quantization, sec. 3, over a row's blocks);
and U4, scale * (code - zero), which is what GPTQ (2210.17323) and AWQ (2306.00978) keep.

A row of a matrix is a run of blocks; a block holds scales and packed codes of some elements.
Every value is computed in float32 with one rounding per operation, then converted.
"""

import torch
from torch import Tensor

from mirada.errors import MiradaError

# of rows that are no whole number of 256: the type of 32 that llama.cpp takes in its place
SHORTER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
CHUNK = 1 << 20  # elements expanded at a time: bounds the float32 temporaries
# Quantiles of N(0, 1) scaled to [-1, 1], 0 among them (2305.14314, appendix E).
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0])
FP4 = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3]) / 12


def block(type: str, nbytes: int | None = None, elements: int | None = None) -> tuple[int, int]:
    """(elements, bytes) of one block of `type`. A row of I8 or NF4D is one block: say how long."""
    if type not in LAYOUTS:
        raise MiradaError(f"type {type} cannot be expanded; readable are {', '.join(LAYOUTS)}")
    if type in ROWS:
        unit, head, size = ROWS[type]
        elements = (nbytes - head) // size * unit if elements is None else elements
        return elements, head + elements // unit * size
    return LAYOUTS[type][:2]


def fitting(type: str, width: int) -> str | None:
    """The type for rows of `width` numbers: `type`, its shorter kin, or None."""
    fits = (t for t in (type, SHORTER.get(type, type)) if width % unit(t) == 0)
    return next(fits, None)


def unit(type: str) -> int:
    """The length of a row of `type` is a multiple of this."""
    return ROWS[type][0] if type in ROWS else block(type)[0]


def row_elements(type: str, nbytes: int) -> int:
    """Numbers in a row of `nbytes`."""
    elements, size = block(type, nbytes)
    return nbytes // size * elements


def expand(raw: Tensor, type: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Expand blocks to numbers: (..., bytes per row) uint8 -> (..., elements per row) `dtype`.

    type is a name of LAYOUTS. The result is new memory.
    Raises MiradaError for another type or rows that are no whole number of blocks.
    """
    elements, size = block(type, raw.shape[-1] if raw.ndim else 0)
    if raw.dtype != torch.uint8 or raw.ndim < 1 or elements < 1 or raw.shape[-1] % size:
        limit = f"whole {size}-byte blocks of uint8, not {tuple(raw.shape)} {raw.dtype}"
        raise MiradaError(f"{type} is expanded from rows of {limit}")
    blocks, read = raw.reshape(-1, size), LAYOUTS[type][2]  # (blocks, bytes)
    out = torch.empty(len(blocks), elements, dtype=dtype, device=raw.device)
    step = max(CHUNK // elements, 1)
    for start in range(0, len(blocks), step):
        out[start : start + step] = read(blocks[start : start + step])
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


def _shifts(b: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=b.device)


def _bits(b: Tensor) -> Tensor:
    """Bit i of byte j at 8j + i: (blocks, n) -> (blocks, 8n)."""
    return (b[:, :, None] >> _shifts(b) & 1).view(len(b), -1)


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].view(torch.int8).float() * _half(b[:, :2])


def _q4_0(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:], 16).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * _nibbles(b[:, 4:], 16).float() + _half(b[:, 2:4])


def _u4(b: Tensor) -> Tensor:
    return _half(b[:, :2]) * (_nibbles(b[:, 4:], 16).float() - _half(b[:, 2:4]))


def offset(blocks: Tensor) -> Tensor:
    """Blocks of U4, (rows, bytes), as Q4_1: the number of code 0 is rounded to float16."""
    apart = blocks.reshape(-1, 20).clone()
    least = -_half(apart[:, :2]) * _half(apart[:, 2:4])
    apart[:, 2:4] = least.half().view(torch.uint8)
    return apart.view(blocks.shape)


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
    fifth = b[:, None, 16:48] >> _shifts(b)[:, None] & 1
    return _k(b, _nibbles(b[:, 48:], 32) | fifth.view(-1, 256) << 4)


def _q6_k(b: Tensor) -> Tensor:
    low = _nibbles(b[:, :128], 64)
    pairs = b[:, 128:192].view(-1, 2, 1, 32) >> _shifts(b)[::2, None]
    codes = (low | (pairs & 3).reshape(-1, 256) << 4).float() - 32
    scale = _half(b[:, 208:]) * b[:, 192:208].view(torch.int8).float()  # (blocks, 16)
    return (scale[:, :, None] * codes.view(-1, 16, 16)).view(-1, 256)


def _i8(b: Tensor) -> Tensor:
    return b[:, 4:].view(torch.int8).float() * b[:, :4].clone().view(torch.float32) * (1 / 127)


def _coded(book: Tensor):
    """Codes into a book of 16 numbers, the first of each pair in the high half of its byte."""
    def read(b: Tensor) -> Tensor:
        codes = torch.stack([b[:, 4:] >> 4, b[:, 4:] & 15], dim=-1).view(len(b), -1)
        return book.to(b.device)[codes.int()] * b[:, :4].clone().view(torch.float32)
    return read


def _double(b: Tensor) -> Tensor:
    """A row's least scale and their step, a byte for each 64 numbers' scale, their codes."""
    count = (b.shape[1] - 8) // 33
    low, step = b[:, :8].clone().view(torch.float32).split(1, 1)
    scale = low + b[:, 8 : 8 + count].float() * step  # (rows, blocks)
    codes = torch.stack([b[:, 8 + count :] >> 4, b[:, 8 + count :] & 15], dim=-1).int()
    return (NF4.to(b.device)[codes].view(len(b), count, 64) * scale[..., None]).flatten(1)


# type whose rows are one block -> (elements, bytes before, bytes for as many elements)
ROWS = {"I8": (1, 4, 1), "NF4D": (64, 8, 33)}
# name -> (elements in a block, bytes of a block, its expansion)
GGML = {
    "F32": (1, 4, _plain(torch.float32)), "F16": (1, 2, _plain(torch.float16)),
    "BF16": (1, 2, _plain(torch.bfloat16)), "Q8_0": (32, 34, _q8_0), "Q4_0": (32, 18, _q4_0),
    "Q4_1": (32, 20, _q4_1), "Q5_0": (32, 22, _q5_0), "Q5_1": (32, 24, _q5_1),
    "Q4_K": (256, 144, _q4_k), "Q5_K": (256, 176, _q5_k), "Q6_K": (256, 210, _q6_k),
}
LAYOUTS = GGML | {"NF4": (64, 36, _coded(NF4)), "FP4": (64, 36, _coded(FP4)), "I8": (0, 0, _i8),
                  "NF4D": (0, 0, _double), "U4": (32, 20, _u4)}

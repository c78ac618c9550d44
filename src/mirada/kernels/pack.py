"""Numbers to blocks: rounding to nearest for every type of kernels.blocks, no data needed.

Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1 are the `gguf` package's bit for bit. The K types search, as ggml
describes them: each group's scale (and least value) is refitted by weighted least squares for some
twenty roundings, and the one with the smallest weighted error stays.
"""

import torch
from torch import Tensor

from mirada.errors import MiradaError

from .blocks import FP4, LAYOUTS, NF4, block, unit

CHUNK = 1 << 16  # numbers at a time: a search's temporaries stay in the processor's cache


def pack(x: Tensor, type: str) -> Tensor:
    """Rows of numbers (..., n) -> blocks (..., bytes) uint8 of a type of LAYOUTS.

    Raises MiradaError where n is no whole number of blocks, or x holds NaN or infinity.
    """
    elements, size = block(type, elements=x.shape[-1])
    if x.shape[-1] % unit(type) or not x.numel():
        raise MiradaError(f"rows of {x.shape[-1]} numbers are no whole number of {type} blocks of "
                          f"{unit(type)}")
    flat = x.detach().reshape(-1, elements)
    out = torch.empty(len(flat), size, dtype=torch.uint8, device=x.device)
    step = max(CHUNK // elements, 1)
    for start in range(0, len(flat), step):
        part = flat[start : start + step].float()
        if not torch.isfinite(part).all():
            raise MiradaError(f"a weight holds NaN or infinity, which {type} cannot")
        out[start : start + step] = PACKED[type](part)
    return out.view(*x.shape[:-1], -1)


def join(codes: Tensor, scales: Tensor) -> Tensor:
    """Q4_0 of codes of 0 .. 15, (rows, n) uint8, and their scales, (rows, n / 32): the blocks."""
    blocks = _four((scales.half().reshape(-1, 1), codes.reshape(-1, 32)))
    return blocks.view(len(codes), -1)


def _bytes(x: Tensor) -> Tensor:
    """(n, k) of any type -> its bytes, (n, k * size)."""
    return x.contiguous().view(torch.uint8)


def _plain(dtype: torch.dtype):
    return lambda x: _bytes(x.to(dtype))


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, 0, 1 / d)


def _halves(codes: Tensor, group: int) -> Tensor:
    """Codes of four bits: the first `group` in low halves of bytes, the next in the high ones."""
    low, high = codes.view(len(codes), -1, 2, group).unbind(2)
    return (low & 15 | high << 4).flatten(1)


def _bits(codes: Tensor, groups: int) -> Tensor:
    """Bit i of byte j: the lowest bit of code (j, i) where groups is 0, of (i, j) else."""
    shifts = torch.arange(8, dtype=torch.uint8, device=codes.device)
    codes = codes & 1
    codes = codes.view(len(codes), groups, -1).transpose(1, 2) if groups else codes.view(
        len(codes), -1, 8)
    return (codes << shifts).sum(-1).to(torch.uint8)


def _q8_0(x: Tensor) -> Tensor:
    d = x.abs().amax(1, keepdim=True) / 127
    scaled = x * _inverse(d)
    codes = scaled.sign() * (scaled.abs() + 0.5).floor()  # halves go away from zero
    return torch.cat([_bytes(d.half()), _bytes(codes.to(torch.int8))], 1)


def _symmetric(x: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """The largest number gets the lowest code, whatever its sign."""
    d = x.gather(1, x.abs().argmax(1, keepdim=True)) / -half
    codes = (x * _inverse(d) + (half + 0.5)).trunc().clamp(0, 2 * half - 1)
    return d.half(), codes.to(torch.uint8)


def _offset(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    low = x.amin(1, keepdim=True)
    d = (x.amax(1, keepdim=True) - low) / top
    codes = ((x - low) * _inverse(d) + 0.5).trunc().clamp(0, top)
    return torch.cat([d.half(), low.half()], 1), codes.to(torch.uint8)


def _zeroed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Zero has a code of its own, so that it stays exact."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    d = ((high - low) / 15).half()
    zero = (-low * _inverse(d.float())).round().clamp(0, 15)
    codes = (x * _inverse(d.float())).round().add(zero).clamp(0, 15)
    return torch.cat([d, zero.half()], 1), codes.to(torch.uint8)


def _four(made):
    d, codes = made
    return torch.cat([_bytes(d), _halves(codes, 16)], 1)


def _five(made):
    d, codes = made
    return torch.cat([_bytes(d), _bits(codes >> 4, 0), _halves(codes, 16)], 1)


def _fitted(x: Tensor, top: int, steps: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, g) ≈ scale * code - least with code of 0 .. top and least >= 0: both (n,)."""
    x = x.T.contiguous()  # (g, n): sums run along memory
    weight = x.square().mean(0).sqrt() + x.abs()
    weighted, w, wx = weight * x, weight.sum(0), (weight * x).sum(0)
    low, high = x.amin(0).clamp(max=0), x.amax(0)
    above, step = x - low, _inverse(high - low)
    best = [torch.full_like(low, torch.inf), torch.zeros_like(low), -low]  # error, scale, least
    for more in [0.0, *steps.tolist()]:
        codes = (above * (step * (top + more))).round_().clamp_(0, top)
        wc = weight * codes
        c, cc, cx = wc.sum(0), (wc * codes).sum(0), (weighted * codes).sum(0)
        det, scale, least = w * cc - c * c, w * cx - wx * c, c * cx - cc * wx
        free = (det > 0) & (least >= 0)  # else the line goes through zero
        scale = torch.where(free, scale * _inverse(det), cx * _inverse(cc))
        least = torch.where(free, least * _inverse(det), 0)
        error = codes.mul_(scale).sub_(least).sub_(x).square_().mul_(weight).sum(0)
        better = error < best[0]
        best = [torch.where(better, new, old)
                for new, old in zip((error, scale, least), best, strict=True)]
    return best[1], best[2]


def _k(top: int, steps: Tensor):
    """Q4_K and Q5_K: eight groups of 32, their scales and least values in six bits each."""
    def packed(x: Tensor) -> Tensor:
        x = x.view(-1, 8, 32)
        scale, least = (t.view(-1, 8) for t in _fitted(x.reshape(-1, 32), top, steps))
        d, sixes = zip(*(_six(t) for t in (scale, least)), strict=True)
        real, lows = ((h.float() * s)[..., None] for h, s in zip(d, sixes, strict=True))
        codes = ((x + lows) * _inverse(real)).round().clamp(0, top).to(torch.uint8).view(-1, 256)
        s, m = (t.to(torch.uint8) for t in sixes)
        twelve = torch.cat([s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6,
                            s[:, 4:] & 15 | (m[:, 4:] & 15) << 4], 1)
        fifth = [_bits(codes >> 4, 8)] if top == 31 else []
        return torch.cat([_bytes(torch.cat(d, 1)), twelve, *fifth, _halves(codes, 32)], 1)
    return packed


def _six(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers from zero up, (n, 8): their common float16 step (n, 1) and codes of 0 .. 63."""
    step = (x.amax(1, keepdim=True) / 63).half()
    return step, (x * _inverse(step.float())).round().clamp(0, 63)


def _q6_k(x: Tensor) -> Tensor:
    x = x.view(-1, 16, 16)
    scale = _centred(x.reshape(-1, 16)).view(-1, 16)
    d = (scale.gather(1, scale.abs().argmax(1, keepdim=True)) / -128).half()
    eights = (scale * _inverse(d.float())).round().clamp(-128, 127)
    real = (d.float() * eights)[..., None]
    codes = ((x * _inverse(real)).round().clamp(-32, 31) + 32).to(torch.uint8).view(-1, 256)
    high = (codes >> 4).view(-1, 2, 4, 32) << torch.arange(
        0, 8, 2, dtype=torch.uint8, device=x.device)[:, None]
    return torch.cat([_halves(codes, 64), high.sum(2).to(torch.uint8).flatten(1),
                      _bytes(eights.to(torch.int8)), _bytes(d)], 1)


def _centred(x: Tensor) -> Tensor:
    """x (n, 16) ≈ scale * code with code of -32 .. 31: scale (n,), errors weighed by x²."""
    x = x.T.contiguous()  # (16, n)
    square = x * x
    step = -_inverse(x.gather(0, x.abs().argmax(0, keepdim=True)))[0]
    best = [torch.zeros_like(step), torch.zeros_like(step)]  # how much is explained, scale
    for more in range(-9, 10):
        codes = (x * (step * (32 + 0.1 * more))).round_().clamp_(-32, 31)
        weighted = square * codes
        xc, cc = (weighted * x).sum(0), weighted.mul_(codes).sum(0)
        scale = xc * _inverse(cc)
        better = xc * scale > best[0]
        best = [torch.where(better, new, old)
                for new, old in zip((xc * scale, scale), best, strict=True)]
    return best[1]


def _nearest(x: Tensor, book: Tensor, d: Tensor) -> Tensor:
    """x / d as the nearest of 16 numbers: their codes, two a byte."""
    order = book.argsort()
    between = (book[order][1:] + book[order][:-1]) / 2
    near = torch.bucketize((x * _inverse(d)).contiguous(), between.to(x.device))
    codes = order.to(x.device)[near].to(torch.uint8)
    return codes[..., ::2] << 4 | codes[..., 1::2]


def _coded(book: Tensor):
    """The nearest of 16 numbers, after division by the block's largest magnitude."""
    def packed(x: Tensor) -> Tensor:
        d = x.abs().amax(1, keepdim=True)
        return torch.cat([_bytes(d), _nearest(x, book, d)], 1)
    return packed


def _double(x: Tensor) -> Tensor:
    blocks = x.view(len(x), -1, 64)
    d = blocks.abs().amax(2)  # (rows, blocks)
    low, high = d.amin(1, keepdim=True), d.amax(1, keepdim=True)
    step = (high - low) / 255
    eights = ((d - low) * _inverse(step)).round()
    codes = _nearest(blocks, NF4, (low + eights * step)[..., None]).flatten(1)
    return torch.cat([_bytes(torch.cat([low, step], 1)), eights.to(torch.uint8), codes], 1)


def _i8(x: Tensor) -> Tensor:
    d = x.abs().amax(1, keepdim=True)
    return torch.cat([_bytes(d), _bytes((x * (127 * _inverse(d))).round().to(torch.int8))], 1)


PACKED = {
    "F32": _plain(torch.float32), "F16": _plain(torch.float16), "BF16": _plain(torch.bfloat16),
    "Q8_0": _q8_0,
    "Q4_0": lambda x: _four(_symmetric(x, 8)), "Q4_1": lambda x: _four(_offset(x, 15)),
    "Q5_0": lambda x: _five(_symmetric(x, 16)), "Q5_1": lambda x: _five(_offset(x, 31)),
    "Q4_K": _k(15, torch.arange(20) * 0.1 - 1), "Q5_K": _k(31, torch.arange(15) * 0.1 - 0.5),
    "Q6_K": _q6_k, "NF4": _coded(NF4), "FP4": _coded(FP4), "I8": _i8,
    "NF4D": _double, "U4": lambda x: _four(_zeroed(x)),
}
assert PACKED.keys() == LAYOUTS.keys()

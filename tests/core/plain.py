"""Attention and masks in plain loops, from their definitions: what the core is compared with."""

import math

import torch

from mirada.core.mask import Blocked, Mask, Strided


def at(value, b: int):
    """What row b has, where a field may be one for all rows or one a row."""
    return int(value.reshape(-1)[b % value.numel()]) if torch.is_tensor(value) else value


def visible(mask: Mask, B: int, T: int, S: int) -> torch.Tensor:
    """(B, 1, T, S) bool, one pair after another."""
    out = torch.zeros(B, 1, T, S, dtype=torch.bool)
    for b in range(B):
        for t in range(T):
            for s in range(S):
                out[b, 0, t, s] = sees(mask, b, t, s)
    return out


def sees(mask: Mask, b: int, t: int, s: int) -> bool:
    """May query t of row b look at key slot s?"""
    q, k = t + at(mask.start, b), s
    if mask.slots is not None:
        k = int(mask.slots[s] if mask.slots.ndim == 1 else mask.slots[b % len(mask.slots), s])
    if k < 0:
        return False
    in_prefix = mask.prefix is not None and k < at(mask.prefix, b)
    if mask.causal and k > q and not in_prefix:
        return False
    shown = mask.everywhere is not None and mask.everywhere[b, s]
    if mask.window is not None and abs(q - k) >= mask.window and not shown:
        return False
    if mask.padding is not None and not mask.padding[b, s]:
        return False
    if not all(drawn(pattern, q, k) for pattern in mask.patterns):
        return False
    return all(qs[b, t] == ks[b, s] for qs, ks in mask.segments)


def drawn(pattern, q: int, k: int) -> bool:
    """Is the pair in a sparse pattern?"""
    if isinstance(pattern, Strided):
        return abs(q - k) < pattern.stride or (q - k) % pattern.stride == 0
    if isinstance(pattern, Blocked):
        place = k % pattern.stride
        return q // pattern.stride == k // pattern.stride or place + pattern.summary >= (
            pattern.stride)
    x = (q * 0x9E3779B1 ^ k * 0x85EBCA6B ^ pattern.seed * 0xC2B2AE35) % 2**32
    for shift in (15, 13):
        x = (x ^ x >> shift) * 0x2C1B3C6D % 2**32
    return (x ^ x >> 16) / 2**32 < pattern.share or q == k


def weights(q, k, scale, seen, bias=None, cap=None, sinks=None) -> torch.Tensor:
    """(B, H, T, S) attention weights, one row after another. seen: (B, 1, T, S) bool."""
    B, H, T, S = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    out = torch.zeros(B, H, T, S, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            g = h * k.shape[1] // H
            for t in range(T):
                row = []
                for s in range(S):
                    score = float(q[b, h, t].double() @ k[b, g, s].double()) * scale
                    score = score if cap is None else cap * math.tanh(score / cap)
                    score += 0.0 if bias is None else float(bias[b % len(bias), h, t, s])
                    row.append(math.exp(score) if seen[b, 0, t, s] else 0.0)
                total = sum(row) + (0.0 if sinks is None else math.exp(float(sinks[h])))
                for s in range(S):
                    out[b, h, t, s] = row[s] / total if row[s] else 0.0
    return out


def attention(q, k, v, scale, seen, bias=None, cap=None, sinks=None) -> torch.Tensor:
    """(B, H, T, Kv)."""
    share = q.shape[1] // v.shape[1]
    each = v.double().repeat_interleave(share, 1)  # head h reads group h // share
    return weights(q, k, scale, seen, bias, cap, sinks) @ each

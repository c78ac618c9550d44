"""Which sample comes when: a pure function of seed and place, so that a run resumes exactly."""

from __future__ import annotations

import hashlib
import random

ROUNDS = 4  # of a Feistel network: enough for a permutation that looks random (Luby and Rackoff)


def sample(seed: int, place: int, count: int) -> tuple[int, int]:
    """(epoch, index) of the sample at `place` of an endless walk over `count` samples.

    Each epoch visits every sample once, in an order of its own; nothing is stored for it.
    """
    epoch, at = divmod(place, count)
    if count == 1:
        return epoch, 0
    bits = (count - 1).bit_length()
    half = (bits + 1) // 2
    keys = [_number(seed, epoch, r) for r in range(ROUNDS)]
    while True:  # a permutation of 2^(2 half) numbers, walked until it is back among `count`
        at = _feistel(at, half, keys)
        if at < count:
            return epoch, at


def draw(seed: int, *place: int) -> random.Random:
    """The random numbers of one place: the same whoever asks, and in which order."""
    return random.Random(_number(seed, *place))


def torch_seed(seed: int, step: int, rank: int = 0) -> int:
    """What torch's own generator is set to before a step: dropout needs no saved state."""
    return _number(seed, step, rank, 0x5EED)


def _feistel(x: int, half: int, keys: list[int]) -> int:
    mask = (1 << half) - 1
    left, right = x >> half, x & mask
    for key in keys:
        mixed = (right * 0x9E3779B97F4A7C15 + key) & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        left, right = right, left ^ (mixed ^ mixed >> 32) & mask
    return left << half | right


def _number(*words: int) -> int:
    """63 bits that depend on all words."""
    text = ",".join(map(str, words)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

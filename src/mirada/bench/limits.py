"""What this machine can do at most: reading memory, and products of matrices."""

from __future__ import annotations

import time


def limits(threads: int, rounds: int = 3) -> dict[str, float]:
    """read: GB/s from memory; float32, bfloat16, int8: GFLOP/s of a product of matrices. The best
    of some rounds: a limit is what is possible, and a shared machine only takes from it."""
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, n = {"read": reading(1 << 30, rounds)}, 1536
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            a, b = ((torch.randn(n, n) * 9).to(dtype) for _ in "ab")
            product = torch._int_mm if dtype is torch.int8 else torch.mm
            seconds = _best(lambda a=a, b=b, product=product: product(a, b), rounds * 2)
            found[str(dtype).removeprefix("torch.")] = 2 * n**3 / 1e9 / seconds
        return found
    finally:
        torch.set_num_threads(before)


def reading(nbytes: int, rounds: int = 3) -> float:
    """GB/s at which torch's threads read so many bytes, again and again: 1 GiB comes from memory,
    past every cache, and a small model may not."""
    import torch
    numbers = torch.ones(nbytes // 4, dtype=torch.float32)
    return numbers.nbytes / 1e9 / _best(numbers.sum, rounds)


def _best(work, rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)

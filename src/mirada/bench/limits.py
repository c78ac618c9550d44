"""What this machine can do at most: reading memory, and products of matrices."""

from __future__ import annotations

import time


def limits(threads: int, rounds: int = 3) -> dict[str, float]:
    """read: GB/s from memory; float32, bfloat16: GFLOP/s of a product of matrices. The best of
    some rounds: a limit is what is possible, and a shared machine only takes from it."""
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        big = torch.ones(1 << 28, dtype=torch.float32)  # 1 GiB, past every cache
        found = {"read": big.nbytes / 1e9 / _best(big.sum, rounds)}
        del big
        for dtype in (torch.float32, torch.bfloat16):
            n = 1536
            a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
            seconds = _best(lambda a=a, b=b: a @ b, rounds * 2)
            found[str(dtype).removeprefix("torch.")] = 2 * n**3 / 1e9 / seconds
        return found
    finally:
        torch.set_num_threads(before)


def _best(work, rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)

"""What every engine is asked, and the clock that it is asked by."""

from __future__ import annotations

import os
import time
from collections.abc import Callable


def prompt(length: int, vocab: int, row: int = 0) -> list[int]:
    """`length` token ids, the same in every engine and each time; rows differ."""
    return [(7919 * (at + 31 * row) + 104729) % (vocab - 300) + 200 for at in range(length)]


def timed(step: Callable[[], object], new: int) -> list[float]:
    """Seconds of each of `new` + 1 calls."""
    times = [time.perf_counter()]
    for _ in range(new + 1):
        step()
        times.append(time.perf_counter())
    return gaps(times)


def gaps(times: list[float]) -> list[float]:
    """From each time to the next."""
    return [b - a for a, b in zip(times, times[1:], strict=False)]


class Silence:
    """Nothing of what C code prints reaches the terminal meanwhile."""

    def __enter__(self):
        self.saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *error):
        os.dup2(self.saved, 2)
        os.close(self.saved)

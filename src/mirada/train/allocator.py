"""What a process that trains asks of the system's memory."""

from __future__ import annotations

import ctypes
import sys

MAPPED, TRIMMED, AHEAD = -4, -1, -2  # mallopt's M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


def keep_freed() -> bool:
    """Memory that this process frees stays with it, so that a step's large tensors take no new
    pages from the system: about a sixth of a GPT-2 step's time. It holds for all of the process,
    whose memory then never shrinks. Whether the system (Linux with glibc) can do so."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        [mallopt(MAPPED, 0), mallopt(TRIMMED, 2**31 - 1), mallopt(AHEAD, 1 << 28)])

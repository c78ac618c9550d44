"""Optional native code: sources in the package, built on first use."""

import os


def share_cores() -> None:
    """Let torch's threads spin for 0.2 ms after their work, not 5: they wait on the cores that the
    native runtime needs, and a batch took twice as long. To be called before torch is imported."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

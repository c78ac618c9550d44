"""Start a script of this folder in a bare Python that sees only the packages it needs."""

import importlib.util
import sys
from pathlib import Path


def command(script: str, *packages: str) -> list[str]:
    """The argument list that runs `script` isolated: no site, no environment, no current folder.

    The folders of `packages` are handed over, as an isolated interpreter finds nothing installed.
    """
    origins = (Path(importlib.util.find_spec(p).origin).parent.parent for p in packages)
    folders = sorted({str(folder) for folder in origins})
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name(script)), *folders]

"""The pictures of docs/looking.md, made by running the page's own code.

Run: python tools/pictures.py [WORD ...]; with words, only the blocks that hold one of them.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "looking.md"


def blocks() -> list[str]:
    """The page's code, in order."""
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def main(wanted: list[str]) -> None:
    os.chdir(ROOT)
    names: dict = {}
    shared, *rest = blocks()
    for source in [shared, *(b for b in rest if not wanted or any(w in b for w in wanted))]:
        print(source.strip().splitlines()[-1], file=sys.stderr)
        exec(compile(source, str(PAGE), "exec"), names)


if __name__ == "__main__":
    main(sys.argv[1:])

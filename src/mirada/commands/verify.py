"""mirada verify: is it the model its file says?"""

import sys

from .common import load, model_argument, show

HELP = "is it the model its file says, in every way it can run"
fill = model_argument


def run(args) -> int:
    from mirada.look.verify import verify

    def progress(name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{name} ...", end="", file=sys.stderr, flush=True)

    report = verify(load(args), progress)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    show(args, report)
    return 0 if report.ok else 1

"""mirada explore: a page on this machine in which a model can be looked into."""

import sys

from .common import load, model_argument

HELP = "look inside a model in the browser"
UNPACKED = 500_000_000  # weights up to which quantized ones are unpacked: 2 GB


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("--lang", choices=("en", "es"), help="default: the browser's")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="default: a free one")
    parser.add_argument("--no-open", action="store_true", help="only print the link")


def run(args) -> None:
    import json

    from mirada.errors import MiradaError
    from mirada.serve.explorer import explore
    if not 0 <= args.port < 65536:
        raise MiradaError(f"a port is a number from 0 to 65535, not {args.port}")

    def told(url: str) -> None:
        print(json.dumps({"url": url}) if args.json else url, flush=True)
        print("Open this link; it works on this computer only. Ctrl-C ends the Explorer.",
              file=sys.stderr)

    explore({args.model: _opened(args)}, lang=args.lang, port=args.port,
            open_page=not (args.no_open or args.json), told=told)


def _opened(args):
    """The model; a small quantized one in float32, in which each of the many passes that looking
    takes is some four times faster."""
    from mirada.core.linear import KEPT
    from mirada.look.describe import weights
    model = load(args)
    packed = any(isinstance(m, KEPT) for m in model.modules())
    if args.dtype or not packed or sum(n for _, n, _, _ in weights(model)) > UNPACKED:
        return model
    args.dtype = "float32"
    return load(args)

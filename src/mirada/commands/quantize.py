"""mirada quantize: fewer bits a weight, and what that costs."""

from pathlib import Path

from .common import load, model_argument, show

HELP = "write a model with fewer bits a weight, and say what that costs"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("--to", default="int8", metavar="TYPE",
                        help="int8, int4, nf4, fp4, or GGUF's Q8_0, Q4_K ... (default: int8)")
    parser.add_argument("-o", "--out", required=True, metavar="OUT",
                        help="a .gguf file, or a new folder (int8, nf4, fp4)")
    parser.add_argument("--tables", metavar="TYPE", help="of the token table and the head")
    parser.add_argument("--skip", action="append", default=[], metavar="PATTERN",
                        help="what stays wide: a regular expression of paths (again for more)")
    parser.add_argument("--check", metavar="FILE", help="a text to compare both models on")
    parser.add_argument("--calibrate", metavar="FILE",
                        help="a text to learn the rounding of int4 from (GPTQ)")


def run(args) -> None:
    from mirada.look.shrink import shrink
    texts = [None if name is None else Path(name).read_text(encoding="utf-8")
             for name in (args.check, args.calibrate)]
    show(args, shrink(load(args), args.to, args.out, tables=args.tables, skip=args.skip,
                      text=texts[0], calibrate=texts[1]))

"""mirada run: one prompt, one answer."""

import sys

from .common import decoding, decoding_arguments, guessing, guessing_arguments, load

HELP = "write on from a prompt, or answer it"


def fill(parser) -> None:
    decoding_arguments(parser)
    guessing_arguments(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from stdin")
    parser.add_argument("--num-beams", type=int, metavar="N", help="beam search")
    parser.add_argument("--raw", action="store_true", help="no chat template, just write on")


def run(args) -> None:
    from mirada.generate import run
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    beams = {} if args.num_beams is None else {"num_beams": args.num_beams}
    run.run(load(args), prompt, system=args.system, raw=args.raw, as_json=args.json,
            **decoding(args), **guessing(args), **beams)

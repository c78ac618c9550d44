"""mirada next: the table of next tokens."""

from .common import load, model_argument

HELP = "the likeliest next tokens and their chances"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="how many tokens")
    parser.add_argument("--steps", type=int, metavar="N",
                        help="write N tokens, and show how each becomes input")
    parser.add_argument("--context", type=int, metavar="N",
                        help="only the last N tokens count, and what is forgotten is said")


def run(args) -> None:
    from mirada.generate import next as ahead
    if args.steps is not None:
        return ahead.trace(load(args), args.text, args.steps, args.k, args.json, args.context)
    ahead.show(load(args), args.text, args.k, args.json, args.context)

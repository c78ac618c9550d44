"""mirada diff: two architectures side by side."""

from .common import show

HELP = "what differs between two architectures"


def fill(parser) -> None:
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")


def run(args) -> None:
    from mirada.look.diff import diff
    show(args, diff(args.a, args.b))

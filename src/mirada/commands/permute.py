"""mirada permute: the same tokens in another order, with positions and without."""

from .common import drawn, load, model_argument, show

HELP = "does the order of tokens matter, with positions and without"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="the same tokens in another "
                        "order; default: backwards")
    parser.add_argument("-o", "--out", help="a .png, .svg or .pdf")


def run(args) -> None:
    from mirada.look.experiments import permute
    show(args, drawn(args, lambda: permute(load(args), args.text, args.other)))

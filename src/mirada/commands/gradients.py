"""mirada gradients: what residual connections are for."""

from .common import drawn, load, model_argument, show

HELP = "gradient by depth, with residual connections and without"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("-o", "--out", help="a .png, .svg or .pdf")


def run(args) -> None:
    from mirada.look.experiments import gradients
    show(args, drawn(args, lambda: gradients(load(args), args.text)))

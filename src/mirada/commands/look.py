"""mirada look: the picture of who looks at whom."""

from .common import load, model_argument, show

HELP = "draw which token looks at which"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("--to", metavar="TEXT", help="what the decoder says, of a translator")
    parser.add_argument("--layer", type=int, help="default: that of the strongest link")
    parser.add_argument("--head", type=int)
    parser.add_argument("--stack", choices=("encoder", "decoder", "cross"))
    parser.add_argument("-o", "--out", default="attention.png", help="a .png, .svg or .pdf")


def run(args) -> None:
    from mirada.look.pictures import look
    show(args, look(load(args), args.text, to=args.to, layer=args.layer, head=args.head,
                    stack=args.stack, out=args.out))

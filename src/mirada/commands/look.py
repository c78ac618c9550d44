"""mirada look: the picture of who looks at whom, and other readings of one pass."""

from mirada.errors import MiradaError

from .common import drawn, load, model_argument, show

HELP = "draw which token, or patch of a picture, looks at which"
FLOWS = ("rollout", "maxflow", "routes")


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("text", metavar="TEXT", nargs="?", help="all but --roles read one; of a "
                        "model that sees pictures a picture's path")
    parser.add_argument("--to", metavar="TEXT", help="what the decoder says, of a translator")
    parser.add_argument("--layer", type=int, help="default: that of the strongest link")
    parser.add_argument("--head", type=int)
    parser.add_argument("--stack", choices=("encoder", "decoder", "cross"))
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--flow", dest="kind", nargs="?", const="rollout", choices=FLOWS,
                       help="where a token's information may have come from")
    kinds.add_argument("--lens", action="store_const", const="lens", dest="kind",
                       help="what each layer would already answer")
    kinds.add_argument("--dla", action="store_const", const="dla", dest="kind",
                       help="what each part adds to one logit")
    kinds.add_argument("--neurons", action="store_const", const="neurons", dest="kind",
                       help="which neurons of --layer wrote most")
    kinds.add_argument("--redundant", action="store_const", const="redundant", dest="kind",
                       help="which heads do the same")
    kinds.add_argument("--roles", action="store_const", const="roles", dest="kind",
                       help="what each head does, and whether it matters; -o may be a .csv")
    kinds.add_argument("--claim", action="store_const", const="claim", dest="kind",
                       help="does a guide's claim hold? TEXT: the example, gato or pizza")
    kinds.add_argument("--patches", action="store_const", const="patches", dest="kind",
                       help="TEXT, a picture, as the patches that the model reads")
    parser.add_argument("--at", type=int, default=-1, metavar="N",
                        help="the token that a flow, --dla or --neurons looks at; default: last")
    parser.add_argument("--token", metavar="WORD", help="whose logit --lens and --dla follow")
    parser.add_argument("--lang", choices=("en", "es"), default="en", help="of --roles")
    parser.add_argument("--only", action="append", metavar="ROLE", help="of --roles; again: more")
    parser.add_argument("--conllu", metavar="FILE", help="annotated sentences for --roles")
    parser.add_argument("-o", "--out", help="a .png, .svg, .pdf or .html; default: attention.png, "
                        "none for the other readings")


def run(args) -> None:
    if args.kind == "roles":
        from mirada.look.heads.report import roles
        show(args, drawn(args, lambda: roles(load(args), args.lang, only=args.only,
                                             conllu=args.conllu), ".csv", ".html"))
        return
    if args.text is None:
        raise MiradaError("give a TEXT to look at, or --roles")
    if args.kind == "claim":
        from mirada.look.heads.claims import claim
        show(args, claim(load(args), args.text))
        return
    if args.kind == "patches":
        from mirada.look.describe import is_built
        from mirada.look.overlay import patches
        show(args, drawn(args, lambda: patches(args.model if is_built(args.model) else load(args),
                                               args.text)))
        return
    if args.kind is None:
        _links(args, load(args))
        return
    from mirada.look.readings import reading
    show(args, drawn(args, lambda: reading(load(args), args.text, args.kind, to=args.to,
                                           layer=args.layer, stack=args.stack, token=args.token,
                                           at=args.at),
                     *(() if args.kind in ("neurons", "redundant") else (".html",))))


def _links(args, model) -> None:
    """Who looks at whom: tokens of a text, or patches of a picture."""
    args.out = args.out or "attention.png"
    if model.kind == "vision":
        from mirada.look.overlay import look_at
        layer = -1 if args.layer is None else args.layer
        show(args, drawn(args, lambda: look_at(model, args.text, layer=layer, head=args.head),
                         ".html"))
        return
    from mirada.look.pictures import look
    show(args, look(model, args.text, to=args.to, layer=args.layer, head=args.head,
                    stack=args.stack, out=args.out))

"""mirada plan: what a model needs of many machines."""

from .common import show

HELP = "memory by part, whether it fits, and the time of a step on many machines"


def fill(parser) -> None:
    parser.add_argument("model", metavar="MODEL", help='"family:size", a folder or a file')
    parser.add_argument("--gpus", type=int, default=1, metavar="N")
    parser.add_argument("--kind", default="h100", help="h100, a100, rtx4090, ... (default: h100)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of each, if not the kind's")
    parser.add_argument("--batch", type=int, default=1, metavar="ROWS",
                        help="rows at once on each group of machines that share a row")
    parser.add_argument("--length", type=int, metavar="TOKENS", help="of a row")
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="none",
                        help="what is computed again in the backward pass")
    parser.add_argument("--ddp", action="store_true", help="all weights on each machine")
    parser.add_argument("--tensor", type=int, default=1, metavar="N",
                        help="machines that share each product")
    parser.add_argument("--context", type=int, default=1, metavar="N",
                        help="machines that share each row")
    parser.add_argument("--serve", action="store_true", help="to run, not to train")
    parser.add_argument("--efficiency", type=float, metavar="SHARE",
                        help="of the data sheet's speed that you expect, as 0.4")
    parser.add_argument("--rate", type=float, metavar="TOKENS",
                        help="a second and machine, as measured: gives the MFU")
    parser.add_argument("--failures", type=float, metavar="HOURS",
                        help="between failures of one machine: gives the goodput")
    parser.add_argument("--save", type=float, default=60.0, metavar="SECONDS",
                        help="that a checkpoint costs (default: 60)")


def run(args) -> None:
    from mirada.look.plan import plan
    show(args, plan(
        args.model, gpus=args.gpus, kind=args.kind, batch=args.batch, length=args.length,
        recompute=args.recompute, shard=not args.ddp, tensor=args.tensor, context=args.context,
        serve=args.serve, efficiency=args.efficiency, rate=args.rate, memory=args.memory,
        failures=args.failures, save=args.save))

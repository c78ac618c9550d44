"""mirada models: what there is."""

from .common import show

HELP = "families, sizes, heads and what is proven; --installed: what can be loaded here"


def fill(parser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="*",
                        help="with --installed: a model's folder or file too, or a folder of them")
    parser.add_argument("--installed", action="store_true",
                        help="the models on this machine, their sizes and tasks, and how to "
                        "install those of the shelf that are missing")


def run(args) -> None:
    if args.installed:
        from mirada.tasks.installed import installed
        return show(args, installed(args.path))
    if args.path:
        from mirada.errors import MiradaError
        raise MiradaError("a PATH is looked at with --installed")
    from mirada.look.catalogue import catalogue
    show(args, catalogue())

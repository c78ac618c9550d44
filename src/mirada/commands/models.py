"""mirada models: what there is."""

from .common import show

HELP = "families, sizes, heads and what is proven"


def fill(parser) -> None:
    pass


def run(args) -> None:
    from mirada.look.catalogue import catalogue
    show(args, catalogue())

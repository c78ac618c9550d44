"""mirada describe: the tree that is built."""

from .common import load, model_argument, show

HELP = "the built tree, parameters, memory and cost"
fill = model_argument


def run(args) -> None:
    from mirada.look.describe import describe, is_built
    show(args, describe(args.model if is_built(args.model) else load(args)))

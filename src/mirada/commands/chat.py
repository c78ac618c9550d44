"""mirada chat: a conversation in the terminal."""

from .common import decoding, decoding_arguments, load

HELP = "hold a conversation in the terminal"
fill = decoding_arguments


def run(args) -> None:
    from mirada.generate import run
    run.talk(load(args), system=args.system, **decoding(args))

"""mirada chat: a conversation in the terminal."""

from .common import decoding, decoding_arguments, guessing, guessing_arguments, load

HELP = "hold a conversation in the terminal"


def fill(parser) -> None:
    decoding_arguments(parser)
    guessing_arguments(parser)
    parser.add_argument("--context", type=int, metavar="N",
                        help="tokens the conversation may take, the oldest turns are forgotten "
                        "beyond; default: what the model can read")
    parser.add_argument("--resume", metavar="FILE", help="go on with a conversation saved by /save")


def run(args) -> None:
    from mirada.generate import run
    run.talk(load(args), system=args.system, context=args.context, resume=args.resume,
             **decoding(args), **guessing(args))

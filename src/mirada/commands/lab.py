"""mirada lab: the guides' questions, answered by experiments."""

from mirada import lab
from mirada.errors import MiradaError

from .common import drawn, show

HELP = "the study guides' questions, answered by experiments"


def fill(parser) -> None:
    parser.add_argument("name", metavar="QUESTION", nargs="?", help="without one they are listed")
    parser.add_argument("--lang", choices=lab.LANGUAGES, help="default: the terminal's, or en")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of data and weights")
    parser.add_argument("--all", action="store_true", help="every answer, as Markdown")
    parser.add_argument("-o", "--out", help="a .png, .svg or .pdf; with --all, a folder for them")


def run(args) -> None:
    language = args.lang or lab.spoken()
    if args.all:
        if args.name is not None:
            raise MiradaError("give one QUESTION or --all, not both")
        return show(args, lab.page(args.seed, language, args.out))
    if args.name is not None:
        return show(args, drawn(args, lambda: lab.ask(args.name, args.seed, language)))
    if args.out:
        raise MiradaError("name the QUESTION to draw, or give --all")
    show(args, lab.Questions(language))

"""mirada senses: one word in several sentences."""

from .common import drawn, load, model_argument, show

HELP = "how a word's vector changes with its sentence"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("word", metavar="WORD")
    parser.add_argument("sentences", metavar="SENTENCE", nargs="+", help="two or more that hold it")
    parser.add_argument("-o", "--out", help="a .png, .svg or .pdf")


def run(args) -> None:
    from mirada.look.embeddings import senses
    show(args, drawn(args, lambda: senses(load(args), args.word, args.sentences)))

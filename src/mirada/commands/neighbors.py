"""mirada neighbors: the words nearest to a word, or a map of several."""

from .common import drawn, load, model_argument, show

HELP = "the words nearest to a word, or a map of several"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("words", metavar="WORD", nargs="+", help="one: its neighbours; several: "
                        "how near they are to each other")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="how many neighbours")
    parser.add_argument("-o", "--out", help="a .png, .svg or .pdf")


def run(args) -> None:
    from mirada.look.embeddings import neighbors, word_map

    def found():
        model = load(args)
        one = len(args.words) == 1
        return neighbors(model, args.words[0], args.k) if one else word_map(model, args.words)

    show(args, drawn(args, found))

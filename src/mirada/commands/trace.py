"""mirada trace: every stage of a sentence's way through a model."""

from .common import drawn, load, model_argument, show

HELP = "a sentence from tokenizer to next token, every stage shown"


def fill(parser) -> None:
    model_argument(parser)
    parser.add_argument("text", metavar="TEXT")
    parser.add_argument("-k", type=int, default=5, metavar="N", help="how many guesses")
    parser.add_argument("--temperature", type=float, metavar="FLOAT", help="default: greedy")
    parser.add_argument("--seed", type=int, metavar="INT", help="the same sample again")
    parser.add_argument("-o", "--out", help="a .png, .svg or .pdf, all tables as .json, or all "
                        "tensors as .safetensors")


def run(args) -> None:
    from mirada.look.stages import trace
    names = ("temperature", "seed")
    options = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    show(args, drawn(args, lambda: trace(load(args), args.text, k=args.k, **options), ".json",
                     ".safetensors"))

"""mirada code: go on with code, fill a gap in it, ask about it, or score a model on problems."""

import sys

from .common import decoding, decoding_arguments, load, show

HELP = "complete code, fill in a gap, explain or debug it"


def fill(parser) -> None:
    decoding_arguments(parser)
    parser.add_argument("file", metavar="FILE", nargs="?",
                        help="the code, <FILL> in it where the cursor is, else at its end; - "
                        "reads it from stdin. It stands right behind MODEL")
    parser.add_argument("--prefix", metavar="FILE", help="what stands before the cursor")
    parser.add_argument("--suffix", metavar="FILE", help="what stands behind it")
    parser.add_argument("--suffix-first", action="store_true",
                        help="show the model what follows before what precedes")
    parser.add_argument("--until", choices=("line", "blank", "block"),
                        help="end at the line's end, at a blank line, or at less indentation")
    parser.add_argument("--ask", choices=("explain", "debug"),
                        help="ask a chat model about the code instead")
    parser.add_argument("--score", metavar="JSONL",
                        help="answer these problems (prompt, test, suffix, entry_point) and run "
                        "the answers with their tests")
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="answers a problem")
    parser.add_argument("-k", type=int, action="append", metavar="K",
                        help="pass@K, default 1 (again for more)")
    parser.add_argument("--run-untrusted", action="store_true",
                        help="programs that the model writes may run on this computer")


def run(args) -> None:
    from mirada.errors import MiradaError
    given = [one for one in (args.file, args.prefix, args.score) if one is not None]
    if len(given) != 1 or (args.suffix is not None and args.prefix is None):
        raise MiradaError("give one of: a FILE with code; --prefix FILE and, where something "
                          "follows the cursor, --suffix FILE; --score JSONL")
    if args.system is not None:
        raise MiradaError("code takes no system message: leave --system out")
    chosen = {"until": args.until, "suffix_first": args.suffix_first, "ask": args.ask}
    options = decoding(args) | {name: value for name, value in chosen.items() if value}
    if args.score is not None:
        return _score(args, options)
    item = ({"prefix": _read(args.prefix), "suffix": _read(args.suffix) if args.suffix else ""}
            if args.prefix is not None else _read(args.file))
    from mirada.tasks.code import Code
    from mirada.tasks.pipeline import pipeline
    task = pipeline("code", load(args))
    assert isinstance(task, Code)
    pieces = []
    for piece in task.stream(item, **options):
        pieces.append(piece)
        if not args.json:
            print(piece, end="", flush=True)
    if args.json:
        import json
        print(json.dumps({"generated_text": "".join(pieces)}, ensure_ascii=False))
    else:
        print()


def _read(name: str) -> str:
    from mirada.errors import UntrustedInputError
    if name == "-":
        return sys.stdin.read()
    try:
        with open(name, encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError:
        raise UntrustedInputError(name, "text", "must be UTF-8") from None


def _score(args, options: dict) -> None:
    from mirada.tasks import judge
    judge.permitted(args.run_untrusted)
    given = judge.problems(args.score)
    print(f"mirada: {judge.WARNING}", file=sys.stderr)

    def progress(name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{name} ...", end="", file=sys.stderr, flush=True)

    score = judge.evaluate(load(args), given, samples=args.samples, k=tuple(args.k or (1,)),
                           run_untrusted=args.run_untrusted, progress=progress, **options)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    show(args, score)

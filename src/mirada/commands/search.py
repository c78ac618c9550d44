"""mirada search: the passages of a text file that mean what is asked for."""

from .common import load, model_argument, show

HELP = "find passages of a text file by what they mean"


def fill(parser) -> None:
    parser.add_argument("file", metavar="FILE", help="a text file")
    parser.add_argument("query", metavar="QUERY", help="what to look for")
    model_argument(parser, "--model", default="minilm", help="a sentence encoder (minilm)")
    parser.add_argument("-k", type=int, default=5, metavar="N", help="how many passages")
    parser.add_argument("--by", choices=("paragraph", "line"), help="what a passage is: between "
                        "empty lines, or a line (default: what the file has)")
    parser.add_argument("--index", metavar="PATH", help="keep the passages' vectors here, a "
                        ".safetensors file, for the next search of the same text")
    parser.add_argument("--prompt", metavar="TEXT", help="put before each passage, or the name of "
                        "one of the model's prompts")
    parser.add_argument("--query-prompt", metavar="TEXT", help="the same, before the query")


def run(args) -> None:
    from pathlib import Path

    from mirada.tasks import search
    texts, model = search.passages(args.file, args.by), load(args)
    if args.index and Path(args.index).exists():
        index = search.Index.load(args.index, texts, model, prompt=args.prompt)
    else:
        index = search.Index(texts, model, prompt=args.prompt)
        if args.index:
            index.save(args.index)
    show(args, search.Found(index.search(args.query, args.k, prompt=args.query_prompt)))

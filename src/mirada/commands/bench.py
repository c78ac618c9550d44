"""mirada bench: how fast, beside whom, and how near to what the machine can do."""

import sys

from .common import show, threads

HELP = "time a model: decoding, batches, prefill, first token, memory; beside other engines"


def fill(parser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a .gguf file, a folder or a short name")
    parser.add_argument("--against", metavar="NAMES", default="",
                        help="engines, with commas between: transformers, llama.cpp, openvino, "
                        "ctranslate2, onnxruntime, mirada, mirada-8, mirada-torch")
    parser.add_argument("--codes", type=int, choices=(8, 16), default=16, help="bits of mirada's "
                        "activations: 16 is exact, 8 is what the others have (default: 16)")
    parser.add_argument("--threads", type=threads, metavar="N",
                        help="default: as many as torch would use")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--plot", metavar="FILE", help="a .png, .svg or .pdf")


def run(args) -> None:
    import torch

    from mirada import shelf
    from mirada.bench.measure import bench

    def progress(said: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{said} ...", end="", file=sys.stderr, flush=True)

    path = str(shelf.find(args.model)) if args.model in shelf.ENTRIES else args.model
    against = tuple(name for name in args.against.split(",") if name)
    found = bench(path, against, threads=args.threads or torch.get_num_threads(),
                  rounds=args.rounds, codes=args.codes, progress=progress)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    if args.plot:
        found.plot(args.plot)
    show(args, found)

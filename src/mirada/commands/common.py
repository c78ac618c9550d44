"""What several commands share: naming a model, loading it, printing a result, decoding options."""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentTypeError

DTYPES = ("float32", "float16", "bfloat16", "float64")
SPINS = "10000"  # 0.2 ms, not 5, that torch's threads wait on cores that the native runtime needs


def model_argument(parser, name: str = "model", **more) -> None:
    """MODEL, and how its files are read; "--model" with a default= where it may be left out."""
    parser.add_argument(name, metavar="MODEL", **more)
    parser.add_argument("--dtype", choices=DTYPES, help="convert the weights")
    parser.add_argument("--ignore", action="append", default=[], metavar="NAME",
                        help="a config key or tensor to leave unread (again for more)")
    parser.add_argument("--adapter", metavar="FOLDER", help="put a LoRA adapter on the model")
    parser.add_argument("--hub", action="store_true", help="allow MODEL to be fetched by hub id")


def load(args):
    """The model that model_argument's words name; --threads, where it is given, hold from here."""
    from mirada import shelf
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    shelf.ahead(args.model)  # torch takes a second to import, most of it on one core
    import torch

    from mirada import registry
    if getattr(args, "threads", None) is not None:
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    model = registry.load(args.model, dtype=dtype, ignore=tuple(args.ignore), hub=args.hub)
    if args.adapter is None:
        return model
    from mirada import edit
    return edit.load_adapter(model, args.adapter)


def threads(word: str) -> int:
    """A number of threads, as a command's argument."""
    if not word.isdecimal() or not 1 <= int(word) <= 256:
        raise ArgumentTypeError(f"{word} is no number of threads: 1 to 256")
    return int(word)


def drawn(args, look, *kinds: str):
    """What look() finds, drawn where --out says, and that said on stderr. A file that cannot be,
    or whose ending is no picture's and none of kinds, is refused before the work."""
    from mirada.look import draw
    if args.out:
        draw.place(args.out, (*draw.PICTURES, *kinds))
    result = look()
    if args.out:
        print(result.save(args.out), file=sys.stderr)
    return result


def show(args, result) -> None:
    """The result on stdout: for people, or its data() under --json."""
    print(json.dumps(result.data(), ensure_ascii=False, indent=2, default=str) if args.json
          else result)


def decoding_arguments(parser) -> None:
    """MODEL and how the next token is chosen."""
    model_argument(parser)
    for flag, kind, words in (
            ("--temperature", float, "0: always the likeliest token; default: greedy"),
            ("--top-k", int, "sample among the k likeliest"),
            ("--top-p", float, "sample among the likeliest that hold this much probability"),
            ("--min-p", float, "drop tokens under this share of the likeliest"),
            ("--repetition-penalty", float, "above 1: avoid what was said"),
            ("--seed", int, "the same sample again")):
        parser.add_argument(flag, type=kind, help=words, metavar=kind.__name__.upper()[:5])
    parser.add_argument("-n", "--max-new-tokens", type=int, default=256, metavar="N")
    parser.add_argument("--cache", choices=("int8", "float16", "float32", "static", "rolling"),
                        help="how keys and values are kept; the first three: natively")
    parser.add_argument("--codes", type=int, choices=(8, 16), help="bits of the activations that "
                        "quantized weights meet: 16 is exact; 8, as elsewhere, faster")
    parser.add_argument("--threads", type=threads, metavar="N", help="default: as many as cores")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text")
    parser.add_argument("--system", metavar="TEXT", help="the system message of a chat model")


def guessing_arguments(parser) -> None:
    """Who guesses ahead (speculative decoding); the answer stays the same."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--assistant", metavar="MODEL",
                        help="a smaller model of the same vocabulary that guesses ahead")
    either.add_argument("--lookup", type=int, nargs="?", const=8, metavar="N",
                        help="guess up to N tokens ahead (8) where the text repeats itself")


def guessing(args) -> dict:
    """The options that guessing_arguments' words set."""
    if args.assistant is None:
        return {} if args.lookup is None else {"prompt_lookup_num_tokens": args.lookup}
    from mirada import registry
    return {"assistant_model": registry.load(args.assistant, hub=args.hub)}


def decoding(args) -> dict:
    """The options that decoding_arguments' words set."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
             "max_new_tokens", "cache", "codes")
    return {n: getattr(args, n) for n in names if getattr(args, n) is not None}

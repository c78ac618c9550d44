"""The commands. Each one reads its words, calls the library, and prints; nothing is decided here.

Results go to stdout, progress and errors to stderr. Exit code 2: the input was bad; 1: the work
failed; 130: interrupted. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from mirada import __version__
from mirada.errors import MiradaError

DTYPES = ("float32", "float16", "bfloat16", "float64")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except MiradaError as error:
        if args.debug:
            raise
        print(f"mirada: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nmirada: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader left (mirada ... | head): not an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if args.debug:
            raise
        print(f"mirada: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mirada", description="Run Transformers on your own computer, and look inside them.",
        epilog="MODEL is a folder, a .gguf file, a short name (smollm2, minilm), or for describe "
               "and diff a family and size (gpt2:small). Start with: mirada demo")
    parser.add_argument("--version", action="version", version=f"mirada {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, words, run, fill in (
            ("demo", "ask a real small model a question and draw its attention", _demo, _fill_demo),
            ("run", "write on from a prompt, or answer it", _run, _fill_run),
            ("chat", "hold a conversation in the terminal", _chat, _fill_chat),
            ("next", "the likeliest next tokens and their chances", _next, _fill_next),
            ("task", "classify, tag, answer, translate, summarize ... by a task's name", _task,
             _fill_task),
            ("look", "draw which token looks at which", _look, _fill_look),
            ("describe", "the built tree, parameters, memory and cost", _describe, _fill_model),
            ("diff", "what differs between two architectures", _diff, _fill_diff),
            ("verify", "is it the model its file says, in every way it can run", _verify,
             _fill_model),
            ("models", "families, sizes, heads and what is proven", _models, _fill_none)):
        command = commands.add_parser(name, help=words, description=words)
        fill(command)
        command.add_argument("--json", action="store_true", help="the result for programs")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.set_defaults(run=run)
    return parser


def _fill_none(command) -> None:
    pass


def _fill_demo(command) -> None:
    command.add_argument("-o", "--out", default="attention.png", help="where the picture goes")


def _fill_model(command) -> None:
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--dtype", choices=DTYPES, help="convert the weights")
    command.add_argument("--ignore", action="append", default=[], metavar="NAME",
                         help="a config key or tensor to leave unread (again for more)")
    command.add_argument("--hub", action="store_true", help="allow MODEL to be fetched by hub id")


def _fill_diff(command) -> None:
    command.add_argument("a", metavar="A")
    command.add_argument("b", metavar="B")


def _fill_options(command) -> None:
    _fill_model(command)
    for flag, kind, words in (
            ("--temperature", float, "0: always the likeliest token; default: greedy"),
            ("--top-k", int, "sample among the k likeliest"),
            ("--top-p", float, "sample among the likeliest that hold this much probability"),
            ("--min-p", float, "drop tokens under this share of the likeliest"),
            ("--repetition-penalty", float, "above 1: avoid what was said"),
            ("--seed", int, "the same sample again")):
        command.add_argument(flag, type=kind, help=words, metavar=kind.__name__.upper()[:5])
    command.add_argument("-n", "--max-new-tokens", type=int, default=256, metavar="N")
    command.add_argument("--stop", action="append", metavar="TEXT", help="end before this text")
    command.add_argument("--system", metavar="TEXT", help="the system message of a chat model")


def _fill_run(command) -> None:
    _fill_options(command)
    command.add_argument("prompt", metavar="PROMPT", help="the text; - reads it from stdin")
    command.add_argument("--num-beams", type=int, metavar="N", help="beam search")
    command.add_argument("--raw", action="store_true", help="no chat template, just write on")


def _fill_next(command) -> None:
    _fill_model(command)
    command.add_argument("text", metavar="TEXT")
    command.add_argument("-k", type=int, default=10, metavar="N", help="how many tokens")
    command.add_argument("--steps", type=int, metavar="N",
                         help="write N tokens, and show how each becomes input")


def _fill_task(command) -> None:
    command.add_argument("name", metavar="NAME", help="fill-mask, ner, translation ...")
    _fill_model(command)
    command.add_argument("input", metavar="INPUT", nargs="+",
                         help="a text, or several; - reads one from stdin. question-answering: "
                         "the question, then the passage")
    command.add_argument("-o", "--option", action="append", default=[], metavar="NAME=VALUE",
                         help="an option of the task, as top_k=3 (again for more)")


def _fill_chat(command) -> None:
    _fill_options(command)


def _fill_look(command) -> None:
    _fill_model(command)
    command.add_argument("text", metavar="TEXT")
    command.add_argument("--to", metavar="TEXT", help="what the decoder says, of a translator")
    command.add_argument("--layer", type=int, help="default: that of the strongest link")
    command.add_argument("--head", type=int)
    command.add_argument("--stack", choices=("encoder", "decoder", "cross"))
    command.add_argument("-o", "--out", default="attention.png", help="a .png, .svg or .pdf")


def _load(args):
    import torch

    from mirada import registry
    dtype = getattr(torch, args.dtype) if args.dtype else None
    return registry.load(args.model, dtype=dtype, ignore=tuple(args.ignore), hub=args.hub)


def _print(args, result) -> None:
    print(json.dumps(result.data(), ensure_ascii=False, indent=2, default=str) if args.json
          else result)


def _options(args) -> dict:
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
             "max_new_tokens")
    return {n: getattr(args, n) for n in names if getattr(args, n) is not None}


def _describe(args) -> None:
    from mirada.look.describe import describe, is_built
    _print(args, describe(args.model if is_built(args.model) else _load(args)))


def _diff(args) -> None:
    from mirada.look.diff import diff
    _print(args, diff(args.a, args.b))


def _verify(args) -> int:
    from mirada.look.verify import verify

    def progress(name: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{name} ...", end="", file=sys.stderr, flush=True)

    report = verify(_load(args), progress)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    _print(args, report)
    return 0 if report.ok else 1


def _models(args) -> None:
    from mirada.look.catalogue import catalogue
    _print(args, catalogue())


def _look(args) -> None:
    from mirada.look.pictures import look
    found = look(_load(args), args.text, to=args.to, layer=args.layer, head=args.head,
                 stack=args.stack, out=args.out)
    _print(args, found)


def _run(args) -> None:
    from mirada.generate import run
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    options = _options(args) | ({"num_beams": args.num_beams} if args.num_beams is not None
                                else {})
    run.run(_load(args), prompt, system=args.system, raw=args.raw, as_json=args.json, **options)


def _next(args) -> None:
    from mirada.generate import next as ahead
    if args.steps is not None:
        return ahead.trace(_load(args), args.text, args.steps, args.k, args.json)
    ahead.show(_load(args), args.text, args.k, args.json)


def _task(args) -> None:
    from mirada.tasks import command
    command.run(args.name, _load(args), args.input, args.option, args.json)


def _chat(args) -> None:
    from mirada.generate import run
    run.talk(_load(args), system=args.system, **_options(args))


def _demo(args) -> None:
    from mirada import demo
    demo.demo(args.out)


if __name__ == "__main__":
    sys.exit(main())

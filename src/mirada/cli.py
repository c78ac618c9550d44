"""The command line: each command is a file of mirada.commands, which decides nothing itself.

Results go to stdout, progress and errors to stderr. Exit code 2: the input was bad; 1: the work
failed; 130: interrupted; 143: ended by SIGTERM. Nothing heavy is imported before a command needs
it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import signal
import sys

from mirada import __version__
from mirada.errors import MiradaError

NAMES = ("demo", "run", "chat", "next", "task", "search", "eval", "code", "look", "explore",
         "describe", "diff", "trace", "neighbors", "senses", "permute", "gradients", "verify",
         "models", "plan", "convert", "quantize", "bench", "tokenizer", "lab",
         "train", "tune", "runs")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    gc.set_threshold(100_000)  # what importing torch makes stays: a tenth of it is the looking
    if argv is None:  # the process is this command's own
        argv = sys.argv[1:]
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # what nohup ignores stays ignored
                signal.signal(number, _ended)
    args = _parser(argv[:1] if argv and argv[0] in NAMES else NAMES).parse_args(argv)
    try:
        if getattr(args, "loads", False):
            from mirada.ahead import Ahead
            gc.disable()  # until the model is there: nothing that an import makes is garbage
            args.ahead = Ahead(args.model, args.speaks)
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
    finally:
        gc.enable()


def _ended(number: int, frame) -> None:
    """As after Ctrl-C, no temporary file is left; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _parser(names=NAMES) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mirada", description="Run Transformers on your own computer, and look inside them.",
        epilog="MODEL is a folder, a .gguf file, a short name (smollm2, minilm), or for describe "
               "and diff a family and size (gpt2:small). Start with: mirada demo")
    parser.add_argument("--version", action="version", version=f"mirada {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in names:
        module = importlib.import_module(f"mirada.commands.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.fill(command)
        command.add_argument("--json", action="store_true", help="the result for programs")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`mirada task`: a task on the words of a command line, or on a file."""

from __future__ import annotations

import json
import sys
from typing import Any

from mirada.errors import MiradaError, WorkFailed
from mirada.model import Model

from . import files
from .identity import fingerprint
from .pipeline import pipeline


def run(name: str, model: Model, words: list[str], options: list[str], as_json: bool) -> None:
    """Print the result of a task; "-" among the words is read from stdin where they are texts.

    options: NAME=VALUE each, a VALUE that is JSON is taken as that. Raises MiradaError.
    """
    task = pipeline(name, model)
    texts = [sys.stdin.read() if word == "-" and task.TEXTS else word for word in words]
    found = task.words(texts, dict(map(option, options)))
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        for line in lines(found):
            print(line)


def check(source: str | None, out: str | None, words: list[str]) -> None:
    """What belongs together on the command line does."""
    if source is None or out is None:
        raise MiradaError("--in and --out go together, and --column and --delimiter with them: "
                          "name the file to read and the .jsonl to write")
    if words:
        raise MiradaError(f"with --in the texts stand in {source}: leave out {words[0]!r}")


def file(name: str, model: Model, source: str, out: str, columns: list[str], options: list[str],
         *, delimiter: str | None = None, batch_size: int = 32, called: str = "") -> None:
    """Answer each record of a file into another; see files.run. Raises MiradaError, and WorkFailed
    at the end where some records were bad."""
    task = pipeline(name, model, batch_size=batch_size, **dict(map(option, options)))
    done = files.run(task, source, out, columns=columns, delimiter=delimiter,
                     more={"model": called, "weights": fingerprint(model)})
    went_on = f", {done.kept:,} of them by an earlier run" if done.kept else ""
    print(f"{done.rows - done.errors:,} of {done.rows:,} rows answered{went_on}: {out}",
          file=sys.stderr)
    if done.errors:
        more = " ..." if done.errors > len(done.failed) else ""
        raise WorkFailed(f"{done.errors:,} of {done.rows:,} rows of {source} are bad: "
                         f"{', '.join(map(str, done.failed))}{more}; {out} says why in their "
                         "places")


def option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is that. Raises MiradaError."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise MiradaError(f"the option {text!r} must be written NAME=VALUE, as top_k=3")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def lines(found: Any) -> list[str]:
    """A result as lines to read: a record each, its score first."""
    if isinstance(found, list) and not (found and isinstance(found[0], list)
                                        and not isinstance(found[0][0], dict)):
        return [line for one in found for line in lines(one)]
    if isinstance(found, dict) and "labels" in found:
        return [f"{score:.4f}  {label}"
                for score, label in zip(found["scores"], found["labels"], strict=True)]
    if isinstance(found, dict):
        score = [f"{found['score']:.4f}"] if "score" in found else []
        return ["  ".join([*score, *(_shown(v) for n, v in found.items() if n != "score")])]
    return [_shown(found)]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

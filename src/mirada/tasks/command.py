"""`mirada task`: a task on the words of a command line."""

from __future__ import annotations

import json
import sys
from typing import Any

from mirada.errors import MiradaError
from mirada.model import Model

from .pipeline import pipeline


def run(name: str, model: Model, words: list[str], options: list[str], as_json: bool) -> None:
    """Print the result of a task; "-" among the words is read from stdin.

    options: NAME=VALUE each, a VALUE that is JSON is taken as that. Raises MiradaError.
    """
    task = pipeline(name, model)
    texts = [sys.stdin.read() if word == "-" else word for word in words]
    found = task.words(texts, dict(map(_option, options)))
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        for line in lines(found):
            print(line)


def _option(text: str) -> tuple[str, Any]:
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

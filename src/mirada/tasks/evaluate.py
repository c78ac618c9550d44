"""Evaluation: a model's answers to a file of examples, against the references in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from mirada.errors import MiradaError
from mirada.model import Model
from mirada.text.records import values

from . import files, metrics, score
from .pipeline import pipeline
from .task import Task

READS = {  # what a row holds; the last is the reference
    "text-classification": ("text", "label"),
    "zero-shot-classification": ("text", "label"),
    "token-classification": ("tokens", "tags"),
    "question-answering": ("question", "context", "answers"),
    "translation": ("text", "target"),
    "summarization": ("text", "summary"),
    "text2text-generation": ("text", "target"),
    "text-generation": ("text", "target"),
    "multiple-choice": ("prompt", "choices", "answer"),
    "perplexity": ("text",),
}
LISTS = ("tokens", "tags", "choices")


@dataclass(frozen=True)
class Report:
    """What an evaluation came to. metrics: by name; rows: examples that were looked at."""

    task: str
    rows: int
    metrics: dict[str, float]

    def data(self) -> dict:
        return {"task": self.task, "rows": self.rows, **self.metrics}

    def __str__(self) -> str:
        wide = max(map(len, self.metrics))
        return "\n".join([f"{self.task}, {self.rows:,} rows",
                          *(f"  {name:<{wide}}  {value:,.4f}" if isinstance(value, float) else
                            f"  {name:<{wide}}  {value:,}" for name, value in
                            self.metrics.items())])


def evaluate(task: str, model: Model, data: str | Path, *, columns: Iterable[str] = (),
             delimiter: str | None = None, limit: int | None = None, shots: int = 0,
             template: str | None = None, batch_size: int = 32, **options) -> Report:
    """A task's usual measures of a model's answers to a .csv, .tsv or .jsonl of examples.

    task: a name or alias of pipeline's, multiple-choice or perplexity (also of a .txt, as one
    document). columns: FIELD=NAME where a field of READS has another name in the file. limit: the
    first so many rows. shots: so many rows, the first ones, stand answered in each prompt of
    multiple-choice instead of being asked; template: of its prompt, with {field}s of a row.
    options: the task's. Raises MiradaError, with the row where an example cannot be used.
    """
    if task in ("multiple-choice", "perplexity"):
        if options:
            raise MiradaError(f"{task} has no option {next(iter(options))!r}")
        name, made = task, None
    else:
        made = pipeline(task, model, batch_size=batch_size, **options)
        name = "translation" if made.name.startswith("translation") else made.name
    if name not in READS:
        raise MiradaError(f"{task} cannot be evaluated; there are {', '.join(READS)}")
    if name == "perplexity" and Path(data).suffix.lower() == ".txt":
        return _document(model, data)
    rows = _rows(data, _columns(name, columns), delimiter, limit)
    if name == "perplexity":
        return Report(name, len(rows), _perplexity(model, rows))
    if name == "multiple-choice":
        return Report(name, len(rows) - shots, _choices(model, rows, shots, template, batch_size))
    return Report(task, len(rows), MEASURES[name](made, rows, data))


def _columns(task: str, given: Iterable[str]) -> dict[str, str]:
    found = {name: name for name in READS[task]}
    for column in given:
        name, equals, own = column.partition("=")
        if not equals or name not in found:
            raise MiradaError(f"the column {column!r} must be written FIELD=NAME, and {task} has "
                              f"the fields {', '.join(found)}")
        found[name] = own
    return found


def _rows(path: str | Path, columns: dict[str, str], delimiter: str | None, limit: int | None
          ) -> list[dict]:
    """The examples, each with all that its row holds and the fields under their own names."""
    found = []
    for record in islice(values(path, columns, delimiter), limit):
        error = record.error
        if error is None:
            row = record.item | {name: record.item.get(own) for name, own in columns.items()}
            error = next((f"{own!r} is {_shown(row[name])}, and should be "
                          + ("a list" if name in LISTS else "a text")
                          for name, own in columns.items() if not _fits(name, row[name])), None)
        if error is not None:
            raise MiradaError(f"{path}, row {record.row}: {error}")
        found.append(row)
    if not found:
        raise MiradaError(f"{path} has no examples")
    return found


def _fits(name: str, value) -> bool:
    if name in LISTS:
        return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
    if name == "answers":
        return isinstance(value, str | list | dict)
    if name in ("label", "answer"):
        return isinstance(value, str | int)
    if name in ("target", "summary") and isinstance(value, list):
        return bool(value) and all(isinstance(v, str) for v in value)
    return isinstance(value, str) and bool(value.strip())


def _shown(value) -> str:
    return "missing" if value is None else repr(value)[:40]


def _answers(task: Task, items: list, path) -> list:
    """The task's answer to each item; one that cannot be answered is an error, with its row."""
    found: list = []
    with tqdm(total=len(items), unit="row", file=sys.stderr,
              disable=not sys.stderr.isatty()) as bar:
        size = 8 * task.batch_size
        for start in range(0, len(items), size):
            for n, one in enumerate(files.answers(task, items[start : start + size]), start + 1):
                if "error" in one:
                    raise MiradaError(f"{path}, row {n}: {one['error']}")
                found.append(one["result"])
            bar.update(min(size, len(items) - start))
    return found


# The measures of each task: (task, rows, path) -> metrics


def _classes(task: Task, rows: list[dict], path) -> dict:
    task.options = {n: v for n, v in task.options.items() if n != "top_k"} | {
        "return_all_scores": True}
    found = _answers(task, [row["text"] for row in rows], path)
    known = [one["label"] for one in found[0]]
    gold = [_label(row["label"], known, f"{path}, row {n}") for n, row in enumerate(rows, 1)]
    return metrics.labels(gold, [max(each, key=lambda one: one["score"])["label"]
                                 for each in found])


def _label(value, known: list[str], where: str) -> str:
    """A label by its name, or by its number."""
    text = str(value)
    if text in known:
        return text
    if text.isdecimal() and int(text) < len(known):
        return known[int(text)]
    raise MiradaError(f"{where}: the label {text!r} is none of this model's, {', '.join(known)}")


def _any_classes(task: Task, rows: list[dict], path) -> dict:
    gold = [str(row["label"]) for row in rows]
    task.options = {"candidate_labels": sorted({*gold})} | task.options
    found = _answers(task, [row["text"] for row in rows], path)
    return metrics.labels(gold, [one["labels"][0] for one in found])


def _tags(task: Task, rows: list[dict], path) -> dict:
    """A word's tag is that of its first token."""
    task.options = task.options | {"aggregation_strategy": "none", "ignore_labels": []}
    for n, row in enumerate(rows, 1):
        if len(row["tokens"]) != len(row["tags"]):
            raise MiradaError(f"{path}, row {n}: {len(row['tokens'])} tokens and "
                              f"{len(row['tags'])} tags")
    read = _answers(task, [" ".join(row["tokens"]) for row in rows], path)
    found = [_of_words(row["tokens"], tokens) for row, tokens in zip(rows, read, strict=True)]
    return metrics.span_f1([row["tags"] for row in rows], found)


def _of_words(words: list[str], tokens: list[dict]) -> list[str]:
    found, at = [], 0
    for word in words:
        inside = (one["entity"] for one in tokens if at <= one["start"] < at + len(word))
        found.append(next(inside, "O"))
        at += len(word) + 1
    return found


def _spans(task: Task, rows: list[dict], path) -> dict:
    found = _answers(task, [{name: row[name] for name in ("question", "context")}
                            for row in rows], path)
    pairs = [(one["answer"], _references(row["answers"]))
             for one, row in zip(found, rows, strict=True)]
    return {"exact_match": _mean(metrics.exact, pairs), "f1": _mean(metrics.overlap, pairs)}


def _references(value) -> list[str]:
    """A text, a list of them, or what SQuAD's files have: {"text": [...]}."""
    value = value.get("text", []) if isinstance(value, dict) else value
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _mean(measure: Callable, pairs: list) -> float:
    return sum(measure(*pair) for pair in pairs) / len(pairs)


def _written(task: Task, rows: list[dict], path) -> list[str]:
    found = _answers(task, [row["text"] for row in rows], path)
    return [next(iter(one[0].values())) for one in found]


def _translations(task: Task, rows: list[dict], path) -> dict:
    found = _written(task, rows, path)
    return metrics.translations(found, [_references(row["target"]) for row in rows])


def _summaries(task: Task, rows: list[dict], path) -> dict:
    each = [metrics.rouge(text, _references(row["summary"]))
            for text, row in zip(_written(task, rows, path), rows, strict=True)]
    return {name: sum(one[name] for one in each) / len(each) for name in each[0]}


def _texts(task: Task, rows: list[dict], path) -> dict:
    if task.name == "text-generation":
        task.options = {"return_full_text": False, "do_sample": False} | task.options
    pairs = [(text, _references(row["target"]))
             for text, row in zip(_written(task, rows, path), rows, strict=True)]
    return {"exact_match": _mean(metrics.exact, pairs), "f1": _mean(metrics.overlap, pairs)}


MEASURES: dict[str, Callable] = {
    "text-classification": _classes, "zero-shot-classification": _any_classes,
    "token-classification": _tags, "question-answering": _spans, "translation": _translations,
    "summarization": _summaries, "text2text-generation": _texts, "text-generation": _texts,
}


# Language models


def _choices(model: Model, rows: list[dict], shots: int, template: str | None, batch_size: int
             ) -> dict:
    """acc: the likeliest choice is the answer; acc_norm, acc_bytes: by log-probability a character
    or byte of the choice (lm-eval's definitions; a space stands before each choice)."""
    if not 0 <= shots < len(rows):
        raise MiradaError(f"shots is {shots}; of {len(rows)} rows at least one must be left")
    form = score.Template(template or "{prompt}", " {answer}")
    golds = [_gold(row, n) for n, row in enumerate(rows, 1)]
    told = [row | {"answer": row["choices"][gold]} for row, gold in zip(rows, golds, strict=True)]
    hits = {"acc": 0, "acc_norm": 0, "acc_bytes": 0}
    for row, gold in tqdm(list(zip(rows, golds, strict=True))[shots:], file=sys.stderr,
                          disable=not sys.stderr.isatty()):
        found = score.score(model, form.prompt(row, told[:shots]),
                            [" " + choice for choice in row["choices"]], batch_size=batch_size)
        for name, norm in zip(hits, (None, "characters", "bytes"), strict=True):
            by = [one.by(norm) for one in found]
            hits[name] += by.index(max(by)) == gold
    return {name: count / (len(rows) - shots) for name, count in hits.items()}


def _gold(row: dict, n: int) -> int:
    choices, answer = row["choices"], row["answer"]
    if answer in choices:
        return choices.index(answer)
    if str(answer).isdecimal() and int(answer) < len(choices):
        return int(answer)
    raise MiradaError(f"row {n}: the answer {answer!r} is neither one of the choices nor its "
                      "place, counted from 0")


def _document(model: Model, path) -> Report:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MiradaError(f"{path} is not valid UTF-8 at byte {error.start}: convert it") from None
    return Report("perplexity", 1, score.perplexity(model, text).data())


def _perplexity(model: Model, rows: list[dict]) -> dict:
    """Of all texts together; each is read by itself."""
    each = [score.perplexity(model, row["text"]) for row in rows]
    return score.Perplexity(sum(one.nats for one in each), sum(one.tokens for one in each),
                            sum(one.words for one in each),
                            sum(one.bytes for one in each)).data()

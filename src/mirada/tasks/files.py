"""Tasks on whole files: a record in, a line of JSON out, in order; an interrupted run goes on.

A bad record becomes {"row", "error"} in its place and the others are kept. Neither file is held in
memory: a chunk of records is read, answered in batches of like length, and appended as whole lines.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from mirada.errors import MiradaError, WorkFailed
from mirada.text.records import LIMIT, Record, records
from mirada.weights.paths import open_regular

from .inputs import Cut
from .task import Task

SHOWN = 20  # errors that are also printed

FIELDS = {"question-answering": ("question", "context"),
          "sentence-similarity": ("source_sentence", "sentences"),
          "image-classification": ("image",), "image-feature-extraction": ("image",),
          "zero-shot-image-classification": ("image",)}
MORE = {"text-classification": ("text_pair",)}


@dataclass
class Summary:
    """What a run came to. rows: in the file; failed: the rows of the first bad ones; errors: how
    many there are; kept: rows that an earlier, interrupted run had answered."""

    rows: int = 0
    errors: int = 0
    kept: int = 0
    failed: list[int] = field(default_factory=list)

    def add(self, row: int, error: str | None) -> None:
        self.rows += 1
        if error is not None:
            self.errors += 1
            if len(self.failed) < SHOWN:
                self.failed.append(row)


def fields(task: str, columns: Iterable[str] = ()) -> dict[str, str]:
    """What a task reads -> the column or key it stands in.

    columns: a name each, of the task's first input on, or FIELD=NAME. Raises MiradaError.
    """
    needed = FIELDS.get(task, ("text",))
    every = (*needed, *MORE.get(task, ()))
    found: dict[str, str] = {}
    for place, column in enumerate(columns):
        name, equals, own = column.partition("=")
        if not equals:
            name, own = every[place] if place < len(every) else column, column
        if name not in every:
            raise MiradaError(f"the column {column!r} is for nothing: {task} reads "
                              f"{', '.join(every)}; write FIELD=NAME to say which is which")
        found[name] = own
    return {name: found.get(name, name) for name in (*needed, *found)}


def run(task: Task, source: str | Path, out: str | Path, *, columns: Iterable[str] = (),
        delimiter: str | None = None, more: dict | None = None) -> Summary:
    """Answer every record of a file into a new .jsonl file, {"row", "result"} or {"row", "error"}
    each; "warning" beside a result whose text was cut.

    result: what the task gives for one of a list. columns: see fields. more: what else must be the
    same for an interrupted run to go on (which model). While a run is unfinished, out.run.json
    lies beside it; the same call then goes on behind the last whole line. Raises MiradaError, also
    where every record is refused in the same words, and WorkFailed where the disk is full.
    """
    source, out = Path(source), Path(out)
    named = fields(task.name, columns)
    digest, lines = _digest(source)
    made = {"input": digest, "task": task.name, "columns": named, "delimiter": delimiter,
            "options": {name: repr(value) for name, value in task.options.items()}} | (more or {})
    next(records(source, named, delimiter), None)  # a column that is missing is said before all
    with _opened(out, made) as (file, done):
        rest = islice(records(source, named, delimiter), done.rows, None)
        with tqdm(total=max(lines, done.rows), initial=done.rows, unit="row", file=sys.stderr,
                  disable=not sys.stderr.isatty()) as bar:
            for chunk in _chunks(rest, task):
                written = _answered(task, chunk)
                if done.rows == 0:
                    _refuse_all(written)
                _append(file, out, written)
                _tell(source, done, written)
                bar.update(len(chunk))
    return done


def _digest(path: Path) -> tuple[str, int]:
    """The SHA-256 of a file, and how many lines it has."""
    found, lines = hashlib.sha256(), 0
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            found.update(block)
            lines += block.count(b"\n")
    return found.hexdigest(), lines


@contextmanager
def _opened(out: Path, made: dict):
    """The file of results, locked, and what it holds already. While it is open, or was left by an
    interruption, what the run is made of lies beside it."""
    side, text = out.with_name(out.name + ".run.json"), json.dumps(made, indent=1)
    begun = side.is_file() and side.read_text() == text
    if out.exists() and not (begun and out.is_file()):
        raise MiradaError(f"{out} exists, and is not what an interrupted run of the same task, "
                          "model, options and input left: remove it, or choose another name")
    with out.open("ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MiradaError(f"another run is writing {out}: wait for it") from None
        if not begun:
            aside = side.with_name(side.name + ".new")
            aside.write_text(text)
            aside.replace(side)
        try:
            yield file, _held(file)
        except BaseException:
            if file.seek(0, 2) == 0:  # nothing to go on from
                out.unlink()
                side.unlink()
            raise
    side.unlink()


def _held(file) -> Summary:
    """What whole lines a file of results has; the rest of it is cut off."""
    done, whole = Summary(), 0
    file.seek(0)
    with open(file.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            done.add(done.rows + 1, json.loads(line).get("error"))
            whole += len(line)
    file.truncate(whole)
    done.kept = done.rows
    return done


def _chunks(found: Iterator[Record], task: Task) -> Iterator[list[Record]]:
    """So many records that batches of like length can be made of them, bounded in memory too."""
    # a vector a token is larger than any text
    most = task.batch_size * (1 if task.name == "feature-extraction" else 8)
    chunk: list[Record] = []
    size = 0
    for record in found:
        chunk.append(record)
        size += len(str(record.item))
        if len(chunk) == most or size >= LIMIT:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _answered(task: Task, chunk: list[Record]) -> list[dict]:
    """The line of each record."""
    chunk = [record if record.error or task.one(record.item) else
             replace(record, error=f"is a list, and {task.name} reads a text") for record in chunk]
    good = [record.item for record in chunk if record.error is None]
    found = iter(answers(task, good) if good else [])
    return [{"row": record.row} | (next(found) if record.error is None
                                   else {"error": record.error}) for record in chunk]


def answers(task: Task, items: list) -> list[dict]:
    """{"result"} or {"error"} of each item. Where the items together raise, or one would be cut,
    their halves are tried: what is wrong shows before the model runs, so that costs little."""
    try:
        with warnings.catch_warnings(record=len(items) == 1) as said:
            warnings.simplefilter("always" if len(items) == 1 else "error", Cut)
            results = task.run(items, task.options)
    except (MiradaError, Cut) as error:
        if len(items) == 1:
            return [{"error": str(error)}]
        half = len(items) // 2
        return answers(task, items[:half]) + answers(task, items[half:])
    found = [{"result": result} for result in results]
    for one in said or ():
        if issubclass(one.category, Cut):
            found[0]["warning"] = str(one.message)
        else:
            warnings.warn(one.message, stacklevel=2)
    return found


def _refuse_all(written: list[dict]) -> None:
    """An option that cannot be is one error, and not one a row."""
    errors = {line.get("error") for line in written}
    if len(written) > 1 and len(errors) == 1 and None not in errors:
        raise MiradaError(f"every row is refused: {errors.pop()}")


def _append(file, out: Path, written: list[dict]) -> None:
    """Whole lines or none."""
    at = file.seek(0, 2)
    lines = (json.dumps(line, ensure_ascii=False, default=torch.Tensor.tolist) for line in written)
    data = memoryview("".join(line + "\n" for line in lines).encode())
    try:
        while data:
            data = data[file.write(data):]
    except OSError as error:
        file.truncate(at)
        raise WorkFailed(f"{out}: {error.strerror}; the rows before are kept: make room, and the "
                         "same command goes on") from None


def _tell(source: Path, done: Summary, written: list[dict]) -> None:
    for line in written:
        done.add(line["row"], line.get("error"))
        if "error" in line and done.errors <= SHOWN:
            tqdm.write(f"{source}, row {line['row']}: {line['error']}", file=sys.stderr)
            if done.errors == SHOWN:
                tqdm.write(f"{source}: further errors stand in the results only", file=sys.stderr)

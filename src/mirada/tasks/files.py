"""Tasks on whole files: a record in, a line of JSON out, in order; an interrupted run goes on.

A bad record becomes {"row", "error"} in its place and the others are kept. Neither file is held in
memory: a chunk of records is read, answered in batches of like length, and appended as whole lines.
"""

from __future__ import annotations

import csv
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
from typing import Any, TextIO

import torch
from tqdm import tqdm

from mirada.errors import MiradaError, WorkFailed
from mirada.weights.paths import open_regular

from .inputs import Cut
from .task import Task

LIMIT = 1 << 22  # characters of a record, and of the texts that are held at once
SHOWN = 20  # errors that are also printed

FIELDS = {"question-answering": ("question", "context"),
          "sentence-similarity": ("source_sentence", "sentences")}
MORE = {"text-classification": ("text_pair",)}
KINDS = (".txt", ".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class Record:
    """One record of a file. row: counted from 1 (of .txt and .jsonl the line, of .csv without the
    header); item: what a task is called with; error: why there is none."""

    row: int
    item: Any = None
    error: str | None = None


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


def records(path: str | Path, columns: dict[str, str], delimiter: str | None = None
            ) -> Iterator[Record]:
    """The records of a file, read as they are asked for, each what a task is called with.

    columns: see fields; delimiter: of a .csv, "," unless told. Raises MiradaError where the file
    as a whole cannot be read, a column that it lacks among that.
    """
    for record in values(path, columns, delimiter):
        yield record if record.error else _record(record.row, record.item, columns)


def values(path: str | Path, columns: dict[str, str], delimiter: str | None = None
           ) -> Iterator[Record]:
    """The same, each item a dict of all that the record holds, by column or key; of a .txt each
    column is the line."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise MiradaError(f"{path} does not end in one of {', '.join(KINDS)}: rename it as what it "
                          "is")
    open_regular(path).close()
    # what is no UTF-8 becomes lone surrogates, so that the row it stands in can be named
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if kind == ".txt":
            yield from _lines_of(file, path, columns)
        elif kind == ".jsonl":
            yield from _objects(file)
        else:
            yield from _table(file, path, columns,
                              delimiter or ("\t" if kind == ".tsv" else ","))


def _lines(file: TextIO) -> Iterator[str | None]:
    """Lines without their ends; None for one that is longer than a record may be."""
    while line := file.readline(LIMIT + 1):
        if len(line) <= LIMIT:
            yield line.rstrip("\r\n")
            continue
        while len(line) > LIMIT and not line.endswith("\n"):
            line = file.readline(LIMIT + 1)
        yield None


def _lines_of(file: TextIO, path: Path, columns: dict[str, str]) -> Iterator[Record]:
    if len(columns) > 1:
        raise MiradaError(f"{path} has a text a line, and this task reads {', '.join(columns)}: "
                          "give it as .csv or .jsonl")
    for row, line in enumerate(_lines(file), 1):
        yield Record(row, {name: line for name in columns.values()})


def _objects(file: TextIO) -> Iterator[Record]:
    for row, line in enumerate(_lines(file), 1):
        error, found = None, None
        if line is None:
            error = _too_long()
        elif not line.strip():
            error = "the line is empty"
        elif not _is_text(line):
            error = "is not valid UTF-8"
        else:
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as problem:
                error = f"is not JSON: {problem}"
        if error is None and not isinstance(found, dict):
            error = "is JSON, and not an object of names and values"
        yield Record(row, found, error)


def _table(file: TextIO, path: Path, columns: dict[str, str], delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(LIMIT)
    if len(delimiter) != 1:
        raise MiradaError(f"the delimiter {delimiter!r} must be one character")
    reader = csv.reader(_whole(file, path), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise MiradaError(f"{path}: its first line is not CSV: {error}") from None
    absent = [own for own in columns.values() if own not in header]
    if absent:
        hint = next((f"; it looks like {sign!r} stands between columns: set the delimiter"
                     for sign in ";\t|" if len(header) == 1 and sign in header[0]), "")
        raise MiradaError(f"{path} has no column {absent[0]!r}; it has "
                          f"{', '.join(map(repr, header)) or 'none'}{hint}")
    twice = [own for own in columns.values() if header.count(own) > 1]
    if twice:
        raise MiradaError(f"{path} has several columns {twice[0]!r}: give them different names")
    row = 0
    while True:
        row += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(row, error=f"is not CSV: {error}")
            continue
        if cells and len(cells) != len(header):
            yield Record(row, error=f"has {len(cells)} cells, and the header has {len(header)}")
        else:
            yield Record(row, dict(zip(header, cells or [""] * len(header), strict=True)))


def _whole(file: TextIO, path: Path) -> Iterator[str]:
    """Lines with their ends, as the reader of CSV wants them."""
    while line := file.readline(LIMIT + 1):
        if len(line) > LIMIT:
            raise MiradaError(f"{path}: {_too_long()}: is it a .csv file?")
        yield line


def _record(row: int, values: dict, columns: dict[str, str]) -> Record:
    """The item that a task is called with: one text, or a dict of what it reads."""
    found = {}
    for name, own in columns.items():
        value = values.get(own)
        error = _refusal(name, own, value, own in values)
        if error is not None:
            return Record(row, error=error)
        found[name] = value
    return Record(row, found["text"] if [*found] == ["text"] else found)


def _refusal(name: str, own: str, value, there: bool) -> str | None:
    """Why a value is none that a task can be given."""
    if not there:
        return f"has no {own!r}"
    if value is None:
        return _too_long()
    texts = value if isinstance(value, list) and value else [value]
    if name == "text" and all(isinstance(one, dict) for one in texts):
        return None  # a chat
    if not all(isinstance(one, str) for one in texts) or (
            isinstance(value, list) and name != "sentences"):
        return f"{own!r} is {json.dumps(value)[:40]}, which is no text"
    if not all(one.strip() for one in texts):
        return f"{own!r} is empty"
    return None if all(map(_is_text, texts)) else f"{own!r} is not valid UTF-8"


def _too_long() -> str:
    return f"a record is longer than {LIMIT:,} characters"


def _is_text(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text) if not text.isascii() else True


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

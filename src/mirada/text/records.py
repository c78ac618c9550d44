"""Records of .txt, .csv, .tsv, .jsonl and .parquet files, one by one; bad ones named by row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mirada.errors import MiradaError
from mirada.weights.paths import open_regular

LIMIT = 1 << 22  # characters of a record
KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
ROWS = 1024  # of a .parquet that are read at once


@dataclass(frozen=True)
class Record:
    """One record of a file. row: counted from 1 (of .txt and .jsonl the line, of .csv without the
    header); item: what a task is called with; error: why there is none."""

    row: int
    item: Any = None
    error: str | None = None


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
    if kind == ".parquet":
        yield from _parquet(path, columns)
        return
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
    if not header:
        raise MiradaError(f"{path} is empty: its first line must name the columns")
    absent = [own for own in columns.values() if own not in header]
    if absent:
        hint = next((f"; it looks like {sign!r} stands between columns: set the delimiter"
                     for sign in ";\t|" if len(header) == 1 and sign in header[0]), "")
        raise MiradaError(f"{path} has no column {absent[0]!r}; it has "
                          f"{', '.join(map(repr, header))}{hint}")
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


def _parquet(path: Path, columns: dict[str, str]) -> Iterator[Record]:
    """All columns of each row, as Python's own values."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise MiradaError(f"{path}: .parquet needs pyarrow: pip install 'mirada[parquet]'"
                          ) from None
    try:
        file = parquet.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise MiradaError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None
    header = file.schema_arrow.names
    absent = [own for own in columns.values() if own not in header]
    if absent:
        raise MiradaError(f"{path} has no column {absent[0]!r}; it has "
                          f"{', '.join(map(repr, header)) or 'none'}")
    row = 0
    for batch in file.iter_batches(ROWS):
        for item in batch.to_pylist():
            row += 1
            long = any(isinstance(x, str) and len(x) > LIMIT for x in item.values())
            yield Record(row, error=_too_long()) if long else Record(row, item)


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

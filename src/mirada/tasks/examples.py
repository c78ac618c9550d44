"""A file of examples to tune on: read whole, checked before any work, and split by what it says."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mirada.errors import MiradaError
from mirada.text.records import Record, values
from mirada.train.supervised import Example
from mirada.weights.paths import open_regular

FIELDS = {  # the column of the text, of its pair, of what is to be told
    "classify": ("text", "text_pair", "label"),
    "score": ("text", "text_pair", "label"),
    "similarity": ("text", "text_pair", "label"),
    "ner": ("tokens", None, "tags"),
    "qa": ("question", "context", "answers"),
    "chat": ("prompt", None, "answer"),  # or in a .jsonl "messages", of roles and contents
}
PAIRED = ("similarity", "qa")  # the others read a pair where one is named
LEAST, FEW = 5, 20  # rows of a label: fewer are refused, said
SHOWN = 5  # rows named in a note


@dataclass
class Examples:
    """What a file holds for a task. labels: names of classes or tags in the order of the head's
    outputs, or None. notes: what the reader of the results should know."""

    rows: list[Example]
    labels: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def read(path: str | Path, task: str, *, text: str | None = None, pair: str | None = None,
         label: str | None = None, delimiter: str | None = None,
         known: list[str] | None = None) -> Examples:
    """The examples of a .csv, .tsv or .jsonl. text, pair, label: columns with other names than
    FIELDS has. known: the labels there are, for rows to test on. Raises MiradaError where a row, or
    the file, cannot be used."""
    own = FIELDS[task]
    columns = dict(zip(("text", "pair", "label"), (text or own[0], pair, label or own[2]),
                       strict=True))
    if task in PAIRED:
        columns["pair"] = pair or own[1]
    columns = {name: column for name, column in columns.items() if column is not None}
    _encoding(path)
    found, notes = Examples([]), _Notes()
    seen: dict[str, Example] = {}
    try:
        for record in values(path, columns, delimiter):
            one = _row(path, record, columns, task, notes)
            first = None if one is None else seen.setdefault(_key(one), one)
            if first is one is not None:
                found.rows.append(one)
            elif first is not None:  # of copies the first counts
                notes.add("a copy of an earlier one" if first.label == one.label else
                          "the text of an earlier one with another label", record.row)
    except MiradaError as error:
        if "no column" not in str(error):
            raise
        how = (" (--delimiter)" if "stands between columns" in str(error) else
               "; say which to read with --text and --label")
        raise MiradaError(f"{error}{how}") from None
    if not found.rows:
        raise MiradaError(f"{path} has no row with both {columns['text']!r} and "
                          f"{columns['label']!r}" + "".join(f"; {note}" for note in notes.lines()))
    found.notes = notes.lines()
    if known is not None:
        _known(path, found, known)  # a tag that is not known is told wrong
    elif task == "classify":
        found.labels = _classes(path, found, columns["label"])
    elif task == "ner":
        tags = {tag for one in found.rows for tag in one.label}
        found.labels = sorted(tags, key=lambda tag: (tag != "O", tag))
        if len(tags) < 2:
            raise MiradaError(f"{path}: every word has the tag {found.labels[0]!r}: there is "
                              "nothing to tell apart")
    elif task in ("score", "similarity") and len({one.label for one in found.rows}) < 2:
        raise MiradaError(f"{path}: every row has the number {found.rows[0].label}: there is "
                          "nothing to tell apart")
    return found


def held_out(rows: list[Example]) -> tuple[list[Example], list[Example]]:
    """(rows to train on, rows to measure on): a fifth of fewer than 500, else a tenth. The hash of
    its text says where a row goes, so that it goes there in every run, and its copies too."""
    share = 0.2 if len(rows) < 500 else 0.1
    train = [one for one in rows if _place(one) >= share]
    held = [one for one in rows if _place(one) < share]
    if not held or not train:
        ordered = sorted(rows, key=_place)
        held, train = ordered[:1], ordered[1:]
    return train, held


def apart(train: list[Example], test: list[Example]) -> tuple[list[Example], int]:
    """The rows whose text is in no test row, and how many had to go."""
    asked = {_key(one) for one in test}
    kept = [one for one in train if _key(one) not in asked]
    return kept, len(train) - len(kept)


class _Notes:
    """What was left out, by reason, with the first rows."""

    def __init__(self):
        self.rows: dict[str, list[int]] = {}

    def add(self, reason: str, row: int) -> None:
        self.rows.setdefault(reason, []).append(row)

    def lines(self) -> list[str]:
        said = []
        for reason, rows in self.rows.items():
            shown = ", ".join(map(str, rows[:SHOWN])) + (" ..." if len(rows) > SHOWN else "")
            said.append(f"{len(rows):,} left out, {reason}: row {shown}")
        return said


def _row(path, record: Record, columns: dict[str, str], task: str, notes: _Notes
         ) -> Example | None:
    where = f"{path}, row {record.row}"
    if record.error:
        raise MiradaError(f"{where}: {record.error}")
    if task == "chat" and "messages" in record.item:
        return _chat(where, record.item["messages"])
    item = {name: record.item.get(column) for name, column in columns.items()}
    for name, column in columns.items():
        if column not in record.item:
            raise MiradaError(f"{where} has no {column!r}; it has "
                              f"{', '.join(map(repr, record.item)) or 'nothing'}")
        if any("\ud800" <= c <= "\udfff" for c in str(item[name])):
            raise MiradaError(f"{where}: {column!r} is no UTF-8; convert the file first "
                              "(iconv -f latin1 -t utf-8)")
    if task == "ner":
        return _tagged(where, record.row, item, columns, notes)
    for name in ("text", "pair"):
        if name in columns and not isinstance(item[name], str):
            raise MiradaError(f"{where}: {columns[name]!r} is {item[name]!r}, which is no text")
        if name in columns and not item[name].strip():
            notes.add(f"{columns[name]!r} is empty", record.row)
            return None
    if task == "qa":
        return _asked(where, record.row, item, columns, notes)
    given = item["label"]
    if given is None or not str(given).strip():
        notes.add(f"{columns['label']!r} is empty", record.row)
        return None
    if task == "chat":
        return _chat(where, [{"role": "user", "content": item["text"]},
                             {"role": "assistant", "content": given}])
    label = str(given).strip() if task == "classify" else _number(where, given, columns, task)
    return Example(item["text"], item.get("pair"), label)


def _number(where: str, given, columns: dict[str, str], task: str) -> float:
    try:
        found = float(given)
    except (TypeError, ValueError):
        raise MiradaError(f"{where}: {columns['label']!r} is {given!r}, and {task} learns numbers; "
                          "names are for --task classify") from None
    if not math.isfinite(found) or (task == "similarity" and not -1 <= found <= 1):
        raise MiradaError(f"{where}: {columns['label']!r} is {given}; " + (
            "likeness is from -1 (opposite) to 1 (the same): divide it first"
            if task == "similarity" else "it must be finite"))
    return found


def _tagged(where: str, row: int, item: dict, columns: dict[str, str], notes: _Notes
            ) -> Example | None:
    words, tags = (one.split() if isinstance(one, str) else one
                   for one in (item["text"], item["label"]))
    for name, some in (("text", words), ("label", tags)):
        if not isinstance(some, list) or not all(isinstance(one, str) for one in some):
            raise MiradaError(f"{where}: {columns[name]!r} must be a list, or words with a space "
                              "between them")
    if len(words) != len(tags):
        raise MiradaError(f"{where}: {len(words)} words in {columns['text']!r} and {len(tags)} "
                          f"tags in {columns['label']!r}: each word has one")
    if any(not one or one.split() != [one] for one in words):
        raise MiradaError(f"{where}: a word of {columns['text']!r} is empty or has a space in it")
    if not words:
        notes.add(f"{columns['text']!r} is empty", row)
        return None
    return Example(" ".join(words), None, tags)


def _chat(where: str, messages) -> Example:
    """The conversation as its label; its text is what is said in it up to the first answer."""
    if not isinstance(messages, list) or not all(
            isinstance(one, dict) and isinstance(one.get("role"), str)
            and isinstance(one.get("content"), str) for one in messages):
        raise MiradaError(f"{where}: messages is a list of objects with a role and a content")
    said = [one["role"] for one in messages]
    if "assistant" not in said:
        raise MiradaError(f"{where}: no message has the role assistant: there is nothing to learn")
    first = "\n".join(one["content"] for one in messages[: said.index("assistant")])
    return Example(first, None, messages)


def _asked(where: str, row: int, item: dict, columns: dict[str, str], notes: _Notes
           ) -> Example | None:
    """The first answer, as text, list of texts, or SQuAD's {"text": [], "answer_start": []}."""
    given, starts = item["label"], []
    if isinstance(given, dict):
        given, starts = given.get("text", []), given.get("answer_start", [])
    answers = [given] if isinstance(given, str) else list(given or [])
    if not answers or not str(answers[0]).strip():
        return Example(item["text"], item["pair"], None)
    answer, passage = str(answers[0]), item["pair"]
    start = starts[0] if starts and isinstance(starts[0], int) else passage.find(answer)
    if start < 0 or passage[start : start + len(answer)] != answer:
        notes.add("the answer does not stand in the passage", row)
        return None
    return Example(item["text"], passage, (start, start + len(answer)))


def _known(path, found: Examples, known: list[str]) -> None:
    found.labels = known
    for one in found.rows:
        if isinstance(one.label, str) and one.label not in known:
            raise MiradaError(f"{path}: no row to train on has the label {one.label!r}; there are "
                              f"{', '.join(known)}")


def _classes(path, found: Examples, column: str) -> list[str]:
    count = Counter(one.label for one in found.rows)
    if len(count) == 1:
        raise MiradaError(f"{path}: every row has the label {found.rows[0].label!r}: there is "
                          "nothing to tell apart")
    if len(count) > max(2, len(found.rows) // 2):
        raise MiradaError(f"{path}: {column!r} has {len(count)} different values in "
                          f"{len(found.rows)} rows: is it the column of the labels? Numbers are "
                          "learnt with --task score")
    for name, rows in count.items():
        if rows < LEAST:
            raise MiradaError(f"{path}: only {rows} row{'s' * (rows > 1)} of the label {name!r}, "
                              f"and {LEAST} are needed: add some, or leave that label out")
    few = [f"{name!r} ({rows})" for name, rows in count.items() if rows < FEW]
    if few:
        found.notes.append(f"few rows of {', '.join(few)}: expect little of what they teach")
    return sorted(count, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal()
                                           else 0, name))


def _key(one: Example) -> str:
    """Texts that differ in case or spaces only are the same."""
    return "\n".join(" ".join(part.lower().split()) for part in (one.text, one.pair or ""))


def _place(one: Example) -> float:
    """0 to 1, by the text alone."""
    digest = hashlib.blake2b(_key(one).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _encoding(path) -> None:
    with open_regular(path) as file:
        begin = file.read(2)
    if begin in (b"\xff\xfe", b"\xfe\xff"):
        raise MiradaError(f"{path} is UTF-16; convert it first (iconv -f utf-16 -t utf-8)")

"""A run's folder: one process at a time, a line of JSON a step, and events."""

from __future__ import annotations

import fcntl
import json
import math
import os
import sys
from pathlib import Path

from mirada.errors import MiradaError, UntrustedInputError, WorkFailed

from .disk import folder_made, forced, keep

CHECKPOINTS = "checkpoints"  # in a run's folder


class Folder:
    """run.json: what the run is; log.jsonl: a line a step; events.jsonl: what went wrong;
    checkpoints/: see train.checkpoint. The lock is the system's: it ends with the process."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        folder_made(self.path)
        self._lock = (self.path / "lock").open("w")
        os.register_at_fork(after_in_child=self._lock.close)  # a data worker would hold it on
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise MiradaError(f"{self.path}: another process trains in this folder; wait for it, "
                              "or choose another") from None

    def describe(self, run: dict) -> None:
        """What the run is, once: a folder that holds another run is refused. That it goes on on
        another machine, where sums may round otherwise, is an event."""
        file = self.path / "run.json"
        if not file.exists():
            keep(file, run)
            return
        try:
            said = json.loads(file.read_text())
        except ValueError as error:
            raise UntrustedInputError(file, "file", f"is no JSON: {error}") from None
        told = json.loads(json.dumps(run, default=str))
        was, now = said.pop("machine", None), told.pop("machine", None)
        if was != now:
            self.event({"what": "another machine", "was": was, "now": now})
        other = sorted(k for k in said.keys() | told.keys() if said.get(k) != told.get(k))
        if other:
            raise MiradaError(f"{self.path} holds a run with another {', '.join(other)}: go on "
                              "with what it was begun with, or choose another folder")

    def cut(self, step: int) -> None:
        """Forget the lines of updates behind `step`: they will be made, and written, again."""
        file = self.path / "log.jsonl"
        if file.exists():
            kept = [line for line in file.read_text().splitlines() if _step(line) <= step]
            aside = file.with_suffix(".tmp")
            aside.write_text("".join(f"{line}\n" for line in kept))
            forced(aside)
            os.replace(aside, file)

    def log(self, line: dict) -> None:
        """Raises WorkFailed where the disk takes no more; no half line is left."""
        try:
            _append(self.path / "log.jsonl", line)
        except OSError as error:
            raise WorkFailed(f"{self.path / 'log.jsonl'} cannot be written: "
                             f"{error.strerror}") from error

    def event(self, line: dict) -> None:
        """Where the disk takes no more, it is said on stderr instead."""
        try:
            _append(self.path / "events.jsonl", line)
        except OSError as error:
            print(f"mirada: {json.dumps(line)} (events.jsonl cannot be written: "
                  f"{error.strerror})", file=sys.stderr)

    def flush(self) -> None:
        """Force the log onto the disk, so that it is never behind a checkpoint."""
        file = self.path / "log.jsonl"
        if file.exists():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

    def close(self) -> None:
        self._lock.close()


def history(path: str | os.PathLike) -> list[dict]:
    """The lines of a run's log. A last line that a kill cut short is left out."""
    file = Path(path) / "log.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if _step(line) < math.inf]


def events(path: str | os.PathLike) -> list[dict]:
    """What went wrong in a run, in the order it did."""
    file = Path(path) / "events.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if _object(line)]


def _append(file: Path, line: dict) -> None:
    with file.open("ab", buffering=0) as opened:
        before = opened.tell()
        text = json.dumps(line).encode() + b"\n"
        try:
            if opened.write(text) < len(text):
                opened.write(text[opened.tell() - before :])  # and this says why
        except OSError:
            opened.truncate(before)
            raise


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False

"""A run's folder: one process at a time, a line of JSON a step, and events."""

from __future__ import annotations

import fcntl
import json
import math
import os
from pathlib import Path

from mirada.errors import MiradaError


class Folder:
    """run.json: what the run is; log.jsonl: a line a step; events.jsonl: what went wrong;
    checkpoints/: see train.checkpoint. The lock is the system's: it ends with the process."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise MiradaError(f"{self.path}: another process trains in this folder; wait for it, "
                              "or choose another") from None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def describe(self, run: dict) -> None:
        """What the run is, once: a folder that holds another run is refused."""
        file = self.path / "run.json"
        if not file.exists():
            aside = file.with_suffix(".tmp")
            aside.write_text(json.dumps(run, indent=1, default=str))
            os.replace(aside, file)
            return
        said = json.loads(file.read_text())
        told = json.loads(json.dumps(run, default=str))
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
            os.replace(aside, file)

    def log(self, line: dict) -> None:
        with (self.path / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def event(self, line: dict) -> None:
        with (self.path / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._lock.close()


def history(path: str | os.PathLike) -> list[dict]:
    """The lines of a run's log. A last line that a kill cut short is left out."""
    file = Path(path) / "log.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if _step(line) < math.inf]


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf

"""The runs of a folder: what each is, how far it came, what its loss did."""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mirada.errors import MiradaError

from .log import events, history

LAST = 20  # steps that a loss is the mean of: one batch's says little


@dataclass(frozen=True)
class Ran:
    """state: "done", "running", "stopped" (it can go on), or "failed": its last event was no
    number. loss: the mean of the last 20 steps; seconds: of its steps; events: what went wrong."""

    name: str
    path: str
    model: str | None
    state: str
    step: int
    steps: int
    loss: float | None
    seconds: float
    events: int


class Runs(list):
    """Of Ran, the newest last."""

    def data(self) -> list[dict]:
        return [asdict(run) for run in self]

    def __str__(self) -> str:
        width = max(len(run.name) for run in self)
        lines = [f"{'run':{width}}  {'model':16}  {'state':8}  {'step':>13}  {'loss':>7}  "
                 f"{'time':>9}  events"]
        for r in self:
            loss = "-" if r.loss is None else f"{r.loss:.3f}"
            spent = time.strftime("%H:%M:%S", time.gmtime(r.seconds))
            lines.append(f"{r.name:{width}}  {(r.model or '-')[:16]:16}  {r.state:8}  "
                         f"{f'{r.step}/{r.steps}':>13}  {loss:>7}  {spent:>9}  {r.events or ''}")
        return "\n".join(line.rstrip() for line in lines)


def runs(folder: str | os.PathLike) -> Runs:
    """The run that a folder is, or those in it. Raises MiradaError where there is none."""
    folder = Path(folder)
    if (folder / "run.json").exists():
        return Runs([_ran(folder)])
    found = ([p for p in folder.iterdir() if (p / "run.json").exists()] if folder.is_dir() else [])
    if not found:
        raise MiradaError(f"{folder} holds no run: mirada train makes one, under runs/ unless told")
    return Runs(map(_ran, sorted(found, key=lambda p: ((p / "run.json").stat().st_mtime, p.name))))


def _ran(folder: Path) -> Ran:
    lines, wrong = history(folder), events(folder)
    steps = _said(folder / "run.json", "plan", "steps")
    step = lines[-1]["step"] if lines else 0
    losses = [line["loss"] for line in lines[-LAST:]]
    if _locked(folder / "lock"):
        state = "running"
    elif wrong and wrong[-1].get("what") == "not a number" and wrong[-1].get("step") == step:
        state = "failed"
    else:
        state = "done" if steps is not None and step >= steps else "stopped"
    model = _said(folder / "train.json", "run", "model")
    return Ran(folder.name or str(folder), str(folder), model, state, step, steps or 0,
               sum(losses) / len(losses) if losses else None,
               sum(line.get("seconds", 0.0) for line in lines), len(wrong))


def _said(file: Path, *names: str):
    """A value of a JSON file, or None where it cannot be read: a list shows the other runs."""
    try:
        found = json.loads(file.read_text())
        for name in names:
            found = found[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def _locked(file: Path) -> bool:
    """Whether a process trains there."""
    if not file.exists():
        return False
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False

"""Whether the code that a model writes works: it is run on tests (Chen et al., 2107.03374).

What a model wrote may do anything that a program can. It runs only where the caller says so, in a
process of its own with bounds on time, memory and files (confine.py). That keeps accidents small;
it is no wall against a program made to do harm.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mirada.errors import MiradaError, UntrustedInputError
from mirada.model import Model
from mirada.weights import jsonfile

from .code import Code, Cursor, pass_at_k

SECONDS = 3  # of processor time, for one program
WALL_SECONDS = 15  # for a busy machine, and for one that sleeps
WARNING = ("programs that the model wrote are run on this computer, in a process with bounds on "
           "time, memory and files; that is no wall against a program made to do harm")


@dataclass(frozen=True)
class Problem:
    """A gap in some code, and the tests that the whole must pass.

    test: code that raises where the answer is wrong, put behind the filled-in whole.
    """

    name: str
    code: Cursor
    test: str


@dataclass(frozen=True)
class Score:
    """How often the answers passed. right: of each problem, how many of n answers. failures: of
    each problem, what the first wrong answer died of, "" of none. pass_at: k -> the chance that
    one of k is right, averaged over problems."""

    n: int
    right: dict[str, int]
    failures: dict[str, str]
    pass_at: dict[int, float]

    def data(self) -> dict:
        return {"answers": self.n, "right": self.right, "failures": self.failures,
                "pass_at": self.pass_at}

    def __str__(self) -> str:
        rows = [f"{name}: {c} of {self.n}" + (f"  ({self.failures[name]})" if c < self.n else "")
                for name, c in self.right.items()]
        return "\n".join([*rows, *(f"pass@{k}: {p:.3f}" for k, p in self.pass_at.items())])


def problems(path: str | os.PathLike) -> list[Problem]:
    """Of a .jsonl file with prompt and test, and where wanted suffix, task_id, and entry_point: a
    function that the test's own check is called with, as HumanEval's files have it.

    Raises UntrustedInputError with the number of a bad row.
    """
    lines = Path(path).read_bytes().splitlines()
    rows = [_problem(jsonfile.parse(line, path), f"row {n}", path)
            for n, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UntrustedInputError(path, "rows", "holds no problem")
    twice = len(rows) - len({row.name for row in rows})
    if twice:
        raise UntrustedInputError(path, "task_id", f"{twice} problems bear the name of another")
    return rows


def _problem(row: Any, where: str, path) -> Problem:
    if not isinstance(row, dict):
        raise UntrustedInputError(path, where, "must be an object")
    parts = {"suffix": "", "entry_point": "", "task_id": where} | row
    for name in ("prompt", "test", "suffix", "entry_point", "task_id"):
        if not isinstance(parts.get(name), str):
            raise UntrustedInputError(path, f"{where}: {name}", "must be a text")
    call = f"\ncheck({parts['entry_point']})" if parts["entry_point"] else ""
    return Problem(parts["task_id"], Cursor(parts["prompt"], parts["suffix"]),
                   parts["test"] + call)


def evaluate(model: Model, given: list[Problem], *, samples: int = 1, k: tuple[int, ...] = (1,),
             run_untrusted: bool = False, progress: Callable[[str], None] | None = None,
             **options) -> Score:
    """Let the model answer each problem `samples` times, and run the answers with their tests.

    k: of which pass@k is wanted. options: the code task's. progress is called with each name.
    Raises MiradaError, also unless run_untrusted says that programs may be run.
    """
    permitted(run_untrusted)
    for size in k:
        pass_at_k(samples, 0, size)
    task = Code("code", model, num_return_sequences=samples, **options)
    right, failures = {}, {}
    for problem in given:
        if progress is not None:
            progress(problem.name)
        answers = task(problem.code._asdict())
        ends = [verdict(problem.code.prefix + answer["generated_text"] + problem.code.suffix
                        + "\n" + problem.test) for answer in answers]
        right[problem.name] = ends.count("")
        failures[problem.name] = next(filter(None, ends), "")
    return Score(samples, right, failures, {
        size: sum(pass_at_k(samples, c, size) for c in right.values()) / len(right) for size in k})


def permitted(run_untrusted: bool) -> None:
    """Raises MiradaError unless the caller said that programs may be run."""
    if not run_untrusted:
        raise MiradaError(f"{WARNING}; to let them run, say run_untrusted=True (--run-untrusted)")


def verdict(program: str) -> str:
    """What a Python program died of, in a line; "" where it ran to its end.

    Run untrusted: in a process with confine.py's bounds, an empty environment and folder.
    """
    done = 40 + secrets.randbelow(80)  # the status that says so: no exit() of its own comes near
    source = "\n".join([Path(__file__).with_name("confine.py").read_text(encoding="utf-8"),
                        f"confine({SECONDS})", program, f"\n__import__('os')._exit({done})"])
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=messages, cwd=folder, env={}, start_new_session=True)
        try:
            process.communicate(source.encode(), timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode == done:
            return ""
        messages.seek(0)
        said = messages.read(1 << 20).decode(errors="replace").strip().splitlines()
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"took more than {SECONDS} seconds"
    return said[-1][:200] if said else f"ended by itself with status {process.returncode}"

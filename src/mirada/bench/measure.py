"""mirada bench: engines on one model side by side, in one run, in turns."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mirada.errors import MiradaError

from .engines import ENGINES
from .limits import limits

# name -> (context, rows, new tokens): a prompt of `context` tokens in each row, then new ones
WORKS = {
    "decode after 16": (16, 1, 48), "decode after 512": (512, 1, 24),
    "8 rows after 16": (16, 8, 16), "32 rows after 16": (16, 32, 8), "prefill 512": (512, 1, 0),
}


@dataclass
class Bench:
    """What was seen. rates: engine -> work -> tokens a second, the median of its rounds.

    first: engine -> seconds from the start of its process to its first token. peak: engine ->
    bytes of memory at most. limits: see bench.limits. weights: bytes of the model's file. own: the
    engine that is set beside the others.
    """

    model: str
    threads: int
    weights: int
    limits: dict[str, float]
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    own: str = "mirada"

    def ratio(self, work: str) -> float | None:
        """mirada's tokens a second over the best other engine's."""
        others = [r[work] for name, r in self.rates.items()
                  if not name.startswith("mirada") and work in r]
        own = self.rates.get(self.own, {}).get(work)
        return own / max(others) if own and others else None

    def share(self, work: str) -> float | None:
        """mirada's part of the limit: each token of one row reads all weights once."""
        own = self.rates.get(self.own, {}).get(work)
        if own is None or not work.startswith("decode"):
            return None
        return own * self.weights / 1e9 / self.limits["read"]

    def data(self) -> dict:
        works = {work: {"ratio": self.ratio(work), "share": self.share(work)} for work in WORKS}
        return {**vars(self), "works": works}

    def __str__(self) -> str:
        names = list(self.rates)
        lines = [f"{self.model}: {self.weights / 1e6:,.0f} MB of weights, {self.threads} threads; "
                 + ", ".join(f"{k} {v:,.0f} {'GB/s' if k == 'read' else 'GFLOP/s'}"
                             for k, v in self.limits.items()),
                 "tokens a second".ljust(22) + "".join(n.rjust(15) for n in names)
                 + "/ best other".rjust(15) + "/ limit".rjust(10)]
        for work in WORKS:
            cells = [f"{self.rates[n][work]:,.1f}" if work in self.rates[n] else "-"
                     for n in names]
            ratio, share = self.ratio(work), self.share(work)
            lines.append(work.ljust(22) + "".join(c.rjust(15) for c in cells)
                         + ("-" if ratio is None else f"{ratio:.2f}").rjust(15)
                         + ("" if share is None else f"{share:.0%}").rjust(10))
        lines.append("first token, s".ljust(22)
                     + "".join(f"{self.first[n]:.2f}".rjust(15) for n in names))
        lines.append("memory, MiB".ljust(22)
                     + "".join(f"{self.peak[n] / 2**20:,.0f}".rjust(15) for n in names))
        return "\n".join(lines + [f"{n}: {why}" for n, why in self.failed.items()])

    def plot(self, path: str) -> None:
        """Bars of every work and engine, each work in shares of its fastest."""
        from matplotlib.figure import Figure
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        axes, width = figure.subplots(), 0.8 / len(self.rates)
        for at, (name, rates) in enumerate(self.rates.items()):
            for place, work in enumerate(WORKS):
                best = max(r.get(work, 0) for r in self.rates.values())
                if not rates.get(work):
                    continue
                bar = axes.bar(place + at * width, rates[work] / best, width, color=f"C{at}",
                               label=name if place == 0 else None)
                axes.bar_label(bar, [f"{rates[work]:,.0f}"], fontsize=7, padding=2)
        axes.set_xticks([i + 0.4 - width / 2 for i in range(len(WORKS))], list(WORKS))
        axes.set_ylabel("tokens a second, of the fastest")
        axes.set_title(f"{self.model}, {self.threads} threads")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=len(self.rates), loc="upper center",
                    bbox_to_anchor=(0.5, -0.1))
        figure.savefig(path, dpi=150)


class Child:
    """One engine in its process. first: seconds until it had answered for the first time."""

    PROGRAM: tuple[str, ...] = ("-m", "mirada.bench.engines")

    def __init__(self, name: str, path: str, threads: int, program: tuple[str, ...] = PROGRAM):
        self.name, began = name, time.perf_counter()
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.errors = tempfile.TemporaryFile("w+")  # a pipe that nobody empties would fill
        self.process = subprocess.Popen(
            [sys.executable, *program, name, path, str(threads)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment)
        self._answer()
        self.first = time.perf_counter() - began

    def ask(self, **asked) -> dict:
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.errors.seek(0)
        raise _silent(self.name, self.errors.read())

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def _silent(name: str, errors: str) -> MiradaError:
    said = errors.strip().splitlines() or ["it ended without a word"]
    return MiradaError(f"{name} could not run: {said[-1]}")


def ready(name: str, path: str, folder: str | Path) -> str:
    """The file that an engine reads for the model of `path`, made in `folder` where it must be."""
    if not hasattr(ENGINES[name], "made"):
        return path
    done = subprocess.run([sys.executable, *Child.PROGRAM, "make", name, path, str(folder)],
                          capture_output=True, text=True)
    if done.returncode:
        raise _silent(name, done.stderr)
    return done.stdout.strip()


def installed(name: str) -> None:
    """Raises MiradaError for an engine that is unknown or not there."""
    if name not in ENGINES:
        raise MiradaError(f"no engine is called {name!r}; there are {', '.join(ENGINES)}")
    lacking = [n for n in ENGINES[name].NEEDS if importlib.util.find_spec(n) is None]
    if lacking:
        raise MiradaError(f"{name} needs {' and '.join(lacking)}, which is not installed")


def bench(path: str, against: tuple[str, ...] = (), *, threads: int = 2, rounds: int = 3,
          codes: int = 16, works: tuple[str, ...] = tuple(WORKS),
          progress: Callable[[str], None] = lambda said: None) -> Bench:
    """Time mirada, and the engines `against`, on one model: a folder or a .gguf file.

    Each round asks every engine the same in turn. An engine that fails is named with its reason,
    and the others go on. codes: bits of mirada's activations, 16 or 8. Raises MiradaError for an
    engine that is unknown or not installed.
    """
    for name in against:
        installed(name)
    progress("limits")
    where = Path(path)
    own = "mirada-8" if codes == 8 else "mirada"
    found = Bench(where.name, threads, _weights(where), limits(threads), own=own)
    children: dict[str, Child] = {}
    made = tempfile.TemporaryDirectory(prefix="mirada-bench-")
    try:
        for name in dict.fromkeys((own, *against)):
            progress(f"{name} starts")
            try:
                folder = Path(made.name, name)
                folder.mkdir()
                children[name] = Child(name, ready(name, path, folder), threads)
            except MiradaError as error:
                if name == own:
                    raise
                found.failed[name] = str(error)
                continue
            found.first[name], found.rates[name] = children[name].first, {}
        times: dict[tuple[str, str], list[float]] = {}
        for turn in range(rounds):
            for work in works:
                for name, child in list(children.items()):
                    progress(f"round {turn + 1} of {rounds}: {work}, {name}")
                    _time(found, children, name, child, work, times)
        for (name, work), rates in times.items():
            found.rates[name][work] = statistics.median(rates)
    finally:
        for child in children.values():
            child.close()
        made.cleanup()
    return found


def _time(found: Bench, children: dict[str, Child], name: str, child: Child, work: str,
          times: dict) -> None:
    context, rows, new = WORKS[work]
    try:
        answer = child.ask(context=context, rows=rows, new=new)
    except MiradaError as error:
        found.failed[name] = f"{work}: {error}"
        child.close()
        del children[name]
        return
    read, *steps = answer["seconds"]
    rate = rows / statistics.median(steps) if new else rows * context / read
    times.setdefault((name, work), []).append(rate)
    found.peak[name] = max(found.peak.get(name, 0), answer["peak"])


def _weights(path: Path) -> int:
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.bin")]
    return sum(file.stat().st_size for file in files)

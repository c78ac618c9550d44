"""The training loop: draw a batch, take its loss, move the weights; and never lose a run.

An objective says what a sample is and what its loss is:

    objective.count                    how many samples there are
    objective.sample(index, draw)      one sample; all chance comes from `draw`
    objective.batch(samples)           a dict of tensors
    objective.weight(batch)            what its loss is a mean over (tokens, rows)
    objective.loss(model, batch)       the sum of losses, and a dict of numbers for the log

Samples, dropout and rates depend on (seed, step) alone, so that a run that was killed and begun
again from a checkpoint ends with the same weights to the last bit.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mirada.core.linear import Quantized
from mirada.errors import MiradaError, WorkFailed

from . import checkpoint, optim, order
from .log import CHECKPOINTS, Folder
from .world import Alone, Ranks

SPIKE, WINDOW = 6.0, 128  # robust standard deviations, steps
WIDE = 128
RUNNING = ("running_mean", "running_var", "num_batches_tracked")  # of a batch norm: no weights


class Objective(Protocol):
    """See above."""

    count: int

    def sample(self, index: int, draw) -> Any: ...
    def batch(self, samples: list) -> dict[str, Tensor]: ...
    def weight(self, batch: dict[str, Tensor]) -> float: ...
    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]: ...


@dataclass(frozen=True)
class Plan:
    """steps: updates in all. batch: samples in an update, read in `parts` of equal size: the update
    is that of the whole batch. dtype: what is multiplied in: "float32", "float64" (of a model whose
    weights are: see kept), "bfloat16" (autocast), or "auto": bfloat16 where that is faster here.
    save: steps between checkpoints. ema: the share of the old in a running mean of the weights,
    which the model holds at the end. bad: what a loss that is no number does: "stop" or "skip"
    (five in a row stop all the same). workers: processes that draw batches."""

    steps: int
    batch: int = 8
    parts: int = 1
    seed: int = 0
    dtype: str = "auto"
    save: int = 100
    keep: int = 2
    ema: float | None = None
    bad: str = "stop"
    workers: int = 0
    full: str = "stop"  # what a full disk does: "stop", or "warn" and train on

    def __post_init__(self):
        if min(self.steps, self.batch, self.parts, self.save, self.keep) < 1:
            raise MiradaError("steps, batch, parts, save and keep are whole numbers, 1 or more")
        if self.batch % self.parts:
            raise MiradaError(f"a batch of {self.batch} cannot be read in {self.parts} equal parts")
        for name, among in (("dtype", ("auto", "float32", "float64", "bfloat16")),
                            ("bad", ("stop", "skip")), ("full", ("stop", "warn"))):
            if getattr(self, name) not in among:
                raise MiradaError(f"{name} is {getattr(self, name)!r}; it is one of "
                                  f"{', '.join(among)}")


@dataclass
class Result:
    """What a run came to. reason: "done" or "stopped" (by a signal or watch; it can go on)."""

    step: int
    reason: str
    loss: float
    history: list[dict] = field(default_factory=list)


def fit(model, objective: Objective, plan: Plan, recipe: optim.Recipe | None = None, *,
        out: str | None = None, resume: bool = True,
        watch: Callable[[dict], object] = lambda line: None, world=None) -> Result:
    """Train a model in place.

    out: the run's folder, with its log and checkpoints; a run that stands there goes on where it
    was, or with resume=False is refused. watch: is given each step's line, and ends the run there
    by a true answer. SIGTERM and Ctrl-C end the step, save and return; a second one ends at once.
    world: the processes that train together, as world.join gives them; each calls this. Raises
    MiradaError, WorkFailed.
    """
    return Trainer(model, objective, plan, recipe or optim.Recipe(), out, resume, watch,
                   world or Alone()).run()


class Trainer:
    def __init__(self, model, objective: Objective, plan: Plan, recipe: optim.Recipe,
                 out: str | None, resume: bool, watch: Callable[[dict], object],
                 world: Alone | Ranks):
        if objective.count < 1:
            raise MiradaError("there is nothing to train on: the data hold no sample")
        self.model, self.objective, self.plan, self.recipe = model, objective, plan, recipe
        self.watch, self.step, self.world = watch, 0, world
        self.names = {n for n, p in model.named_parameters() if p.requires_grad}
        self.opt = optim.optimizer(model, recipe)
        self.mean = {n: p.detach().clone() for n, p in self._trained()} if plan.ema else {}
        self.running = {n: b for n, b in model.named_buffers() if n.endswith(RUNNING)}
        self.recent: deque[float] = deque(maxlen=WINDOW)
        self.skipped, self.history = 0, []
        self.asked: str | None = None  # "stop" once a signal came, "enough" once watch said so
        self.out = None if out is None else Path(out)
        self.folder = Folder(out) if out is not None and world.lead else None
        try:
            self._begin(resume)
        except BaseException:
            self._close()
            raise

    def run(self) -> Result:
        loss = math.nan
        was = self.model.training
        self.model.train()
        try:
            with self._signals():
                batches = self._batches()
                while self.step < self.plan.steps and self.asked is None:
                    loss = self._update(next(batches))
                    self.asked = self.world.agree(self.asked)
                    last = self.step == self.plan.steps or self.asked is not None
                    if self.out is not None and (last or self.step % self.plan.save == 0):
                        self._save()
            if self.step == self.plan.steps:
                self._settle()
        finally:
            self.model.train(was)
            for _, p in self._trained():  # those too that gradual unfreezing did not come to
                p.requires_grad_(True)
            self._close()
        reason = "done" if self.step == self.plan.steps else "stopped"
        return Result(self.step, reason, loss, self.history)

    # One update

    def _update(self, parts: list[dict[str, Tensor]]) -> float:
        began, plan = time.perf_counter(), self.plan
        rate = optim.set_rate(self.opt, self.recipe, self.step, plan.steps)
        torch.manual_seed(order.torch_seed(plan.seed, self.step))
        weight = self.world.total(sum(self.objective.weight(part) for part in parts))
        total, more = 0.0, {}
        self.opt.zero_grad(set_to_none=True)
        with self._room():
            for part in parts:  # each part's sum over the whole batch's weight: as one big batch
                with self._autocast():
                    loss, numbers = self.objective.loss(self.model, part)
                (loss * (self.world.scale / weight)).backward()
                total += float(loss.detach()) / weight
                for name, value in numbers.items():
                    more[name] = more.get(name, 0.0) + value / len(parts)
        total, norm = self.world.total(total), self._clip()
        fine = math.isfinite(total) and math.isfinite(norm)
        if fine:
            self.opt.step()
            self._average()
        self.step += 1
        line = {"step": self.step, "loss": total, "rate": rate, "norm": norm, **more,
                "weight": weight, "seconds": round(time.perf_counter() - began, 4)}
        self._note(line, fine)
        return total

    def _clip(self) -> float:
        weights = [p for _, p in self._trained() if p.grad is not None]
        most = math.inf if self.recipe.clip is None else self.recipe.clip
        return self.world.clip(weights, most)

    def _average(self) -> None:
        if self.plan.ema:
            with torch.no_grad():
                for name, p in self._trained():
                    self.mean[name].lerp_(p, 1 - self.plan.ema)

    def _settle(self) -> None:
        """The finished model holds the running mean; its checkpoint has the weights as well."""
        with torch.no_grad():
            for name, p in self._trained():
                p.copy_(self.mean.get(name, p))

    def _note(self, line: dict, fine: bool) -> None:
        self.history.append(line)
        if self.folder is not None:
            try:
                self.folder.log(line)
            except WorkFailed as error:
                if self.plan.full == "stop":
                    raise
                self.folder.event({"what": "not logged", "step": self.step, "why": str(error)})
        if self.watch(line):
            self.asked = "enough"
        if not fine:
            self._bad(line)
            return
        self.skipped = 0
        if len(self.recent) == WINDOW:
            middle = statistics.median(self.recent)
            spread = 1.4826 * statistics.median(abs(x - middle) for x in self.recent)
            if line["loss"] > middle + SPIKE * max(spread, 1e-12):
                self._event("spike", line)
        self.recent.append(line["loss"])

    def _bad(self, line: dict) -> None:
        self._event("not a number", line)
        self.skipped += 1
        if self.plan.bad == "skip" and self.skipped < 5:
            return
        raise WorkFailed(
            f"step {line['step']}: the loss is {line['loss']} and the gradient's norm "
            f"{line['norm']}; the weights were not moved. The batch was samples "
            f"{self._samples(self.step - 1)}; lower the learning rate, or look at them")

    def _event(self, what: str, line: dict) -> None:
        if self.folder is not None:
            self.folder.event({"what": what, **line, "samples": self._samples(line["step"] - 1)})

    # Data

    def _samples(self, step: int) -> list[int]:
        """The indices of a step's samples."""
        first = step * self.plan.batch
        return [order.sample(self.plan.seed, place, self.objective.count)[1]
                for place in range(first, first + self.plan.batch)]

    def _batches(self) -> Iterator[list[dict[str, Tensor]]]:
        steps = _Steps(self.objective, self.plan, self.world)
        ahead = range(self.step, self.plan.steps)
        if not self.plan.workers:
            return map(steps.__getitem__, ahead)
        from torch.utils.data import DataLoader
        return iter(DataLoader(steps, sampler=ahead, batch_size=None,  # type: ignore[arg-type]
                               num_workers=self.plan.workers, prefetch_factor=2,
                               worker_init_fn=_end_with_the_run))

    # State

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self.model.named_parameters() if n in self.names)

    def _begin(self, resume: bool) -> None:
        if self.out is None:
            return
        found = self.world.newest(self.out / CHECKPOINTS)
        if found is not None and not resume:
            raise MiradaError(f"{self.out} holds a run at step {found.step}: resume it, or "
                              "choose another folder")
        plan = asdict(self.plan)
        for free in ("save", "keep", "workers", "full"):  # these change no number
            del plan[free]
        if self.folder is not None:
            self.folder.describe({"plan": plan, "recipe": asdict(self.recipe),
                                  "samples": self.objective.count, "machine": {
                                      "threads": torch.get_num_threads(),
                                      "torch": torch.__version__,
                                      "products": str(precision(self.plan, self.model))}})
        if found is not None:
            self._restore(found)
        if self.folder is not None:
            self.folder.cut(self.step)

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        where = self.out
        checkpoint.put(dict(self._trained()), found.tensors["weights.safetensors"], where)
        checkpoint.load_optimizer(self.model, self.opt,
                                  found.tensors.get("optimizer.safetensors", {}))
        if self.mean:
            checkpoint.put(self.mean, found.tensors["ema.safetensors"], where)
        if self.running:
            checkpoint.put(self.running, found.tensors["running.safetensors"], where)
        self.step, self.skipped = found.step, found.state["skipped"]
        self.recent.extend(found.state["recent"])

    def _save(self) -> None:
        tensors: dict[str, Mapping[str, Tensor]] = {
            "weights.safetensors": {n: p.data for n, p in self._trained()}}
        moments = checkpoint.optimizer_tensors(self.model, self.opt)
        tensors |= {"optimizer.safetensors": moments} if moments else {}
        tensors |= {"ema.safetensors": self.mean} if self.mean else {}
        tensors |= {"running.safetensors": self.running} if self.running else {}
        state = {"recent": list(self.recent), "skipped": self.skipped}
        assert self.out is not None
        try:
            if self.folder is not None:
                self.folder.flush()
            self.world.write(self.out / CHECKPOINTS,
                             checkpoint.Checkpoint(self.step, tensors, state), self.plan.keep)
        except WorkFailed as error:
            if self.folder is not None:
                self.folder.event({"what": "not saved", "step": self.step, "why": str(error)})
            if self.plan.full == "stop":
                raise

    @contextlib.contextmanager
    def _room(self):
        """A batch that does not fit is told apart from every other failure."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            full = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
                "can't allocate memory" in str(error))  # torch's words on a CPU
            if not full:
                raise
            size = self.plan.batch // self.plan.parts
            parts = next((n for n in range(self.plan.parts + 1, self.plan.batch + 1)
                          if self.plan.batch % n == 0), None)
            what = (f"parts={parts} reads {self.plan.batch // parts} at a time, to the same end"
                    if parts else "take shorter samples, or a smaller model")
            raise WorkFailed(f"step {self.step + 1}: {size} samples at a time do not fit into the "
                             f"memory; {what}") from error

    def _close(self) -> None:
        if self.folder is not None:
            self.folder.close()

    @contextlib.contextmanager
    def _signals(self):
        """The first SIGTERM or Ctrl-C ends after the step; the second at once."""
        def stop(number, frame):
            self.asked = "stop"
            for name, old in before.items():
                signal.signal(name, old)

        try:
            before = {name: signal.signal(name, stop) for name in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread, which alone may ask
            yield
            return
        try:
            yield
        finally:
            for name, old in before.items():
                signal.signal(name, old)

    def _autocast(self):
        on = precision(self.plan, self.model) == torch.bfloat16
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=on)


class _Steps:
    """Step -> its batch, in parts: what a worker process is given."""

    def __init__(self, objective: Objective, plan: Plan, world: Alone | Ranks):
        self.objective, self.plan, self.mine = objective, plan, world.mine

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> list[dict[str, Tensor]]:
        p = self.plan
        size = p.batch // p.parts
        first = range(step * p.batch, (step + 1) * p.batch, size)
        return [self.objective.batch([self._sample(place) for place in
                                      self.mine(range(at, at + size))]) for at in first]

    def _sample(self, place: int):
        epoch, index = order.sample(self.plan.seed, place, self.objective.count)
        return self.objective.sample(index, order.draw(self.plan.seed, epoch, index))


def _end_with_the_run(worker: int) -> None:
    """A killed run leaves no process behind. (Torch's workers look whether their parent is the same
    still, each five seconds; under "forkserver", Python's way from 3.14 on, that is a server which
    lives as long as they. A forked one's sentinel never fires: it holds the other end itself.)"""
    run, parent = multiprocessing.parent_process(), os.getppid()
    assert run is not None  # as in every process that another made

    def watch() -> None:
        while os.getppid() == parent and not connection.wait([run.sentinel], 0.2):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kept(dtype: str, model) -> torch.dtype:
    """What weights and moments are to be kept in: 16 bits would lose small updates."""
    wide = torch.promote_types(model.dtype, torch.float32)
    return torch.float64 if dtype == "float64" else wide


def precision(plan: Plan, model) -> torch.dtype:
    """What a run multiplies in. Weights and moments keep the model's own dtype."""
    fast = plan.dtype == "auto" and model.dtype == torch.float32 and fast_bfloat16(model)
    return torch.bfloat16 if fast or plan.dtype == "bfloat16" else model.dtype


def fast_bfloat16(model) -> bool:
    """Whether bfloat16 makes its steps shorter: the processor has instructions for it, and the
    products are wide enough to pay for the casts (measured: from 128 on, 1.3 to 1.7 times)."""
    device = model.device
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    weights = [*model.parameters(), *(m for m in model.modules() if isinstance(m, Quantized))]
    return (device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
            and max(min(w.shape) for w in weights if len(w.shape) == 2) >= WIDE)

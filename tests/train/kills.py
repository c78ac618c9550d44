"""Kill a run at any moment, begin it again, and hold it against the run that nothing interrupted.

    kills.survives(setup, tmp_path, kills=3)

`setup` is a function of a test module that returns (model, objective, plan, recipe), the same each
time; the processes are forked from a server that has imported torch once.
"""

import importlib
import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress

import torch

from mirada.train.log import history
from mirada.train.loop import fit

OFTEN = int(os.environ.get("MIRADA_KILLS", "20"))  # of a slow test; make torture sets 200
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([  # torch's optimizers import the last, half a run's time
    "mirada.registry", "mirada.train.loop", "mirada.models.gpt2", "torch._dynamo"])


def trained(setup, out=None):
    """(its trained weights, its result) of one run in this process."""
    model, objective, plan, recipe = setup()
    result = fit(model, objective, plan, recipe, out=None if out is None else str(out))
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, result


def run(setup, out):
    """What a process of its own does: one run, its progress left in the folder's log."""
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # its workers need not import torch anew
    with suppress(KeyboardInterrupt):
        trained(setup, out)


def begun(setup, out):
    """A process that trains."""
    return process(run, setup, out)


def process(function, *args):
    """A process that calls a function of a test module."""
    child = FORKS.Process(target=_call, args=(_name(function), *(
        _name(a) if callable(a) else a for a in args)))
    child.start()
    return child


def _name(function):
    """pytest gives test modules names that no other process can import."""
    return "function", f"train.{function.__module__.rpartition('.')[2]}", function.__name__


def _call(*args):
    function, *rest = (getattr(importlib.import_module(a[1]), a[2])
                       if isinstance(a, tuple) and a[0] == "function" else a for a in args)
    function(*rest)


def wait(child, out, lines, seconds=240):
    """Until the log has so many lines, or the process ended; one that hangs is an error."""
    end = time.monotonic() + seconds
    while child.is_alive() and len(history(out)) < lines:
        assert time.monotonic() < end, f"{out} did not get {lines} lines"
        time.sleep(0.002)


def survives(setup, folder, kills=3, seed=0):
    """Kill it `kills` times at chance moments; how often a checkpoint was being written then.

    Raises AssertionError where one bit of the weights, or a loss of the log, is another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, result = trained(setup, folder / "whole")
    draw, caught, number = random.Random(seed), 0, 0
    out = folder / "0"
    for _ in range(kills):
        at = len(history(out))
        child = begun(setup, out)
        wait(child, out, at + draw.randrange(1, 4))
        time.sleep(draw.random() * 0.03)
        child.kill()
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        caught += any((out / "checkpoints").glob(".tmp-*"))
        if len(history(out)) == len(result.history):  # it ended: the next kills are of a new run
            equal(setup, out, weights, result)
            number += 1
            out = folder / str(number)
    equal(setup, out, weights, result)
    return caught


def equal(setup, out, weights, result):
    """It is begun again, ends, and is the same run."""
    again, _ = trained(setup, out)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert [x["loss"] for x in history(out)] == [x["loss"] for x in result.history]
    assert not list((out / "checkpoints").glob(".tmp-*"))

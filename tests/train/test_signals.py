"""SIGTERM and Ctrl-C end the step, save and go; a second one goes at once."""

import os
import random
import signal
import time
from dataclasses import replace

import pytest

from mirada.train import checkpoint
from mirada.train.log import history
from train import kills
from train.test_loop import PLAN, RECIPE, Words, small

NEVER = replace(PLAN, save=1000)


class Slow(Words):
    """An update takes a while, so that a signal comes in the midst of one."""

    def loss(self, model, batch):
        time.sleep(0.1)
        return super().loss(model, batch)


class Stuck(Words):
    def loss(self, model, batch):
        time.sleep(30)


def slow():
    return small(), Slow(), NEVER, RECIPE


def shared():
    os.setsid()  # as in a terminal, where Ctrl-C goes to all of its processes
    return small(), Slow(), replace(NEVER, workers=2), RECIPE


def stuck():
    return small(), Stuck(), NEVER, RECIPE


def quick():
    return small(), Words(), NEVER, RECIPE


def stops(setup, out, signals, group=False):
    """Its exit code, and the updates that its checkpoint holds."""
    process = kills.begun(setup, out)
    kills.wait(process, out, 2)
    for number in signals:
        (os.killpg if group else os.kill)(process.pid, number)
    process.join(60)
    assert not process.is_alive()
    saved = checkpoint.steps(out / "checkpoints")
    return process.exitcode, saved[-1] if saved else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_ends_the_step_and_loses_none(number, tmp_path):
    code, saved = stops(slow, tmp_path / "0", [number])
    assert code == 0 and 2 <= saved < 21 and saved == len(history(tmp_path / "0"))
    weights, result = kills.trained(quick)
    kills.equal(quick, tmp_path / "0", weights, result)


def test_ctrl_c_reaches_the_workers_too(tmp_path):
    code, saved = stops(shared, tmp_path, [signal.SIGINT], group=True)
    assert code == 0 and 2 <= saved < 21 and saved == len(history(tmp_path))


def test_a_second_signal_does_not_wait(tmp_path):
    process = kills.begun(stuck, tmp_path)
    while process.is_alive() and not (tmp_path / "run.json").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    assert process.is_alive()  # it would end its step first
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == -signal.SIGTERM and time.monotonic() - began < 20


@pytest.mark.slow
def test_fifty_signals(tmp_path):
    draw = random.Random(5)
    weights, result = kills.trained(quick)
    for number in range(50):
        out = tmp_path / str(number)
        process = kills.begun(slow, out)
        kills.wait(process, out, draw.randrange(1, 18))
        time.sleep(draw.random() * 0.05)
        os.kill(process.pid, signal.SIGTERM)
        process.join()
        assert process.exitcode == 0
        assert checkpoint.steps(out / "checkpoints")[-1] == len(history(out))
        kills.equal(quick, out, weights, result)

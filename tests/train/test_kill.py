"""A run that is killed at any moment ends with the same weights, to the last bit."""

import multiprocessing
import os
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from mirada.train.log import Folder
from train import kills
from train.test_loop import PLAN, RECIPE, Words, small

SAVED = replace(PLAN, save=2)


def full():
    return small(), Words(), replace(SAVED, parts=1), RECIPE


def accumulated():
    return small(), Words(), SAVED, RECIPE


def workers():
    return small(), Words(), replace(SAVED, workers=2), RECIPE


def half():
    return small(), Words(), replace(SAVED, dtype="bfloat16"), RECIPE


@pytest.mark.parametrize("setup", [full, accumulated, workers])
def test_killed(setup, tmp_path):
    kills.survives(setup, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("setup", [full, accumulated, workers, half])
def test_killed_often(setup, tmp_path):
    kills.survives(setup, tmp_path, kills=kills.OFTEN, seed=1)


class Signed(Words):
    """Each process that draws a sample leaves its number."""

    def sample(self, index, draw):
        open(f"worker-{os.getpid()}", "w").close()
        return super().sample(index, draw)


def signed():
    return small(), Signed(), replace(SAVED, workers=2, steps=10_000), RECIPE


@pytest.mark.parametrize("way", ["fork", "forkserver"])
def test_a_killed_run_leaves_no_worker_and_no_lock_behind(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    child = kills.process(run_here, str(tmp_path), way)
    kills.wait(child, tmp_path / "run", 3)
    child.kill()
    child.join()
    Folder(tmp_path / "run").close()  # at once
    workers = [int(name.rpartition("-")[2]) for name in os.listdir() if "worker" in name]
    assert len(workers) == 2 and child.pid not in workers
    end = time.monotonic() + 60
    while any(map(alive, workers)):
        assert time.monotonic() < end, "a worker outlived its run"
        time.sleep(0.05)


def run_here(folder, way):
    os.chdir(folder)
    multiprocessing.set_start_method(way, force=True)
    kills.trained(signed, "run")


def alive(number):
    with suppress(ProcessLookupError):
        os.kill(number, 0)
        return True
    return False

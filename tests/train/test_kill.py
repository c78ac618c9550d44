"""A run that is killed at any moment ends with the same weights, to the last bit."""

from dataclasses import replace

import pytest

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

"""A law through losses: planted constants come back, and a small real one tells the truth."""

import math

import numpy as np
import pytest
import torch

import mirada
from mirada.errors import MiradaError
from mirada.train import scaling
from mirada.train.corpus import Corpus
from mirada.train.language import NextToken
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from mirada.train.scaling import Law

CHINCHILLA = Law(1.69, 406.4, 410.7, 0.34, 0.28, 0.0)  # 2203.15556, eq. 10
GRID = [(n, d) for n in (7e7, 3e8, 1e9, 4e9, 1.6e10) for d in (1e9, 5e9, 2e10, 1e11, 5e11)]


def test_planted_constants_come_back():
    found = scaling.fit([(n, d, CHINCHILLA.loss(n, d)) for n, d in GRID])
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(CHINCHILLA, name), rel=1e-6)
    assert found.error < 1e-9 and "loss = 1.69 + 406" in str(found)


def test_one_run_that_went_wrong_does_not_bend_it():
    noise = np.random.default_rng(0).standard_normal(len(GRID)) * 1e-3
    points = [(n, d, CHINCHILLA.loss(n, d) * math.exp(e))
              for (n, d), e in zip(GRID, noise, strict=True)]
    points[7] = (*points[7][:2], 3 * points[7][2])
    found = scaling.fit(points)
    assert found.E == pytest.approx(1.69, abs=0.05)
    assert found.alpha == pytest.approx(0.34, abs=0.02)
    assert found.beta == pytest.approx(0.28, abs=0.02)


def test_the_best_share_of_compute():
    weights, tokens = CHINCHILLA.best(5.76e23)
    assert 6 * weights * tokens == pytest.approx(5.76e23)
    least = CHINCHILLA.loss(weights, tokens)
    for other in (0.8, 1.25):
        assert CHINCHILLA.loss(weights * other, tokens / other) > least


def test_what_tells_no_law():
    with pytest.raises(MiradaError, match="5 points or more"):
        scaling.fit([(1e6, 1e6, 3.0)] * 4)
    with pytest.raises(MiradaError, match="2 sizes"):
        scaling.fit([(1e6, n * 1e6, 3.0) for n in range(1, 7)])
    with pytest.raises(MiradaError, match="above 0"):
        scaling.fit([(n * 1e6, n * 1e6, -3.0) for n in range(1, 7)])


STATES = 64


def chain(seed=0):
    """A language whose next token depends on the last alone, with a spectrum that falls as a
    power: (transitions, the entropy of a token in nats, below which no model can come)."""
    draw = np.random.default_rng(seed)
    u, v = draw.standard_normal((2, STATES, STATES))
    moves = np.exp((u * (2.0 * np.arange(1, STATES + 1) ** -0.75)) @ v.T)
    moves /= moves.sum(1, keepdims=True)
    where = np.full(STATES, 1 / STATES)
    for _ in range(200):
        where = where @ moves
    return moves, float(-(where[:, None] * moves * np.log(moves)).sum())


def spoken(moves, rows, length, seed):
    """(rows, length) tokens."""
    draw, reach = np.random.default_rng(seed), np.cumsum(moves, 1)
    state, said = draw.integers(0, STATES, rows), []
    for x in draw.random((length, rows)):
        state = np.minimum((reach[state] < x[:, None]).sum(1), STATES - 1)
        said.append(state)
    return np.stack(said, 1)


@pytest.mark.slow
@pytest.mark.scope("1.17.6")
def test_small_runs_of_sizes_and_data():
    """Twelve runs, and what the law of eleven says of the largest."""
    moves, entropy = chain()
    held = torch.tensor(spoken(moves, 128, 32, 1))
    points = []
    for width in (4, 8, 16):
        for steps in (50, 100, 200, 400):
            torch.manual_seed(0)
            model = mirada.build("gpt2:tiny", layers=1, d=width, heads=1, vocab=STATES, context=32)
            text = Corpus.of(spoken(moves, steps * 16, 32, 2).tolist())
            fit(model, NextToken(text, 32), Plan(steps=steps, batch=16, dtype="float32"),
                Recipe(rate=0.05, schedule="linear", floor=0.0, warmup=5, decay=0.0,
                       betas=(0.9, 0.95)))
            with torch.no_grad():
                loss = float(model(input_ids=held, labels=held).loss)
            count = sum(p.numel() for n, p in model.named_parameters() if "position" not in n)
            points.append((count, steps * 16 * 32, loss))
    losses = np.array([loss for *_, loss in points]).reshape(3, 4)
    assert (np.diff(losses, axis=0) < 0).all() and (np.diff(losses, axis=1) < 0).all()
    assert losses.min() > entropy
    law = scaling.fit(points)
    assert law.error < 0.03 and law.alpha > 0 < law.beta and law.E < losses.min()
    before = scaling.fit(points[:-1])
    assert before.loss(*points[-1][:2]) == pytest.approx(points[-1][2], rel=0.1)

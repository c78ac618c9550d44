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


def chain(states=48, seed=0):
    """A language of which all is known: each token depends on the one before. (transitions, the
    entropy of a token in nats: what no model can go below)."""
    draw = np.random.default_rng(seed)
    moves = draw.dirichlet(np.full(states, 0.3), states)
    where = np.full(states, 1 / states)
    for _ in range(200):
        where = where @ moves
    return moves, float(-(where[:, None] * moves * np.log(moves + 1e-300)).sum())


def spoken(moves, count, seed):
    draw, state, said = np.random.default_rng(seed), 0, []
    steps = np.cumsum(moves, 1)
    for x in draw.random(count):
        state = min(int(np.searchsorted(steps[state], x)), len(moves) - 1)
        said.append(state)
    return said


@pytest.mark.slow
@pytest.mark.scope("1.17.6")
def test_a_small_run_of_sizes_and_data():
    """Nine runs on a language whose entropy is known: the law's E must be that entropy."""
    moves, entropy = chain()
    held = torch.tensor(spoken(moves, 64 * 32, 1)).view(64, 32)
    points = []
    for width in (4, 8, 32):
        for steps in (60, 180, 540):
            model = mirada.build("gpt2:tiny", layers=1, d=width, heads=2, vocab=len(moves),
                                 context=32)
            text = Corpus.of([spoken(moves, 32, 100 + n) for n in range(steps * 16)])
            fit(model, NextToken(text, 32), Plan(steps=steps, batch=16),
                Recipe(rate=2e-2, schedule="linear", floor=0.0, warmup=6, decay=0.0))
            with torch.no_grad():
                loss = float(model(input_ids=held, labels=held).loss)
            count = sum(p.numel() for n, p in model.named_parameters() if "position" not in n)
            points.append((count, steps * 16 * 32, loss))
    for one, more in ((0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (0, 6), (2, 8)):
        assert points[more][2] < points[one][2], "more data, or more weights, and less loss"
    found = scaling.fit(points)
    assert found.E == pytest.approx(entropy, rel=0.1) and found.error < 0.02, (found, entropy)
    assert min(loss for *_, loss in points) > entropy

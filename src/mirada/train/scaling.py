"""How loss falls with weights and tokens: L = E + A / N^alpha + B / D^beta (2203.15556, eq. 2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mirada.errors import MiradaError

HUBER = 1e-3  # of the difference of logarithms (2203.15556, eq. 3)
STARTS = ((0.0, 5.0, 10.0, 15.0), (0.0, 5.0, 10.0, 15.0), (-1.0, 0.0, 1.0),
          (0.2, 0.5, 1.0), (0.2, 0.5, 1.0))  # of log A, log B, log E, alpha, beta
ROUNDS = 400


@dataclass(frozen=True)
class Law:
    """E: what no size or data take away; A, alpha: of the weights; B, beta: of the tokens.
    error: the root mean square of the difference of logarithms to the points."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    error: float

    def loss(self, weights: float, tokens: float) -> float:
        return self.E + self.A / weights**self.alpha + self.B / tokens**self.beta

    def best(self, flops: float) -> tuple[float, float]:
        """(weights, tokens) of the least loss at so many FLOPs, 6 a weight and token (eq. 4)."""
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        weights = ratio * (flops / 6) ** (self.beta / (self.alpha + self.beta))
        return weights, flops / 6 / weights

    def __str__(self) -> str:
        return (f"loss = {self.E:.3g} + {self.A:.3g} / weights^{self.alpha:.3f} + "
                f"{self.B:.3g} / tokens^{self.beta:.3f}  (off by {self.error:.1%})")


def fit(points: Sequence[tuple[float, float, float]]) -> Law:
    """The law through (weights, tokens, loss) of runs.

    Least Huber loss of the logarithms, from many starts, as Hoffmann et al.; damped Newton steps
    in place of L-BFGS. Raises MiradaError where the points cannot tell its five numbers.
    """
    n, d, loss = np.array(points, dtype=np.float64).reshape(-1, 3).T
    if len(set(n)) < 2 or len(set(d)) < 2 or len(n) < 5:
        raise MiradaError("a scaling law has five numbers: give 5 points or more, of 2 sizes and "
                          "2 amounts of data at least")
    if not (np.isfinite(loss).all() and min(n.min(), d.min(), loss.min()) > 0):
        raise MiradaError("weights, tokens and losses are numbers above 0")
    x = np.array(list(itertools.product(*STARTS)))  # (S, 5)
    damp = np.full(len(x), 1e-2)
    cost = _cost(_off(x, n, d, loss)[0])
    for _ in range(ROUNDS):
        off, slope = _off(x, n, d, loss)  # (S, M), (S, M, 5)
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(off), 1e-300))  # Huber's, reweighted
        square = np.einsum("smi,sm,smj->sij", slope, weight, slope)
        toward = np.einsum("smi,sm->si", slope, weight * off)
        ridge = np.einsum("sii->si", square) + 1e-12
        step = np.linalg.solve(square + (damp[:, None] * ridge)[:, :, None] * np.eye(5),
                               toward[:, :, None])[:, :, 0]
        moved = x - np.clip(step, -1, 1)
        new = _cost(_off(moved, n, d, loss)[0])
        better = new < cost
        x, cost = np.where(better[:, None], moved, x), np.where(better, new, cost)
        damp = np.clip(np.where(better, damp / 3, damp * 4), 1e-12, 1e9)
    a, b, e, alpha, beta = map(float, x[np.argmin(cost)])
    off = _off(x[[np.argmin(cost)]], n, d, loss)[0]
    return Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta,
               float(np.sqrt(np.mean(off**2))))


def _off(x: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray):
    """(log of the law less log of the loss (S, M), its derivatives (S, M, 5))."""
    a, b, e, alpha, beta = x.T[:, :, None]
    ln, ld = np.log(n), np.log(d)
    parts = np.stack([a - alpha * ln, b - beta * ld, np.broadcast_to(e, (len(x), len(n)))])
    top = parts.max(0)
    parts = np.exp(parts - top)
    total = parts.sum(0)
    of_n, of_d, of_e = parts / total
    return (np.log(total) + top - np.log(loss),
            np.stack([of_n, of_d, of_e, -of_n * ln, -of_d * ld], -1))


def _cost(off: np.ndarray) -> np.ndarray:
    size = np.abs(off)
    return np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2)).sum(1)

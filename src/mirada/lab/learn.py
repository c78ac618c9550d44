"""A small model learns rows that are drawn as they are needed, and is asked about new ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe

UNASKED = -100  # a label that does not count
Draw = Callable[[int, Generator], tuple[Tensor, Tensor]]  # rows, chance -> ids, labels (B, T)


ROWS = 64  # of a step


class Rows:
    """An objective of endless rows: at each place that has a label, the model must tell it. A
    sample is ROWS of them, drawn at once."""

    count = 1 << 20

    def __init__(self, draw: Draw):
        self.draw = draw

    def sample(self, index: int, draw) -> int:
        return draw.getrandbits(48)

    def batch(self, samples: list) -> dict[str, Tensor]:
        ids, labels = self.draw(ROWS, Generator().manual_seed(samples[0]))
        return {"input_ids": ids, "labels": labels}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float((batch["labels"] != UNASKED).sum())

    def loss(self, model, batch: dict[str, Tensor]):
        logits = model(batch["input_ids"]).logits.flatten(0, 1)
        return F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=UNASKED,
                               reduction="sum"), {}


def learn(model, draw: Draw, steps: int, seed: int, rate: float = 1e-2, enough: float = 0.0):
    """The model, trained on `steps` batches of rows and ready to be asked. enough: a loss
    to stop at, as Adam may leap away again from where no gradient is left."""
    with torch.random.fork_rng():
        fit(model, Rows(draw), Plan(steps=steps, batch=1, seed=seed, dtype="float32"),
            Recipe(rate=rate, warmup=steps // 10, decay=0.0),
            watch=lambda line: line["loss"] < enough)
    return model.eval()


@torch.no_grad()
def right(model, ids: Tensor, labels: Tensor) -> float:
    """The share of labels (B, T) that the model tells."""
    asked = labels != UNASKED
    return (model(ids).logits.argmax(-1) == labels)[asked].float().mean().item()

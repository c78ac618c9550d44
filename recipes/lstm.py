"""The LSTM that recipe `translator` is held against: one network reads and writes (1409.3215).

It reads a source to its end token and goes on with the target, in the Transformer's loop, on the
same tokens for as many steps; of two layers, wide enough for about as many weights.
"""

import torch
from torch import Tensor

from mirada.train import baselines
from mirada.train.loop import Plan, fit
from mirada.train.loss import IGNORED, token_loss
from mirada.train.optim import Recipe
from mirada.train.seq2seq import Translate
from mirada.train.sft import Answers

WIDTH, LAYERS, RATE = 128, 2, 4e-3


class Targets(Answers):
    """Source and target in one row each; the target is told, its tokens' smoothing as in pairs."""

    def __init__(self, pairs: Translate):
        both = (pairs.sample(n, None) for n in range(pairs.count))
        super().__init__([(source + target, [IGNORED] * len(source) + target)
                          for source, target in both], pairs.pad)
        self.smoothing = pairs.smoothing

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        x, labels = model.body(model.token(batch["input_ids"]))[:, :-1], batch["labels"][:, 1:]
        told = labels != IGNORED  # logits are made of these places alone: half the work
        return token_loss(model.out(x[told])[None], labels[told][None], self.smoothing), {}


def train(pairs: Translate, vocab: int, plan: Plan, rate: float = RATE) -> baselines.Baseline:
    model = baselines.build("lstm", seed=plan.seed, vocab=vocab, d=WIDTH, layers=LAYERS)
    fit(model, Targets(pairs), plan, Recipe(rate=rate, warmup=plan.steps // 10))
    return model.eval()


@torch.inference_mode()
def write(model: baselines.Baseline, source: list[int], end: int, most: int) -> list[int]:
    """The likeliest token each time, until the end token or `most` of them; the end is left out."""
    x, state, made = model.token(torch.tensor([source])), None, []
    while len(made) < most:
        x, state = model.body.cells(x, state)
        token = int(model.out(x[:, -1]).argmax())
        if token == end:
            break
        made.append(token)
        x = model.token(torch.tensor([[token]]))
    return made


def translate(model: baselines.Baseline, pairs: Translate, tokenizer, text: str) -> str:
    """A text as the pairs it learned from are read, cut as they are, and what it writes then."""
    room = pairs.length - len(pairs.first) - len(pairs.last)
    source = pairs.first + tokenizer.encode(text, special=False).ids[:room] + pairs.last
    return tokenizer.decode(write(model, source, pairs.last[-1], pairs.length - 1))

"""Learning what is preferred: DPO (2305.18290) without a reward model, and the reward model that
PPO wants (2203.02155, sec. 3.5: Bradley and Terry, 1952).

A row is (prompt, chosen, rejected), all token ids.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from .language import padded
from .loss import IGNORED, told_logits, wide
from .sft import with_system

Row = tuple[list[int], list[int], list[int]]
LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {  # of how much further chosen rose
    "sigmoid": lambda d, beta: -F.logsigmoid(beta * d),  # 2305.18290, eq. 7
    "hinge": lambda d, beta: F.relu(1 - beta * d),  # SLiC, 2305.10425
    "ipo": lambda d, beta: (d - 1 / (2 * beta)) ** 2,  # 2310.12036, eq. 17, of means over tokens
}


class Pairs:
    """Preferred and rejected answers, the chosen rows of a batch before the rejected ones."""

    def __init__(self, rows: Sequence[Row], pad: int = 0):
        self.rows, self.pad, self.count = list(rows), pad, len(rows)
        if not all(prompt and chosen and rejected for prompt, chosen, rejected in rows):
            raise MiradaError("a preference has an empty prompt or answer: each needs a token, and "
                              "an answer's first is told by the prompt's last")

    def sample(self, index: int, draw) -> Row:
        return self.rows[index]

    def batch(self, samples: list[Row]) -> dict[str, Tensor]:
        both = [(p, c) for p, c, _ in samples] + [(p, r) for p, _, r in samples]
        return padded({"input_ids": ([p + a for p, a in both], self.pad),
                       "labels": ([[IGNORED] * len(p) + a for p, a in both], IGNORED)})

    def weight(self, batch: dict[str, Tensor]) -> float:
        return len(batch["labels"]) / 2


class DPO(Pairs):
    """Raise log π(chosen) over log π(rejected), both measured from the reference's.

    reference: a frozen model; None: the model itself without its adapters. beta: how dear it is to
    leave the reference. kind: a name of LOSSES.
    """

    def __init__(self, rows: Sequence[Row], pad: int = 0, *, reference=None, beta: float = 0.1,
                 kind: str = "sigmoid"):
        super().__init__(rows, pad)
        if kind not in LOSSES:
            raise MiradaError(f"no preference loss is called {kind!r}; there are "
                              f"{', '.join(LOSSES)}")
        if not beta > 0:
            raise MiradaError(f"beta is {beta}; it must be above 0")
        self.reference, self.beta, self.kind = reference, beta, kind

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        now = scores(model, batch, mean=self.kind == "ipo")
        then = referred(model, self.reference, lambda m: scores(m, batch, self.kind == "ipo"))
        chosen, rejected = (now - then).chunk(2)
        margin = (chosen - rejected).detach()
        return LOSSES[self.kind](chosen - rejected, self.beta).sum(), {
            "right": float((margin > 0).double().mean()),
            "margin": self.beta * float(margin.mean())}


class Reward(Pairs):
    """A classifier of one output learns to score the chosen answer higher."""

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
        logits = model(**given).logits
        if logits.shape[-1] != 1:
            raise MiradaError(f"a reward is one number and this head gives {logits.shape[-1]}: "
                              "build the model with labels=1")
        chosen, rejected = logits[:, 0].chunk(2)
        right = float((chosen > rejected).double().mean())
        return -F.logsigmoid(chosen - rejected).sum(), {"right": right}


def scores(model, batch: dict[str, Tensor], mean: bool = False) -> Tensor:
    """(rows,): each row's sum (or mean) of log-probabilities of its labels, in float32 or wider."""
    given = {k: batch[k].to(model.device) for k in ("input_ids", "attention_mask")}
    labels = F.pad(batch["labels"].to(model.device)[:, 1:], (0, 1), value=IGNORED)
    told = labels != IGNORED
    logs = -F.cross_entropy(wide(told_logits(model, given, told)), labels[told], reduction="none")
    each = logs.new_zeros(labels.shape).masked_scatter(told, logs)  # (rows, T)
    return each.sum(1) / told.sum(1) if mean else each.sum(1)


def frozen_copy(model):
    """The model as it is now, for a reference: its weights are copied, and nothing trains."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def referred(model, reference, ask: Callable):
    """ask(reference), without dropout; of the model without its adapters where there is none."""
    if reference is not None:
        return ask(reference)
    if not model.adapters.active:
        raise MiradaError("without an adapter the model cannot be its own reference: give "
                          "reference=frozen_copy(model), or tune an adapter (mirada.edit.lora)")
    was = model.training
    with model.adapters.using():
        found = ask(model.eval())
    model.train(was)
    return found


def told(model, records: Sequence[dict], system: str | None = None) -> list[Row]:
    """Rows of records with the texts prompt, chosen and rejected, through the chat template; each
    answer ends with the token that ends a turn. Raises MiradaError."""
    tokenizer, rows = model.tokenizer, []
    for number, record in enumerate(records, 1):
        if not all(isinstance(record.get(k), str) for k in ("prompt", "chosen", "rejected")):
            raise MiradaError(f"record {number} needs the texts prompt, chosen and rejected")
        asked = with_system([{"role": "user", "content": record["prompt"]}], system)
        prompt = tokenizer.chat(asked)
        answers = [_answer(tokenizer, asked, prompt, record[k]) for k in ("chosen", "rejected")]
        rows.append((prompt, *answers))
    return rows


def _answer(tokenizer, asked: list[dict], prompt: list[int], text: str) -> list[int]:
    whole = tokenizer.chat([*asked, {"role": "assistant", "content": text}],
                           add_generation_prompt=False)
    if whole[: len(prompt)] != prompt:
        raise MiradaError("this chat template does not write an answer behind its prompt")
    answer = whole[len(prompt) :]
    ends = [at for at, i in enumerate(answer) if i in tokenizer.eos_ids]
    return answer[: ends[-1] + 1] if ends else answer

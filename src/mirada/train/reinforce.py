"""PPO on answers (1707.06347; for language 2203.02155, sec. 3.5): a model writes, what it wrote is
rewarded, and it may not leave its reference by much.

The reward comes behind the last token; each token costs beta (log π - log π_ref) of it. A value
head beside the language-model head says what reward is still to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.edit.share import share
from mirada.errors import MiradaError

from .language import padded
from .loss import IGNORED
from .preference import referred

CARRIES = "it carries a value head (mirada.train.reinforce.without_value takes it off)"
Write = Callable[[object, list[list[int]]], list[list[int]]]


@dataclass(frozen=True)
class Settings:
    """rounds: updates on what was written once. clip: of the ratio of new and old probability.
    beta: the price of a nat of distance from the reference. discount, trace: of GAE (1506.02438:
    gamma and lambda). value: weight of the value's squared error."""

    rounds: int = 4
    clip: float = 0.2
    beta: float = 0.05
    discount: float = 1.0
    trace: float = 0.95
    value: float = 0.1

    def __post_init__(self):
        if type(self.rounds) is not int or self.rounds < 1 or not 0 < self.clip < 1:
            raise MiradaError(f"rounds={self.rounds!r} is a whole number from 1, "
                              f"clip={self.clip!r} above 0 and below 1")
        if min(self.beta, self.value) < 0 or not 0 <= min(self.discount, self.trace) <= max(
                self.discount, self.trace) <= 1:
            raise MiradaError("beta and value are 0 or more, discount and trace from 0 to 1")


class Valued(nn.Module):
    """A language-model head, and beside it the value of each place: (B, T), zero at first."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head, width = head, head.out.in_features
        self.value = nn.Linear(width, 1, dtype=torch.promote_types(
            next(head.parameters()).dtype, torch.float32))
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    @property
    def out(self) -> nn.Module:
        return self.head.out

    def forward(self, x: Tensor, inputs, ctx) -> dict[str, Tensor]:
        value = self.value(x.to(self.value.weight.dtype)).squeeze(-1)
        return self.head(x, inputs, ctx) | {"value": value}


def with_value(model):
    """The model with a value head that trains; of an adapted model, after `edit.lora`. Raises
    MiradaError."""
    if not model.generates or model.encoder_decoder:
        raise MiradaError(f"{model.architecture} does not write a text on: PPO tunes models that "
                          "do")
    other = share(model, CARRIES)
    other.head = Valued(other.head).to(model.device).train(model.training)
    return other


def without_value(model):
    """The policy alone, with the weights that it learned."""
    other = share(model)
    other.origin.edits = tuple(said for said in other.origin.edits if said != CARRIES)
    other.head = other.head.head
    return other


class PPO:
    """Objective of a model `with_value`: what it writes to prompts is made more rewarding.

    prompts: token ids. write(model, prompts) -> answers, all token ids, drawn from the model as it
    is (temperature 1, nothing cut off; chance from torch's own generator). reward(prompt, answer)
    -> a number. reference: as of DPO. An update in `rounds` writes anew; the others go on with what
    lies there, so that a run goes on to the bit where its checkpoints stand between rounds
    (Plan.save a multiple of rounds).
    """

    def __init__(self, prompts: Sequence[list[int]], write: Write,
                 reward: Callable[[list[int], list[int]], float], *, reference=None,
                 settings: Settings | None = None, pad: int = 0):
        self.prompts, self.write, self.reward = list(prompts), write, reward
        self.reference, self.settings, self.pad = reference, settings or Settings(), pad
        self.count, self.left, self.held, self.weighed = len(prompts), 0, {}, False

    def sample(self, index: int, draw) -> list[int]:
        return self.prompts[index]

    def batch(self, samples: list[list[int]]) -> dict[str, Tensor]:
        return padded({"input_ids": (samples, self.pad)})

    def weight(self, batch: dict[str, Tensor]) -> float:
        if self.weighed:
            raise MiradaError("PPO writes to a whole batch at once: set parts to 1")
        self.weighed = True
        return float(len(batch["input_ids"]))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        self.weighed = False
        if self.left == 0:
            asked = [ids[: int(n)].tolist() for ids, n in
                     zip(batch["input_ids"], batch["attention_mask"].sum(1), strict=True)]
            self.held, self.left = self._written(model, asked), self.settings.rounds
        self.left -= 1
        held, s = self.held, self.settings
        logs, values = told(model, held)
        told_of = held["told"]
        each = clipped(logs - held["logs"], held["advantages"], s.clip)
        error = (values - held["returns"]).square()
        total = ((each + s.value * error) * told_of).sum(1) / told_of.sum(1)
        return total.sum(), {name: float(held[name]) for name in ("reward", "kl")}

    @torch.no_grad()
    def _written(self, model, asked: list[list[int]]) -> dict[str, Tensor]:
        """What the model writes now, with its probabilities, advantages and returns."""
        was, s = model.training, self.settings
        answers = self.write(model.eval(), asked)
        if len(answers) != len(asked) or not all(answers):
            raise MiradaError("write must give an answer of one token or more to each prompt")
        held = padded({
            "input_ids": ([p + a for p, a in zip(asked, answers, strict=True)], self.pad),
            "labels": ([[IGNORED] * len(p) + a for p, a in zip(asked, answers, strict=True)],
                       IGNORED)})
        held = {k: v.to(model.device) for k, v in held.items()}
        logs, values = told(model, held)
        model.train(was)
        apart = logs - referred(model, self.reference, lambda m: told(m, held)[0])
        real = held["told"] = (held["labels"][:, 1:] != IGNORED).to(logs.dtype)
        rewards = logs.new_tensor([self.reward(p, a)
                                   for p, a in zip(asked, answers, strict=True)])
        each = -s.beta * apart * real
        last = real.shape[1] - 1 - real.flip(1).argmax(1)  # of each row's answer
        each[torch.arange(len(each)), last] += rewards
        advantages = gae(each, values * real, real, s.discount, s.trace)
        held["returns"] = advantages + values
        held["advantages"] = whitened(advantages, real)
        return held | {"logs": logs, "reward": rewards.mean(), "kl": (apart * real).sum(1).mean()}


def told(model, held: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(log-probabilities, values) of the tokens behind the first: (B, T - 1) each; 0 where nothing
    is told, and for a model without a value head."""
    out = model(input_ids=held["input_ids"], attention_mask=held["attention_mask"])
    logits, labels = out.logits[:, :-1], held["labels"][:, 1:]
    wide = torch.promote_types(logits.dtype, torch.float32)
    logs = -F.cross_entropy(logits.transpose(1, 2).to(wide), labels, ignore_index=IGNORED,
                            reduction="none")
    values = out["value"][:, :-1] if "value" in out else torch.zeros_like(logs)
    return logs, values


def clipped(gain: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """-min(r A, clip(r) A) with r = exp(gain) (1707.06347, eq. 7)."""
    ratio = gain.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def gae(rewards: Tensor, values: Tensor, real: Tensor, discount: float, trace: float) -> Tensor:
    """(B, T): advantages by generalised estimation (1506.02438, eq. 16), 0 where not real."""
    found, after, ahead = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        here = real[:, t]
        error = rewards[:, t] + discount * ahead - values[:, t]
        after = here * (error + discount * trace * after) + (1 - here) * after
        ahead = here * values[:, t] + (1 - here) * ahead
        found[:, t] = after * here
    return found


def whitened(x: Tensor, real: Tensor) -> Tensor:
    """Mean 0 and spread 1 over what is real."""
    count = real.sum()
    mean = (x * real).sum() / count
    spread = ((x - mean).square() * real).sum() / count
    return (x - mean) * (spread + 1e-8).rsqrt() * real

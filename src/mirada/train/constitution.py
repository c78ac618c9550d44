"""Constitutional AI (2212.08073): by written principles a model criticises and revises its answers
and learns the revisions (sec. 3); then it judges between answers and learns to prefer (sec. 4).

The steps are functions of two callables, so that any engine can stand behind them:
write(conversations) -> an answer to each, and score(conversations, options) -> for each a list of
log-probabilities. What they make goes to sft.Answers.of and to preference.told and DPO.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mirada.errors import MiradaError

from .language import padded
from .loss import IGNORED
from .preference import scores
from .sft import talk

Conversation = list[dict]
Write = Callable[[list[Conversation]], list[str]]
Score = Callable[[list[Conversation], Sequence[str]], list[list[float]]]
OPTIONS = ("A", "B")


@dataclass(frozen=True)
class Principle:
    """critique, revision: what the model is asked about its last answer. choice: what a judge is
    asked, with {prompt}, {first} and {second} in it; it answers A or B."""

    critique: str
    revision: str
    choice: str

    def __post_init__(self):
        missing = [place for place in ("{first}", "{second}") if place not in self.choice]
        if missing:
            raise MiradaError(f"a principle's choice must show {missing[0]}")


def _principle(fault: str, better: str) -> Principle:
    return Principle(
        f"Point out where your last answer {fault}.",
        f"Now rewrite your last answer so that it {better}.",
        f"Somebody was asked:\n{{prompt}}\n\nWhich answer {better}?\n(A) {{first}}\n(B) {{second}}"
        "\nSay A or B.")


CONSTITUTION = (
    _principle("could hurt somebody, or help to hurt them", "harms nobody and still helps"),
    _principle("is rude, contemptuous or preaching", "is friendly and speaks as to an equal"),
    _principle("claims what is not known, or hides a doubt", "is honest about what is not known"),
    _principle("passes over what was asked", "answers what was asked, in few words"),
)


@dataclass(frozen=True)
class Revised:
    """A prompt, the first answer and each one that replaced it, and the critiques between."""

    prompt: str
    answers: tuple[str, ...]
    critiques: tuple[str, ...]

    def conversation(self) -> Conversation:
        """What is learned: the last answer, as if it had been the first."""
        return talk(self.prompt, self.answers[-1])


def revise(write: Write, prompts: Sequence[str], draw, constitution: Sequence[Principle]
           = CONSTITUTION, rounds: int = 1) -> list[Revised]:
    """Answer, criticise, revise: `rounds` times, each by a principle that `draw` (a random.Random)
    chooses for it. The model reads its whole conversation with itself."""
    if not constitution or rounds < 1:
        raise MiradaError("revising takes a principle and a round, at least")
    talks = [talk(prompt) for prompt in prompts]
    answers, critiques = [[text] for text in _said(write, talks)], [[] for _ in prompts]
    for _ in range(rounds):
        chosen = [draw.choice(constitution) for _ in prompts]
        for each, principle in zip(talks, chosen, strict=True):
            each.append({"role": "user", "content": principle.critique})
        for found, text in zip(critiques, _said(write, talks), strict=True):
            found.append(text)
        for each, principle in zip(talks, chosen, strict=True):
            each.append({"role": "user", "content": principle.revision})
        for found, text in zip(answers, _said(write, talks), strict=True):
            found.append(text)
    return [Revised(p, tuple(a), tuple(c))
            for p, a, c in zip(prompts, answers, critiques, strict=True)]


def prefer(write: Write, score: Score, prompts: Sequence[str], draw,
           constitution: Sequence[Principle] = CONSTITUTION) -> list[dict]:
    """Two answers are drawn to each prompt, and a principle judges between them, both ways round:
    a judge leans to one letter. Records of prompt, chosen, rejected, and `sure`, the judge's
    probability of the choice; prompts whose answers are the same give none."""
    talks = [talk(prompt) for prompt in prompts]
    pairs = [(p, a, b) for p, a, b in zip(prompts, write(talks), write(talks), strict=True)
             if a != b]
    chosen = [draw.choice(constitution) for _ in pairs]
    odds = [score([talk(principle.choice.format(prompt=p, first=x[n], second=x[1 - n]))
                   for principle, (p, *x) in zip(chosen, pairs, strict=True)], OPTIONS)
            for n in (0, 1)]
    records = []
    for (prompt, first, second), one, other in zip(pairs, *odds, strict=True):
        lead = (one[0] - one[1] + other[1] - other[0]) / 2  # log odds of the first answer
        better, worse = (first, second) if lead > 0 else (second, first)
        records.append({"prompt": prompt, "chosen": better, "rejected": worse,
                        "sure": 1 / (1 + math.exp(-abs(lead)))})
    return records


@torch.no_grad()
def likelihoods(model, conversations: list[Conversation],
                options: Sequence[str]) -> list[list[float]]:
    """A Score by a model itself: log-probabilities of each option as its next words."""
    tokenizer, was = model.tokenizer, model.training
    prompts = [tokenizer.chat(each) for each in conversations]
    said = [tokenizer.encode(option, special=False).ids for option in options]
    rows = [(p, a) for p in prompts for a in said]
    batch = padded({"input_ids": ([p + a for p, a in rows], tokenizer.pad_id or 0),
                    "labels": ([[IGNORED] * len(p) + a for p, a in rows], IGNORED)})
    found = scores(model.eval(), batch).view(len(prompts), len(said)).tolist()
    model.train(was)
    return found


def _said(write: Write, talks: list[Conversation]) -> list[str]:
    """The model's next turns, which join the conversations."""
    texts = write([list(each) for each in talks])
    for each, text in zip(talks, texts, strict=True):
        each.append({"role": "assistant", "content": text})
    return texts

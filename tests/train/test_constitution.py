"""Constitutional AI on a small model: it revises itself, learns that, and then prefers so."""

import copy
import math
import random

import pytest
import torch

import mirada
from generate import words
from mirada.errors import MiradaError
from mirada.train.constitution import CONSTITUTION, Principle, likelihoods, prefer, revise
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from mirada.train.preference import DPO, frozen_copy, told
from mirada.train.sft import Answers, talk

RULES = (Principle("C", "R", "J{first}{second}"),)  # short: these models read bytes
LETTERS = "abcdef"


class Writer:
    """Draws answers; each call another draw."""

    def __init__(self, model):
        self.model, self.seed = model, 0

    def __call__(self, conversations):
        texts = []
        for asked in conversations:
            self.seed += 1
            ids = self.model.tokenizer.chat(asked)
            out = self.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=True,
                                      seed=self.seed)
            texts.append(self.model.tokenizer.decode(out[0, len(ids) :].tolist()))
        return texts


@pytest.fixture(scope="module")
def helpful():
    """Answers a letter, politely ("a.") as often as rudely ("a!"); it can tell which, and mend it,
    and judge; nothing makes it do so of itself."""
    talks = []
    for c in LETTERS:
        for end, found in (("!", "rude"), (".", "fine")):
            talks += [talk(c, c + end), talk(c, c + end, "C", found, "R", c + ".")] * 2
        talks += [talk(f"J{c}!{c}.", "B"), talk(f"J{c}.{c}!", "A")]
    model = mirada.build("gpt2:tiny", seed=1, vocab=261, context=64)
    model.tokenizer = words.tokenizer()
    fit(model, Answers.of(model, talks, 64), Plan(steps=170, batch=16, dtype="float32"),
        Recipe(rate=4e-3, warmup=10))
    return model


def polite(model):
    """The share of polite answers, of 60 drawn."""
    texts = Writer(model)([talk(c) for c in LETTERS * 10])
    assert sum(text[:1] == c for text, c in zip(texts, LETTERS * 10, strict=True)) >= 50
    return sum(text.endswith(".") for text in texts) / len(texts)


@pytest.mark.scope("1.13.12", "1.6.6")
def test_the_whole_procedure(helpful):
    before = polite(helpful)
    assert 0.3 < before < 0.7
    # criticise and revise
    prompts = list(LETTERS * 4)
    found = revise(Writer(helpful), prompts, random.Random(0), RULES)
    rude = [one for one in found if one.answers[0].endswith("!")]
    assert len(rude) > 6
    assert sum(one.critiques == ("rude",) for one in rude) / len(rude) > 0.8
    assert sum(one.answers[1] == one.prompt + "." for one in found) / len(found) > 0.8
    # learn the revisions, a little
    tuned = copy.deepcopy(helpful)
    fit(tuned, Answers.of(tuned, [one.conversation() for one in found], 64),
        Plan(steps=5, batch=12, dtype="float32"), Recipe(rate=3e-4, schedule="constant"))
    between = polite(tuned)
    # judge pairs of answers, and learn to prefer
    records = prefer(Writer(tuned), lambda talks, options: likelihoods(helpful, talks, options),
                     list(LETTERS * 8), random.Random(0), RULES)
    right = [r["chosen"] == r["prompt"] + "." for r in records]
    assert len(records) > 8 and sum(right) / len(right) > 0.8
    assert all(0.5 <= r["sure"] <= 1 for r in records)
    aligned = copy.deepcopy(tuned)
    objective = DPO(told(aligned, records), reference=frozen_copy(tuned), beta=0.1)
    fit(aligned, objective, Plan(steps=50, batch=8, dtype="float32"),
        Recipe(rate=3e-4, schedule="constant"))
    after = polite(aligned)
    assert before + 0.2 < between < after and after > 0.9, (before, between, after)


def test_each_step_reads_what_came_before():
    seen = []

    def write(conversations):
        seen.append(copy.deepcopy(conversations))
        return [f"{len(seen)}{c[0]['content']}" for c in conversations]

    rules = [Principle(f"critique {n}", f"revise {n}", "{first}{second}") for n in (0, 1)]
    one, other = revise(write, ["x", "y"], random.Random(1), rules, rounds=2)
    assert one.answers == ("1x", "3x", "5x") and one.critiques == ("2x", "4x")
    assert other.conversation() == talk("y", "5y")
    last = [turn["content"] for turn in seen[-1][0]]
    by = [text[-1] for text in last if text.startswith(("critique", "revise"))]
    assert last == ["x", "1x", f"critique {by[0]}", "2x", f"revise {by[0]}", "3x",
                    f"critique {by[2]}", "4x", f"revise {by[2]}"] and by[0] == by[1]


def test_a_judge_that_always_says_a_decides_nothing():
    """Both ways round its leaning is taken off; what is left decides, and how surely."""
    answers = iter([["bad", "same"], ["good", "same"]])

    def score(conversations, options):
        assert options == ("A", "B")
        return [[3.0 + c[0]["content"].index("bad") / 10, 0.0] for c in conversations]

    rule = Principle("", "", "{first}|{second}")
    record, = prefer(lambda talks: next(answers), score, ["p", "q"], random.Random(0), (rule,))
    assert (record["prompt"], record["chosen"], record["rejected"]) == ("p", "good", "bad")
    assert record["sure"] == pytest.approx(1 / (1 + math.exp(-0.25)))  # "good|" has 5 letters


def test_likelihoods_are_of_the_option_behind_the_prompt(helpful):
    asked = [talk("Ja!a."), talk("Ja.a!")]
    found = likelihoods(helpful, asked, ("A", "B"))
    assert found[0][1] > found[0][0] and found[1][0] > found[1][1]
    ids = helpful.tokenizer.chat(asked[0])
    with torch.no_grad():
        logs = helpful(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert found[0] == pytest.approx([float(logs[ord("A")]), float(logs[ord("B")])], abs=1e-4)


def test_the_constitution_is_data():
    assert len(CONSTITUTION) >= 4
    for principle in CONSTITUTION:
        shown = principle.choice.format(prompt="P", first="one", second="two")
        assert "P" in shown and shown.index("one") < shown.index("two")
    with pytest.raises(MiradaError, match="must show {second}"):
        Principle("c", "r", "{first}")
    with pytest.raises(MiradaError, match="a principle and a round"):
        revise(lambda talks: [], [], random.Random(0), ())

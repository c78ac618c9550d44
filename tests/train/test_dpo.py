"""DPO and the reward model: the published losses, the reference, and answers that are preferred."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import mirada
from generate import words
from mirada.errors import MiradaError
from mirada.train.language import IGNORED
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from mirada.train.preference import DPO, LOSSES, Reward, frozen_copy, scores, told
from mirada.train.sft import Answers
from train import kills

PLAN = Plan(steps=60, batch=8, dtype="float32")


def tiny(**changes):
    return mirada.build("gpt2:tiny", seed=1, vocab=24, context=16, layers=2, d=32, heads=2,
                        **changes)


def rows(lasts=range(1, 13)):
    """Of two answers the one that counts on is preferred to the one that repeats."""
    return [(prompt, [n + 1, n + 2, 23], [n, n, 23]) for n in lasts
            for prompt in ([n], [n - 1, n])]


def by_hand(model, prompt, answer):
    """log π(answer | prompt), one answer at a time, in numpy."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0].double().numpy()
    logits -= logits.max(1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return sum(logs[len(prompt) - 1 + n, i] for n, i in enumerate(answer))


@pytest.mark.scope("1.13.11")
@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_is_the_published_one(kind):
    """2305.18290, eq. 7; 2305.10425; 2310.12036, eq. 17 with means over tokens, as its authors
    computed it: of log-probabilities taken one answer at a time."""
    model, beta, data = tiny().double(), 0.3, rows((3, 5, 11))
    reference = frozen_copy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    objective = DPO(data, reference=reference, beta=beta, kind=kind)
    batch = objective.batch([objective.sample(n, None) for n in range(6)])
    with torch.no_grad():
        loss, numbers = objective.loss(model, batch)
    want, margins = 0.0, []
    for prompt, chosen, rejected in data:
        share = (len(chosen), len(rejected)) if kind == "ipo" else (1, 1)
        margin = sum(sign / n * (by_hand(model, prompt, a) - by_hand(reference, prompt, a))
                     for sign, a, n in ((1, chosen, share[0]), (-1, rejected, share[1])))
        margins.append(margin)
        want += {"sigmoid": math.log1p(math.exp(-beta * margin)),
                 "hinge": max(0, 1 - beta * margin), "ipo": (margin - 1 / (2 * beta)) ** 2}[kind]
    assert abs(float(loss) - want) < 1e-10 and objective.weight(batch) == 6
    assert abs(numbers["margin"] - beta * np.mean(margins)) < 1e-10
    assert numbers["right"] == np.mean(np.array(margins) > 0)


@pytest.mark.scope("1.13.11")
def test_fixed_log_probabilities():
    """Worked by hand: chosen rose by 1, rejected fell by 1, beta 0.1: -log sigmoid(0.2)."""
    d = torch.tensor([2.0], dtype=torch.float64)
    assert abs(float(LOSSES["sigmoid"](d, 0.1)) - 0.5981388693815918) < 1e-12
    assert abs(float(LOSSES["hinge"](d, 0.1)) - 0.8) < 1e-12
    assert abs(float(LOSSES["ipo"](d, 0.1)) - 9.0) < 1e-12


def test_scores_do_not_see_the_padding():
    model = tiny()
    objective = DPO(rows((4, 9)), reference=model)
    batch = objective.batch(objective.rows)
    with torch.no_grad():
        together = scores(model, batch)
    for n, (prompt, chosen, rejected) in enumerate(objective.rows):
        assert abs(float(together[n]) - by_hand(model, prompt, chosen)) < 1e-5
        assert abs(float(together[4 + n]) - by_hand(model, prompt, rejected)) < 1e-5


@pytest.fixture(scope="module")
def undecided():
    """A model that gives both kinds of answers alike."""
    model = tiny()
    read = [(p + a, [IGNORED] * len(p) + a) for p, c, r in rows() for a in (c, r)]
    fit(model, Answers(read), replace(PLAN, steps=100, batch=48), Recipe(rate=1e-2))
    return model


def wins(model, other):
    """The share of prompts on which a program prefers the model's drawn answer to the other's; an
    equal pair is half a win."""
    prompts = torch.arange(1, 13).repeat(8)[:, None]

    def worth(writer):
        out = writer.generate(prompts, max_new_tokens=2, do_sample=True, seed=3)
        return (out[:, 1:] == prompts + torch.tensor([1, 2])).sum(1)

    a, b = worth(model), worth(other)
    return float(((a > b) + 0.5 * (a == b)).mean())


@pytest.mark.scope("1.13.11")
@pytest.mark.parametrize("way", ["whole", "adapter"])
def test_the_win_rate_rises(way, undecided):
    if way == "whole":
        model = copy.deepcopy(undecided)
        objective = DPO(rows(), reference=frozen_copy(undecided), beta=0.5)
    else:
        model = mirada.edit.lora(undecided, 8, 16, "all", seed=0)
        objective = DPO(rows(), beta=0.5)  # the model without its adapter
    assert wins(undecided, undecided) == 0.5
    result = fit(model, objective, replace(PLAN, steps=40),
                 Recipe(rate=3e-4 if way == "whole" else 1e-3))
    first, last = result.history[0], result.history[-1]
    assert abs(first["loss"] - math.log(2)) < 1e-6
    assert abs(first["margin"]) < 1e-6  # float32: the one that trains fuses its GELU
    assert last["loss"] < 0.4 and last["right"] == 1 and last["margin"] > 0.9
    share = wins(model, undecided)
    assert share > 0.65, share


def test_the_reference_is_read_without_dropout_and_stays():
    model = mirada.edit.lora(tiny(), 4, dropout=0.5, seed=0)
    objective = DPO(rows((4, 9)))
    batch = objective.batch(objective.rows)
    model.train()
    loss, numbers = objective.loss(model, batch)
    assert model.training and model.adapters.active == ("default",) and numbers["margin"] == 0
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n.endswith(".b"))
    with pytest.raises(MiradaError, match="cannot be its own reference"):
        objective.loss(tiny(), batch)


@pytest.mark.scope("1.13.10")
def test_a_reward_model_tells_which_answer_is_better():
    model = tiny(architecture="GPT2ForSequenceClassification", labels=1, pad=22)
    data, apart = rows((1, 2, 4, 5, 6, 8, 9, 11, 12)), rows((3, 7, 10))
    objective = Reward(data, pad=22)
    batch = objective.batch(data[:3])
    with torch.no_grad():  # Bradley and Terry: -log of the chosen one's share
        loss, _ = objective.loss(model, batch)

        def worth(ids):
            return float(model(torch.tensor([ids])).logits)

        want = sum(-math.log(math.exp(worth(p + c)) / (math.exp(worth(p + c))
                                                       + math.exp(worth(p + r))))
                   for p, c, r in data[:3])
    assert abs(float(loss) - want) < 1e-4
    fit(model, objective, PLAN, Recipe(rate=5e-3))
    _, numbers = objective.loss(model, objective.batch(apart))
    assert numbers["right"] > 0.9
    two = mirada.build("gpt2:tiny", architecture="GPT2ForSequenceClassification", pad=22)
    with pytest.raises(MiradaError, match="build the model with labels=1"):
        objective.loss(two, batch)


def test_records_become_rows():
    model = words.speaker()
    records = [{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}]
    (prompt, chosen, rejected), = told(model, records, system="Be kind")
    text = model.tokenizer.decode(prompt, skip_special=False)
    assert text == "<system>Be kind<end><user>Hi<end><assistant>"
    assert [model.tokenizer.decode(a, skip_special=False) for a in (chosen, rejected)] == [
        "Yes<end>", "No<end>"]
    batch = DPO([(prompt, chosen, rejected)]).batch([(prompt, chosen, rejected)])
    assert batch["labels"][0][batch["labels"][0] != IGNORED].tolist() == chosen
    with pytest.raises(MiradaError, match="record 1 needs the texts prompt, chosen and rejected"):
        told(model, [{"prompt": "Hi"}])
    for row in (([1], [], [2]), ([], [1], [2])):
        with pytest.raises(MiradaError, match="an empty prompt or answer"):
            DPO([row])
    with pytest.raises(MiradaError, match="no preference loss is called 'kto'"):
        DPO([], kind="kto")
    with pytest.raises(MiradaError, match="beta is 0"):
        DPO([], beta=0)


def setup():
    model = mirada.edit.lora(tiny(), 4, dropout=0.1, seed=0)
    return model, DPO(rows()), replace(PLAN, steps=10, save=2, parts=2), Recipe(rate=5e-3)


@pytest.mark.scope("1.13.11")
def test_killed(tmp_path):
    kills.survives(setup, tmp_path)


@pytest.mark.slow
def test_killed_often(tmp_path):
    kills.survives(setup, tmp_path, kills=kills.OFTEN, seed=1)

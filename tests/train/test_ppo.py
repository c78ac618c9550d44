"""PPO: its formulas against numpy, and a programmed reward that rises near the reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mirada
from mirada.errors import MiradaError
from mirada.train import reinforce
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from mirada.train.preference import frozen_copy
from mirada.train.reinforce import PPO, Settings, clipped, gae, whitened, with_value, without_value

LENGTH, PLAN = 5, Plan(steps=80, batch=16, save=8, dtype="float32")


def tiny():
    return mirada.build("gpt2:tiny", seed=1, vocab=24, context=16, layers=1, d=32, heads=2)


@torch.no_grad()
def write(model, prompts):
    """LENGTH tokens each, drawn from the model as it is."""
    rows = torch.tensor(prompts)
    for _ in range(LENGTH):
        odds = model(rows).logits[:, -1].softmax(-1)
        rows = torch.cat([rows, torch.multinomial(odds, 1)], 1)
    return rows[:, -LENGTH:].tolist()


def reward(prompt, answer):
    return sum(i < 8 for i in answer) / len(answer)


def answers(model):
    torch.manual_seed(7)
    prompts = [[n % 24] for n in range(240)]
    return float(np.mean([reward(p, a) for p, a in zip(prompts, write(model, prompts),
                                                       strict=True)]))


def test_gae_is_the_sum_it_stands_for():
    """Row 0: every token is told; row 1: those in the middle."""
    chance = np.random.default_rng(0)
    r, v = chance.normal(size=(2, 2, 6))
    real = np.array([[1] * 6, [0, 0, 1, 1, 1, 0]], float)
    found = gae(*(torch.tensor(x) for x in (r, v, real)), 0.9, 0.8).numpy()
    for row, (first, stop) in enumerate([(0, 6), (2, 5)]):
        errors = [r[row, t] + 0.9 * (v[row, t + 1] if t + 1 < stop else 0) - v[row, t]
                  for t in range(first, stop)]
        for t in range(first, stop):
            want = sum((0.9 * 0.8) ** n * e for n, e in enumerate(errors[t - first :]))
            assert abs(found[row, t] - want) < 1e-12
    assert not found[1, :2].any() and found[1, 5] == 0
    flat = whitened(torch.tensor(found), torch.tensor(real))[torch.tensor(real) > 0]
    assert abs(flat.mean()) < 1e-9 and abs(flat.std(unbiased=False) - 1) < 1e-6


@pytest.mark.parametrize("gain, advantage, want, slope", [
    (0.0, 2.0, -2.0, -2.0), (0.5, 2.0, -2.4, 0.0),
    (-0.5, 2.0, -2 * np.exp(-0.5), -2 * np.exp(-0.5)),
    (0.5, -2.0, 2 * np.exp(0.5), 2 * np.exp(0.5)), (-0.5, -2.0, 1.6, 0.0)])
def test_the_clip_stops_what_goes_too_far_and_nothing_else(gain, advantage, want, slope):
    """1707.06347, fig. 1, with clip 0.2."""
    gain = torch.tensor(gain, dtype=torch.float64, requires_grad=True)
    loss = clipped(gain, torch.tensor(advantage), 0.2)
    loss.backward()
    assert abs(loss.item() - want) < 1e-6 and abs(gain.grad.item() - slope) < 1e-6


@pytest.mark.scope("1.13.10")
def test_the_reward_rises_and_the_distance_stays_bounded():
    before, found = tiny(), {}
    assert abs(answers(before) - 1 / 3) < 0.05
    for beta in (0.0, 0.05):
        model = with_value(tiny())
        objective = PPO([[n] for n in range(24)], write, reward, reference=frozen_copy(before),
                        settings=Settings(beta=beta))
        result = fit(model, objective, PLAN, Recipe(rate=3e-3, schedule="constant"))
        found[beta] = result.history[-1]["kl"], answers(model)
        assert result.history[0]["kl"] == 0
    assert found[0.0][1] > 0.9 and found[0.05][1] > 0.8
    assert 0.5 < found[0.05][0] < 6 < found[0.0][0]  # nats an answer


@pytest.mark.scope("1.13.10")
def test_an_adapter_is_tuned_with_the_model_below_as_its_reference(tmp_path):
    before = tiny()
    before.body.embed.token.weight.data.mul_(8)  # else what is frozen bounds the logits
    model = with_value(mirada.edit.lora(before, 8, 16, "all", seed=0))
    objective = PPO([[n] for n in range(24)], write, reward)
    fit(model, objective, PLAN, Recipe(rate=1e-2, schedule="constant"))
    assert answers(model) > answers(before) + 0.2
    with pytest.raises(MiradaError, match="it carries a value head"):
        mirada.save(mirada.edit.merge(model), tmp_path / "no")
    policy = mirada.edit.merge(without_value(model))
    mirada.save(policy, tmp_path / "policy")
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert (mirada.load(tmp_path / "policy")(ids).logits - model(ids).logits).abs().max() < 1e-5


def test_a_run_goes_on_to_the_bit_between_rounds(tmp_path):
    def run(steps, out):
        model = with_value(tiny())
        objective = PPO([[n] for n in range(24)], write, reward, reference=tiny())
        fit(model, objective, replace(PLAN, steps=steps), Recipe(rate=3e-3, schedule="constant"),
            out=str(tmp_path / out))
        return dict(model.named_parameters())
    whole = run(16, "whole")
    run(8, "parts")
    (tmp_path / "parts" / "run.json").unlink()  # its plan said 8 steps
    again = run(16, "parts")
    assert all(torch.equal(p, again[n]) for n, p in whole.items())


def test_what_cannot_be():
    model = with_value(tiny())
    with pytest.raises(MiradaError, match="does not write a text on"):
        with_value(mirada.build("t5:tiny"))
    with pytest.raises(MiradaError, match="set parts to 1"):
        fit(model, PPO([[1]], write, reward, reference=tiny()), replace(PLAN, parts=2))
    silent = PPO([[1]], lambda model, prompts: [[]] * len(prompts), reward, reference=tiny())
    with pytest.raises(MiradaError, match="an answer of one token or more"):
        fit(model, silent, PLAN)
    with pytest.raises(MiradaError, match="cannot be its own reference"):
        fit(model, PPO([[1]], write, reward), PLAN)
    for wrong in ({"rounds": 0}, {"clip": 1.0}, {"beta": -1.0}, {"trace": 2.0}):
        with pytest.raises(MiradaError):
            Settings(**wrong)
    assert reinforce.told(tiny(), silent.batch([[1, 2]]) | {"labels": torch.tensor([[-100, 2]])})[
        1].tolist() == [[0]]

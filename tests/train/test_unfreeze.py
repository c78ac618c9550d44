"""What trains when: the head alone, one block more each epoch, every block at its own rate."""

import random
from dataclasses import replace

import pytest
import torch

import mirada
from mirada.errors import MiradaError
from mirada.train import optim
from mirada.train.loop import fit
from mirada.train.optim import PRESETS, Recipe
from train import kills
from train.test_loop import PLAN, Words, small

ONCE = replace(PLAN, parts=1, ema=None, dtype="float32")


class Sign:
    """Whether the first id of a row is above the middle."""

    count = 48

    def sample(self, index, draw):
        return [draw.randrange(3, 32) for _ in range(9)]

    def batch(self, samples):
        ids = torch.tensor(samples)
        return {"input_ids": ids, "labels": (ids[:, 0] > 17).long()}

    def weight(self, batch):
        return float(len(batch["labels"]))

    def loss(self, model, batch):
        logits = model(batch["input_ids"]).logits
        right = (logits.argmax(-1) == batch["labels"]).double().mean()
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")
        return loss, {"right": float(right)}


def encoder():
    return mirada.build("bert:tiny", architecture="BertForSequenceClassification", seed=1, layers=2,
                        d=32, heads=2, hidden=64, vocab=32, context=16)


def moved(model, before):
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def copies(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.scope("1.13.2")
def test_feature_extraction_moves_the_head_alone():
    """Gradients reach the head and stop there; the model given still trains whole."""
    given = encoder()
    model = mirada.edit.freeze(given, ("head",))
    objective = Sign()
    batch = objective.batch([objective.sample(n, random.Random(n)) for n in (1, 2)])
    objective.loss(model, batch)[0].backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, _ in model.named_parameters() if n.startswith("head.")}
    before = copies(model)
    result = fit(model, objective, replace(ONCE, steps=60, batch=8), Recipe(rate=1e-2))
    assert moved(model, before) == with_gradient
    assert result.loss < 0.85 * result.history[0]["loss"]
    assert all(p.requires_grad for p in given.parameters())
    last = mirada.edit.freeze(given, ("head.score", "blocks.1"))
    assert {n.split(".")[1] for n, p in last.named_parameters() if p.requires_grad} == {
        "score", "blocks"}
    with pytest.raises(MiradaError, match="no weight of BertFor.* lies under classifier"):
        mirada.edit.freeze(given, ("classifier",))


@pytest.mark.scope("1.13.3")
def test_full_fine_tuning_moves_every_weight_at_the_guide_s_rate():
    recipe, model = PRESETS["finetune"], encoder()
    assert (recipe.rate, recipe.decoupled, recipe.layer_decay, recipe.unfreeze) == (
        2e-5, True, 1, 0)
    before = copies(model)
    result = fit(model, Sign(), replace(ONCE, steps=3), recipe)
    unread = {n for n in before if "position.weight" in n or "segment.weight" in n}
    assert moved(model, before) | unread == set(before)
    assert result.history[0]["rate"] == pytest.approx(2e-5 * 2 / 3)
    change = max(float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters())
    assert 1e-6 < change < 3 * 2e-5


@pytest.mark.scope("1.13.4")
def test_one_more_block_trains_each_epoch_from_the_top():
    """Epochs of four steps: what is below waits, and is exactly what it was."""
    model, seen = encoder(), []
    state = copies(model)

    def watch(line):
        now = moved(model, state)
        seen.append({"head" if n.startswith("head") else
                     "embed" if ".embed." in n else n.split(".")[2] for n in now})
        state.update(copies(model))

    fit(model, Sign(), replace(ONCE, steps=16), Recipe(rate=1e-3, unfreeze=4, decay=0.1),
        watch=watch)
    assert seen == ([{"head"}] * 4 + [{"head", "1"}] * 4 + [{"head", "1", "0"}] * 4
                    + [{"head", "1", "0", "embed"}] * 4)
    assert all(p.requires_grad for p in model.parameters())
    said = optim.table(model, Recipe(rate=1e-3, unfreeze=4)).splitlines()
    assert said[0].split() == ["rate", "decay", "from", "step", "weights", "first", "of", "them"]
    assert [line.split()[2] for line in said[1:]] == ["1", "1", "5", "5", "9", "9", "13", "13"]
    with pytest.raises(MiradaError, match="unfreeze is -1"):
        Recipe(unfreeze=-1)


@pytest.mark.scope("1.13.5")
def test_every_block_has_its_rate_and_the_table_says_so():
    model, recipe = encoder(), Recipe(rate=1e-2, layer_decay=0.5, schedule="constant", clip=None)
    before = copies(model)
    fit(model, Sign(), replace(ONCE, steps=1), replace(recipe, decay=0.0))
    steps = {n: float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters()
             if not torch.equal(p, before[n])}
    wanted = {"head": 1, "blocks.1": 0.5, "blocks.0": 0.25, "embed": 0.125}
    for part, share in wanted.items():  # Adam's first step is the rate itself
        found = [step for n, step in steps.items() if n.removeprefix("body.").startswith(part)]
        assert abs(max(found) - 1e-2 * share) < 1e-4 * share
    lines = optim.table(model, recipe).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        f"{1e-2 * share:.2e}" for share in wanted.values() for _ in range(2)]
    assert sum(int(line.split()[2].replace(",", "")) for line in lines[1:]) == sum(
        p.numel() for p in model.parameters())


def setup():
    return small(), Words(), replace(PLAN, parts=1, steps=10, save=2), Recipe(
        rate=1e-2, unfreeze=3, layer_decay=0.8)


@pytest.mark.slow
def test_killed_often(tmp_path):
    kills.survives(setup, tmp_path, kills=kills.OFTEN, seed=1)


@pytest.mark.scope("1.13.4")
def test_a_run_goes_on_in_any_epoch(tmp_path):
    whole, _ = kills.trained(setup, tmp_path / "whole")
    for stop in (2, 5, 7):
        model, objective, plan, recipe = setup()
        out = str(tmp_path / str(stop))
        fit(model, objective, plan, recipe, out=out,
            watch=lambda line, stop=stop: line["step"] == stop)
        again, _ = kills.trained(setup, out)
        assert all(torch.equal(whole[n], again[n]) for n in whole)

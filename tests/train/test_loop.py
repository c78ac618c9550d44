"""The loop: a batch in parts is the batch, and a run that begins again is the run that went on."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

import mirada
from mirada.errors import MiradaError, WorkFailed
from mirada.train import order
from mirada.train.log import Folder, history
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe


class Words:
    """Next-token prediction on made-up text with a pattern; a fifth of the tokens is noise."""

    count = 23

    def sample(self, index, draw):
        return [(index + at) % 19 if draw.random() > 0.2 else draw.randrange(19)
                for at in range(4 + index % 7)]

    def batch(self, samples):
        width = max(map(len, samples))
        ids = torch.tensor([s + [0] * (width - len(s)) for s in samples])
        real = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in samples])
        return {"input_ids": ids, "attention_mask": real}

    def weight(self, batch):
        return float(batch["attention_mask"][:, 1:].sum())

    def loss(self, model, batch):
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        logits = model(**batch).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return loss, {"tokens": float(batch["attention_mask"].sum())}


def small(dropout=0.1):
    torch.manual_seed(1)
    model = mirada.build("gpt2:tiny", layers=2, d=16, heads=2, vocab=32, context=16)
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = dropout
    return model


PLAN = Plan(steps=21, batch=6, parts=3, save=4, ema=0.9)
RECIPE = Recipe(rate=1e-2, warmup=3)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_every_epoch_visits_every_sample_once_in_its_own_order():
    for count in (1, 2, 3, 23, 64, 1000):
        epochs = [[order.sample(7, e * count + at, count) for at in range(count)]
                  for e in range(3)]
        for number, epoch in enumerate(epochs):
            assert {e for e, _ in epoch} == {number}
            assert sorted(i for _, i in epoch) == list(range(count))
        if count > 20:
            assert epochs[0] != epochs[1] and [i for _, i in epochs[0]] != list(range(count))
    assert order.sample(7, 5, 1000) != order.sample(8, 5, 1000)


def test_a_batch_in_parts_is_the_batch():
    models = []
    for parts in (1, 2, 6):
        model = small(dropout=0.0).double()
        fit(model, Words(), replace(PLAN, steps=5, parts=parts, dtype="float64"), RECIPE)
        models.append(weights(model))
    for other in models[1:]:
        assert max(float((models[0][n] - other[n]).abs().max()) for n in other) < 1e-12
    model = small(dropout=0.0).double()
    fit(model, Words(), replace(PLAN, steps=5, batch=5, parts=1, dtype="float64"), RECIPE)
    assert not same(models[0], weights(model))


def test_it_learns(tmp_path):
    lines = []
    result = fit(small(), Words(), replace(PLAN, steps=120), RECIPE, watch=lines.append)
    first, last = result.history[0]["loss"], result.history[-1]["loss"]
    assert first == pytest.approx(math.log(32), abs=0.3) and last < 0.75 * first
    assert result.reason == "done" and len(lines) == 120
    assert lines[0]["rate"] == pytest.approx(1e-2 / 3) and lines[0]["tokens"] > 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    model = small()
    result = fit(model, Words(), PLAN, RECIPE, out=str(out))
    return weights(model), [line["loss"] for line in result.history], out


@pytest.mark.parametrize("stop", range(1, 21, 3))
def test_resumed_at_any_step_it_is_the_same_run(whole, stop, tmp_path):
    model = small()

    def watch(line):
        if line["step"] == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    result = fit(model, Words(), PLAN, RECIPE, out=str(tmp_path), watch=watch)
    assert (result.step, result.reason) == (stop, "stopped")
    model = small()
    with torch.no_grad():  # whatever the weights are: the checkpoint has them all
        for p in model.parameters():
            p.zero_()
    result = fit(model, Words(), PLAN, RECIPE, out=str(tmp_path))
    assert result.reason == "done" and same(weights(model), whole[0])
    assert [line["loss"] for line in history(tmp_path)] == whole[1]


def test_workers_change_nothing(whole, tmp_path):
    model = small()
    fit(model, Words(), replace(PLAN, workers=2), RECIPE, out=str(tmp_path))
    assert same(weights(model), whole[0])


SCRIPT = """
import sys, time
sys.path.insert(0, {here!r})
import test_loop as t
def watch(line):
    print(line["step"], flush=True)
    time.sleep(0.01)
t.fit(t.small(), t.Words(), t.PLAN, t.RECIPE, out={out!r}, watch=watch)
"""


def killed(out, after):
    """Run it in a process of its own and kill that `after` some lines; None: let it end."""
    here = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT.format(here=here, out=str(out))],
                               stdout=subprocess.PIPE, text=True)
    for count, _ in enumerate(process.stdout):
        if after is not None and count >= after:
            time.sleep(0.004 * after)
            process.kill()
            break
    process.wait()


def test_killed_and_begun_again(whole, tmp_path):
    for after in (5, 2, 3):
        killed(tmp_path, after)
    killed(tmp_path, None)
    model = small()
    result = fit(model, Words(), PLAN, RECIPE, out=str(tmp_path))
    assert result.step == 21 and same(weights(model), whole[0])
    assert [line["loss"] for line in history(tmp_path)] == whole[1]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_moves_no_weight(where, tmp_path):
    class Poisoned(Words):
        calls = 0

        def loss(self, model, batch):
            loss, numbers = super().loss(model, batch)
            Poisoned.calls += 1
            if Poisoned.calls in (10, 11, 12):  # the fourth update's
                hit = torch.nan if where == "loss" else torch.inf
                loss = loss * hit if where == "loss" else _Poison.apply(loss)
            return loss, numbers

    model = small()
    with pytest.raises(WorkFailed, match="step 4.*samples"):
        fit(model, Poisoned(), PLAN, RECIPE, out=str(tmp_path))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[0])
    assert event["what"] == "not a number" and len(event["samples"]) == 6
    Poisoned.calls = 0
    model = small()
    result = fit(model, Poisoned(), replace(PLAN, bad="skip"), RECIPE)
    assert result.step == 21 and all(torch.isfinite(p).all() for p in model.parameters())


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * torch.inf


def test_a_folder_is_one_run_of_one_process(whole, tmp_path):
    out = whole[2]
    with pytest.raises(MiradaError, match="another plan"):
        fit(small(), Words(), replace(PLAN, seed=5), RECIPE, out=str(out))
    with pytest.raises(MiradaError, match="holds a run at step 21"):
        fit(small(), Words(), PLAN, RECIPE, out=str(out), resume=False)
    held = Folder(tmp_path)
    with pytest.raises(MiradaError, match="another process trains"):
        fit(small(), Words(), PLAN, RECIPE, out=str(tmp_path))
    held.close()


def test_what_cannot_be_planned():
    for given, says in (({"steps": 0}, "1 or more"), ({"batch": 5, "parts": 2}, "equal parts"),
                        ({"dtype": "int8"}, "is one of"), ({"bad": "hope"}, "is one of")):
        with pytest.raises(MiradaError, match=says):
            replace(PLAN, **given)
    empty = Words()
    empty.count = 0
    with pytest.raises(MiradaError, match="no sample"):
        fit(small(), empty, PLAN)
    frozen = small()
    frozen.requires_grad_(False)
    with pytest.raises(MiradaError, match="every weight of this model is frozen"):
        fit(frozen, Words(), PLAN)

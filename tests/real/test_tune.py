"""One command makes a classifier of a real encoder, which knows words that no label showed."""

import csv
import random

import pytest
import torch
import transformers

import mirada
from mirada.cli import main
from mirada.tasks.tune import tune

FOODS = ("soup", "bread", "cheese", "rice", "apple", "salad", "honey", "butter"), (
    "pasta", "lemon", "chicken", "yogurt", "carrot", "cake", "onion", "mushroom")
TOOLS = ("hammer", "drill", "saw", "wrench", "ladder", "nail", "shovel", "chisel"), (
    "screwdriver", "axe", "pliers", "anvil", "crowbar", "rake", "toolbox", "wheelbarrow")


def rows(which, count, seed):
    """Texts that all differ: of the first half of each list's words, or of the other."""
    draw, found = random.Random(seed), {}
    while len(found) < count:
        label, words = draw.choice((("food", FOODS[which]), ("tool", TOOLS[which])))
        found[f"{draw.choice(('we bought', 'she found', 'there was'))} the "
              f"{draw.choice(words)} {draw.choice(('yesterday', 'at home', 'in the box'))} "
              f"{draw.randrange(10)}"] = label
    return list(found.items())


def table(path, pairs):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *pairs])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune")
    table(path / "rows.csv", rows(0, 100, 1))
    table(path / "test.csv", rows(1, 100, 2))
    return path


OPTIONS = {"epochs": 5, "rate": 1e-4}


@pytest.mark.scope("1.13.1")
def test_it_beats_the_same_network_from_nothing(real, folder, capsys):
    assert main(["tune", str(real("minilm")), "--task", "classify", "--data",
                 str(folder / "rows.csv"), "--test", str(folder / "test.csv"), "--epochs", "5",
                 "--rate", "1e-4", "--out", str(folder / "mine")]) == 0
    known = mirada.load(real("minilm"))
    shape = {name: getattr(known.config, name) for name in known.config.__dataclass_fields__}
    new = mirada.build("bert:base", architecture="BertModel", seed=0, **shape)
    new.tokenizer = known.tokenizer
    nothing = tune(new, "classify", folder / "rows.csv", test=folder / "test.csv", **OPTIONS)
    texts, gold = zip(*rows(1, 100, 2), strict=True)
    theirs = transformers.pipeline("text-classification", str(folder / "mine"))(list(texts))
    ours = mirada.pipeline("text-classification", str(folder / "mine"))(list(texts))
    right = sum(one["label"] == label for one, label in zip(ours, gold, strict=True)) / 100
    assert f"accuracy {right:.3f}" in capsys.readouterr().out
    assert right > 0.9 and right > nothing.metrics["test"]["accuracy"] + 0.15
    for a, b in zip(ours, theirs, strict=True):
        assert a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-4)
    before, after = mirada.load(real("minilm")), mirada.load(folder / "mine")  # its own moved
    assert after.architecture == "BertForSequenceClassification"
    assert not torch.equal(before.body.blocks[0].attn.f.q.weight,
                           after.body.blocks[0].attn.f.q.weight)

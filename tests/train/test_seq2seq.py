"""Text to text: a Transformer that reverses and translates, and many tasks told in words."""

import importlib.util
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

import mirada
from mirada.core.init import normal
from mirada.errors import MiradaError
from mirada.train import instructions, order, seq2seq
from mirada.train.corpus import Corpus
from mirada.train.loop import Plan, fit
from mirada.train.loss import IGNORED, token_loss
from mirada.train.optim import Recipe
from train import toys

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Pairs


@pytest.fixture(scope="module")
def tokenizer():
    return toys.tokenizer(["uno dos tres cuatro cinco seis siete ocho nueve"], "unigram")


def test_pairs_stand_by_turns_and_end(tokenizer):
    texts = ["uno dos", "dos uno", "tres", "tres tres tres tres tres tres tres"]
    model = toys.model("t5:tiny", tokenizer, layers=1)
    objective = seq2seq.Translate(toys.corpus(tokenizer, texts), 5, model)
    assert objective.count == 2 and objective.smoothing == 0.1
    ids = [tokenizer.encode(text).ids for text in texts]
    assert objective.sample(0, None) == (ids[0], ids[1])
    assert objective.sample(1, None) == (ids[2], ids[3][:4] + [1])  # cut, and ended all the same
    batch = objective.batch([objective.sample(n, None) for n in (0, 1)])
    assert batch["labels"].tolist() == [ids[1] + [IGNORED] * 2, ids[3][:4] + [1]]
    assert batch["input_ids"].tolist() == [ids[0], ids[2] + [0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert objective.weight(batch) == 8
    loss, _ = objective.loss(model.eval(), batch)
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**given, labels=batch["labels"]).logits
    wanted = token_loss(logits, batch["labels"], 0.1)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    with pytest.raises(MiradaError, match="odd number"):
        seq2seq.Translate(toys.corpus(tokenizer, texts[:3]), 5, model)
    with pytest.raises(MiradaError, match="needs an encoder-decoder"):
        seq2seq.Translate(Corpus.of([[5], [6]]), 5, toys.model("gpt2:tiny", tokenizer))


class Reverse(seq2seq.TextToText):
    """Four to eight digits, written from the last to the first."""

    count = 20000

    def sample(self, index, draw):
        digits = [draw.randrange(3, 13) for _ in range(draw.randint(4, 8))]
        return [*digits, 1], [*digits[::-1], 1]


@pytest.mark.scope("1.3.9")
def test_the_transformer_learns_to_reverse():
    model = mirada.build("transformer:tiny", vocab=13, context=32, pad=0, eos=1, start=0)
    torch.manual_seed(0)
    normal(model, 0.1)
    fit(model, Reverse(model), Plan(steps=450, batch=32, dtype="float32"),
        Recipe(rate=2e-3, warmup=50, betas=(0.9, 0.98)))
    model.eval()
    draw, right, known = random.Random(99), 0, 0
    for length in range(4, 9):
        rows = [[draw.randrange(3, 13) for _ in range(length)] for _ in range(100)]
        out = model.generate(torch.tensor([[*row, 1] for row in rows]), max_new_tokens=10)
        for row, made in zip(rows, out[:, 1:].tolist(), strict=True):  # behind the start token
            right += made[: length + 1] == [*row[::-1], 1]
            known += 1
    assert right / known > 0.99


# The Dutch walk


@pytest.mark.slow
@pytest.mark.scope("1.14.6")
def test_i_love_llamas_step_by_step(tmp_path):
    llamas = recipe("llamas")
    learned, held = llamas.pairs()
    assert (llamas.ASKED, "ik hou van lama's") in held and len(learned) > 500
    assert not {source for source, _ in learned} & {source for source, _ in held}
    model = llamas.train(tmp_path, steps=300)
    assert llamas.walk(model) == [
        'Step 1: "I love llamas" -> "ik"',
        'Step 2: "I love llamas ik" -> "hou"',
        'Step 3: "I love llamas ik hou" -> "van"',
        'Step 4: "I love llamas ik hou van" -> "lama\'s"',
        'Result: "ik hou van lama\'s"']
    some = held[::4] + held[-1:]
    assert {source[:2] for source, _ in some} == {"nl", "de"}  # both languages, one model
    assert llamas.bleu(model, some) > 90


# Instructions


def tasks():
    """(learned, held out): who does it, of what colour, and when; each asked in two ways."""
    rows = [{"text": f"el {who} {colour} {toys.ANIMALS[who]} {when}", "who": who, "colour": colour,
             "when": when} for who in toys.ANIMALS for colour in toys.COLOURS for when in toys.WHEN]
    random.Random(0).shuffle(rows)
    ways = {"who": [("quién : {text}", "{who}"), ("dime quién {text}", "{who}")],
            "colour": [("color : {text}", "{colour}"), ("dime cómo {text}", "{colour}")],
            "when": [("cuándo : {text}", "{when}"), ("{text} ¿cuándo?", "{when}")]}
    return ([instructions.Task(name, some, told) for name, told in ways.items()]
            for some in (rows[:140], rows[140:]))


@pytest.mark.scope("1.7.3")
def test_tasks_come_in_proportion_and_no_more_than_the_most():
    tokenizer = toys.tokenizer(["ask 1 2 3"], "unigram")
    model = toys.model("t5:tiny", tokenizer, layers=1)
    sizes = {"small": 40, "middle": 300, "large": 5000}
    every = [instructions.Task(name, [{"n": str(n)} for n in range(size)],
                               [("ask {n}", "{n}"), ("{n} ask", "{n}")])
             for name, size in sizes.items()]
    mixed = instructions.Instructions(every, 16, model, most=600)
    assert mixed.count == 940 and mixed.rates() == {
        "small": 40 / 940, "middle": 300 / 940, "large": 600 / 940}
    seen, forms = [Counter(), Counter()], Counter()
    for epoch in range(2):
        for index in range(mixed.count):
            asked, answer = mixed.example(index, order.draw(0, epoch, index))
            where = "small" if index < 40 else "middle" if index < 340 else "large"
            seen[epoch][where, answer] += 1
            forms[asked.startswith("ask")] += 1
    for name in ("small", "middle"):  # each row once an epoch
        assert [c for (task, _), c in seen[0].items() if task == name] == [1] * sizes[name]
    of_large = [{a for (task, a) in found if task == "large"} for found in seen]
    assert of_large[0] != of_large[1] and max(map(int, of_large[0])) > 4000  # others come next
    assert abs(forms[True] - mixed.count) < 4 * (mixed.count / 2) ** 0.5


@pytest.mark.scope("1.7.3")
def test_one_model_does_what_it_is_told():
    learned, held = tasks()
    text = [asked for task in learned for way in task.templates
            for asked in instructions.filled(way, task.rows[0], task.name)] + toys.spanish()
    tokenizer = toys.tokenizer(text, "unigram")
    model = toys.model("t5:tiny", tokenizer, d=48, head_dim=12, layers=2, hidden=96)
    mixed = instructions.Instructions(learned, 12, model)
    fit(model, mixed, Plan(steps=200, batch=32, dtype="float32"), Recipe(rate=3e-3, warmup=20))
    model.eval()
    for task in held:
        for way in task.templates:  # rows that it never saw, in each way of asking
            asked = [instructions.filled(way, row, task.name) for row in task.rows]
            given = tokenizer([source for source, _ in asked])
            out = model.generate(given["input_ids"], given["attention_mask"], max_new_tokens=6)
            said = [tokenizer.decode(row).strip() for row in out.tolist()]
            right = sum(a == b for a, (_, b) in zip(said, asked, strict=True)) / len(asked)
            assert right > 0.9, (task.name, way, right)


def test_what_cannot_be_told():
    with pytest.raises(MiradaError, match="asks for 'question', and a row has text"):
        instructions.Task("x", [{"text": "a"}], [("{question}", "{text}")])
    with pytest.raises(MiradaError, match="has no rows"):
        instructions.Task("x", [], [("{question}", "{text}")])
    with pytest.raises(MiradaError, match="has no templates"):
        instructions.Task("x", [{"text": "a"}], [])

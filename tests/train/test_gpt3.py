"""A small GPT-3 is trained: alternating dense and banded layers, from a file to a saved model."""

import json
import math
from collections import Counter

import pytest

import mirada
from mirada import cli
from mirada.core.mask import Mask
from mirada.train.language import NextToken
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from mirada.train.supervised import mean_loss
from train import toys


@pytest.fixture(scope="module")
def texts():
    """(learned, held out): tokens of documents, each of several sentences about one animal."""
    learned, held = toys.stories(400), toys.stories(60, seed=1)
    tokenizer = toys.tokenizer(learned + held)
    return tokenizer, *(toys.corpus(tokenizer, some) for some in (learned, held))


def pairs(tokens, known, vocab):
    """Nats a token by how often it followed the one before it: what the word before tells."""
    before, both = Counter(known), Counter(zip(known, known[1:], strict=False))
    told = [math.log((both[a, b] + 0.1) / (before[a] + 0.1 * vocab))
            for a, b in zip(tokens, tokens[1:], strict=False)]
    return -sum(told) / len(told)


def trained(texts, banded):
    tokenizer, learned, held = texts
    model = toys.model("gpt3:tiny", tokenizer, window=2, context=64, d=48, std=0.1)
    if banded:
        for block in model.body.blocks:
            block.attn.f.mask = Mask(causal=True, window=2)
    assert [block.attn.f.mask.window for block in model.body.blocks][::2] == [
        2 if banded else None] * 2
    fit(model, NextToken(learned, 64), Plan(steps=80, batch=16, dtype="float32"),
        Recipe(rate=5e-3, warmup=10))
    return mean_loss(model, NextToken(held, 64))


@pytest.mark.scope("1.6.3")
def test_a_small_one_learns_what_bands_alone_cannot(texts):
    """Which animal a document is about stands sentences before; 4 bands of 2 tokens reach back 4.
    """
    tokenizer, learned, held = texts
    alone = pairs(held.tokens.tolist(), learned.tokens.tolist(), tokenizer.size)
    alternating, bands = trained(texts, banded=False), trained(texts, banded=True)
    assert 1.2 < alone < 1.4
    assert alternating < 0.72 and bands > alternating + 0.15  # 0.65 and 0.92 were seen


@pytest.mark.scope("1.6.3")
def test_from_a_book_to_a_model_by_command(tmp_path, capsys):
    book = tmp_path / "book.txt"
    book.write_text("\n".join(toys.stories(200)))
    assert cli.main(["train", "gpt3:tiny", "--data", str(book), "--steps", "30", "--length", "32",
                     "--tokens", "320", "--rate", "5e-3", "--out", str(tmp_path / "run"),
                     "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert told["reason"] == "done" and len(lines) == 30
    assert lines[-1]["loss"] < lines[0]["loss"] - 1.5
    model = mirada.load(told["model"])
    assert model.family == "gpt3" and [b.attn.f.mask.window for b in model.body.blocks] == [
        None, 16, None, 16]
    ids = model.tokenizer("el gato negro")["input_ids"]
    assert model.generate(ids, max_new_tokens=8).shape[1] > ids.shape[1]

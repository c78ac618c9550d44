"""Does one text follow the other; do both stand in their order; which belong together."""

import random

import pytest
import torch

from mirada.errors import MiradaError
from mirada.train import order, pairs
from mirada.train.corpus import Corpus
from mirada.train.language import IGNORED
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from mirada.train.sentences import Windows, sentences, stops
from train import toys

SMALL = dict(d=32, layers=2, heads=4, hidden=128, std=0.2)
PLAN = Plan(steps=400, batch=32, dtype="float32")


@pytest.fixture(scope="module")
def texts():
    return toys.stories(600, length=(2, 2))


@pytest.fixture(scope="module")
def tokenizer(texts):
    return toys.tokenizer(texts)


@pytest.fixture(scope="module")
def corpus(tokenizer, texts):
    return toys.corpus(tokenizer, texts)


def taken(objective, count):
    return [objective.sample(i % objective.count, order.draw(3, i)) for i in range(count)]


def accuracy(model, objective, seed):
    """Of samples drawn anew."""
    samples = [objective.sample(i, order.draw(seed, i)) for i in range(objective.count)]
    model.eval()
    with torch.no_grad():
        return objective.loss(model, objective.batch(samples))[1]["pairs right"]


def test_sentences_end_where_a_full_stop_does(tokenizer):
    ends = stops(tokenizer)
    assert ends == {tokenizer.id(".")}
    text = "el gato bebe leche . . veo queso . el pez"
    ids = tokenizer.encode(text, special=False).ids
    found = sentences(ids, ends)
    assert [tokenizer.decode(part) for part in found] == ["el gato bebe leche..", "veo queso.",
                                                          "el pez"]
    assert sentences([5, 6, 7], ends) == [[5], [6, 7]] and sentences([5], ends) == [[5]]


def test_windows_cover_each_document_and_span_none():
    draw = random.Random(0)
    documents = [[draw.randrange(2, 50) for _ in range(n)] + [1] for n in (1, 2, 7, 8, 9, 23, 40)]
    windows = Windows(Corpus.of([[1], *documents]), 8, {1})
    found = [windows[index] for index in range(len(windows))]
    assert all(2 <= len(window) <= 8 for window in found)
    assert [i for window in found for i in window] == [
        i for d in documents[1:] for i in d[:-1]]  # one token is no text
    assert [windows.document(index) for index in range(4)] == [2, 3, 4, 5]
    with pytest.raises(MiradaError, match="too short"):
        Windows(Corpus.of(documents), 3, {1})


@pytest.mark.scope("1.12.2")
@pytest.mark.parametrize("kind", ["next", "order"])
def test_half_of_the_pairs_follow(corpus, tokenizer, texts, kind):
    model = toys.model("bert:tiny", tokenizer, "BertForNextSentencePrediction", **SMALL)
    objective = pairs.SentencePairs(corpus, 24, model, kind)
    found = taken(objective, 2000)
    others = sum(label for *_, label in found)
    assert abs(others - 1000) < 4 * (2000 * 0.25) ** 0.5
    follows, strange = set(), 0
    for text in texts:
        a, b = (tokenizer.encode(t + " .", special=False).ids for t in text[:-2].split(" . "))
        follows.add((tuple(a), tuple(b)))
    for ids, types, labels, other in found:
        middle = ids.index(tokenizer.sep_id)
        assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id) and len(ids) <= 24
        assert types == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
        assert set(labels) == {IGNORED}
        a, b = tuple(ids[1:middle]), tuple(ids[middle + 1 : -1])
        if not other:
            assert (a, b) in follows
        elif kind == "order":
            assert (b, a) in follows
        else:
            strange += (a, b) not in follows
    if kind == "next":  # two documents may say the same, but hardly ever do
        assert strange > 0.9 * others


@pytest.mark.scope("1.12.2")
def test_a_model_learns_what_follows(corpus, tokenizer):
    model = toys.model("bert:tiny", tokenizer, "BertForNextSentencePrediction",
                       **SMALL | {"std": 0.3})
    objective = pairs.SentencePairs(corpus, 24, model)
    assert accuracy(model, objective, 1) == pytest.approx(0.5, abs=0.08)
    fit(model, objective, PLAN, Recipe(rate=2e-3, warmup=20))
    # a sixth of the strangers are about the same animal, so that 0.92 is the most
    assert accuracy(model, objective, 1) > 0.8


def test_a_model_learns_the_order_and_the_hidden_words():
    texts = [f"el {a} {toys.ANIMALS[a]} {w} . luego el {a} duerme {w} ."
             for a in toys.ANIMALS for w in toys.WHEN for _ in range(6)]
    tokenizer = toys.tokenizer(texts)
    model = toys.model("albert:tiny", tokenizer, "AlbertForPreTraining", embedding=16, **SMALL)
    objective = pairs.SentencePairs(toys.corpus(tokenizer, texts), 24, model, "order")
    hidden = [labels for _, _, labels, _ in taken(objective, 100)]
    assert all(set(labels) != {IGNORED} for labels in hidden)
    result = fit(model, objective, Plan(steps=120, batch=32, dtype="float32"),
                 Recipe(rate=2e-3, warmup=10))
    assert accuracy(model, objective, 1) > 0.95
    assert result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]


def test_parts_of_a_batch_add_up(corpus, tokenizer):
    model = toys.model("bert:tiny", tokenizer, "BertForPreTraining", **SMALL).double()
    objective = pairs.SentencePairs(corpus, 24, model)
    samples = taken(objective, 8)
    whole = objective.loss(model, objective.batch(samples))[0]
    parts = sum(objective.loss(model, objective.batch(samples[at : at + 2]))[0]
                for at in range(0, 8, 2))
    assert abs((whole - parts).item()) < 1e-11 and objective.weight(objective.batch(samples)) == 8


def test_pairs_are_told_from_the_batchs_others():
    words = [f"w{n}" for n in range(40)]
    draw = random.Random(0)
    rows = [draw.sample(words, 2) for _ in range(400)]  # the second says the first's words anew
    texts = [side for a, b in rows for side in (f"{a} {b}", f"x{b[1:]} x{a[1:]}")]
    tokenizer = toys.tokenizer(texts)
    corpus = toys.corpus(tokenizer, texts)
    model = toys.model("bert:tiny", tokenizer, "BertModel", **SMALL)
    objective = pairs.Together(corpus, 8, model)
    assert objective.count == 400
    batch = objective.batch([objective.sample(i, None) for i in range(64)])
    model.eval()
    with torch.no_grad():
        loss, before = objective.loss(model, batch)
        vectors = pairs.embedded(model, {k: batch[k] for k in ("input_ids", "attention_mask")})
    scores = (vectors[:64] @ vectors[64:].T / 0.05).double()
    wanted = (scores.logsumexp(1) - scores.diagonal()).sum()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-4)
    fit(model, objective, Plan(steps=150, batch=32, dtype="float32"), Recipe(rate=2e-3, warmup=10))
    model.eval()
    with torch.no_grad():
        after = objective.loss(model, batch)[1]["pairs right"]
    assert before["pairs right"] < 0.3 and after > 0.9
    with pytest.raises(MiradaError, match="odd number"):
        pairs.Together(Corpus.of([[5, 6]]), 8, model)


def test_what_cannot_be_paired(corpus, tokenizer, texts):
    model = toys.model("bert:tiny", tokenizer, "BertForNextSentencePrediction", **SMALL)
    with pytest.raises(MiradaError, match="no kind of pair"):
        pairs.SentencePairs(corpus, 24, model, "swapped")
    with pytest.raises(MiradaError, match="one stretch of text only"):
        pairs.SentencePairs(toys.corpus(tokenizer, texts[:1]), 24, model)
    plain = toys.tokenizer(texts, "bpe")
    with pytest.raises(MiradaError, match="told apart by"):
        pairs.SentencePairs(corpus, 24, toys.model("bert:tiny", plain,
                                                   "BertForNextSentencePrediction", **SMALL))

"""Hidden tokens: BERT's proportions, RoBERTa's new masks each epoch, a model that fills them."""

import random
from collections import Counter

import pytest

import mirada
from mirada.train import order
from mirada.train.corpus import Corpus
from mirada.train.language import HiddenToken
from mirada.train.loop import Plan, fit
from mirada.train.loss import IGNORED
from mirada.train.optim import Recipe
from train import toys

SMALL = dict(d=32, layers=2, heads=4, hidden=128)


@pytest.fixture(scope="module")
def tokenizer():
    return toys.tokenizer(toys.spanish())


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return toys.corpus(tokenizer, toys.spanish())


def near(count, of, share):
    """Within four standard errors."""
    return abs(count - of * share) < 4 * (of * share * (1 - share)) ** 0.5


@pytest.mark.scope("1.12.1")
def test_the_proportions_are_berts(tokenizer):
    draw = random.Random(0)
    real = [i for i in range(tokenizer.size) if i not in tokenizer.special_ids]
    objective = HiddenToken(Corpus.of([[draw.choice(real) for _ in range(126 * 400)]]), 128,
                            tokenizer)
    fates, places, lengths, total = Counter(), Counter(), [], 0
    for index in range(objective.count):
        own = [int(i) for i in objective.corpus.tokens[index * 126 : (index + 1) * 126]]
        ids, labels = objective.sample(index, order.draw(0, index))
        assert (ids[0], ids[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
        assert labels[0] == labels[-1] == IGNORED and len(ids) == 128
        hidden = [at for at, label in enumerate(labels[1:-1]) if label != IGNORED]
        assert [labels[1 + at] for at in hidden] == [own[at] for at in hidden]
        assert all(ids[1 + at] == own[at] for at in set(range(126)) - {*hidden})
        for at in hidden:
            fates["mask" if ids[1 + at] == tokenizer.mask_id else
                  "same" if ids[1 + at] == own[at] else "other"] += 1
            places[at // 42] += 1
        lengths.append(len(hidden))
        total += 126
    hidden = sum(fates.values())
    assert near(hidden, total, 0.15) and len(set(lengths)) > 10
    assert near(fates["mask"], hidden, 0.8)
    luck = 0.1 / tokenizer.size  # another token that is the same by chance
    assert near(fates["same"], hidden, 0.1 + luck) and near(fates["other"], hidden, 0.1 - luck)
    assert all(near(count, hidden, 1 / 3) for count in places.values())


@pytest.mark.scope("1.12.1")
def test_special_tokens_are_never_hidden_and_one_other_always_is(tokenizer):
    real = next(i for i in range(tokenizer.size) if i not in tokenizer.special_ids)
    objective = HiddenToken(Corpus.of([[tokenizer.sep_id, real, tokenizer.cls_id]]), 5, tokenizer)
    for n in range(200):
        ids, labels = objective.sample(0, order.draw(0, n))
        assert [label for label in labels if label != IGNORED] == [real] and labels[2] == real


@pytest.mark.scope("1.12.1")
def test_a_model_fills_the_mask_in_spanish(tokenizer, corpus):
    model = toys.model("bert:tiny", tokenizer, "BertForMaskedLM", std=0.15, **SMALL)
    result = fit(model, HiddenToken(corpus, 9, tokenizer),
                 Plan(steps=240, batch=32, dtype="float32"), Recipe(rate=3e-3, warmup=15))
    assert result.history[-1]["loss"] < 0.3 * result.history[0]["loss"]
    fill = mirada.pipeline("fill-mask", model)
    for animal, said in toys.ANIMALS.items():
        does, what = said.split()
        assert fill(f"el {animal} negro {does} [MASK] hoy .")[0]["token_str"] == what
        assert fill(f"el {animal} gris [MASK] {what} aquí .")[0]["token_str"] == does


@pytest.mark.scope("1.5.2")
def test_masks_are_new_each_epoch_and_the_same_again(tokenizer, corpus):
    model = toys.model("roberta:tiny", tokenizer, "RobertaForMaskedLM", **SMALL)
    objective = HiddenToken(corpus, 9, tokenizer)

    def epoch(number):
        return [objective.sample(i, order.draw(0, number, i)) for i in range(100)]

    assert epoch(0) == epoch(0)
    changed = sum(a != b for a, b in zip(epoch(0), epoch(1), strict=True))
    assert changed > 75  # one of seven tokens is hidden in most: a mask may come twice
    result = fit(model, objective, Plan(steps=100, batch=32, dtype="float32"),
                 Recipe(rate=3e-3, warmup=15))
    assert result.history[-1]["loss"] < 0.6 * result.history[0]["loss"]

"""T5's spans and UL2's denoisers: the reference's numbers, and models that learn by them."""

import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from mirada.errors import MiradaError
from mirada.train import order, spans
from mirada.train.language import IGNORED
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from train import toys

SMALL = dict(d=32, head_dim=8, layers=2, heads=4, hidden=64)


def reference(length, density, mean, seed):
    """The mask of cut tokens as T5's own program draws it, in numpy (random_spans_noise_mask)."""
    rng = np.random.default_rng(seed)
    noise = min(max(int(np.round(length * density)), 1), length - 1)
    count = max(int(np.round(noise / mean)), 1)

    def segments(items):
        first = np.arange(items - 1) < count - 1
        rng.shuffle(first)
        return np.bincount(np.cumsum(np.pad(first, [[1, 0]])), minlength=count)

    sizes = np.stack([segments(length - noise), segments(noise)], 1).reshape(-1)
    starts = np.zeros(length, np.int64)
    starts[np.cumsum(sizes)[:-1]] = 1
    return np.cumsum(starts) % 2 == 1


def marked(length, found):
    mask = np.zeros(length, bool)
    for start, stop in found:
        mask[start:stop] = True
    return mask


@pytest.fixture(scope="module")
def texts():
    return toys.stories(150)


@pytest.fixture(scope="module")
def tokenizer(texts):
    return toys.tokenizer(texts, "unigram", (*spans.SENTINELS[:40], *spans.MODES))


@pytest.fixture(scope="module")
def corpus(tokenizer, texts):
    return toys.corpus(tokenizer, texts)


@pytest.fixture
def model(tokenizer):
    return toys.model("t5:tiny", tokenizer, **SMALL)


@pytest.mark.scope("1.12.4")
def test_the_statistics_are_the_references():
    assert spans.lengths(512) == (568, 114)  # as its program computes for its defaults
    length, times = 120, 3000
    ours = np.stack([marked(length, spans.cut([0] * length, random.Random(n), 0.15, 3.0))
                     for n in range(times)])
    theirs = np.stack([reference(length, 0.15, 3.0, n) for n in range(times)])
    for mask in (ours, theirs):
        assert set(mask.sum(1)) == {18}
        assert set((np.diff(mask.astype(int), axis=1, prepend=0) == 1).sum(1)) == {6}
        assert not mask[:, 0].any() and mask[:, -1].all()

    def sizes(masks):
        """How often a span has 1, 2, ... tokens; and the kept stretches."""
        cuts = Counter()
        for mask in masks:
            edges = np.flatnonzero(np.diff(mask.astype(int), prepend=-1, append=-1))
            cuts.update(zip(mask[edges[:-1]].tolist(), np.diff(edges).tolist(), strict=True))
        return cuts

    a, b = sizes(ours), sizes(theirs)
    for key in a.keys() | b.keys():
        if a[key] + b[key] > 50:  # four standard errors of the difference
            assert abs(a[key] - b[key]) < 4 * (a[key] + b[key]) ** 0.5, key
    where = ours.mean(0) - theirs.mean(0)
    assert np.abs(where).max() < 4 * (2 * 0.25 / times) ** 0.5


def test_every_way_to_part_a_row_is_equally_likely():
    seen = Counter(tuple(spans.parted(6, 3, random.Random(n))) for n in range(5000))
    assert len(seen) == len(list(combinations(range(5), 2))) and all(
        sum(sizes) == 6 and min(sizes) > 0 for sizes in seen)
    assert all(abs(count - 500) < 4 * 500**0.5 for count in seen.values())


def test_the_papers_own_example(tokenizer):
    """1910.10683, figure 2: Thank you <X> me to your party <Y> week."""
    words = "Thank you for inviting me to your party last week .".split()
    source, target = spans.corrupt(words, [(2, 4), (8, 9)], ["<X>", "<Y>", "<Z>"])
    assert source == "Thank you <X> me to your party <Y> week .".split()
    assert target == "<X> for inviting <Y> last".split()
    with pytest.raises(MiradaError, match="2 spans.*1 sentinels"):
        spans.corrupt(words, [(2, 4), (8, 9)], ["<X>"])


def put_back(source, target, sentinels):
    """The text that source and target tell together."""
    pieces, held = {}, None
    for i in target:
        if i in sentinels:
            held = pieces.setdefault(i, [])
        else:
            held.append(i)
    return [x for i in source for x in (pieces[i] if i in sentinels else [i])]


@pytest.mark.scope("1.12.4")
def test_source_and_target_tell_the_text(corpus, model):
    objective = spans.Spans(corpus, 32, model)
    marks = {model.tokenizer.id(f"<extra_id_{n}>"): n for n in range(40)}
    for index in range(objective.count):
        source, target = objective.sample(index, order.draw(0, index))
        assert source[-1] == target[-1] == 1 and len(source) <= 32
        named = [marks[i] for i in source if i in marks]
        assert named == list(range(len(named))) == [marks[i] for i in target if i in marks]
        assert put_back(source[:-1], target[:-1], marks) == objective.tokens(index)
    batch = objective.batch([objective.sample(i, order.draw(0, i)) for i in range(4)])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert objective.weight(batch) == int((batch["labels"] != IGNORED).sum())
    other = objective.sample(0, order.draw(0, 1, 0))  # another epoch, other spans
    assert other != objective.sample(0, order.draw(0, 0, 0))


@pytest.mark.scope("1.12.4")
def test_a_model_learns_to_write_spans(corpus, model):
    result = fit(model, spans.Spans(corpus, 24, model), Plan(steps=160, batch=16, dtype="float32"),
                 Recipe(rate=1e-2, warmup=20))
    first, last = (sum(line["loss"] for line in part) / 10
                   for part in (result.history[:10], result.history[-10:]))
    assert last < 0.5 * first


@pytest.mark.scope("1.6.9")
def test_the_mixture_has_seven_denoisers(corpus, model):
    assert [(d.mode, d.density, d.mean) for d in spans.DENOISERS] == [  # 2205.05131, table 1
        ("[NLU]", 0.15, 3), ("[NLU]", 0.15, 8), ("[S2S]", 0.25, None), ("[NLG]", 0.5, 3),
        ("[NLG]", 0.5, 8), ("[NLG]", 0.15, 64), ("[NLG]", 0.5, 64)]
    objective = spans.Mixture(corpus, 48, model)
    ids = {name: model.tokenizer.id(name) for name in spans.MODES}
    marks = {model.tokenizer.id(f"<extra_id_{n}>"): n for n in range(40)}
    seen, shares = Counter(), {name: [] for name in ids}
    for n in range(3000):
        index = n % objective.count
        source, target = objective.sample(index, order.draw(0, n))
        mode = next(name for name, i in ids.items() if i == source[0])
        seen[mode] += 1
        tokens = objective.tokens(index)
        assert put_back(source[1:-1], target[:-1], marks) == tokens and len(source) <= 48
        written = [i for i in target[:-1] if i not in marks]
        shares[mode].append(len(written) / len(tokens))
        if mode == "[S2S]":  # the end of the text, and nothing else
            assert tokens[-len(written) :] == written
    for mode, share in (("[NLU]", 2 / 7), ("[S2S]", 1 / 7), ("[NLG]", 4 / 7)):
        assert abs(seen[mode] - 3000 * share) < 4 * (3000 * share * (1 - share)) ** 0.5
    mean = {mode: np.mean(found) for mode, found in shares.items()}
    assert mean["[NLU]"] == pytest.approx(0.15, abs=0.01)
    assert mean["[S2S]"] == pytest.approx(0.25, abs=0.03)
    assert mean["[NLG]"] == pytest.approx((0.5 * 3 + 0.15) / 4, abs=0.02)


@pytest.mark.slow
@pytest.mark.scope("1.6.9")
def test_a_model_learns_the_mixture_and_each_mode(corpus, model):
    objective = spans.Mixture(corpus, 24, model)
    fit(model, objective, Plan(steps=200, batch=16, dtype="float32"), Recipe(rate=1e-2, warmup=20))
    model.eval()
    for denoiser in spans.DENOISERS:
        alone = spans.Mixture(corpus, 24, model, [denoiser])
        batch = alone.batch([alone.sample(i, order.draw(5, i)) for i in range(32)])
        loss = float(alone.loss(model, batch)[0].detach()) / alone.weight(batch)
        assert loss < 0.5 * np.log(model.config.vocab), denoiser


def test_what_cannot_be_cut(corpus, tokenizer, texts):
    bare = toys.tokenizer(texts, "unigram")
    with pytest.raises(MiradaError, match="needs sentinels"):
        spans.Spans(corpus, 32, toys.model("t5:tiny", bare, **SMALL))
    with pytest.raises(MiradaError, match="encoder-decoder"):
        spans.Spans(corpus, 32, toys.model("gpt2:tiny", tokenizer, d=32, heads=4))
    with pytest.raises(MiradaError, match="too short"):
        spans.Spans(corpus, 1, toys.model("t5:tiny", tokenizer, **SMALL))

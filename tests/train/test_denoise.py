"""BART's five noises, PEGASUS's gap sentences, and filling the middle."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from mirada.errors import MiradaError
from mirada.train import denoise, gaps, middle, order
from mirada.train.corpus import Corpus
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from train import toys

SMALL = dict(d=32, layers=2, decoder_layers=2, heads=4, decoder_heads=4, hidden=64,
             decoder_hidden=64)
TEXT = list(range(100, 160))
MASK = 7


def many(noise, times=2000):
    return [noise(TEXT, random.Random(n)) for n in range(times)]


@pytest.mark.scope("1.7.4", "1.12.5")
def test_masking_and_deleting_take_the_share():
    for found in many(lambda t, draw: denoise.hide(t, draw, 0.3, MASK), 50):
        assert len(found) == 60 and found.count(MASK) == 18
        assert all(i in (MASK, own) for i, own in zip(found, TEXT, strict=True))
    for found in many(lambda t, draw: denoise.delete(t, draw, 0.3), 50):
        assert len(found) == 42 and found == sorted(found) and set(found) <= set(TEXT)
    gone = Counter(i for found in many(lambda t, draw: denoise.delete(t, draw, 0.3))
                   for i in set(TEXT) - set(found))
    assert all(abs(gone[i] - 600) < 4 * 600**0.5 for i in TEXT)  # each token as often


@pytest.mark.scope("1.7.4", "1.12.5")
def test_infilling_hides_spans_of_poissons_lengths():
    draws = [denoise.poisson(3.0, random.Random(n)) for n in range(20000)]
    assert np.mean(draws) == pytest.approx(3, abs=0.05)
    assert np.var(draws) == pytest.approx(3, abs=0.1)
    assert draws.count(0) / 20000 == pytest.approx(np.exp(-3), abs=0.006)
    empty = 0
    for found in many(lambda t, draw: denoise.infill(t, draw, 0.3, MASK)):
        kept = [i for i in found if i != MASK]
        assert len(kept) == 42 and kept == sorted(kept)  # 18 of 60 tokens are gone
        gaps_ = np.diff([99, *kept, 160]) - 1  # what stood between the kept ones
        holes = (gaps_ > 0).sum()
        assert found.count(MASK) >= holes
        empty += found.count(MASK) - holes
    masks = sum(f.count(MASK) for f in many(lambda t, draw: denoise.infill(t, draw, 0.3, MASK)))
    assert masks / 2000 == pytest.approx(18 / 3 + 0.5, abs=0.6)  # spans: the last one is cut
    assert empty > 2000 * 0.2  # masks with nothing behind them, and spans that touch


@pytest.mark.scope("1.7.4", "1.12.5")
def test_permuting_and_rotating_keep_every_token():
    stops = {109, 119, 139}
    seen = set()
    for found in many(lambda t, draw: denoise.permute(t, draw, stops), 500):
        assert sorted(found) == TEXT
        seen.add(tuple(found.index(first) for first in (100, 110, 120, 140)))
    assert len(seen) == 24  # every order of the four sentences
    starts = Counter()
    for found in many(denoise.rotate):
        at = found.index(100)
        assert found[at:] + found[:at] == TEXT
        starts[found[0]] += 1
    assert len(starts) == 60


@pytest.fixture(scope="module")
def texts():
    return toys.stories(150)


@pytest.fixture(scope="module")
def tokenizer(texts):
    return toys.tokenizer(texts, special=(gaps.MASK, "</s>"))


@pytest.fixture(scope="module")
def corpus(tokenizer, texts):
    return toys.corpus(tokenizer, texts)


def falls(model, objective, steps, to, rate=2e-3):
    result = fit(model, objective, Plan(steps=steps, batch=16, dtype="float32"),
                 Recipe(rate=rate, warmup=10))
    first, last = (np.mean([line["loss"] for line in part])
                   for part in (result.history[:5], result.history[-10:]))
    assert last < to * first
    return result


@pytest.mark.scope("1.7.4", "1.12.5")
@pytest.mark.parametrize("noise", denoise.NOISES)
def test_bart_learns_to_mend_each_noise(corpus, tokenizer, noise):
    model = toys.model("bart:tiny", tokenizer, std=0.15, **SMALL)
    objective = denoise.Denoise(corpus, 24, model, noises=[noise])
    source, target = objective.sample(0, order.draw(0, 0))
    assert target[0] == source[0] == tokenizer.cls_id and target[-1] == tokenizer.sep_id
    assert target[1:-1] == objective.windows[0]
    # a noise is mended where the loss falls below what knowing single words alone gives
    falls(model, objective, 60, 0.7)


@pytest.mark.scope("1.7.4", "1.12.5")
def test_all_five_at_once(corpus, tokenizer):
    model = toys.model("bart:tiny", tokenizer, std=0.15, **SMALL)
    objective = denoise.Denoise(corpus, 24, model, noises=denoise.NOISES)
    samples = [objective.sample(i, order.draw(0, i)) for i in range(objective.count)]
    assert all(tokenizer.mask_id in source for source, _ in samples)
    assert samples[0] == objective.sample(0, order.draw(0, 0))
    falls(model, objective, 60, 0.75)
    with pytest.raises(MiradaError, match="no noise is called 'blur'"):
        denoise.Denoise(corpus, 24, model, noises=["blur"])


# Gap sentences


def words(*texts):
    return [text.split() for text in texts]


@pytest.mark.scope("1.7.5", "1.12.6")
def test_rouge_is_the_known_one():
    from rouge_score.rouge_scorer import RougeScorer
    scorer, draw = RougeScorer(["rouge1"]), random.Random(0)
    for _ in range(200):
        a, b = ([draw.choice("abcdefgh") for _ in range(draw.randint(1, 9))] for _ in range(2))
        wanted = scorer.score(" ".join(a), " ".join(b))["rouge1"].fmeasure
        assert gaps.rouge1(a, b) == pytest.approx(wanted, abs=1e-12)
    assert gaps.rouge1(["a", "a"], ["a"]) == pytest.approx(2 / 3)
    assert gaps.rouge1(["a", "a"], ["a"], unique=True) == 1.0
    assert gaps.rouge1([], ["a"]) == 0.0


@pytest.mark.scope("1.7.5", "1.12.6")
def test_the_sentences_that_say_most_are_chosen():
    parts = words("a b c", "x y", "a b c d", "z", "c d e")
    scores = [gaps.rouge1(p, [w for q in parts if q is not p for w in q]) for p in parts]
    assert sorted(range(5), key=lambda at: -scores[at])[:2] == [2, 0]
    assert gaps.independent(parts, 2) == [0, 2]  # in the text's order
    # one after another: what the first choice said already adds nothing
    again = words("a b c d", "a b c d", "e f", "e f g", "a e")
    best = max(([i, j] for i in range(5) for j in range(i)), key=lambda two: (
        two[1] == gaps.sequential(again, 1)[0] or two[0] == gaps.sequential(again, 1)[0],
        gaps.rouge1([w for at in sorted(two) for w in again[at]],
                    [w for at in range(5) if at not in two for w in again[at]])))
    assert gaps.sequential(again, 2) == sorted(best) != gaps.independent(again, 2)


@pytest.mark.scope("1.7.5", "1.12.6")
def test_gap_sentences_are_masked_and_written(corpus, tokenizer):
    model = toys.model("pegasus:tiny", tokenizer, std=0.15, **SMALL)
    objective = gaps.GapSentences(corpus, 48, model)
    mask = tokenizer.id(gaps.MASK)
    for index in range(objective.count):
        source, target = objective.sample(index, order.draw(0, index))
        parts = gaps.sentences(objective.windows[index], objective.stops)
        hidden = gaps.independent(parts, max(1, round(0.3 * len(parts))))
        assert source.count(mask) == len(hidden) and mask not in target
        assert target[1:-1] == [i for at in hidden for i in parts[at]]
        kept = [i for at, part in enumerate(parts) if at not in hidden for i in part]
        assert [i for i in source[1:-1] if i != mask] == kept
    falls(model, objective, 100, 0.5)
    # the animal of the story is told, where only sentences about it remain
    batch = objective.batch([objective.sample(i, None) for i in range(64)])
    model.eval()
    animals = torch.tensor([tokenizer.id(a) for a in toys.ANIMALS])
    with torch.no_grad():
        given = {k: v for k, v in batch.items() if k != "labels"}
        logits = model(**given, decoder_input_ids=model.shifted(batch["labels"])).logits
    at = torch.isin(batch["labels"], animals)
    told = animals[logits[at][:, animals].argmax(1)]
    assert (told == batch["labels"][at]).float().mean() > 0.8  # by chance: 1 of 6


def test_what_cannot_be_hidden(corpus, tokenizer):
    model = toys.model("pegasus:tiny", tokenizer, **SMALL)
    with pytest.raises(MiradaError, match="no way to select"):
        gaps.GapSentences(corpus, 48, model, select="best")


# The middle


@pytest.fixture(scope="module")
def code():
    words = ["cat", "dog", "owl", "fox", "hen", "bat"]
    made = [f"{word} is {word}." for word in words * 30]
    tokenizer = toys.tokenizer(made, "bpe", ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"))
    return made, tokenizer, toys.corpus(tokenizer, made)


@pytest.mark.scope("1.12.11")
def test_the_middle_comes_last(code):
    texts, tokenizer, corpus = code
    objective = middle.FillMiddle(corpus, 64, tokenizer)
    pre, suf, mid = objective.marks
    seen = Counter()
    for n in range(4000):
        text = texts[n % len(texts)]
        ids = tokenizer.encode(text, special=False).ids + [0]
        made = objective._document(ids, order.draw(0, n))
        if made == ids:
            seen["plain"] += 1
            continue
        assert made[-1] == 0 and made[0] == pre and [made.count(i) for i in (pre, suf, mid)] == [
            1, 1, 1]
        decode = tokenizer.decode
        if made[1] == suf:  # <pre> <suf> suffix <mid> prefix middle
            seen["spm"] += 1
            suffix, rest = decode(made[2 : made.index(mid)]), decode(made[made.index(mid) + 1 : -1])
            assert rest + suffix == text
        else:
            seen["psm"] += 1
            a, b = made.index(suf), made.index(mid)
            prefix, suffix, between = (decode(part) for part in (
                made[1:a], made[a + 1 : b], made[b + 1 : -1]))
            assert prefix + between + suffix == text
    for kind, share in (("plain", 0.5), ("psm", 0.25), ("spm", 0.25)):
        # an SPM without a suffix and a PSM without a prefix look alike: two in a hundred
        assert abs(seen[kind] / 4000 - share) < 0.05, seen


@pytest.mark.scope("1.12.11")
def test_cuts_fall_between_any_two_characters():
    draw, text = random.Random(0), "abcdef"
    seen = Counter(middle.split(text, draw) for _ in range(20000))
    assert all("".join(parts) == text for parts in seen)
    assert len(seen) == 28  # of 7 edges each pair, the two alike among them
    whole = [sum(count for parts, count in seen.items() if len(parts[0]) == n) for n in range(7)]
    assert whole == sorted(whole, reverse=True)
    assert seen[("ab", "cd", "ef")] == pytest.approx(20000 * 2 / 49, rel=0.15)


@pytest.mark.scope("1.12.11")
def test_a_model_learns_to_fill_in(code):
    texts, tokenizer, corpus = code
    model = toys.model("gpt2:tiny", tokenizer, d=32, layers=2, heads=4, context=32, std=0.15)
    objective = middle.FillMiddle(corpus, 15, tokenizer, share=0.9)
    fit(model, objective, Plan(steps=250, batch=32, dtype="float32"), Recipe(rate=5e-3, warmup=20))
    pre, suf, mid = objective.marks
    model.eval()
    for text in texts[:6]:  # either word is told by the other, before or behind it
        word = text[:3]
        for before, behind in (("", f" is {word}."), (f"{word} is ", ".")):
            a, b = (tokenizer.encode(part, special=False).ids if part else []
                    for part in (before, behind))
            ids = torch.tensor([[pre, *a, suf, *b, mid]])
            out = model.generate(ids, max_new_tokens=8)[0, ids.shape[1] :]
            assert tokenizer.decode(out.tolist()) == word


def test_a_document_too_long_for_its_marks_loses_its_edges(code):
    texts, tokenizer, corpus = code
    ids = tokenizer.encode(texts[0], special=False).ids
    objective = middle.FillMiddle(corpus, len(ids), tokenizer, share=1.0)
    for n in range(200):
        made = objective._document(ids, order.draw(0, n))
        assert len(made) <= len(ids) + 3  # the middle stays whole
        tokens, segments = objective.sample(n % objective.count, order.draw(0, n))
        assert len(tokens) == len(segments) <= len(ids) and (np.diff(segments) >= 0).all()


def test_marks_are_needed(tokenizer):
    with pytest.raises(MiradaError, match="needs marks of the prefix"):
        middle.FillMiddle(Corpus.of([[1, 2, 3]]), 16, tokenizer)

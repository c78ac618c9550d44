"""Guessing ahead changes how fast an answer comes, and nothing else."""

import itertools

import pytest
import torch

import mirada
from mirada.errors import MiradaError
from mirada.generate import speculate
from mirada.generate.loop import single
from mirada.generate.options import Options
from mirada.generate.speculate import Pace, Speculative, accept

WINDOWS = ("mistral", "gemma2")  # every family, in short: test_every_path.py


def model_of(family: str, seed: int = 0, **changes):
    torch.manual_seed(seed)
    return mirada.build(f"{family}:tiny", **changes).double().eval()


@pytest.fixture(scope="module")
def llama():
    return model_of("llama")


def always(monkeypatch):
    """Guess at every step, whatever the clock says."""
    monkeypatch.setattr(Pace, "tokens", lambda self: self.most)


@pytest.mark.scope("1.15.6")
@pytest.mark.parametrize("cache", ["growing", "static", "rolling"])
@pytest.mark.parametrize("family", WINDOWS)
def test_greedy_answers_are_the_model_s_own(family, cache, monkeypatch):
    always(monkeypatch)
    model, other = model_of(family), model_of(family, seed=1)
    for prompt in ([5, 6, 7, 5, 6, 7, 5], list(range(40))):
        plain = model.generate(prompt, max_new_tokens=24, cache=cache)
        for guesser in ({"assistant_model": other}, {"assistant_model": model},
                        {"prompt_lookup_num_tokens": 4}):
            got = model.generate(prompt, max_new_tokens=24, cache=cache, **guesser)
            assert torch.equal(got, plain), guesser


def test_who_guesses_right_is_believed(llama, monkeypatch):
    always(monkeypatch)
    options = dict(max_new_tokens=20, num_assistant_tokens=4)
    run = single(llama, [1, 2, 3], None, options | {"assistant_model": llama})
    reads = []
    scores = run.feed.scores
    run.feed.scores = lambda tokens, keep: reads.append(tokens.shape[1]) or scores(tokens, keep)
    assert len(list(run)) == 20 and run.drafted == run.accepted == 15
    assert reads == [3, 5, 5, 5, 4]  # the prompt, and four guesses at a time to the end
    run = single(llama, [1, 2, 3], None, options | {"assistant_model": model_of("llama", 1)})
    assert len(list(run)) == 20 and run.accepted < run.drafted / 4


def test_ends_where_the_model_ends(llama, monkeypatch):
    always(monkeypatch)
    plain = llama.generate([1, 2, 3], max_new_tokens=20)[0]
    end = int(plain[9])
    options = dict(max_new_tokens=20, eos_token_id=end, repetition_penalty=1.3)
    plain = llama.generate([1, 2, 3], **options)
    run = single(llama, [1, 2, 3], None, options | {"assistant_model": llama})
    assert len(list(run)) == plain.shape[1] - 3 and torch.equal(run.ids, plain)
    assert run.feed.fed == plain.shape[1] - 1 == int(run.feed.cache.length[0])


@pytest.mark.scope("1.15.6")
@pytest.mark.parametrize("guesser", ["other", "certain"])
def test_what_is_accepted_is_distributed_as_the_model(guesser):
    torch.manual_seed(3)
    V, k, n = 5, 2, 20_000
    scores = torch.randn(k + 1, V, dtype=torch.float64)
    q = torch.randn(k, V, dtype=torch.float64).softmax(-1)
    draw = torch.Generator().manual_seed(0)
    counts = torch.zeros(V)
    second = torch.zeros(V)
    for _ in range(n):
        if guesser == "other":
            guesses = torch.multinomial(q, 1, generator=draw)[:, 0].tolist()
            tokens = accept(guesses, q, scores, True, draw)
        else:
            guesses = [1, 2]
            tokens = accept(guesses, None, scores, True, draw)
        counts[tokens[0]] += 1
        if len(tokens) > 1:
            second[tokens[1]] += 1
    assert chi_square(counts, scores[0].softmax(-1)) < 20  # 4 degrees of freedom: p = 0.0005
    assert chi_square(second, scores[1].softmax(-1)) < 20  # whatever the first was: it stood
    wrong = scores[0].roll(1).softmax(-1)
    assert chi_square(counts, wrong) > 100


def chi_square(counts, chances) -> float:
    expected = chances * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@torch.no_grad()
def scores_of(model, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0]


@pytest.mark.scope("1.15.6")
@pytest.mark.parametrize("guesser", ["assistant", "lookup"])
def test_samples_have_the_model_s_distribution(guesser, monkeypatch):
    always(monkeypatch)
    model, other = (model_of("llama", seed, vocab=4, d=8, heads=2, kv_heads=1, head_dim=4,
                             hidden=8, layers=1) for seed in (0, 1))
    with torch.no_grad():  # so that a token depends on those before it
        for one in (model, other):
            one.head.out.weight.mul_(40)
    given = ({"assistant_model": other, "num_assistant_tokens": 2} if guesser == "assistant"
             else {"prompt_lookup_num_tokens": 2})
    prompt, n = [1, 2, 1], 1500
    expected = {}
    for first, second, third in itertools.product(range(4), repeat=3):
        logits = scores_of(model, [*prompt, first, second, third])
        p = (logits / 0.9).softmax(-1)
        expected[first, second, third] = float(p[2, first] * p[3, second] * p[4, third])
    counts = dict.fromkeys(expected, 0)
    for seed in range(n):
        ids = model.generate(prompt, max_new_tokens=3, temperature=0.9, seed=seed,
                             eos_token_id=(), **given)
        counts[tuple(ids[0, 3:].tolist())] += 1
    value = sum((counts[key] - n * p) ** 2 / (n * p) for key, p in expected.items() if n * p > 5)
    cells = sum(n * p > 5 for p in expected.values())
    assert 10 < cells and value < cells + 5 * (2 * cells) ** 0.5


@pytest.mark.scope("1.15.6")
def test_a_guesser_that_costs_more_than_it_saves_rests():
    pace, spent, tokens = Pace(8), 0.0, 0
    while tokens < 512:
        count = pace.tokens()
        seconds = 1.0 if not count else 1.2 + 0.5 * count  # and none is right
        pace.took(seconds, count, 0)
        spent, tokens = spent + seconds, tokens + 1
    assert spent / 512 < 1.03
    assert pace.rest > 0


def test_a_guesser_that_pays_goes_on_and_grows():
    pace = Pace(8)
    counts = []
    for _ in range(12):
        counts.append(pace.tokens())
        pace.took(1.0 + 0.05 * counts[-1], counts[-1], counts[-1])
    assert counts[0] == 0 and counts[-1] == 8 and 0 not in counts[2:]


def test_the_clock_decides(llama):
    ticks = itertools.count()
    options = Options.read(llama, dict(max_new_tokens=30, assistant_model=llama))
    run = Speculative(llama, [1, 2, 3], None, options, clock=lambda: next(ticks))
    list(run)
    report = run.report()
    assert report["accepted"] == run.accepted and report["speed_up"] > 2 and not report["resting"]
    assert run.accepted > 10  # every round takes one tick: guesses are free
    hours = [0.0]
    slow = Speculative(llama, [1, 2, 3], None, options, clock=lambda: hours[0])
    guess = slow.guesser.guess

    def dear(*given):
        hours[0] += 99
        return guess(*given)

    scores, slow.guesser.guess = slow.feed.scores, dear

    def read(*given):
        hours[0] += 1
        return scores(*given)

    slow.feed.scores = read
    list(slow)
    assert slow.report()["resting"] and slow.report()["speed_up"] < 1
    assert slow.drafted < 10 and torch.equal(run.ids, slow.ids)


def test_what_cannot_guess(llama, tmp_path):
    for given, says in (
            ({"assistant_model": model_of("llama", vocab=64)}, "another vocabulary"),
            ({"assistant_model": mirada.build("t5:tiny")}, "decoder that guesses"),
            ({"assistant_model": mirada.build("bert:tiny")}, "decoder that guesses"),
            ({"assistant_model": "small"}, "assistant_model is 'small'; it must be a model"),
            ({"assistant_model": llama, "num_beams": 2}, "beams are not guessed"),
            ({"prompt_lookup_num_tokens": 3, "num_return_sequences": 2, "temperature": 1.0},
             "one prompt")):
        with pytest.raises(MiradaError, match=says):
            llama.generate([1, 2, 3], max_new_tokens=3, **given)


def test_lookup_guesses_from_the_nearest_longest_match():
    guess = speculate.Lookup().guess
    assert guess([1, 2, 3, 9, 2, 3, 7, 1, 2, 3], 2, None) == ([9, 2], None)
    assert guess([8, 3, 5, 3, 6, 3], 1, None) == ([6], None)
    assert guess([1, 2, 3], 4, None) == ([], None)


# ---- encoder-decoders ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bart():
    """A model with a longest context, whose answers do not begin alike."""
    model = model_of("bart")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(8 if p.ndim > 1 else 1)
    return model


SOURCE = [5, 6, 7, 8, 9, 10, 11]
ANSWER = dict(max_new_tokens=20, eos_token_id=(), repetition_penalty=1.5, num_beams=1)


@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_decoder_guesses_for_its_like(bart, padded, monkeypatch):
    """The draft reads the source too, pads and all, and what it would write is what it says."""
    always(monkeypatch)
    ids = torch.tensor([SOURCE + [1, 1] * padded])
    mask = (ids != 1).long()
    plain = bart.generate(ids, mask, **ANSWER)
    assert not padded or torch.equal(plain, bart.generate([SOURCE], **ANSWER))
    run = single(bart, ids, mask, ANSWER | {"assistant_model": bart, "num_assistant_tokens": 4})
    list(run)
    assert torch.equal(run.ids, plain) and run.drafted == run.accepted == 15
    other = bart.generate([[50, 60]], **ANSWER)
    assert not torch.equal(other, plain), "the source says nothing"


def test_a_draft_without_room_for_the_source_does_not_guess(bart, monkeypatch):
    always(monkeypatch)
    small = model_of("bart", context=16)
    for count, drafted in ((16, True), (17, False)):
        source = list(range(5, 5 + count))
        run = single(bart, source, None, ANSWER | {"assistant_model": small})
        list(run)
        assert torch.equal(run.ids, bart.generate(source, **ANSWER))
        assert bool(run.drafted) == drafted


def test_lookup_finds_what_an_answer_takes_from_its_source(bart):
    run = single(bart, SOURCE, None, ANSWER | {"prompt_lookup_num_tokens": 3})
    assert run.guesser.guess([2, 7, 8], 3, run) == ([9, 10, 11], None)
    decoder = single(model_of("gpt2"), SOURCE, None, {"prompt_lookup_num_tokens": 3})
    assert decoder.guesser.before == []
    two = single(model_of("fsmt"), SOURCE, None, ANSWER | {"prompt_lookup_num_tokens": 3})
    assert two.guesser.before == [], "its source is written in other tokens than its answer"


def test_another_vocabulary_of_the_answer_is_refused():
    model, other = model_of("fsmt"), model_of("fsmt", target=1000)
    with pytest.raises(MiradaError, match="another vocabulary"):
        model.generate(SOURCE, max_new_tokens=3, assistant_model=other)

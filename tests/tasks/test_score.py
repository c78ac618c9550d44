"""Log-probabilities of choices and documents, against sums by hand on the reference's logits."""

import math
from types import SimpleNamespace

import pytest
import torch
import transformers

import mirada
from mirada.errors import MiradaError
from mirada.tasks import score
from mirada.tasks.lm_eval import Scorer, adapter
from tasks import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.gpt2(tmp_path_factory.mktemp("score") / "gpt2")


@pytest.fixture(scope="module")
def model(folder):
    return mirada.load(folder)


@pytest.fixture(scope="module")
def chances(folder):
    """chances(ids) -> (T, V) log-probabilities after each token, by the reference."""
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    def of(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return theirs(torch.tensor([ids])).logits[0].log_softmax(-1)

    return of


def by_hand(chances, before: list[int], behind: list[int]) -> tuple[float, bool]:
    found = chances((before + behind)[:-1])[len(before) - 1 :]
    return (found.gather(-1, torch.tensor(behind)[:, None]).sum().item(),
            found.argmax(-1).tolist() == behind)


def test_choices_of_many_lengths(model, chances):
    choices = [" a", " on", " on a mat", " language was there in every model", "x"]
    for prompt in ("the cat sat", "attention is all you need and "):
        found = score.score(model, prompt, choices, batch_size=2)
        ids = lambda text: model.tokenizer.encode(text, special=False).ids  # noqa: E731
        bare = prompt.rstrip()
        for one, choice in zip(found, choices, strict=True):
            whole = ids(prompt + choice)
            before, behind = ids(bare), whole[len(ids(bare)):]
            wanted, greedy = by_hand(chances, before, behind)
            assert one.logprob == pytest.approx(wanted, abs=2e-4) and one.greedy is greedy
            assert one.tokens == len(behind) and one.text == choice


def test_what_greedy_decoding_writes_is_greedy(model):
    ids = torch.tensor([model.tokenizer.encode("the cat").ids])
    new = model.generate(ids, max_new_tokens=4, do_sample=False)[0, ids.shape[1]:].tolist()
    (_, greedy), = score.continuations(model, [(ids[0].tolist(), new)])
    assert greedy
    (_, other), = score.continuations(model, [(ids[0].tolist(), [*new[:-1], new[-1] + 1])])
    assert not other


def test_norms():
    one = score.Choice(" año", -6.0, 2, False)
    assert [one.by(n) for n in (None, "tokens", "characters", "bytes")] == [-6, -3, -2, -1.5]
    with pytest.raises(MiradaError, match="norm is 'words'"):
        one.by("words")


def test_an_encoder_decoder_scores_answers(tmp_path):
    folder = tiny.t5(tmp_path / "t5")
    model = mirada.load(folder)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
    source = model.tokenizer.encode("the cat").ids
    found = score.score(model, "the cat", [" sat", " on a mat"])
    for one in found:
        labels = torch.tensor([model.tokenizer.encode(one.text, special=False).ids])
        with torch.no_grad():
            loss = theirs(torch.tensor([source]), labels=labels).loss.item()
        assert one.logprob == pytest.approx(-loss * labels.shape[1], abs=1e-3)


def test_a_prompt_too_long_is_refused_or_loses_its_beginning(model, chances):
    prompt = "the cat sat on a mat " * 12
    with pytest.raises(MiradaError, match="the context of this model is 64"):
        score.score(model, prompt, [" a"])
    with pytest.warns(UserWarning, match="the oldest .* tokens of a prompt"):
        found, = score.score(model, prompt, [" a mat"], truncation=True)
    before, behind = score.encoded(model, prompt, " a mat")
    wanted, _ = by_hand(chances, (before + behind)[-65:][: -len(behind)], behind)
    assert found.logprob == pytest.approx(wanted, abs=2e-4)


def test_what_cannot_be_scored(model, tmp_path):
    with pytest.raises(MiradaError, match="no choice to score"):
        score.score(model, "x", [])
    with pytest.raises(MiradaError, match="a choice is empty"):
        score.score(model, "x", [""])
    encoder = mirada.load(tiny.bert(tmp_path / "bert", "ForMaskedLM"))
    with pytest.raises(MiradaError, match="does not write one token after another"):
        score.score(encoder, "x", ["y"])


# Documents


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 1), (20, 7), (None, None)])
def test_perplexity_is_the_mean_over_windows_by_hand(model, chances, window, stride):
    text = "the cat sat on a mat. attention is all you need. hello world. " * 8
    found = score.perplexity(model, text, window=window, stride=stride)
    ids = model.tokenizer.encode(text, special=False).ids
    wide, step = window or 64, stride or 32
    assert len(ids) > 2 * wide
    nats, scored, p = 0.0, [], 1
    while p < len(ids):  # tokens p to q are predicted; at most `wide` tokens are read
        q = min(p + (wide if p == 1 else step), len(ids))
        read = ids[max(0, q - 1 - wide) : q - 1]
        after = chances(read)[-(q - p):]
        nats -= after.gather(-1, torch.tensor(ids[p:q])[:, None]).sum().item()
        scored += range(p, q)
        p = q
    assert scored == [*range(1, len(ids))] and found.tokens == len(ids) - 1
    assert found.token == pytest.approx(math.exp(nats / len(scored)), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    assert found.word == pytest.approx(math.exp(nats / len(text.split())), rel=1e-5)


def test_perplexity_of_a_short_text_is_the_loss(model):
    ids = torch.tensor([model.tokenizer.encode("the cat sat on a mat").ids])
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss.item()
    assert score.perplexity(model, "the cat sat on a mat").token == pytest.approx(math.exp(loss))


@pytest.mark.parametrize(("text", "options", "said"), [
    ("x", {}, "two tokens or more"), ("a b c", {"window": 65}, "at most the context, 64"),
    ("a b c", {"window": 8, "stride": 9}, "the stride must be"),
    ("a b c", {"stride": 0}, "the stride must be")])
def test_what_has_no_perplexity(model, text, options, said):
    with pytest.raises(MiradaError, match=said):
        score.perplexity(model, text, **options)


# Prompts


def test_templates():
    form = score.Template("Q: {q}\nA:", " {a}", instruction="Answer.")
    shots = [{"q": "1+1?", "a": 2}, {"q": "{q}?", "a": "{a}"}]
    assert form.prompt({"q": "2+2?"}) == "Answer.\n\nQ: 2+2?\nA:"
    assert form.prompt({"q": "2+2?"}, shots) == (
        "Answer.\n\nQ: 1+1?\nA: 2\n\nQ: {q}?\nA: {a}\n\nQ: 2+2?\nA:")
    with pytest.raises(MiradaError, match="asks for {q}, and an example has text"):
        form.prompt({"text": "x"})


def test_labels_are_shares_of_the_chance(model):
    found = score.label(model, "topic", {"text": "the cat"}, ["a", "on", "language"])
    each = score.score(model, "Text: the cat\nTopic:", [" a", " on", " language"])
    shares = torch.tensor([one.logprob for one in each]).softmax(0).tolist()
    assert sorted(found) == sorted(
        (name, pytest.approx(share)) for name, share in zip(["a", "on", "language"], shares,
                                                            strict=True))
    assert [share for _, share in found] == sorted(shares, reverse=True)
    with pytest.raises(MiradaError, match="no template is called 'mood'"):
        score.label(model, "mood", {"text": "x"}, ["a"])


# lm-eval, by requests of its form


def request(*args) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_lm_eval_loglikelihood(model, chances):
    """As its own backend does: spaces go to the continuation, an empty context is the end token,
    and of context + continuation only the last 65 tokens are read."""
    scorer = Scorer(model)
    cases = [("the cat sat", " on a mat"), ("the cat sat ", "on"), ("", "hello"),
             ("the cat " * 60, " on a mat")]
    with pytest.warns(UserWarning, match="oldest"):
        found = scorer.loglikelihood([request(*case) for case in cases])
    encode = model.tokenizer.encode
    pairs = []
    for context, continuation in cases:
        bare = context.rstrip()
        before = encode(bare).ids
        behind = encode(bare + context[len(bare):] + continuation).ids[len(before):]
        before = (before or [1])[-(65 - len(behind)):]
        pairs.append((before, behind))
    for (got, greedy), (before, behind) in zip(found, pairs, strict=True):
        wanted, is_greedy = by_hand(chances, before, behind)
        assert got == pytest.approx(wanted, abs=2e-4) and greedy is is_greedy


def test_lm_eval_rolling(model, chances):
    text = "attention is all you need and language " * 12
    ids = [1, *model.tokenizer.encode(text).ids]
    wanted = 0.0
    for p in range(1, len(ids), 64):  # disjoint; the last one reads a whole context too
        q = min(p + 64, len(ids))
        after = chances(ids[max(0, q - 65) : q - 1])[-(q - p):]
        wanted += after.gather(-1, torch.tensor(ids[p:q])[:, None]).sum().item()
    found, short = Scorer(model).loglikelihood_rolling([request(text), request("hello")])
    assert found == pytest.approx(wanted, rel=1e-5)
    assert short == pytest.approx(Scorer(model).loglikelihood([request("", "hello")])[0][0])


def test_lm_eval_generate_until(model):
    asked = {"max_gen_toks": 6, "do_sample": False}
    whole, = Scorer(model).generate_until([request("the cat", asked | {"until": []})])
    ids = torch.tensor([model.tokenizer.encode("the cat").ids])
    new = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1]:]
    assert whole == model.tokenizer.decode(new) and len(whole) > 1
    stop = whole[1:3]
    cut, = Scorer(model).generate_until([request("the cat", asked | {"until": [stop]})])
    assert cut == whole[: whole.index(stop)]


def test_lm_eval_that_is_absent_is_named(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(MiradaError, match="lm-eval is not installed: pip install lm-eval"):
        adapter(model)

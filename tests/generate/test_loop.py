"""The loop: greedy as the reference, caches, limits, streams, traces."""

import re
import warnings

import pytest
import torch

import mirada
from generate.pairs import GPT2, T5, ends, prompts, written
from mirada.generate.loop import next_tokens, steps
from parity.harness import pair

ROWS = [GPT2, T5]
OPTIONS = [{}, {"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 7},
           {"repetition_penalty": 0.7, "no_repeat_ngram_size": 3, "min_new_tokens": 5}]


@pytest.fixture(scope="module")
def tiny():
    """A GPT-2 whose choices are far from even."""
    model = mirada.build("gpt2", size="tiny", seed=1).double()
    for p in model.parameters():
        p.data.mul_(8 if p.ndim > 1 else 1)
    return model


@pytest.mark.scope("1.15.1")
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_greedy_is_the_references(row, seed, options):
    both, batch = pair(row), prompts(row, seed)
    start = 1 if both.ours.encoder_decoder else batch["input_ids"].shape[1]
    plain = written(both, batch, max_new_tokens=12, **options)
    assert torch.equal(both.ours.generate(**batch, max_new_tokens=12, **options), plain)
    eos = [ends(plain, start, 3), ends(plain[1:], start, 8)]
    options = options | {"eos_token_id": eos, "max_new_tokens": 12}
    theirs = written(both, batch, **options)
    ours = both.ours.generate(**batch, **options)
    assert torch.equal(ours, theirs)
    least = options.get("min_new_tokens", 0)
    assert not torch.isin(ours[:, start : start + least], torch.tensor(eos)).any()
    if not least:
        assert torch.isin(ours[0, start : start + 4], torch.tensor(eos)).any(), "no row ended"


def test_pads_are_recognised_as_the_reference_does():
    """Without a mask pad ids are padding, unless the pad id is an end token too."""
    both, batch, pad = pair(GPT2), prompts(GPT2, 9), 1
    ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, pad)
    answers = []
    for options in ({}, {"eos_token_id": pad}, {"pad_token_id": int(ids[0, 0])}):
        options = options | {"max_new_tokens": 9}
        answers.append(both.ours.generate(ids, **options))
        assert torch.equal(answers[-1], written(both, {"input_ids": ids}, **options))
    assert torch.equal(answers[0], both.ours.generate(ids, batch["attention_mask"],
                                                      max_new_tokens=9))
    for other in answers[1:]:
        assert not torch.equal(answers[0], other), "nothing depends on the pads"


def test_temperature_zero_is_greedy_whatever_else_is_asked(tiny):
    ids = [5, 6, 7]
    greedy = tiny.generate(ids)
    for options in ({"do_sample": True}, {"top_p": 0.9}, {"do_sample": True, "top_k": 5}):
        assert torch.equal(tiny.generate(ids, temperature=0, **options), greedy)
    assert torch.equal(tiny.generate(ids, do_sample=False, temperature=2.0, seed=1), greedy)
    assert torch.equal(tiny.generate(ids, do_sample=True, temperature=0.0), greedy)


@pytest.mark.parametrize("words", [{"temperature": 1.0}, {"top_p": 0.99}, {"top_k": 900},
                                   {"min_p": 0.0001}, {"do_sample": True}], ids=str)
def test_a_sampling_word_alone_samples(tiny, words):
    several = {tuple(tiny.generate([5, 6, 7], seed=s, **words)[0].tolist()) for s in range(3)}
    assert len(several) == 3


@pytest.mark.parametrize("kind", ["growing", "static", "rolling"])
def test_every_cache_gives_the_same_tokens_as_none(tiny, kind):
    ids = torch.tensor([[5, 6, 7, 8], [0, 9, 10, 11]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    whole, wide = ids, mask
    for _ in range(10):  # no cache: everything is read again at each step
        best = tiny(whole, wide).logits[:, -1].argmax(-1, keepdim=True)
        whole, wide = torch.cat([whole, best], 1), torch.nn.functional.pad(wide, (0, 1), value=1)
    assert torch.equal(tiny.generate(ids, mask, max_new_tokens=10, cache=kind), whole)


def test_a_filled_cache_is_gone_on_from(tiny):
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    cache = tiny.new_cache()
    tiny(ids[:, :3], cache=cache)
    seen = []
    hook = tiny.body.embed.register_forward_pre_hook(lambda m, a: seen.append(a[0].input_ids))
    got = tiny.generate(ids, cache=cache)
    hook.remove()
    assert seen[0].tolist() == [[8, 9]]
    assert torch.equal(got, tiny.generate(ids))
    for held in (24, 5):
        cache.crop(held)
        with pytest.raises(mirada.MiradaError, match=f"holds {held} tokens and the prompt has 5"):
            tiny.generate(ids, cache=cache)


def test_padding_changes_no_answer(tiny):
    rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14]]
    alone = [tiny.generate(row)[0, len(row) :] for row in rows]
    ids = torch.tensor([[0] * (6 - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (6 - len(row)) + [1] * len(row) for row in rows])
    for penalty in (1.0, 1.5):  # pads are not repetitions
        together = tiny.generate(ids, mask, repetition_penalty=penalty)[:, 6:]
        alone = [tiny.generate(r, repetition_penalty=penalty)[0, len(r) :] for r in rows]
        assert torch.equal(together, torch.stack(alone))


def test_only_the_last_position_is_scored(tiny):
    sizes = []
    hook = tiny.head.register_forward_hook(lambda m, a, out: sizes.append(out["logits"].shape[1]))
    tiny.generate([5, 6, 7, 8], max_new_tokens=3)
    hook.remove()
    assert sizes == [1, 1, 1]


def test_logits_to_keep(tiny):
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = tiny(ids).logits
    assert torch.equal(tiny(ids, logits_to_keep=0).logits, whole)
    for keep in (1, 3, 9):
        kept = tiny(ids, logits_to_keep=keep).logits
        assert kept.shape[1] == min(keep, 4)
        torch.testing.assert_close(kept, whole[:, -keep:], rtol=0, atol=1e-12)
    with pytest.raises(mirada.MiradaError, match="logits_to_keep is -1"):
        tiny(ids, logits_to_keep=-1)
    bare = mirada.build("gpt2", size="tiny", architecture="GPT2Model")
    with pytest.raises(mirada.MiradaError, match="which GPT2Model lacks"):
        bare(ids, logits_to_keep=1)


def test_what_comes_back_can_be_trained_on(tiny):
    ids = tiny.generate([5, 6, 7])
    assert not ids.is_inference()
    tiny(ids, labels=ids).loss.backward()
    tiny.zero_grad()


def test_the_stream_is_what_generate_returns(tiny):
    for options in ({}, {"temperature": 0.9, "seed": 4}, {"repetition_penalty": 2.0}):
        whole = tiny.generate([5, 6, 7], **options)[0, 3:].tolist()
        assert list(tiny.stream([5, 6, 7], **options)) == whole
        end = whole[4]
        cut = whole[: whole.index(end) + 1]
        assert list(tiny.stream([5, 6, 7], eos_token_id=end, **options)) == cut


def test_the_stream_gives_each_token_before_the_next_is_computed(tiny):
    calls = []
    hook = tiny.head.register_forward_hook(lambda *_: calls.append(1))
    for n, _ in enumerate(tiny.stream([5, 6, 7], max_new_tokens=4), 1):
        assert len(calls) == n
    hook.remove()


@pytest.mark.scope("1.15.3")
def test_the_trace_shows_each_output_become_input(tiny):
    ids = [5, 6, 7]
    trace = list(steps(tiny, ids, top=4, max_new_tokens=6))
    assert len(trace) == 6
    for step in trace:  # each step is the model's answer to the prompt and all outputs before
        chances = tiny(torch.tensor([ids])).logits[0, -1].detach().softmax(-1)
        best = chances.topk(4)
        assert step.id == step.top[0][0] == int(best.indices[0])
        assert [token for token, _ in step.top] == best.indices.tolist()
        torch.testing.assert_close(torch.tensor([p for _, p in step.top]), best.values.float())
        assert step.probability == pytest.approx(float(best.values[0]), rel=1e-9)
        ids = [*ids, step.id]
    assert ids == tiny.generate([5, 6, 7], max_new_tokens=6)[0].tolist()


def test_the_trace_of_a_sample_gives_its_chances(tiny):
    trace = list(steps(tiny, [5, 6, 7], top=900, top_k=3, temperature=3.0, seed=2))
    for step in trace:
        assert sum(p > 0 for _, p in step.top) == 3
        assert dict(step.top)[step.id] == step.probability > 0
    assert any(step.id != step.top[0][0] for step in trace)


def test_next_tokens(tiny):
    table = next_tokens(tiny, [5, 6, 7], k=10)
    chances = tiny(torch.tensor([[5, 6, 7]])).logits[0, -1].detach().softmax(-1)
    assert [token for token, _ in table] == chances.topk(10).indices.tolist()
    assert sum(p for _, p in table) == pytest.approx(float(chances.topk(10).values.sum()))
    assert len(next_tokens(tiny, [5], k=5000)) == 1024


@pytest.mark.scope("1.15.4")
def test_an_answer_ends_where_the_context_does(tiny):
    with pytest.warns(UserWarning, match="context of 256 tokens ended before max_new_tokens=20"):
        assert tiny.generate(list(range(250))).shape == (1, 256)
    with pytest.warns(UserWarning, match="context of 256 tokens"):
        assert len(list(tiny.stream(list(range(250))))) == 6
    with pytest.warns(UserWarning, match="context of 12 tokens"):
        assert tiny.generate([5, 6], context=12).shape == (1, 12)
    with pytest.warns(UserWarning, match="context of 12 tokens"):
        assert tiny.generate([5, 6], context=12, num_beams=2).shape == (1, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.generate(list(range(236)))
        tiny.generate([5, 6], context=12, max_new_tokens=10, num_beams=2)
        end = int(tiny.generate([5, 6], max_new_tokens=4)[0, -1])
        tiny.generate([5, 6], context=12, eos_token_id=end)


@pytest.mark.scope("1.15.4")
@pytest.mark.parametrize("length, words", [
    (300, "the prompt has 300 tokens and the context is 256: shorten it, or drop tokens"),
    (256, "the prompt has 256 tokens and the context is 256, which leaves no room"),
])
def test_a_prompt_beyond_the_context(tiny, length, words):
    with pytest.raises(mirada.MiradaError, match=words):
        tiny.generate([3] * length)


WRONG = {
    "temperature is -0.5; it must be 0 (greedy)": {"temperature": -0.5},
    "temperature is nan": {"temperature": float("nan")},
    "temperature is True": {"temperature": True},
    "top_p is 0;": {"top_p": 0},
    "top_p is 1.01; it must be above 0 and at most 1": {"top_p": 1.01},
    "top_k is 0; it must be a whole number": {"top_k": 0},
    "top_k is 2.5": {"top_k": 2.5},
    "min_p is -0.1": {"min_p": -0.1},
    "num_beams is 0; it must be a whole number": {"num_beams": 0},
    "max_new_tokens is 0": {"max_new_tokens": 0},
    "repetition_penalty is 0": {"repetition_penalty": 0},
    "repetition_penalty is None": {"repetition_penalty": None},
    "no_repeat_ngram_size is -1": {"no_repeat_ngram_size": -1},
    "early_stopping is 'often'": {"early_stopping": "often"},
    "seed is 1.5": {"seed": 1.5},
    "no option 'temprature'; did you mean temperature?": {"temprature": 1.0},
    "no option 'max_lenght'; did you mean max_length?": {"max_lenght": 9},
    "max_length, which counts them, is 3: give max_new_tokens": {"max_length": 3},
    "forced_eos_token_id is 1024; it must be ids below": {"forced_eos_token_id": 1024},
    "suppress_tokens is 'a'; it must be a token id": {"suppress_tokens": "a"},
    "begin_suppress_tokens is [1, -2]; it must be": {"begin_suppress_tokens": [1, -2]},
    "bad_words_ids is [[]]; it must be a list of lists": {"bad_words_ids": [[]]},
    "bad_words_ids is [3]; it must be a list of lists": {"bad_words_ids": [3]},
    "eos_token_id is 1024; it must be ids below": {"eos_token_id": 1024},
    "context is 300; this model's own is 256": {"context": 300},
    "stop needs a tokenizer": {"stop": "x"},
    "stop is ['']": {"stop": [""]},
    "num_return_sequences is 3, and this search has 2": {
        "num_beams": 2, "num_return_sequences": 3},
    "num_return_sequences is 2, and this search has 1": {"num_return_sequences": 2},
    "no cache is called 'huge'": {"cache": "huge"},
    "no token may come next": {"no_repeat_ngram_size": 1, "max_new_tokens": 3, "eos_token_id": [
        n for n in range(1024) if n != 5], "min_new_tokens": 2},
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_asked(tiny, words):
    with pytest.raises(mirada.MiradaError, match=re.escape(words)):
        tiny.generate([5, 6, 7], **WRONG[words])


@pytest.mark.parametrize("ids, mask, words", [
    ([], None, "the prompt is empty"),
    ([[]], None, "the prompt is empty"),
    ([[1, 2], [3]], None, "rows of one length: pad shorter"),
    ([1.5], None, "whole numbers"),
    ([5000], None, "token id 5000"),
    ([[5, 6], [7, 8]], [[1, 1], [1, 0]], "row 1 of the prompt is padded on the right"),
    ([[5, 6], [7, 8]], [[1, 1], [0, 0]], "row 1 of the prompt is empty"),
    ([[5, 6]], [[1, 1, 1]], "they must be alike"),
])
def test_prompts_that_cannot_be_gone_on_from(tiny, ids, mask, words):
    with pytest.raises(mirada.MiradaError, match=words):
        tiny.generate(ids, mask)


def test_a_stream_follows_one_answer(tiny):
    with pytest.raises(mirada.MiradaError, match="one prompt, and 2 are given"):
        tiny.stream([[5, 6], [7, 8]])
    with pytest.raises(mirada.MiradaError, match="num_beams and num_return_sequences must be 1"):
        tiny.stream([5, 6], num_beams=2)


@pytest.mark.parametrize("architecture", ["GPT2Model", "GPT2ForSequenceClassification"])
def test_a_model_that_does_not_write(architecture):
    model = mirada.build("gpt2", size="tiny", architecture=architecture)
    with pytest.raises(mirada.MiradaError, match=f"{architecture} does not write"):
        model.generate([5, 6])


def test_an_encoder_does_not_write():
    with pytest.raises(mirada.MiradaError, match="does not write one token after another"):
        mirada.build("bert", size="tiny", architecture="BertForMaskedLM").generate([5, 6])


def test_broken_weights_are_named():
    model = mirada.build("gpt2", size="tiny", seed=1)
    model.body.norm.weight.data[0] = float("nan")
    for options in ({}, {"temperature": 1.0}, {"num_beams": 2}):
        with pytest.raises(mirada.WorkFailed, match="not finite"):
            model.generate([5, 6], **options)


def test_an_encoder_reads_pads_unless_a_mask_hides_them():
    ids = prompts(T5, 9)["input_ids"]
    ids[0, -3:] = 0
    ours = pair(T5).ours.generate(ids, max_new_tokens=9)
    assert torch.equal(ours, written(pair(T5), {"input_ids": ids}, max_new_tokens=9))
    assert not torch.equal(ours, pair(T5).ours.generate(ids, ids != 0, max_new_tokens=9))


def test_an_encoder_decoder_with_a_known_memory():
    ours, batch = pair(T5).ours, prompts(T5, 0)
    plain = ours.generate(**batch)
    memory = ours.encode(**batch)
    calls = []
    hook = ours.body.encoder.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(ours.generate(**batch, encoder_outputs=memory), plain) and not calls
    hook.remove()
    other = ours.generate(**batch, decoder_start_token_id=7)
    assert other[:, 0].tolist() == [7, 7, 7]
    assert torch.equal(other, written(pair(T5), batch, decoder_start_token_id=7,
                                      max_new_tokens=20))

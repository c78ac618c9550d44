"""Beam search, token for token the reference's."""

import itertools
import warnings

import pytest
import torch
import transformers

import mirada
from generate.pairs import GPT2, T5, ends, prompts, written
from parity.harness import pair
from tasks import tiny

ROWS = [GPT2, T5]
LONG = 12
SEARCHES = list(itertools.product((2, 4), (0.0, 1.0, 2.0, -1.0), (False, True, "never")))


def same(pair, batch, **options) -> torch.Tensor:
    theirs = written(pair, batch, **options)
    ours = pair.ours.generate(**batch, **options)
    pad = pair.row.settings["pad_token_id"]
    if pad == 0 and options.get("eos_token_id"):
        theirs = repadded(theirs, options["eos_token_id"])
    assert torch.equal(ours, theirs)
    return ours


def repadded(ids: torch.Tensor, eos: list[int]) -> torch.Tensor:
    """With a pad id of 0 the reference fills beams up with the first end token instead."""
    ended = torch.isin(ids, torch.tensor(eos)).long().cumsum(1)
    behind = torch.nn.functional.pad(ended[:, :-1], (1, 0)) > 0
    assert (ids[behind] == eos[0]).all()
    return ids.masked_fill(behind, 0)


@pytest.mark.scope("1.15.2")
@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("beams, penalty, early", SEARCHES)
def test_beams_are_the_references(row, beams, penalty, early):
    both, batch = pair(row), prompts(row, SEARCHES.index((beams, penalty, early)))
    start = 1 if both.ours.encoder_decoder else batch["input_ids"].shape[1]
    options = dict(num_beams=beams, length_penalty=penalty, early_stopping=early,
                   max_new_tokens=LONG, num_return_sequences=2)
    plain = both.ours.generate(**batch, **options)
    eos = [ends(plain, start, 2), ends(plain[2:], start, 5)]
    ours = same(both, batch, eos_token_id=eos, **options)
    same(both, batch, eos_token_id=eos[1:], **options)
    if penalty < 1 or early is True:  # otherwise long answers may win, as they should
        assert torch.isin(ours[:, start:-1], torch.tensor(eos)).any(), "no beam ended early"


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("options", [
    {"repetition_penalty": 1.5}, {"repetition_penalty": 4.0}, {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6}], ids=str)
def test_processors_within_beams(row, options):
    both, batch = pair(row), prompts(row, 1)
    start = 1 if both.ours.encoder_decoder else 8
    options = options | {"num_beams": 3, "max_new_tokens": LONG}
    plain = same(both, batch, **options)
    same(both, batch, eos_token_id=[ends(plain, start, 2)], **options)
    without = both.ours.generate(**batch, num_beams=3, max_new_tokens=LONG,
                                 eos_token_id=[ends(plain, start, 2)])
    assert not torch.equal(plain, without)


def test_beams_share_no_cache():
    """Each kind of cache, reordered by beam, gives what reading everything anew gives."""
    both, batch = pair(GPT2), prompts(GPT2, 4)
    wanted = written(both, batch, num_beams=4, max_new_tokens=LONG, use_cache=False)
    for kind in ("growing", "static", "rolling"):
        got = both.ours.generate(**batch, num_beams=4, max_new_tokens=LONG, cache=kind)
        assert torch.equal(got, wanted)


def test_early_stopping_stops_early():
    both, batch = pair(GPT2), prompts(GPT2, 2)
    plain = both.ours.generate(**batch, num_beams=3, max_new_tokens=LONG)
    eos, passes = [ends(plain[n:], 8, 2) for n in range(3)], []
    hook = both.ours.head.register_forward_hook(lambda *_: passes.append(1))
    for early in (True, "never"):
        both.ours.generate(**batch, num_beams=3, max_new_tokens=LONG, early_stopping=early,
                           length_penalty=2.0, eos_token_id=eos)
        passes.append(0)
    hook.remove()
    assert passes.index(0) < len(passes) - passes.index(0) - 2


def test_a_beam_finds_what_greedy_misses():
    model, ids = pair(GPT2).ours, prompts(GPT2, 3, rows=1)["input_ids"]

    def likelihood(whole):
        logs = model(whole).logits.detach().log_softmax(-1)[0, 7:-1]
        return float(logs.gather(1, whole[0, 8:, None]).sum())

    found = [likelihood(model.generate(ids, num_beams=k, max_new_tokens=6)) for k in (1, 2, 8, 30)]
    assert found == sorted(found) and found[-1] > found[0]


def test_one_prompt_is_the_same_alone_and_in_a_batch():
    model, batch = pair(GPT2).ours, prompts(GPT2, 6)
    together = model.generate(**batch, num_beams=3, max_new_tokens=LONG)
    for n in range(3):
        alone = model.generate(batch["input_ids"][n : n + 1, 2 * n :], num_beams=3,
                               max_new_tokens=LONG)
        assert torch.equal(alone[0], together[n, 2 * n :])


SAMPLED = [{}, {"temperature": 0.7}, {"temperature": 2.0, "top_k": 9}, {"top_k": 1},
           {"top_p": 0.6}, {"top_p": 1e-6}, {"min_p": 0.4}, {"min_p": 1.0},
           {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.3},
           {"length_penalty": 0.0, "early_stopping": True}, {"no_repeat_ngram_size": 2}]


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_sampled_beams_are_the_references(row, options):
    """With the same random numbers token for token: the same distribution, and the same draws."""
    both, batch = pair(row), prompts(row, 7)
    start = 1 if both.ours.encoder_decoder else 8
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": LONG,
               "do_sample": True, "top_k": row.settings["vocab_size"]} | options
    found = []
    for seed in range(3):
        torch.manual_seed(seed)
        theirs = written(both, batch, **options)
        found.append(both.ours.generate(**batch, **options, seed=seed))
        assert torch.equal(found[-1], theirs)
        eos = [ends(found[0], start, 2), ends(found[0][2:], start, 5)]
        torch.manual_seed(seed)
        theirs = written(both, batch, eos_token_id=eos, **options)
        if row.settings["pad_token_id"] == 0:
            theirs = repadded(theirs, eos)
        ours = both.ours.generate(**batch, eos_token_id=eos, **options, seed=seed)
        assert torch.equal(ours, theirs)
    assert not torch.equal(found[0], found[1]) or options.get("top_k") == 1


def test_sampled_beams_leave_torchs_generator_alone():
    both, batch = pair(GPT2), prompts(GPT2, 7)
    options = {"num_beams": 2, "max_new_tokens": 6, "temperature": 1.5}
    before = torch.get_rng_state()
    seeded = [both.ours.generate(**batch, **options, seed=s) for s in (1, 1, 2)]
    free = [both.ours.generate(**batch, **options) for _ in range(2)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[1], seeded[2])
    assert not torch.equal(*free) and torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """The reference and its tokenizer, and ours, from one folder."""
    folder = tiny.gpt2(tmp_path_factory.mktemp("beam") / "gpt2")
    return (transformers.GPT2LMHeadModel.from_pretrained(folder).eval(),
            transformers.AutoTokenizer.from_pretrained(folder), mirada.load(folder))


@pytest.mark.parametrize("options", [{}, {"early_stopping": True}, {"length_penalty": 2.0},
                                     {"num_return_sequences": 3}], ids=str)
def test_stop_strings_end_beams_as_the_references(letters, options):
    theirs, tokenizer, ours = letters
    ids = tokenizer("the cat sat", return_tensors="pt")["input_ids"]
    options = {"num_beams": 3, "max_new_tokens": 14, "eos_token_id": 1} | options
    plain = ours.generate(ids, **options)
    text = ours.tokenizer.decode(plain[0, ids.shape[1] :].tolist(), skip_special=False)
    for stop in (text[4:6], [text[7:9], text[3]], "never said"):
        with torch.no_grad():
            wanted = theirs.generate(ids, do_sample=False, stop_strings=stop, tokenizer=tokenizer,
                                     pad_token_id=0, **options)
        got = ours.generate(ids, stop=stop, pad_token_id=1, **options)
        assert torch.equal(got, wanted.masked_fill(wanted == 0, 1))
        assert torch.equal(got, plain) == (stop == "never said")


def test_a_stopped_beam_is_not_cut_short(letters):
    """A stop string is an end: no warning that the context ended the answer."""
    _, _, ours = letters
    ids = torch.tensor([[5, 6, 7]])
    options = {"num_beams": 2, "max_new_tokens": 100, "eos_token_id": (), "context": 24}
    with pytest.warns(UserWarning, match="cut short"):
        plain = ours.generate(ids, **options)
    text = ours.tokenizer.decode(plain[0, 3:].tolist(), skip_special=False)
    stops = [text[2:4], " ", "a", "e", "t"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ours.generate(ids, stop=stops, early_stopping=True, **options)
    assert found.shape[1] < 24
    told = ours.tokenizer.decode(found[0, 3:].tolist(), skip_special=False)
    assert any(stop in told for stop in stops)

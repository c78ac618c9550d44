"""Beam search, token for token the reference's."""

import itertools

import pytest
import torch

import mirada
from generate.pairs import GPT2, T5, ends, prompts, written
from parity.harness import pair

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


def test_stop_strings_are_refused():
    model = mirada.build("gpt2", size="tiny")
    model.tokenizer = type("Any", (), {"pad_id": None, "eos_ids": set()})()
    with pytest.raises(mirada.MiradaError, match="not at stop strings"):
        model.generate([5, 6], num_beams=2, stop="x")

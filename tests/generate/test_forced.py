"""Tokens that are forced, forbidden or forbidden at first: token for token the reference's."""

import pytest
import torch
import transformers.generation.logits_process as reference

import mirada
from generate.pairs import GPT2, prompts, written
from mirada.generate import sampling
from mirada.generate.options import Options
from parity.harness import Pair, Row, pair

SHAPE = dict(vocab_size=61, max_position_embeddings=32, d_model=24, encoder_layers=2,
             decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
             encoder_ffn_dim=40, decoder_ffn_dim=32)
BUFFERS = ("final_logits_bias",)
BART = Row("BartForConditionalGeneration", "BartConfig", SHAPE | dict(
    pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
    forced_eos_token_id=2), buffers=BUFFERS)
MARIAN = Row("MarianMTModel", "MarianConfig", SHAPE | dict(
    pad_token_id=60, eos_token_id=0, decoder_start_token_id=60, forced_eos_token_id=0),
    buffers=BUFFERS)
PEGASUS = Row("PegasusForConditionalGeneration", "PegasusConfig", SHAPE | dict(
    pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=1),
    buffers=BUFFERS)
ROWS = [BART, MARIAN, PEGASUS]
LONG = 9
OPTIONS = [
    {}, {"forced_bos_token_id": 7}, {"forced_eos_token_id": [9]},
    {"suppress_tokens": [5, 8, 30]}, {"begin_suppress_tokens": list(range(3, 40))},
    {"begin_suppress_tokens": list(range(3, 40)), "forced_bos_token_id": 41},
    {"forced_bos_token_id": 7, "no_repeat_ngram_size": 2, "min_new_tokens": LONG,
     "repetition_penalty": 1.3, "suppress_tokens": [12]},
    {"num_return_sequences": 2, "renormalize_logits": True, "no_repeat_ngram_size": 1}]


def sources(seed: int) -> dict:
    """Three sources of different lengths, pads behind."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (3, 8), generator=generator)
    mask = (torch.arange(8) < 8 - 2 * torch.arange(3)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def same(both: Pair, batch: dict, **options) -> torch.Tensor:
    """Ours and the reference's, which without a pad id above 0 fills beams up with the end id."""
    if both.row is PEGASUS:
        options = {"pad_token_id": 5} | options
    ours, theirs = both.ours.generate(**batch, **options), written(both, batch, **options)
    assert torch.equal(ours, theirs)
    return ours


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_forced_and_forbidden_tokens_are_the_references(row, beams, options):
    if beams == 1:
        options = {k: v for k, v in options.items() if k != "num_return_sequences"}
    both, batch = pair(row), sources(OPTIONS.index(options) if options in OPTIONS else 9)
    ours = same(both, batch, num_beams=beams, max_new_tokens=LONG, **options)
    last = options.get("forced_eos_token_id", [row.settings["eos_token_id"]])
    full = ours[:, LONG] if ours.shape[1] > LONG else ours[:0, 0]
    pads = [row.settings["pad_token_id"], 5] if "min_new_tokens" not in options else []
    assert torch.isin(full, torch.tensor([*last, *pads])).all()
    if "forced_bos_token_id" in options:
        assert (ours[:, 1] == options["forced_bos_token_id"]).all()
    assert not torch.isin(ours, torch.tensor(options.get("suppress_tokens", []))).any()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_several_forced_ends(row):
    """All are alike: the greedy choice is the lowest id, and beams may take any of them."""
    both, options = pair(row), {"forced_eos_token_id": [11, 9], "max_new_tokens": LONG}
    assert (same(both, sources(1), **options, min_new_tokens=LONG)[:, -1] == 9).all()
    options |= {"num_beams": 3, "pad_token_id": 5, "min_new_tokens": LONG}
    ours, theirs = both.ours.generate(**sources(1), **options), written(both, sources(1), **options)
    assert torch.equal(ours[:, :-1], theirs[:, :-1])
    assert torch.isin(torch.stack([ours, theirs])[..., -1], torch.tensor([9, 11])).all()


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("beams", [1, 3])
def test_bad_words(row, beams):
    both, batch = pair(row), sources(3)
    options = {"num_beams": beams, "max_new_tokens": LONG, "eos_token_id": ()}
    plain = both.ours.generate(**batch, **options, forced_eos_token_id=None)
    words = [[int(plain[0, 1])], plain[1, 2:4].tolist(), plain[2, 1:5].tolist(), [3] * 20,
             [row.settings["eos_token_id"]]]
    ours = same(both, batch, **options | {"bad_words_ids": words, "eos_token_id": 0})
    assert not torch.equal(ours, plain)
    assert not (ours[:, 1:] == plain[0, 1]).any()


def test_only_where_they_are_asked():
    """A decoder's prompt of several tokens leaves no place for a first token to be forced."""
    both, batch = pair(GPT2), prompts(GPT2, 4)
    free = same(both, batch, max_new_tokens=6)
    assert torch.equal(free, same(both, batch, max_new_tokens=6, forced_bos_token_id=7))
    forced = same(both, batch, max_new_tokens=6, forced_eos_token_id=7)
    assert (forced[:, -1] == 7).all() and torch.equal(free[:, :-1], forced[:, :-1])
    alone = {"input_ids": torch.tensor([[9], [10]])}
    assert (same(both, alone, max_new_tokens=6, forced_bos_token_id=7)[:, 1] == 7).all()
    begun = same(both, batch, max_new_tokens=6, begin_suppress_tokens=free[:, 8].tolist())
    assert not torch.isin(begun[:, 8], free[:, 8]).any()
    same(both, batch, max_length=12, min_length=11, eos_token_id=list(range(2, 30)))


def test_none_and_empty_ask_for_nothing():
    both, batch = pair(BART), sources(2)
    plain = both.ours.generate(**batch, max_new_tokens=LONG, eos_token_id=(),
                               forced_eos_token_id=None)
    for nothing in (None, [], ()):
        options = dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens",
                                 "begin_suppress_tokens", "bad_words_ids"), nothing)
        assert torch.equal(plain, both.ours.generate(
            **batch, max_new_tokens=LONG, eos_token_id=(), **options))


def test_all_of_them_in_the_references_order():
    """Each forbids what another forces, so that a change of order changes what is left."""
    both = pair(GPT2)
    options = dict(bad_words_ids=[[4], [6, 7], [50]], min_new_tokens=3, forced_bos_token_id=4,
                   forced_eos_token_id=[9, 20, 25], suppress_tokens=[9, 30], max_new_tokens=1,
                   begin_suppress_tokens=[31, 20], eos_token_id=[50, 9], renormalize_logits=True,
                   do_sample=True, temperature=0.7, top_k=40)
    settings = both.theirs.generation_config.__class__(**options, num_beams=1, max_length=6)
    settings._eos_token_tensor = torch.tensor([50, 9])
    for start, new in ((1, 0), (1, 1), (3, 0), (5, 0), (4, 1), (1, 4), (3, 5)):
        theirs = both.theirs._get_logits_processor(settings, input_ids_seq_length=start)
        assert {reference.NoBadWordsLogitsProcessor, reference.LogitNormalization} <= {
            type(one) for one in theirs}
        ids = torch.tensor([[6] * (start + new), [7] * (start + new)])
        scores = torch.randn(2, 61, generator=torch.Generator().manual_seed(start)).double()
        got = sampling.process(scores, ids, Options.read(both.ours, options), new, None,
                               start + new == 5)
        torch.testing.assert_close(got, theirs(ids, scores.clone()), rtol=1e-12, atol=0)


def test_nothing_left_is_said():
    model = mirada.build("gpt2", size="tiny", seed=1)
    with pytest.raises(mirada.WorkFailed, match="suppress_tokens or bad_words_ids"):
        model.generate([5, 6], suppress_tokens=list(range(1024)))

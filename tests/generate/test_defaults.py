"""What a folder's files ask of generation is what its models do when nobody says otherwise."""

import json
import shutil
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import pytest
import torch
import transformers

import mirada
from generate.pairs import GPT2, prompts
from generate.test_forced import BART, MARIAN, PEGASUS, sources
from parity.harness import Pair, Row, pair, read_reference, wide

IDS = {BART: dict(decoder_start_token_id=2, eos_token_id=2, pad_token_id=1, bos_token_id=0),
       MARIAN: dict(decoder_start_token_id=60, eos_token_id=0, pad_token_id=60),
       PEGASUS: dict(decoder_start_token_id=0, eos_token_id=1, pad_token_id=5),
       GPT2: dict(eos_token_id=[8, 9, 10, 11], pad_token_id=8)}
FILES = [  # model, what its file says beside the ids
    (BART, dict(forced_bos_token_id=0, forced_eos_token_id=2, num_beams=4, max_length=12,
                min_length=6, length_penalty=2.0, no_repeat_ngram_size=3, early_stopping=True)),
    (BART, dict(max_new_tokens=7, max_length=30, forced_eos_token_id=2, unheard_of=3)),
    (BART, dict(max_length=9, forced_eos_token_id=[2, 4], temperature=0.3, top_p=0.5)),
    (MARIAN, dict(bad_words_ids=[[60]], forced_eos_token_id=0, max_length=14, num_beams=4,
                  renormalize_logits=True)),
    (MARIAN, dict(num_beams=3, num_return_sequences=2, early_stopping="never", max_length=10,
                  length_penalty=0.6, suppress_tokens=[4, 60], begin_suppress_tokens=[7, 9])),
    (MARIAN, dict(decoder_start_token_id=7, min_new_tokens=5)),
    (MARIAN, dict(decoder_start_token_id=7, min_new_tokens=5, eos_token_id=[0, 3, 12])),
    (PEGASUS, dict(num_beams=8, length_penalty=0.8, max_length=11, forced_eos_token_id=1)),
    (PEGASUS, dict(repetition_penalty=1.4, max_length=11, do_sample=False, top_k=3)),
    (GPT2, {}),
    (GPT2, dict(max_length=14, min_length=12)),
    (GPT2, dict(num_beams=3, no_repeat_ngram_size=2, max_new_tokens=9)),
    (GPT2, dict(do_sample=True, temperature=0.6, top_p=0.9)),
    (GPT2, dict(do_sample=True, top_k=0, temperature=2.0)),
    (GPT2, dict(do_sample=True, top_k=4))]
NEWER = {"unheard_of", "eos_token_id"}  # what config.json cannot hold: here an end is one id
CASES = [(*case, older) for case in FILES for older in (False, True)
         if not (older and NEWER & set(case[1]))]


def folder(row: Row, file: dict, older: bool) -> Path:
    """The row's model with these defaults: in generation_config.json, or older in config.json."""
    where = Path(mkdtemp(prefix="defaults-")) / "model"
    shutil.copytree(pair(row).folder, where)
    (where / "generation_config.json").unlink(missing_ok=True)
    raw = json.loads((where / "config.json").read_text())
    kept = {k: v for k, v in raw.items() if not k.startswith("forced_")}
    if older:
        kept |= file
    else:
        (where / "generation_config.json").write_text(json.dumps(file))
    (where / "config.json").write_text(json.dumps(kept))
    return where


def opened(row: Row, file: dict, older: bool = False) -> Pair:
    where = folder(row, IDS[row] | file, older)
    theirs = read_reference(getattr(transformers, row.architecture), where)
    return Pair(row, where, theirs, mirada.load(where), {})


@pytest.mark.parametrize("row, file, older", CASES, ids=str)
def test_without_options_it_is_the_references(row, file, older):
    both = opened(row, file, older)
    batch = prompts(row, 5) if row is GPT2 else sources(5)
    seed = {"seed": 3} if file.get("do_sample") else {}
    torch.manual_seed(3)
    with wide():
        theirs = both.theirs.generate(**batch)
    assert torch.equal(both.ours.generate(**batch, **seed), theirs)


@pytest.mark.parametrize("row, file", FILES[:1] + FILES[3:4] + FILES[9:11], ids=str)
def test_what_the_caller_says_goes_first(row, file):
    both = opened(row, file)
    batch = prompts(row, 6) if row is GPT2 else sources(6)
    for given in ({"num_beams": 1}, {"max_new_tokens": 4}, {"min_new_tokens": 0},
                  {"num_beams": 2, "length_penalty": -1.0, "early_stopping": False},
                  {"max_new_tokens": 5, "eos_token_id": [3, 4]}, {"forced_eos_token_id": None}):
        with wide():
            theirs = both.theirs.generate(**batch, **given)
        assert torch.equal(both.ours.generate(**batch, **given), theirs), given


def test_a_length_in_all_unsays_the_files_new_tokens():
    both = opened(GPT2, dict(max_new_tokens=3, min_new_tokens=3, eos_token_id=None))
    assert both.ours.generate([[5, 6]]).shape == (1, 5)
    assert both.ours.generate([[5, 6]], max_length=9).shape == (1, 9)


def test_sampling_is_the_files_word_and_the_callers_over_it():
    model = opened(GPT2, dict(do_sample=True, temperature=1.5, max_new_tokens=9)).ours
    greedy = model.generate([[5, 6, 7]], do_sample=False)
    assert torch.equal(greedy, model.generate([[5, 6, 7]], temperature=0))
    assert len({tuple(model.generate([[5, 6, 7]], seed=n)[0].tolist()) for n in range(9)}) > 3
    drawn = [model.generate([[5, 6, 7]], num_beams=2, seed=n) for n in range(9)]
    assert len({tuple(ids[0].tolist()) for ids in drawn}) > 3
    best = [model.generate([[5, 6, 7]], num_beams=2, do_sample=False, seed=n) for n in range(3)]
    assert torch.equal(best[0], best[1]) and torch.equal(best[1], best[2])


def test_one_file_speaks_and_ids_fall_back():
    """With a generation_config.json, config.json's keys are silent, but for ids it lacks."""
    where = folder(GPT2, {"max_new_tokens": 6}, older=False)
    raw = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(raw | {"num_beams": 4, "max_length": 9}))
    model = mirada.load(where)
    ids = model.generate([[5, 6]])
    assert ids.shape == (1, 8)
    assert torch.equal(ids, model.generate([[5, 6]], num_beams=1, max_new_tokens=6))
    end = int(ids[0, 4])
    (where / "config.json").write_text(json.dumps(raw | {"eos_token_id": end}))
    assert int(mirada.load(where).generate([[5, 6]])[0, -1]) == end


def test_a_stream_is_greedy_where_the_file_asks_for_beams():
    both = opened(*FILES[0])
    source = sources(4)["input_ids"][:1]
    streamed = list(both.ours.stream(source))
    assert streamed == both.ours.generate(source, num_beams=1)[0, 1:].tolist()


@pytest.mark.parametrize("row, file, older", CASES[:4] + CASES[-1:], ids=str)
def test_saved_as_they_came(row, file, older, tmp_path):
    both = opened(row, file, older)
    mirada.save(both.ours, tmp_path / "again")
    again, name = tmp_path / "again", "generation_config.json"
    assert (again / name).exists() == (both.folder / name).exists() == (not older)
    if not older:
        assert list(json.loads((again / name).read_text()).items()) == list(
            json.loads((both.folder / name).read_text()).items())
    batch = prompts(row, 7) if row is GPT2 else sources(7)
    seed = {"seed": 1} if file.get("do_sample") else {}
    assert torch.equal(mirada.load(again).generate(**batch, **seed),
                       both.ours.generate(**batch, **seed))


@pytest.mark.parametrize("older", [False, True], ids=["generation_config.json", "config.json"])
@pytest.mark.parametrize("file, said", [
    ({"num_beams": 0}, "num_beams: 0 cannot be; it must be a whole number, 1 or more"),
    ({"max_length": "long"}, "max_length: 'long' cannot be"),
    ({"forced_eos_token_id": 61}, "below this model's vocabulary of 61"),
    ({"suppress_tokens": {"a": 1}}, "suppress_tokens: .* a token id, 0 or more, or several"),
    ({"bad_words_ids": [[-1]]}, "bad_words_ids"),
    ({"do_sample": True, "top_p": 2}, "top_p: 2 cannot be"),
], ids=str)
def test_values_that_cannot_be_name_their_file(file, said, older):
    model = mirada.load(folder(GPT2, file, older))
    with pytest.raises(mirada.UntrustedInputError, match=said) as error:
        model.generate([[5, 6]])
    assert error.value.path.endswith("config.json")
    assert error.value.path.endswith("generation_config.json") != older
    model.generate([[5, 6]], max_new_tokens=2, **{name: 1 if name == "num_beams" else None
                                                  for name in file if name != "do_sample"})


@pytest.mark.parametrize("data", [b"[1]", b"{", b'{"num_beams": 1, "num_beams": 2}', b"\xff"])
def test_a_broken_file_is_refused(data):
    where = folder(GPT2, {}, older=False)
    (where / "generation_config.json").write_bytes(data)
    with pytest.raises(mirada.UntrustedInputError, match=r"generation_config\.json"):
        mirada.load(where)


def test_the_tokenizers_end_counts_only_where_the_file_names_none():
    """As in the reference, which stops at the file's ids alone; a file may lack them."""
    both = opened(GPT2, {"max_new_tokens": 6, "eos_token_id": None})
    prompt = torch.tensor([[5, 6]])
    free = both.ours.generate(prompt)[0, 2:].tolist()
    both.ours.tokenizer = SimpleNamespace(eos_ids={free[0]}, pad_id=0)
    assert both.ours.generate(prompt)[0, 2:].tolist() == free[:1]
    named = opened(GPT2, {"max_new_tokens": 6, "eos_token_id": [free[2]]})
    named.ours.tokenizer = both.ours.tokenizer
    with wide():
        theirs = named.theirs.generate(prompt)
    assert torch.equal(named.ours.generate(prompt), theirs)
    assert theirs[0, 2:].tolist() == free[: free.index(free[2]) + 1] and free[0] != free[2]

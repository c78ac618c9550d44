"""CLIP's tokenizer: words marked at their ends, from vocab.json with merges.txt and in one file."""

import json

import pytest
import transformers
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from mirada.text import Tokenizer
from text import vocabularies as v
from text.test_tokenizer import assert_same

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def files() -> dict:
    library = Library(models.BPE(end_of_word_suffix="</w>"))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(v.sentences(), trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=alphabet, end_of_word_suffix="</w>"))
    model = json.loads(library.to_str())["model"]
    ends = [a + "</w>" for a in alphabet if a + "</w>" not in model["vocab"]]
    words = [*model["vocab"], *ends, BEGIN, END]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    return {"vocab.json": json.dumps({word: n for n, word in enumerate(words)}),
            "merges.txt": merges, "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"}}


@pytest.fixture(scope="module")
def theirs(files, tmp_path_factory):
    folder = v.folder(tmp_path_factory.mktemp("clip") / "files", files)
    return transformers.CLIPTokenizer.from_pretrained(folder)


def test_from_its_own_files_and_from_one(files, theirs, tmp_path):
    ours = Tokenizer.from_folder(v.folder(tmp_path / "files", files))
    assert_same(ours, theirs, v.texts(1_000))
    theirs.save_pretrained(tmp_path / "one")
    assert not (tmp_path / "one" / "merges.txt").exists()
    one = Tokenizer.from_folder(tmp_path / "one")
    assert_same(one, theirs, v.texts(300))
    ours.save(tmp_path / "saved")
    assert_same(Tokenizer.from_folder(tmp_path / "saved"), theirs, v.texts(100))


def test_case_and_white_space_are_folded_and_texts_end_in_their_mark(files, tmp_path):
    ours = Tokenizer.from_folder(v.folder(tmp_path / "files", files))
    found = ours.encode("A  Photo\nof  Ñandú").ids
    assert found == ours.encode("a photo of ñandú").ids
    assert (found[0], found[-1]) == (ours.bos_id, ours.id(END)) and ours.pad_id == ours.id(END)
    assert ours.decode(found) == "a photo of ñandú"
    assert ours.eos_ids == {ours.id(END)}


def test_a_folder_says_by_its_model_alone_what_its_files_are(files, tmp_path):
    said = {n: f for n, f in files.items() if n != "tokenizer_config.json"}
    named = Tokenizer.from_folder(v.folder(tmp_path / "named", files))
    for kind in ("clip", "clip_text_model"):
        path = v.folder(tmp_path / kind, said | {"config.json": {"model_type": kind}})
        assert Tokenizer.from_folder(path).encode("Two words").ids == named.encode("two words").ids

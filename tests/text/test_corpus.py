"""Ten thousand strings of every script, id for id as the references cut them."""

import itertools
import json

import pytest
import tokenizers

from mirada.text import Tokenizer
from text import vocabularies as v

transformers = pytest.importorskip("transformers")


def assert_same(ours: Tokenizer, reference, special: bool = True) -> None:
    """Equal ids of every string, and equal offsets of some."""
    texts = list(v.corpus())
    batch = getattr(reference, "_tokenizer", reference).encode_batch(
        texts, add_special_tokens=special)
    for text, wanted in zip(texts, batch, strict=True):
        assert ours.encode(text, special=special).ids == wanted.ids, text
    for text, wanted in itertools.islice(zip(texts, batch, strict=True), 0, None, 10):
        assert ours.encode(text, special=special).offsets == wanted.offsets, text


def test_the_corpus():
    """Every script is in it, and every string is another."""
    texts = v.corpus()
    assert len(texts) == 10_000 and len(set(texts)) > 9_900
    joined = "".join(texts)
    for kind, parts in v.SCRIPTS.items():
        assert all(part in joined for part in parts), kind
    assert max(map(len, texts)) > 500 and any(c > "\U000f0000" for c in joined)


@pytest.mark.scope("1.4.1")
def test_byte_level(tmp_path):
    """vocab.json and merges.txt, against the library's own model of them."""
    files = v.byte_level()
    ours = Tokenizer.from_folder(v.folder(tmp_path, files))
    merges = [tuple(line.split(" ")) for line in files["merges.txt"].split("\n")[1:]]
    model = tokenizers.models.BPE(json.loads(files["vocab.json"]), merges)
    reference = tokenizers.Tokenizer(model)
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    reference.add_special_tokens(["<|endoftext|>"])
    assert_same(ours, reference)
    for text in v.corpus()[::7]:
        assert ours.decode(ours.encode(text, parse_special=False).ids) == text


@pytest.mark.scope("1.4.1")
def test_wordpiece(real, tmp_path):
    """BERT's own vocab.txt, against its published tokenizer.json."""
    published = real("minilm")
    ours = Tokenizer.from_folder(v.folder(tmp_path, {
        "vocab.txt": (published / "vocab.txt").read_bytes(),
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"},
    }))
    reference = tokenizers.Tokenizer.from_file(str(published / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    assert_same(ours, reference)


@pytest.mark.scope("1.4.1")
def test_unigram(tmp_path):
    """spiece.model, against T5's tokenizer in transformers. Without U+0085, where that one starts
    a word and SentencePiece, which we follow, does not."""
    path = v.folder(tmp_path, {
        "spiece.model": v.t5_model(), "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"},
    })
    ours = Tokenizer.from_folder(path)
    reference = transformers.AutoTokenizer.from_pretrained(path)
    texts = [text.replace("\x85", "") for text in v.corpus()]
    for text, ids in zip(texts, reference(texts)["input_ids"], strict=True):
        assert ours.encode(text).ids == ids, text


@pytest.mark.scope("1.4.1")
def test_byte_fallback(tmp_path):
    """tokenizer.model, against SentencePiece itself."""
    data = v.llama_model()
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = Tokenizer.from_folder(v.folder(tmp_path, {
        "tokenizer.model": data, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"},
    }))
    wanted = model.encode(list(v.corpus()))
    for text, ids in zip(v.corpus(), wanted, strict=True):
        assert ours.encode(text, parse_special=False).ids == [1, *ids], text

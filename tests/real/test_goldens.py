"""Published vocabularies as GGUF files, and the ids that their own tokenizers gave 47 texts."""

import base64
import hashlib
import json
import sys
from pathlib import Path

import pytest

from mirada.text import Tokenizer, metadata
from mirada.text.stream import bytes_of
from mirada.weights.gguf import GGUF

FOLDER = Path(sys.prefix) / "real" / "llama-cpp-python"
BETWEEN = "\n__ggml_vocab_test__\n"
FULL = [
    "bert-bge", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "refact", "starcoder",
    pytest.param("command-r", marks=pytest.mark.slow),
]
# Two marks after their letters, and a run of them: the published tokenizer composes these (NFC),
# the program that wrote this file's ids does not.
DECOMPOSED = ["e\u0301", "re\u0301sume\u0301", "a\u0300" * 200]


def vocabulary(name: str) -> dict:
    path = FOLDER / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"{path} is not there: make test fetches it (python tools/archives.py)")
    with GGUF(path) as reader:
        return reader.metadata


def golden(name: str) -> tuple[list[str], list[list[int]]]:
    path = FOLDER / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_bytes().decode().split(BETWEEN)
    rows = Path(f"{path}.out").read_text().split("\n")
    return texts, [[int(number) for number in row.split()] for row in rows]


def missed(ours: Tokenizer, texts: list[str], wanted: list[list[int]]) -> list[str]:
    return [t for t, ids in zip(texts, wanted, strict=True)
            if ours.encode(t, special=False).ids != ids]


@pytest.mark.scope("1.4.1")
@pytest.mark.parametrize("name", FULL)
def test_all_47(name):
    ours = Tokenizer.from_gguf(vocabulary(name), name)
    texts, wanted = golden(name)
    assert len(texts) == 47 and missed(ours, texts, wanted) == []


@pytest.mark.slow
def test_a_pipeline_of_pieces_and_merges():
    """gemma-4: merges over pieces with ▁; its file has 46 texts, no empty one."""
    ours = Tokenizer.from_gguf(vocabulary("gemma-4"))
    texts, wanted = golden("gemma-4")
    assert len(texts) == 46 and missed(ours, texts, wanted[:46]) == []


@pytest.mark.scope("1.4.1")
def test_the_last_file_differs_by_its_normal_form():
    """qwen35: 48 of 51, and 51 without the normal form of the published tokenizer."""
    told = vocabulary("qwen35")
    texts, wanted = golden("qwen35")
    spec, settings = metadata.describe(told)
    assert len(texts) == 51 and spec["normalizer"] == {"type": "NFC"}
    ours = Tokenizer(spec, settings)
    assert missed(ours, texts, wanted) == DECOMPOSED
    ours._library.normalizer = None
    assert missed(ours, texts, wanted) == []


def test_llama3_as_it_was_first_published(tmp_path):
    """Its ranks in tokenizer.model, beside params.json: the same 47, the same special tokens."""
    told = vocabulary("llama-bpe")
    tokens = told["tokenizer.ggml.tokens"]
    rows = (b"%s %d\n" % (base64.b64encode(bytes_of(t)), i) for i, t in enumerate(tokens[:128_000]))
    (tmp_path / "tokenizer.model").write_bytes(b"".join(rows))
    (tmp_path / "params.json").write_text("{}")
    ours = Tokenizer.from_folder(tmp_path)
    texts, wanted = golden("llama-bpe")
    assert missed(ours, texts, wanted) == []
    assert [ours.token(i) for i in range(128_000, 128_256)] == tokens[128_000:]
    assert ours.encode("a").ids[0] == ours.bos_id == 128_000 and ours.eos_ids == {128_001, 128_009}


@pytest.mark.parametrize(("name", "size"), [
    ("gpt-neox", 50_432), ("baichuan", 64_000),
    pytest.param("aquila", 100_008, marks=pytest.mark.slow),
    pytest.param("nomic-bert-moe", 250_048, marks=pytest.mark.slow),
])
def test_without_goldens(name, size):
    """They load, and what they cut is the text again."""
    ours = Tokenizer.from_gguf(vocabulary(name))
    assert ours.size == size
    for text in ("El niño corrió 12 km.", "日本語 and 한국어", "привет мир"):
        ids = ours.encode(text, special=False).ids
        assert ours.decode(ids) == text and 1 < len(ids) < 30


def test_gpt2_is_the_published_file():
    """Its merges and its tokens are the bytes of vocab.bpe and encoder.json, to the hash."""
    told = vocabulary("gpt-2")
    merges = "".join(f"{merge}\n" for merge in told["tokenizer.ggml.merges"])
    assert hashlib.sha256(f"#version: 0.2\n{merges}".encode()).hexdigest() == (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
    vocab = {token: i for i, token in enumerate(told["tokenizer.ggml.tokens"])}
    assert hashlib.sha256(json.dumps(vocab).encode()).hexdigest() == (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")

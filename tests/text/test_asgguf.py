"""A tokenizer as GGUF's metadata: what a published file says, and every kind there and back."""

import pytest

from mirada.errors import MiradaError
from mirada.text.asgguf import metadata
from mirada.text.tokenizer import Tokenizer
from mirada.weights.gguf import GGUF

TEXTS = ["Hello world, it's 12345!", " El niño comió ñandú   y\n\n¿qué?", "naïve 日本 ⏎\tx", "a"]


def test_a_published_files_own_keys(real):
    said = GGUF(real("smollm2")).metadata
    found = metadata(Tokenizer.from_gguf(said), 49152)
    for key in ("tokens", "token_type", "merges", "model", "bos_token_id", "eos_token_id",
                "unknown_token_id", "padding_token_id", "add_bos_token"):
        assert found[f"tokenizer.ggml.{key}"] == said[f"tokenizer.ggml.{key}"], key
    assert found["tokenizer.chat_template"] == said["tokenizer.chat_template"]


def test_byte_level_there_and_back(real):
    first = Tokenizer.from_gguf(GGUF(real("smollm2")).metadata)
    again = Tokenizer.from_gguf(metadata(first, 49160))
    for text in TEXTS:
        assert again.encode(text).ids == first.encode(text).ids
    assert again.size == 49160 and again.token(49155) == "[PAD49155]"
    assert again.templates == first.templates and again.eos_ids == first.eos_ids


def test_wordpiece_there_and_back(real):
    first = Tokenizer.from_folder(real("minilm"))
    found = metadata(first, first.size)
    assert found["tokenizer.ggml.model"] == "bert"
    assert "▁the" in found["tokenizer.ggml.tokens"] and "ing" in found["tokenizer.ggml.tokens"]
    again = Tokenizer.from_gguf(found)
    for text in TEXTS:
        assert again.encode(text).ids == first.encode(text).ids


def sentencepiece() -> Tokenizer:
    """LLaMA's kind, from a file's metadata: bytes, pieces, and scores that order the merges."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁t", "he", "▁the",
              "▁", "t", "h", "e", "c", "a", "▁c", "at", "▁cat"]
    types = [2, 3, 3, *[6] * 256, *[1] * 12]
    scores = [0.0] * 259 + [-float(n) for n in range(12)]
    return Tokenizer.from_gguf({
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0})


def test_sentencepiece_there_and_back():
    first = sentencepiece()
    found = metadata(first, first.size)
    assert found["tokenizer.ggml.model"] == "llama" and found["tokenizer.ggml.add_bos_token"]
    assert found["tokenizer.ggml.token_type"].count(6) == 256
    again = Tokenizer.from_gguf(found)
    for text in ("the cat", "thecat é", "  a", "cathe"):
        assert again.encode(text).ids == first.encode(text).ids
        assert again.decode(again.encode(text).ids) == first.decode(first.encode(text).ids)


def test_what_llama_cpp_has_no_words_for(real):
    first = Tokenizer.from_gguf(GGUF(real("smollm2")).metadata)
    with pytest.raises(MiradaError, match="49,152 tokens and the model's table 9 rows"):
        metadata(first, 9)
    with pytest.raises(MiradaError, match="no tokenizer like this one"):
        metadata(Tokenizer.from_folder(real("rxnmapper")), 1000)

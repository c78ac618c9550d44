"""Rank files, id for id as tiktoken reads them: small ones made here, and the published."""

import base64
import importlib.util
import json
import random
from pathlib import Path

import pytest

from mirada.errors import UntrustedInputError
from mirada.text import Tokenizer
from mirada.text.stream import bytes_of
from text import vocabularies as v

tiktoken = pytest.importorskip("tiktoken")

PUBLISHED = {  # name: (package, file, the rule that the reference has for it)
    "cl100k_base": ("tiktoken_ext", "data/cl100k_base.tiktoken", "cl100k_base"),
    "gpt2": ("mlx_whisper", "assets/gpt2.tiktoken", "r50k_base"),
    "multilingual": ("mlx_whisper", "assets/multilingual.tiktoken", "r50k_base"),
}


def written(table: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(t) + b" %d\n" % rank for t, rank in table.items())


@pytest.fixture(scope="module")
def small() -> dict[bytes, int]:
    """The byte-level vocabulary that is trained here, by rank."""
    vocab = json.loads(v.byte_level()["vocab.json"])
    kept = [t for t in sorted(vocab, key=vocab.get) if t == "<" or not t.startswith("<")]
    return {bytes_of(token): rank for rank, token in enumerate(kept)}


def reference(name: str, path: Path, monkeypatch, special: dict | None = None):
    """tiktoken's own encoding of that name, its ranks read from `path`."""
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe",
                        lambda *_, **__: load_tiktoken_bpe(str(path)))
    told = getattr(openai_public, name)()
    told.pop("explicit_n_vocab", None)
    return tiktoken.Encoding(**{**told, "special_tokens": special or told["special_tokens"]})


def assert_same(ours: Tokenizer, theirs, texts) -> None:
    wanted = theirs.encode_batch(list(texts), num_threads=1, allowed_special="all")
    for text, ids in zip(texts, wanted, strict=True):
        assert ours.encode(text).ids == ids, text


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "p50k_edit", "cl100k_base",
                                  "o200k_base"])
def test_every_encoding(tmp_path, small, name, monkeypatch):
    """Each name's rule, on ranks made here, with the special tokens at its own ids."""
    path = tmp_path / f"{name}.tiktoken"
    path.write_bytes(written(small))
    ours, theirs = Tokenizer.from_file(path), reference(name, path, monkeypatch)
    assert_same(ours, theirs, v.corpus()[::20])
    for token, number in theirs._special_tokens.items():
        assert ours.id(token) == number and number in ours.special_ids
    draw = random.Random(4)
    for _ in range(200):
        ids = [draw.randrange(len(small)) for _ in range(8)]
        assert ours.decode(ids) == theirs.decode(ids), ids
    path = path.rename(tmp_path / "mine.tiktoken")
    assert Tokenizer.from_file(path, name).encode("a b").ids == theirs.encode("a b")


def test_in_a_folder(tmp_path, small):
    (tmp_path / "cl100k_base.tiktoken").write_bytes(written(small))
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.eos_ids == {100_257} and ours.decode(ours.encode("¿qué? 🙂").ids) == "¿qué? 🙂"
    ours.save(tmp_path / "again")
    again = Tokenizer.from_folder(tmp_path / "again")
    for text in v.corpus()[:300]:
        assert again.encode(text).ids == ours.encode(text).ids, text


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_ones(name, monkeypatch):
    """Ten thousand strings of the largest, some of each."""
    package, file, rule = PUBLISHED[name]
    found = importlib.util.find_spec(package)
    places = [Path(p) / file for p in found.submodule_search_locations] if found else []
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        pytest.skip(f"no package carries {file}: make test installs it")
    special = {"<|endoftext|>": 50_257} if name == "multilingual" else None
    ours, theirs = Tokenizer.from_file(path), reference(rule, path, monkeypatch, special)
    assert_same(ours, theirs, v.corpus()[::1 if name == "cl100k_base" else 10])
    for text in v.corpus()[::50]:
        assert ours.decode(ours.encode(text).ids, skip_special=False) == text


BROKEN = {
    "no rank": (b"YQ==\n", "line 1: must be a token in base64 and its rank"),
    "no base64": (b"a!a= 0\n", "line 1: must be"),
    "a rank that is a word": (b"YQ== one\n", "line 1: must be"),
    "a rank below 0": (b"YQ== -1\n", "line 1: must be"),
    "a rank far off": (b"YQ== 99999999999999999999\n", "line 1: must be"),
    "a long token": (base64.b64encode(b"a" * 2_000) + b" 0\n", "line 1: must be"),
    "a token twice": (b"YQ== 0\nYQ== 1\n", "line 2: its token stood before"),
    "a rank twice": (b"YQ== 0\nYg== 0\n", "ranks: must differ"),
    "a byte less": (b"YQ== 0\n", "each of the 256 bytes"),
    "nothing": (b"", "each of the 256 bytes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path, case):
    data, says = BROKEN[case]
    path = tmp_path / "gpt2.tiktoken"
    path.write_bytes(data)
    with pytest.raises(UntrustedInputError, match=says):
        Tokenizer.from_file(path)


def test_names_that_are_not_known(tmp_path, small):
    path = tmp_path / "mine.tiktoken"
    path.write_bytes(written(small))
    with pytest.raises(UntrustedInputError, match="'mine' is not known; name one of gpt2, r50k"):
        Tokenizer.from_file(path)
    path.write_bytes(written({**small, b"zzzz": 50_256}))
    with pytest.raises(UntrustedInputError, match="50256 belongs to a special token of gpt2"):
        Tokenizer.from_file(path, "gpt2")

"""What is streamed is what is decoded, for any ids; no half character; time linear."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirada.errors import MiradaError
from mirada.text import Tokenizer
from mirada.text.stream import Whole
from text import vocabularies as v


def word_ends() -> dict:
    """GPT-1's form: a suffix ends words."""
    vocab = {t: i for i, t in enumerate(["a</w>", "b", "c</w>", "<unk>", ".</w>", "</w>"])}
    return {
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
    }


def decoders(real) -> dict:
    def folder(name):
        return Tokenizer.from_folder(real(name))

    def pieces(kind):
        from mirada.text import pieces, spm

        data = v.llama_model() if kind == "llama" else v.t5_model()
        return Tokenizer(pieces.pieces(spm.parse(data, kind), kind, metaspace=kind == "t5"))

    bare = {"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}
    ctc = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    return {
        "wordpiece": lambda: folder("minilm"), "bytes": lambda: Tokenizer(v.chat_spec()),
        "llama": lambda: pieces("llama"), "t5": lambda: pieces("t5"),
        "word ends": lambda: Tokenizer(word_ends()), "none": lambda: Tokenizer(bare),
        "ctc": lambda: Tokenizer({**bare, "decoder": ctc}),
    }


@pytest.fixture(
    scope="module", params=["wordpiece", "bytes", "llama", "t5", "word ends", "none", "ctc"]
)
def tokenizer(request, real):
    return decoders(real)[request.param]()


@settings(max_examples=300)
@given(data=st.data())
def test_stream_is_decode(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=30))
    skip = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special=skip)
    pushed = [stream.push(i) for i in ids]
    assert "".join(pushed) + stream.end() == tokenizer.decode(ids, skip_special=skip)


@settings(max_examples=200)
@given(text=st.text(max_size=40))
def test_no_half_character(tokenizer, text):
    """Ids of a real text never show U+FFFD before the end, unless the text itself has it."""
    ids = tokenizer.encode(text, special=False, parse_special=False).ids
    stream = tokenizer.stream(skip_special=False)
    shown = "".join(stream.push(i) for i in ids)
    if "\ufffd" not in text:
        assert "\ufffd" not in shown
    assert shown + stream.end() == tokenizer.decode(ids, skip_special=False)


def test_characters_come_whole_and_at_once():
    ours = Tokenizer(v.chat_spec())
    ids = ours.encode("🙂日x", special=False).ids
    stream = ours.stream()
    shown = [stream.push(i) for i in ids]
    assert [s for s in shown if s] == ["🙂", "日", "x"] and stream.end() == ""


def test_leading_space_of_pieces():
    from mirada.text import pieces, spm

    ours = Tokenizer(pieces.pieces(spm.parse(v.llama_model(), "llama"), "llama"))
    stream = ours.stream()
    ids = ours.encode("hello cat", special=False).ids
    assert "".join(stream.push(i) for i in ids) == "hello cat"
    assert stream.push(ours.encode("cat", special=False).ids[0]).startswith(" ")


def test_only_what_cannot_be_taken_apart_waits():
    ours = Tokenizer(v.chat_spec())
    assert not any(isinstance(step, Whole) for step in ours.stream()._steps)


def test_the_work_is_linear(monkeypatch):
    """Each id is looked up once, whatever came before, and decode is never called."""
    ours = Tokenizer(v.chat_spec())
    ids = ours.encode("the cat sat 日本 " * 500, special=False).ids
    calls = []
    monkeypatch.setattr(Tokenizer, "token", lambda self, i: calls.append(i) or "a")
    monkeypatch.setattr(Tokenizer, "decode", None)
    stream = ours.stream()
    for i in ids:
        stream.push(i)
    assert calls == ids


def test_an_ended_stream_says_so():
    stream = Tokenizer(v.chat_spec()).stream()
    stream.end()
    with pytest.raises(MiradaError, match="has ended"):
        stream.push(1)
    with pytest.raises(MiradaError, match="out of range"):
        Tokenizer(v.chat_spec()).stream().push(10**9)

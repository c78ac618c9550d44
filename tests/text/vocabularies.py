"""Texts of many scripts made from a seed, and small vocabularies trained on some of them."""

import functools
import importlib.util
import io
import json
import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

WORDS = (
    "the cat sat on a mat and there was language in every model attention is all you need niño "
    "corazón ¿qué? árbol canción pingüino cigüeña mañana Köln año 2024 3.14 hello world's don't "
    "tokenization 日本 語 東京 привет мир שלום ελληνικά naïve façade … — «sí»"
).split()
PARTS = [
    "a", "b", "é", "ñ", " ", "  ", "\n", "\t", "日", "語", "🙂", "👩‍👩‍👧", "שלום", "مرحبا",
    "\u200b", "\u00a0", "ﬁ", "Ⅷ", "①", "…", "the", "cat", "<s>", "</s>", "<unk>", "▁", "don't",
    "123", "4567", "\x00", "\x07", "\r\n", "İ", "ß", "ﷺ", "<0x41>", "𝔘", "한국어", "กขค", "e\u0301",
    "[MASK]",
]


@functools.cache
def sentences(count: int = 3_000) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 20))) for _ in range(count)]


@functools.cache
def texts(count: int = 2_500, marks: bool = True) -> list[str]:
    """Sentences, mixtures, edges and long runs; without `marks` no text of a special token."""
    draw = random.Random(1)
    parts = PARTS if marks else [p for p in PARTS if not p.startswith(("<", "["))]
    mixed = ["".join(draw.choices(parts, k=draw.randint(1, 25))) for _ in range(count - 500)]
    runs = ["", " ", "  ", "a" * 500, " " * 300 + "x", "x" + " " * 300, "é" * 200, "\n" * 99]
    return sentences()[:500] + mixed + runs


def folder(path: Path, files: dict) -> Path:
    """`path` with the files written into it: bytes and texts as they are, the rest as JSON."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        data = content.encode() if isinstance(content, str) else content
        (path / name).write_bytes(data)
    return path


@functools.cache
def byte_level() -> dict[str, str]:
    """vocab.json and merges.txt of a byte-level BPE."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"],
    )
    library.train_from_iterator(sentences(), trainer)
    model = json.loads(library.to_str())["model"]
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])])
    return {"vocab.json": json.dumps(model["vocab"], ensure_ascii=False), "merges.txt": merges}


def sentencepiece(**options) -> bytes:
    """A SentencePiece model trained on the sentences; skips where the trainer is absent."""
    if importlib.util.find_spec("sentencepiece") is None:
        pytest.skip("sentencepiece is not installed: pip install sentencepiece")
    return _trained(tuple(sorted(options.items())))


@functools.cache
def _trained(options: tuple) -> bytes:
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()), model_writer=out, minloglevel=2,
        hard_vocab_limit=False, **dict(options),
    )
    return out.getvalue()


def llama_model() -> bytes:
    return sentencepiece(
        vocab_size=420, model_type="bpe", byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
    )


def t5_model() -> bytes:
    return sentencepiece(
        vocab_size=300, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1
    )


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
    " }}{% endif %}"
)


@functools.cache
def chat_spec() -> dict:
    """A small byte-level description with control tokens of both kinds."""
    files = byte_level()
    vocab = json.loads(files["vocab.json"])
    names = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<｜User｜>", "   "]
    added = [
        {"id": len(vocab) + i, "content": name, "special": name.startswith("<|")}
        for i, name in enumerate(names)
    ]
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": files["merges.txt"].split("\n")[1:]},
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
        },
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
        },
    }


SCRIPTS = {  # what a corpus mixes; each draw takes from one of these
    "Spanish": "¿Qué ¡Ay! corazón niño cigüeña año Ñandú camión público averigüéis él EÑE".split(),
    "English": "the quick brown fox doesn't jump over lazy dogs' HTTPServer snake_case".split(),
    "decomposed": ["nin\u0303o", "corazo\u0301n", "u\u0308", "o\u0302\u0323", "Z\u0351\u0343"],
    "emoji": ["🙂", "👩‍👩‍👧‍👦", "👍🏽", "🏳️‍🌈", "🇪🇸", "❤️", "👨🏿‍🚀", "1️⃣", "🫠", "🧑‍⚕️"],
    "Chinese, Japanese, Korean": "日本語 東京 漢字かな カタカナ ｶﾅ 한국어 中文。 𠮷".split(),
    "right to left": ["שָׁלוֹם", "עולם", "مرحبا", "بِسْمِ", "فارسی", "\u200fאב\u200e", "ﷺ", "١٢٣"],
    "others": "привет ελληνικά नमस्ते กขค ភាសា ⴰⵎⴰ İi ǅ ſ ß 𝔘𝕟 Ⅷ".split(),
    "control": [chr(c) for c in (0, 1, 7, 8, 11, 12, 27, 31, 127, 128, 133, 159, 0xAD, 0x200B,
                                 0x200D, 0x2060, 0xFEFF, 0xFFFD, 0xFFFE, 0xE000, 0x10FFFF)],
    "white space": [" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\u2028", "\u2009"],
    "signs": ["1234567", "3.14", "1,000", "½", "²", "$%&", "<|x|>", "``", "''", "...", "…", "—",
              "a@b.es", "[MASK]", "</s>", "<0x41>", "▁", "##s", "Ġ", "x=[1]", "\\n", "-->"],
}


@functools.cache
def corpus(count: int = 10_000) -> tuple[str, ...]:
    """Strings of every script, mixed, with runs of one character and any code point at all."""
    draw = random.Random(3)
    kinds = list(SCRIPTS.values())

    def part() -> str:
        if draw.random() < 0.02:
            return draw.choice(draw.choice(kinds))[0] * draw.randint(20, 300)
        if draw.random() < 0.03:
            return chr(draw.choice((draw.randrange(0xD800), draw.randrange(0xE000, 0x110000))))
        return draw.choice(draw.choice(kinds)) + draw.choice(("", " ", " ", "\u0301"))

    return tuple("".join(part() for _ in range(draw.randint(2, 13))) for _ in range(count))

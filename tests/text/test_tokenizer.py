"""Id for id as the references do it, from every file form, with real and trained vocabularies."""

import json
import random

import pytest
import tokenizers
import torch

from mirada.errors import MiradaError, UntrustedInputError
from mirada.text import Tokenizer, guard, metadata, readers, spec, spm
from text import vocabularies as v

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def minilm(real):
    return real("minilm")


@pytest.fixture(scope="module")
def smollm(real):
    from mirada.weights.gguf import GGUF

    return GGUF(real("smollm2")).metadata


def assert_same(ours: Tokenizer, reference, texts: list[str], offsets: bool = True) -> None:
    """Equal ids, pairs, types, offsets and decoded text, for every text."""
    assert ours.size == len(reference)
    for text in texts:
        wanted = reference(text, return_offsets_mapping=True)
        found = ours.encode(text)
        assert found.ids == wanted["input_ids"], text
        assert not offsets or found.offsets == wanted["offset_mapping"], text
    for text, pair in zip(texts[::5], texts[1::5], strict=False):
        wanted = reference(text, pair, return_token_type_ids=True)
        found = ours.encode(text, pair)
        assert found.ids == wanted["input_ids"], (text, pair)
        assert found.type_ids == wanted["token_type_ids"], (text, pair)
    draw = random.Random(2)
    for _ in range(500):
        ids = [draw.randrange(ours.size) for _ in range(12)]
        for skip in (True, False):
            wanted = reference.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip_special=skip) == wanted, ids


@pytest.mark.scope("1.4.2")
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.txt", "cased"])
def test_wordpiece(minilm, tmp_path, files):
    path = minilm
    if files != "tokenizer.json":
        config = {"tokenizer_class": "BertTokenizer", "do_lower_case": files != "cased"}
        path = v.folder(tmp_path / "bert", {
            "vocab.txt": (minilm / "vocab.txt").read_bytes(), "tokenizer_config.json": config,
        })
    ours = Tokenizer.from_folder(path)
    assert_same(ours, transformers.AutoTokenizer.from_pretrained(path), v.texts())
    pair = ours.encode("A guitar [MASK].", "Ñandú")
    assert (pair.ids[0], pair.ids[-1]) == (ours.cls_id, ours.sep_id)
    assert ours.mask_id in pair.ids and pair.type_ids[-1] == 1
    assert pair.special_mask.count(1) == 3
    assert "Ñandú"[slice(*pair.offsets[-2])].casefold() in "ñandú"


@pytest.mark.parametrize("config", [
    {}, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
    {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True},
    {"tokenizer_class": "RobertaTokenizer"},
    {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": True},
    {"tokenizer_class": "Qwen2Tokenizer"},
], ids=str)
def test_byte_level(tmp_path, config):
    path = v.folder(tmp_path / "bpe", {
        **v.byte_level(), "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", **config},
    })
    ours = Tokenizer.from_folder(path)
    assert_same(ours, transformers.AutoTokenizer.from_pretrained(path), v.texts(1_000))


@pytest.mark.parametrize(("options", "unknown"), [
    (dict(vocab_size=400, model_type="unigram", byte_fallback=True), False),
    (dict(vocab_size=160, model_type="unigram", character_coverage=0.98), True),
    (dict(vocab_size=420, model_type="bpe", byte_fallback=True), False),
    (dict(vocab_size=420, model_type="bpe", byte_fallback=True, add_dummy_prefix=False,
          normalization_rule_name="identity", remove_extra_whitespaces=False,
          user_defined_symbols="<mark>,▁▁"), False),
], ids=["unigram", "unigram without bytes", "bpe", "bpe without prefix"])
def test_sentencepiece(tmp_path, options, unknown):
    """As SentencePiece itself. Left out: a combining mark after a character that its map changes
    ("…" + accent), where the tokenizers library, and so every fast tokenizer, drops the mark."""
    data = v.sentencepiece(**options)
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = Tokenizer.from_folder(v.folder(tmp_path / "spm", {"tokenizer.model": data}))
    assert ours.size == reference.vocab_size()
    for text in v.texts():
        wanted = reference.encode(text)
        assert ours.encode(text, special=False, parse_special=False).ids == wanted, text
        if not unknown:
            assert ours.decode(wanted) == reference.decode(wanted), text


def test_llama(tmp_path):
    """legacy: a space before what follows a special token, as SentencePiece on each part."""
    data = v.llama_model()
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    config = {"tokenizer_class": "LlamaTokenizer"}
    path = v.folder(tmp_path / "llama", {"tokenizer.model": data, "tokenizer_config.json": config})
    ours = Tokenizer.from_folder(path)
    for text in v.texts(1_500, marks=False):
        assert ours.encode(text).ids == [1, *reference.encode(text)], text
    parts = [1, *reference.encode("a b"), 2, *reference.encode("c")]
    assert ours.encode("a b</s>c").ids == parts
    new = {**config, "legacy": False, "add_bos_token": True}
    v.folder(path, {"tokenizer_config.json": new})
    ours = Tokenizer.from_folder(path)
    assert_same(ours, transformers.AutoTokenizer.from_pretrained(path), v.texts(1_500))
    assert ours.encode("a b</s>c").ids != parts


def test_t5(tmp_path):
    path = v.folder(tmp_path / "t5", {
        "spiece.model": v.t5_model(), "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"},
    })
    ours = Tokenizer.from_folder(path)
    reference = transformers.AutoTokenizer.from_pretrained(path)
    assert_same(ours, reference, v.texts(), offsets=False)  # ours begin at the space, not after it
    assert ours.encode("a cat").offsets[-2] == (1, 5)
    assert ours.id("<extra_id_0>") == ours.size - 1 and ours.id("<extra_id_99>") == ours.size - 100
    assert ours.encode("hello").ids[-1] == 1 and ours.eos_ids == {1}


def test_deberta(tmp_path):
    """[CLS] pieces [SEP], as the published SentencePiece model has them."""
    data = v.sentencepiece(
        vocab_size=300, model_type="unigram", pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]",
    )
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    mask = reference.vocab_size()
    path = v.folder(tmp_path / "deberta", {
        "spm.model": data, "added_tokens.json": {"[MASK]": mask},
        "tokenizer_config.json": {"tokenizer_class": "DebertaV2Tokenizer"},
    })
    ours = Tokenizer.from_folder(path)
    for text in v.texts(1_000, marks=False):
        assert ours.encode(text).ids == [1, *reference.encode(text), 2], text
    assert (ours.mask_id, ours.cls_id, ours.sep_id) == (mask, 1, 2)
    assert ours.encode("a", "b").type_ids[-1] == 1


@pytest.mark.parametrize("change", [
    {}, {"unk_token": "a", "fuse_unk": True}, {"byte_fallback": True, "ignore_merges": True},
    {"end_of_word_suffix": "</w>"},
])
def test_bpe_is_what_its_json_says(smollm, change):
    """Vocabulary and merges reach the library as they are, in no JSON; it holds the same."""
    said, _ = metadata.describe(smollm)
    said["model"] |= change
    said["normalizer"] = {"type": "NFC"}
    said["added_tokens"].append({"id": 49_152, "content": "<new>", "lstrip": True,
                                 "single_word": True})
    said["model"]["merges"] = [" ".join(pair) for pair in said["model"]["merges"]]
    text = json.dumps(guard.check(said, "here"), ensure_ascii=False)
    reference = tokenizers.Tokenizer.from_str(text)
    assert json.loads(Tokenizer(said)._library.to_str()) == json.loads(reference.to_str())


def test_gguf_of_a_real_model(smollm):
    ours = Tokenizer.from_gguf(smollm)
    prompt = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    assert ours.encode(prompt).ids == ids
    assert ours.decode(ids, skip_special=False) == prompt
    assert (ours.size, ours.bos_id, ours.eos_ids) == (49_152, 1, {2})
    # the published pipeline, built by hand: transformers leaves its split of digits out
    vocab = {token: i for i, token in enumerate(smollm["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in smollm["tokenizer.ggml.merges"]]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    for text in v.texts():
        assert ours.encode(text).ids == library.encode(text).ids, text


PUBLISHED = {  # text -> how the published pre-tokenizers split it
    "gpt-2": ["I", "'ve", " 12345", " 6", "!!", "\n", "\n", "x", "  ", " y"],
    "smollm": ["I", "'ve", " ", *"12345", " ", "6", "!!", "\n", "\n", "x", "  ", " y"],
    "llama-bpe": ["I", "'ve", " ", "123", "45", " ", "6", "!!\n\n", "x", "  ", " y"],
    "qwen2": ["I", "'ve", " ", *"12345", " ", "6", "!!\n\n", "x", "  ", " y"],
    "falcon": ["I", "'", "ve", " ", "123", "45", " 6", "!!", "\n", "\n", "x", "  ", " y"],
}


@pytest.mark.parametrize("pre", PUBLISHED)
def test_gguf_splits(pre):
    spec = readers.byte_level({"a": 0}, [], pre)
    library = Tokenizer({**spec, "model": {**spec["model"], "vocab": {"a": 0}}})._library
    text = "I've 12345 6!!\n\nx   y"
    spans = [span for _, span in library.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in spans] == PUBLISHED[pre]


@pytest.mark.parametrize("pre", spec.RULES)
def test_every_split_keeps_every_byte(pre):
    vocab = json.loads(v.byte_level()["vocab.json"])
    ours = Tokenizer(readers.byte_level(vocab, v.byte_level()["merges.txt"].split("\n")[1:], pre))
    normal = ours._library.normalizer
    for text in v.texts(700):
        ids = ours.encode(text, special=False, parse_special=False).ids
        assert ours.decode(ids) == (normal.normalize_str(text) if normal else text)


def gguf_of(data: bytes, kind: str) -> dict:
    """GGUF metadata as converters write it for a SentencePiece model."""
    model = spm.parse(data, "model")
    texts, scores, types = map(list, zip(*model.pieces, strict=True))
    return {
        "tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": model.unk_id,
        "tokenizer.ggml.eos_token_id": model.eos_id,
        "tokenizer.ggml.precompiled_charsmap": list(model.charsmap),
        **({"tokenizer.ggml.bos_token_id": model.bos_id} if model.bos_id >= 0 else {}),
    }


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_gguf_of_pieces(tmp_path, kind):
    data = v.llama_model() if kind == "llama" else v.t5_model()
    ours = Tokenizer.from_gguf(gguf_of(data, kind))
    name = "LlamaTokenizer" if kind == "llama" else "T5Tokenizer"
    config = {"tokenizer_class": name, "extra_ids": 0}
    path = v.folder(tmp_path / kind, {"spiece.model": data, "tokenizer_config.json": config})
    same = Tokenizer.from_folder(path)
    for text in v.texts(1_000):
        assert ours.encode(text).ids == same.encode(text).ids, text
    assert ours.eos_ids == same.eos_ids and ours.bos_id == same.bos_id


def test_gguf_bert(minilm):
    same = Tokenizer.from_folder(minilm)
    tokens = (minilm / "vocab.txt").read_text().splitlines()
    marked = [t if t.startswith("[") and t.endswith("]") and len(t) > 2 else
              t[2:] if t.startswith("##") else "▁" + t for t in tokens]
    ours = Tokenizer.from_gguf({
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": marked,
        "tokenizer.ggml.token_type": [1] * len(tokens), "tokenizer.ggml.cls_token_id": 101,
        "tokenizer.ggml.seperator_token_id": 102, "tokenizer.ggml.padding_token_id": 0,
    })
    for text in v.texts(1_000):
        assert ours.encode(text, text[::-1]).ids == same.encode(text, text[::-1]).ids
    assert "token_type_ids" in ours.inputs and ours.pad_id == 0


def test_one_file(minilm, tmp_path):
    """tokenizer.json, vocab.txt, a SentencePiece model: alone as in their folders."""
    same = Tokenizer.from_folder(minilm)
    for name in ("tokenizer.json", "vocab.txt"):
        ours = Tokenizer.from_file(minilm / name)
        for text in v.texts(600):
            assert ours.encode(text).ids == same.encode(text).ids, text
    (tmp_path / "any.model").write_bytes(v.llama_model())
    same = Tokenizer.from_folder(v.folder(tmp_path / "m", {"tokenizer.model": v.llama_model()}))
    assert Tokenizer.from_file(tmp_path / "any.model").encode("niño").ids == same.encode("niño").ids
    with pytest.raises(MiradaError, match="a tokenizer's file ends in"):
        Tokenizer.from_file(tmp_path / "any.doc")
    with pytest.raises(UntrustedInputError, match="there is no such file"):
        Tokenizer.from_file(tmp_path / "none.model")


def test_a_mask_that_takes_its_space_along(tmp_path):
    """The flags that a config gives a role's token count."""
    path = v.folder(tmp_path, {**v.byte_level(), "tokenizer_config.json": {
        "tokenizer_class": "RobertaTokenizer",
        "mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True},
    }})
    ours, reference = Tokenizer.from_folder(path), transformers.AutoTokenizer.from_pretrained(path)
    for text in ("a <mask> b", "<mask>", " <mask>."):
        assert ours.encode(text).ids == reference(text)["input_ids"], text
    assert ours.encode("a <mask>", special=False).ids == [ours.id("a"), ours.mask_id]


def test_unknown_rules_are_named(tmp_path, smollm):
    with pytest.raises(UntrustedInputError, match="'mystery' is not known"):
        Tokenizer.from_gguf({**smollm, "tokenizer.ggml.pre": "mystery"})
    with pytest.raises(UntrustedInputError, match="'rwkv' is not known"):
        Tokenizer.from_gguf({**smollm, "tokenizer.ggml.model": "rwkv"})
    with pytest.raises(MiradaError, match="no tokenizer here"):
        Tokenizer.from_folder(tmp_path)
    v.folder(tmp_path, {**v.byte_level(), "config.json": {"model_type": "herbert"}})
    with pytest.raises(MiradaError, match="'herbert' tokenizer's own rules are not known"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("name", ["minilm", "smollm", "llama", "t5"])
def test_saved_is_read_by_all(tmp_path, minilm, smollm, name):
    ours = {
        "minilm": lambda: Tokenizer.from_folder(minilm),
        "smollm": lambda: Tokenizer.from_gguf(smollm),
        "llama": lambda: Tokenizer.from_gguf(gguf_of(v.llama_model(), "llama")),
        "t5": lambda: Tokenizer.from_gguf(gguf_of(v.t5_model(), "t5")),
    }[name]()
    ours.save(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert_same(ours, reference, v.texts(1_000))
    again = Tokenizer.from_folder(tmp_path)
    for field in ("tokens", "templates", "inputs", "eos_ids", "max_length", "size", "special_ids"):
        assert getattr(again, field) == getattr(ours, field), field
    if ours.templates:
        messages = [{"role": "user", "content": "¿Qué tal?"}]
        wanted = reference.apply_chat_template(messages, tokenize=False)
        assert again.render(messages, add_generation_prompt=False) == wanted


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("truncate", [None, 3, 6, 7, 12])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batches(minilm, padding, truncate, side):
    ours = Tokenizer.from_folder(minilm)
    ours.truncation_side = side
    reference = transformers.AutoTokenizer.from_pretrained(
        minilm, padding_side=padding, truncation_side=side
    )
    texts = ["a cat", "the quick brown fox jumps over it", "x"]
    pairs = ["one two three four five six", "no", "y z"]
    for args in ((texts,), (texts, pairs)):
        wanted = reference(
            *args, padding=True, truncation=truncate is not None, max_length=truncate,
            return_tensors="pt",
        )
        found = ours(*args, padding=padding, truncate=truncate)
        assert found.keys() == wanted.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, wanted[name]), name
    with pytest.raises(MiradaError, match="smaller than the special tokens"):
        ours(texts, truncate=1)


def test_batches_without_pads(smollm):
    ours = Tokenizer.from_gguf(smollm)
    assert ours("one")["input_ids"].shape == (1, 1)
    assert "token_type_ids" not in ours("one")
    with pytest.raises(MiradaError, match="different lengths"):
        ours(["one", "one two three"], padding=None)


def test_labels_for_pictures(minilm, smollm):
    bpe, bert = Tokenizer.from_gguf(smollm), Tokenizer.from_folder(minilm)
    assert bpe.pieces(bpe.encode(" the\ncat").ids) == ["·the", "⏎", "cat"]
    assert bpe.pieces(bpe.encode("日").ids) == ["<E6 97>", "<A5>"]
    assert bert.pieces(bert.encode("Pingüinos", special=False).ids) == ["ping", "-uin", "-os"]


def test_ids_and_tokens(smollm):
    ours = Tokenizer.from_gguf(smollm)
    assert ours.token(ours.id("Ġthe")) == "Ġthe"
    for wrong in (-1, ours.size):
        with pytest.raises(MiradaError, match="out of range"):
            ours.decode([wrong])
        with pytest.raises(MiradaError, match="out of range"):
            ours.token(wrong)
    with pytest.raises(MiradaError, match="no token 'nowhere'"):
        ours.id("nowhere")


def test_special_text_is_text_when_not_parsed(smollm):
    ours = Tokenizer.from_gguf(smollm)
    ids = ours.encode("a<|im_end|>b", parse_special=False).ids
    assert not ours.special_ids & set(ids) and ours.decode(ids) == "a<|im_end|>b"
    assert 2 in ours.encode("a<|im_end|>b").ids


def test_settings_beside_the_description(tmp_path):
    """Named and added tokens, ends, lengths and edges that stand in the other files count."""
    size = len(v.chat_spec()["model"]["vocab"]) + len(v.chat_spec()["added_tokens"])
    ours = Tokenizer.from_folder(v.folder(tmp_path, {
        "tokenizer.json": v.chat_spec(),
        "tokenizer_config.json": {
            "bos_token": {"content": "<|im_start|>"}, "model_max_length": 77, "add_bos_token": True,
            "added_tokens_decoder": {str(size): {"content": "<|new|>", "special": True}},
            "chat_template": [{"name": "default", "template": "A"}, {"name": "b", "template": "B"}],
            "truncation_side": "left",
        },
        "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": "<pad>"},
        "generation_config.json": {"eos_token_id": [2, 3]},
        "added_tokens.json": {"<extra>": size + 1},
    }))
    assert ours.eos_ids == {2, 3, ours.id("<|im_end|>")} and ours.max_length == 77
    assert ours.encode("x").ids[0] == ours.bos_id == ours.id("<|im_start|>")
    assert ours.encode("<|new|><extra>", special=False).ids == [size, size + 1]
    assert size in ours.special_ids and size + 1 not in ours.special_ids
    assert ours.pad_id == ours.id("<pad>") and ours.truncation_side == "left"
    assert ours.templates == {"default": "A", "b": "B"}
    (tmp_path / "chat_template.jinja").write_text("C")
    assert Tokenizer.from_folder(tmp_path).templates["default"] == "C"

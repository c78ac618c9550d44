"""SentencePiece files without tokenizer.json: each family's ids, special tokens and frame."""

import unicodedata

import pytest

from mirada.errors import UntrustedInputError
from mirada.text import Tokenizer
from text import vocabularies as v

transformers = pytest.importorskip("transformers")

ALBERT = dict(
    vocab_size=300, model_type="unigram", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
    control_symbols="[CLS],[SEP],[MASK]",
)
PEGASUS = dict(vocab_size=300, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
PLAIN = dict(vocab_size=300, model_type="unigram")
FAIRSEQ = {"<unk>": 3, "<s>": 0, "</s>": 2}
# name: file, training, id of the model's piece n, ids before and after a text.
FAMILIES = {
    "XLMRoberta": ("sentencepiece.bpe.model", PLAIN, lambda n: n + 1, [0], [2]),
    "Camembert": ("sentencepiece.bpe.model", PLAIN, lambda n: n + 4, [0 + 5], [2 + 4]),
    "MBart": ("sentencepiece.bpe.model", PLAIN, lambda n: n + 1, [], [2, "en_XX"]),
    "MBart50": ("sentencepiece.bpe.model", PLAIN, lambda n: n + 1, ["en_XX"], [2]),
    "Pegasus": ("spiece.model", PEGASUS, lambda n: n + 103, [], [1]),
    "Albert": ("spiece.model", ALBERT, lambda n: n, [2], [3]),
    "BigBird": ("spiece.model", {**ALBERT, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
                lambda n: n, [4], [5]),
}


def read(tmp_path, name: str, **config):
    """(ours, the folder, SentencePiece itself)."""
    import sentencepiece

    file, options, *_ = FAMILIES[name]
    data = v.sentencepiece(**options)
    path = v.folder(tmp_path / name, {
        file: data, "tokenizer_config.json": {"tokenizer_class": f"{name}Tokenizer", **config},
    })
    return Tokenizer.from_folder(path), path, sentencepiece.SentencePieceProcessor(model_proto=data)


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_the_models_moved(tmp_path, name):
    config = {"do_lower_case": False, "keep_accents": True} if name == "Albert" else {}
    ours, _, model = read(tmp_path, name, **config)
    *_, moved, before, after = FAMILIES[name]
    before, after = ([ours.id(i) if isinstance(i, str) else i for i in ids]
                     for ids in (before, after))
    for text in v.texts(1_000, marks=False):
        if "`" in text or "''" in text:
            continue
        wanted = [ours.unk_id if n == model.unk_id() else moved(n) for n in model.encode(text)]
        assert ours.encode(text).ids == [*before, *wanted, *after], text
    assert ours.decode(ours.encode("a cat sat on the mat").ids) == "a cat sat on the mat"


@pytest.mark.parametrize("name", FAMILIES)
def test_as_the_reference_has_it(tmp_path, name):
    """On sentences that NFKC leaves: for mBART and BigBird the reference reads no character map."""
    ours, path, _ = read(tmp_path, name)
    reference = transformers.AutoTokenizer.from_pretrained(path)
    texts = [t for t in v.sentences()[:300] if unicodedata.is_normalized("NFKC", t)]
    for text, pair in zip(texts, texts[1:], strict=False):
        assert ours.encode(text).ids == reference(text)["input_ids"], text
        wanted = reference(text, pair, return_token_type_ids=True)
        found = ours.encode(text, pair)
        assert (found.ids, found.type_ids) == (wanted["input_ids"], wanted["token_type_ids"])
    assert ours.size == len(reference)
    for role in ("bos", "eos", "pad", "unk", "cls", "sep", "mask"):
        if getattr(reference, f"{role}_token", None) and role != "mask":
            assert ours.tokens[role] == getattr(reference, f"{role}_token"), role


def test_albert_cleans_first(tmp_path):
    ours, _, model = read(tmp_path, "Albert")
    assert ours.encode("``Corazón'' ÑANDÚ").ids == ours.encode('"corazon" nandu').ids
    kept, *_ = read(tmp_path, "Albert", keep_accents=True, do_lower_case=False)
    assert kept.encode("niño").ids == [2, *model.encode("niño"), 3] != ours.encode("niño").ids


def test_albert_parts_numbers_from_commas(tmp_path):
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    made = sentencepiece_model_pb2.ModelProto.FromString(v.sentencepiece(**ALBERT))
    for piece in ("▁1,", "▁1", ","):
        made.pieces.add(piece=piece, score=-1.0)
    data = made.SerializeToString()
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    path = v.folder(tmp_path, {
        "spiece.model": data,
        "tokenizer_config.json": {"tokenizer_class": "AlbertTokenizer"},
    })
    assert model.encode("1,", out_type=str) == ["▁1,"]
    ours = Tokenizer.from_folder(path)
    assert ours.encode("1,", special=False).tokens == ["▁1", ","]


def test_special_text(tmp_path):
    ours, *_ = read(tmp_path, "XLMRoberta")
    ids = ours.encode("the <mask> sat").ids
    assert ids == [0, *ours.encode("the", special=False).ids, ours.mask_id,
                   *ours.encode("sat", special=False).ids, 2]
    assert ours.mask_id == ours.size - 1 and not ours.special_ids & set(
        ours.encode("the <mask></s>", special=False, parse_special=False).ids) - {ours.unk_id}


def test_a_token_that_is_needed(tmp_path):
    """An end that the vocabulary lacks is named; one with a space in it is a token like others."""
    data = v.sentencepiece(**{**PLAIN, "eos_id": -1})
    path = v.folder(tmp_path / "t5", {
        "spiece.model": data, "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"}})
    with pytest.raises(UntrustedInputError, match="{eos}: None is needed"):
        Tokenizer.from_folder(path)
    ours, *_ = read(tmp_path, "Pegasus", eos_token="the end: {x}")
    assert ours.token(ours.encode("a").ids[-1]) == "the end: {x}"
    bos = {"tokenizer_class": "LlamaTokenizer", "bos_token": "a b:"}
    path = v.folder(tmp_path / "l", {"tokenizer.model": v.llama_model(),
                                     "tokenizer_config.json": bos})
    assert Tokenizer.from_folder(path).encode("a").ids[0] == 420


def test_languages(tmp_path):
    for name in ("MBart", "MBart50"):
        ours, *_ = read(tmp_path, name, src_lang="es_XX")
        assert ours.id("es_XX") in (ours.encode("a").ids[0], ours.encode("a").ids[-1])
        with pytest.raises(UntrustedInputError, match="'xx' is no language of this model"):
            read(tmp_path, name, src_lang="xx")


def gemma() -> bytes:
    return v.sentencepiece(
        vocab_size=420, model_type="bpe", byte_fallback=True, split_digits=True, pad_id=0,
        eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        add_dummy_prefix=False, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
        user_defined_symbols="<start_of_turn>,<end_of_turn>")


def test_gemma(tmp_path):
    import sentencepiece

    data = gemma()
    path = v.folder(tmp_path / "gemma", {
        "tokenizer.model": data, "tokenizer_config.json": {"tokenizer_class": "GemmaTokenizer"},
    })
    ours = Tokenizer.from_folder(path)
    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    for text in v.texts(1_500, marks=False):
        assert ours.encode(text).ids == [2, *model.encode(text)], text
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (2, {1}, 0)
    turn = "<start_of_turn>user\nhello<end_of_turn>\n"
    assert ours.encode(turn).ids == [2, *model.encode(turn)]


def marian(tmp_path, **config):
    """A folder of two models and a vocabulary over both, and the source's model."""
    import sentencepiece

    source, target = v.sentencepiece(**PLAIN), v.sentencepiece(**{**PLAIN, "vocab_size": 80})
    both = [sentencepiece.SentencePieceProcessor(model_proto=m) for m in (source, target)]
    found = sorted({m.id_to_piece(i) for m in both for i in range(3, m.vocab_size())})
    extra = ["▁zorro", "zz"]  # of the target alone
    names = ["</s>", "<unk>", *found, *extra, ">>es<<", "<pad>"]
    path = v.folder(tmp_path / "marian", {
        "source.spm": source, "target.spm": target,
        "vocab.json": {name: i for i, name in enumerate(names)},
        "tokenizer_config.json": {"tokenizer_class": "MarianTokenizer", **config},
    })
    return path, both[0]


@pytest.mark.filterwarnings("ignore:Recommended")
def test_marian(tmp_path):
    path, model = marian(tmp_path)
    ours = Tokenizer.from_folder(path)
    reference = transformers.MarianTokenizer.from_pretrained(path)
    for text in [*v.texts(900, marks=False), "the zorro zz"]:
        assert ours.encode(text).ids == reference(text)["input_ids"], text
    assert ours.encode(">>es<< hello").ids == reference(">>es<< hello")["input_ids"]
    ids = [ours.size - 4, ours.size - 3, *ours.encode("a cat").ids]
    assert ours.decode(ids) == "zorrozz a cat" == reference.decode(ids, skip_special_tokens=True)
    assert ours.pieces(ids)[:2] == ["·zorro", "zz"] and ours.eos_ids == {0}
    ours.save(tmp_path / "again")
    again = Tokenizer.from_folder(tmp_path / "again")
    assert again.encode("the cat").ids == ours.encode("the cat").ids


def test_marian_refuses(tmp_path):
    path, _ = marian(tmp_path, separate_vocabs=True)
    with pytest.raises(UntrustedInputError, match="separate_vocabs"):
        Tokenizer.from_folder(path)
    for vocab, says in (({"a": "b"}, "map tokens to ids"), ({"a": 0}, "must have </s>"),
                        ({"</s>": 0, "<unk>": 1, "<pad>": 9}, "0 to n-1")):
        v.folder(path, {"vocab.json": vocab, "tokenizer_config.json": {}})
        with pytest.raises(UntrustedInputError, match=says):
            Tokenizer.from_folder(path)

"""Vocabularies of whole tokens: molecules by the atom, proteins by the residue."""

import pytest

from mirada.text import Tokenizer
from text import vocabularies as v

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
RESIDUES = [*BERT, *"ACDEFGHIKLMNPQRSTVWY"]
ATOMS = [*BERT, *"cCO()=1N.n", "Cl", "Br", ">>", "[C@@H]", "[nH]", "%10", "#", "/"]
transformers = pytest.importorskip("transformers")


def read(tmp_path, lines: list[str], **config) -> Tokenizer:
    files = {"vocab.txt": "\n".join(lines) + "\n", "config.json": {"model_type": "bert"}}
    return Tokenizer.from_folder(v.folder(tmp_path, {**files, "tokenizer_config.json": config}))


def test_residues(tmp_path):
    """With spaces or without, as BERT's tokenizer cuts them apart when spaces stand between."""
    ours = read(tmp_path, RESIDUES)
    reference = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    chain = "EVQLVESGGGLVQPGGSLRLSCAAS"
    wanted = reference(" ".join(chain))["input_ids"]
    assert ours.encode(chain).ids == ours.encode(" ".join(chain)).ids == wanted
    assert ours.encode("E[MASK]Q").ids == reference("E [MASK] Q")["input_ids"]
    assert ours.encode("EXe?Q").ids == reference("E X e ? Q")["input_ids"]  # three unknown
    assert ours.decode(wanted) == chain and ours.encode(chain).offsets[1:3] == [(0, 1), (1, 2)]
    assert ours.encode("EV", "QL").type_ids == [0, 0, 0, 0, 1, 1, 1]
    assert (ours.cls_id, ours.sep_id, ours.pad_id, ours.mask_id, ours.unk_id) == (2, 3, 0, 4, 1)
    one = Tokenizer.from_file(tmp_path / "vocab.txt")
    assert one.encode(chain).ids == wanted


def test_atoms(tmp_path):
    ours = read(tmp_path, ATOMS)
    cut = ["c", "1", "n", "[nH]", "c", "Cl", "#", "C", "(", "Br", ")", ">>", "%10", "[C@@H]"]
    assert ours.encode("".join(cut), special=False).tokens == cut
    assert ours.encode("C [C@H] C", special=False).tokens == ["C", "[UNK]", "C"]
    assert ours.decode(ours.encode("".join(cut)).ids) == "".join(cut)
    assert len(ours.encode("[" * 100_000 + "C").ids) > 1  # and no time lost


def test_esm(tmp_path):
    lines = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>",
             "<mask>"]
    path = v.folder(tmp_path, {
        "vocab.txt": "\n".join(lines), "config.json": {"model_type": "esm"},
        "tokenizer_config.json": {"tokenizer_class": "EsmTokenizer"},
    })
    ours, reference = Tokenizer.from_folder(path), transformers.EsmTokenizer.from_pretrained(path)
    for text in ("MKTVRQ", "M K T", "MK<mask>VR", "MKxyzJJ?VR", "M-K.X", "", "<cls>M<eos>"):
        assert ours.encode(text).ids == reference(text)["input_ids"], text
    assert ours.encode("MK", "TV").ids == reference("MK", "TV")["input_ids"]
    assert ours.decode(ours.encode("MKTVRQ").ids) == "MKTVRQ" and ours.size == 33
    assert (ours.cls_id, ours.eos_ids, ours.mask_id) == (0, {2}, 32)


def test_words_stay_words(tmp_path):
    """A token that continues a word, or a class that is named, is WordPiece."""
    text = "ACD"
    assert read(tmp_path, [*RESIDUES, "##A"]).encode(text, special=False).ids == [1]
    named = read(tmp_path, RESIDUES, tokenizer_class="BertTokenizer", do_lower_case=False)
    assert named.encode(text, special=False).ids == [1]
    assert len(read(tmp_path, RESIDUES).encode(text, special=False).ids) == 3

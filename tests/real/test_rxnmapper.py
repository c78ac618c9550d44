"""A real ALBERT, RXNMapper, must know which atom of a reaction was hidden."""

import re

import pytest
import torch
import transformers

import mirada

REACTION = "CC(=O)O.OCC>>CC(=O)OCC"
# The atom-wise rule of Schwaller et al. (2018): an atom in brackets is one token, so are Br and Cl,
# any other atom of the organic subset, a bond, a branch, a ring digit or %nn, and the arrow.
ATOMS = re.compile(r"\[[^]]+]|Br|Cl|>>|%\d\d|[BCNOSPFIbcnosp]|[().=#\-+\\/:~@?>*$]|\d")


@pytest.fixture(scope="module")
def model(real):
    return mirada.load(real("rxnmapper"))


@pytest.fixture(scope="module")
def ids(model) -> torch.Tensor:
    """The reaction's 21 tokens between [CLS] and [SEP], (1, 23)."""
    return model.tokenizer(REACTION)["input_ids"]


def test_its_tokens_are_atoms_and_bonds(model, ids, real):
    """The ids of the lines of vocab.txt, cut by a rule written here; and the reaction again."""
    vocab = (real("rxnmapper") / "vocab.txt").read_text().splitlines()
    atoms = ATOMS.findall(REACTION)
    assert "".join(atoms) == REACTION
    assert ids[0].tolist() == [vocab.index(t) for t in ("[CLS]", *atoms, "[SEP]")]
    t = model.tokenizer
    assert t.decode(ids[0]) == REACTION and t.size == 591 and t.mask_id == 14
    known = [token for token in vocab[15:] if ATOMS.fullmatch(token)]
    assert len(known) == 576 and t.encode("".join(known), special=False).tokens == known
    assert t.encode(REACTION).offsets[9:12] == [(8, 9), (9, 10), (10, 11)]
    assert t.encode("C[MASK]O.X", special=False).ids == [
        vocab.index(token) for token in ("C", "[MASK]", "O", ".", "[UNK]")]


@pytest.mark.scope("1.5.3")
def test_hidden_tokens_are_found(model, ids):
    inner = ids.shape[1] - 2
    batch = ids.repeat(inner, 1)  # one row a hidden token
    at = torch.arange(inner)
    batch[at, at + 1] = model.tokenizer.mask_id
    with torch.inference_mode():
        found = model(batch).logits[at, at + 1].argmax(-1)
    assert inner == 21 and int((found == ids[0, 1:-1]).sum()) == 15


def test_as_the_reference_has_it(model, ids, real):
    """float32 on both sides: rounding is all that may differ."""
    theirs = transformers.AlbertForMaskedLM.from_pretrained(real("rxnmapper")).eval()
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, theirs(ids).logits, atol=1e-4)


def test_its_pooler_is_carried(model, tmp_path):
    pooler = {"albert.pooler.weight", "albert.pooler.bias"}
    assert model.origin.carried.keys() == pooler
    mirada.save(model, tmp_path / "again")
    again = mirada.load(tmp_path / "again")
    assert again.origin.carried.keys() == pooler
    assert all(torch.equal(t, again.state()[n]) for n, t in model.state().items())

"""A real protein model, AntiBERTy, must know which residue of an antibody was hidden."""

import pytest
import torch
import transformers

import mirada

HEAVY = ("EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAYMELSSLR"
         "SEDTAVYYCAAPYCSSISCNDGFDIWGQGTMVTVS")  # the heavy chain that the package's page shows


@pytest.fixture(scope="module")
def model(real):
    real("antiberty")
    return mirada.load("antiberty")


@pytest.mark.slow  # 122 passes: 11 s of one core
def test_hidden_residues_are_found(model):
    ids = torch.tensor([model.tokenizer.encode(HEAVY).ids])
    inner = ids.shape[1] - 2
    batch = ids.repeat(inner, 1)  # one row a hidden residue
    at = torch.arange(inner)
    batch[at, at + 1] = model.tokenizer.mask_id
    with torch.inference_mode():
        found = model(batch).logits[at, at + 1].argmax(-1)
    assert inner == len(HEAVY) == 122 and int((found == ids[0, 1:-1]).sum()) == 113


def test_as_a_task(model):
    pipe = mirada.pipeline("fill-mask", model)
    best = pipe(HEAVY[:60] + "[MASK]" + HEAVY[61:], top_k=1)
    assert best[0]["token_str"] == HEAVY[60] and best[0]["sequence"] == HEAVY


def test_as_the_reference_has_it(model, real):
    """float32 on both sides: rounding is all that may differ. The reference, too, must be told the
    head, which the config names as its authors' own."""
    theirs = transformers.BertForMaskedLM.from_pretrained(real("antiberty")).eval()
    ids = torch.tensor([model.tokenizer.encode(HEAVY).ids])
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, theirs(ids).logits, atol=1e-4)


def test_its_other_heads_are_carried(model, tmp_path):
    heads = {f"cls.{head}.{p}" for head in ("species", "chain", "graft")
             for p in ("weight", "bias")}
    assert heads <= model.origin.carried.keys()
    mirada.save(model, tmp_path / "again")
    again = mirada.load(tmp_path / "again")
    assert again.origin.carried.keys() == model.origin.carried.keys()
    assert again.tokenizer.encode(HEAVY).ids == model.tokenizer.encode(HEAVY).ids

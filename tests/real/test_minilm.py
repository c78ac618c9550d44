"""A real sentence encoder, all-MiniLM-L6-v2, must find what means the same."""

import pytest
import torch
import torch.nn.functional as F
import transformers

import mirada

TEXTS = ["A man is playing a guitar.", "Someone plays a musical instrument.",
         "The stock market fell sharply today."]


@pytest.fixture(scope="module")
def model(real):
    return mirada.load(real("minilm"))


def embed(model, batch: dict) -> torch.Tensor:
    """(B, D): the mean over real tokens, of length one."""
    with torch.inference_mode():
        x = model(**batch).last_hidden_state
    real = batch["attention_mask"][..., None]
    return F.normalize((x * real).sum(1) / real.sum(1), dim=-1)


@pytest.mark.scope("1.5.1")
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_three_cosines(model, side):
    e = embed(model, model.tokenizer(TEXTS, padding=side))
    found = [(e[a] @ e[b]).item() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found == pytest.approx([0.684, -0.054, -0.035], abs=1e-3)


def test_every_token_as_the_reference_has_it(model, real):
    """float32 on both sides: rounding is all that may differ."""
    batch = model.tokenizer(TEXTS)
    theirs = transformers.BertModel.from_pretrained(real("minilm")).eval()
    with torch.inference_mode():
        wanted, ours = theirs(**batch), model(**batch)
    kept = batch["attention_mask"].bool()
    assert torch.allclose(ours.last_hidden_state[kept], wanted.last_hidden_state[kept], atol=2e-5)
    assert torch.allclose(ours.pooler_output, wanted.pooler_output, atol=2e-5)

"""Whole sublayers left out in training: the deeper the oftener, row by row."""

import pytest
import torch

import mirada
from mirada.core.context import Ctx
from mirada.errors import MiradaError


def test_chances_grow_evenly_and_the_model_given_stays():
    model = mirada.build("swin:tiny", seed=0)
    pictures, other = {"pixel_values": torch.randn(8, 3, 32, 32)}, mirada.edit.drop_path(model, 0.6)
    parts = [part for block in other.body.blocks for part in (block.attn, block.mlp)]
    assert [p.drop_path for p in parts] == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6])
    with torch.no_grad():
        same = model(**pictures).logits
        assert torch.equal(other(**pictures).logits, same)
        assert torch.equal(model.train()(**pictures).logits, same)
        assert not torch.equal(other.train()(**pictures).logits, same)
        assert torch.equal(mirada.edit.drop_path(other, 0)(**pictures).logits, same)
    assert other.body.blocks[0].mlp.f.up.weight is model.body.blocks[0].mlp.f.up.weight


def test_a_row_has_the_whole_sublayer_or_none_of_it():
    torch.manual_seed(0)
    model = mirada.edit.drop_path(mirada.build("vit:tiny", seed=0), 0.25).train()
    part, x = model.body.blocks[-1].attn, torch.randn(1, 5, 64).expand(2000, -1, -1)
    with torch.no_grad():
        added = part(x, Ctx()) - x
        whole = part.f(part.pre(x[:1]), Ctx())[0] / 0.75
    left_out = (added == 0).all(2).all(1)
    assert (added[~left_out] - whole).abs().max() < 1e-5
    assert left_out.float().mean().item() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("name, rate, said", [
    ("swin:tiny", 1.0, "from 0 to below 1"), ("swin:tiny", -0.1, "from 0 to below 1"),
    ("albert:tiny", 0.1, "no sublayer of AlbertForMaskedLM can be left out")])
def test_what_cannot_be_left_out(name, rate, said):
    with pytest.raises(MiradaError, match=said):
        mirada.edit.drop_path(mirada.build(name, device="meta"), rate)

"""Learned positions: past their end an error that says what to do, and then more of them."""

import pytest
import torch

import mirada
from mirada.edit import resize_positions, without_positions
from mirada.errors import MiradaError

FAMILIES = ["gpt2", "bert", "roberta", "albert", "bart"]  # bart's two stacks have a table each


def small(family, **changes):
    return mirada.build(f"{family}:tiny", seed=1, dtype=torch.float64, context=16, **changes)


def out(m, length):
    ids = torch.randint(5, 400, (2, length), generator=torch.Generator().manual_seed(2))
    given = {"decoder_input_ids": ids} if m.encoder_decoder else {}
    with torch.no_grad():
        return m(input_ids=ids, **given).logits


def tables(m):
    return [x for x in m.modules() if type(x).__name__ == "Learned"]


@pytest.mark.scope("1.2.2")
@pytest.mark.parametrize("family", FAMILIES)
def test_past_the_end_an_error_offers_what_then_works(family, tmp_path):
    m = small(family)
    with pytest.raises(MiradaError, match="context of 16 tokens.*mirada.edit.resize_positions"):
        out(m, 17)
    for how in ("interpolate", "repeat"):
        longer = resize_positions(m, 40, how)
        assert longer.context == 40 and m.context == 16
        wanted = out(longer, 40)
        assert torch.isfinite(wanted).all()
        with pytest.raises(MiradaError, match="context of 40"):
            out(longer, 41)
        again = mirada.load(mirada.save(longer, tmp_path / how))
        assert again.context == 40 and torch.equal(out(again, 40), wanted)
    assert torch.equal(out(longer, 16), out(m, 16)), "repeated: what was, stays"
    shorter = resize_positions(m, 4, "repeat")
    assert torch.equal(out(shorter, 4), out(m, 4))


@pytest.mark.scope("1.2.2")
def test_interpolated_rows_lie_on_the_lines_between_the_old():
    m = small("roberta")  # its first two rows are no positions and stay
    old, offset = tables(m)[0].weight.detach(), tables(m)[0].offset
    assert offset == 2
    new = tables(resize_positions(m, 31))[0].weight.detach()
    assert new.shape == (33, 64) and torch.equal(new[:2], old[:2])
    assert torch.allclose(new[2::2], old[2:], atol=1e-7), "every old place is met again"
    assert torch.allclose(new[3::2], (old[2:-1] + old[3:]) / 2, atol=1e-7)
    same = tables(resize_positions(m, 16))[0].weight.detach()
    assert torch.allclose(same, old, atol=1e-7)
    repeated = tables(resize_positions(m, 40, "repeat"))[0].weight.detach()
    assert torch.equal(repeated[2:18], old[2:]) and torch.equal(repeated[18:34], old[2:])


def test_the_reference_reads_the_longer_model(tmp_path):
    import transformers
    longer = resize_positions(small("roberta"), 24)
    path = mirada.save(longer, tmp_path / "m")
    theirs = transformers.RobertaForMaskedLM.from_pretrained(path).eval()
    ids = torch.randint(5, 400, (2, 24), generator=torch.Generator().manual_seed(2))
    assert (theirs(ids).logits - out(longer, 24)).abs().max() < 1e-10


def test_what_cannot_be_resized_is_said():
    with pytest.raises(MiradaError, match="LlamaForCausalLM has no learned positions to resize"):
        resize_positions(mirada.build("llama:tiny", device="meta"), 64)
    with pytest.raises(MiradaError, match="by interpolate or repeat, not 'stretch'"):
        resize_positions(small("gpt2"), 64, "stretch")
    with pytest.raises(MiradaError, match="context is 0: it must be a whole number from 1"):
        resize_positions(small("gpt2"), 0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bloom", "transformer", "deberta"])
def test_without_positions_nothing_is_added_turned_or_biased(family):
    bare = without_positions(mirada.build(f"{family}:tiny", seed=0))
    found = mirada.describe(bare)
    assert not [aspect for aspect in found.facts if aspect.endswith("positions")]
    assert any("its positions were taken out" in note for note in found.notes)


def test_a_picture_without_positions():
    m = mirada.build("vit:tiny", seed=0)
    m.body.embed.position.data.normal_()
    bare = without_positions(m)
    assert (bare.body.embed.position == 0).all() and not (m.body.embed.position == 0).any()

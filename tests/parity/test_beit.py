"""BEiT against the reference: offsets by layer and shared, visual tokens, larger pictures."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

import mirada
from mirada.errors import MiradaError
from parity.harness import Pair, Row, table
from parity.test_vit import TINY as VIT
from parity.test_vit import hidden, larger, picture

TINY = {k: v for k, v in VIT.items() if k != "encoder_stride"} | dict(
    vocab_size=31, use_relative_position_bias=True)


def codes(pair: Pair) -> torch.Tensor:
    """A visual token for each hidden patch."""
    return torch.randint(31, (int(pair.batch["bool_masked_pos"].sum()),))


def row(architecture: str, inputs=picture, **more) -> Row:
    def wide(row: Row) -> dict:  # the reference takes pixels as they come
        batch = inputs(row)
        return batch | {"pixel_values": batch["pixel_values"].double()}

    keys = {k: more.pop(k) for k in list(more) if k in ("name", "labels", "exempt")}
    return Row(architecture, "BeitConfig", TINY | more, wide, pads=False, left=False, **keys)


SHARED = dict(use_relative_position_bias=False, use_shared_relative_position_bias=True)
COPIED = {"score bias": "a picture of another grid is given a stretched copy, which stays whole"}
ROWS = [
    row("BeitForImageClassification", num_labels=5),
    row("BeitForImageClassification", name="odd", image_size=30, num_channels=1,
        use_relative_position_bias=False, use_absolute_position_embeddings=True,
        use_mean_pooling=False, layer_scale_init_value=0.0, hidden_act="prelu",
        layer_norm_eps=1e-3),
    row("BeitForImageClassification", larger, name="larger", exempt=COPIED),
    row("BeitModel"),
    row("BeitModel", larger, name="shared", use_absolute_position_embeddings=True, exempt=COPIED,
        **SHARED),
    row("BeitForMaskedImageModeling", hidden, use_mask_token=True, labels=codes, **SHARED),
]
test_parity = pytest.mark.scope("1.8.5")(table(ROWS))


@pytest.mark.parametrize("size, count", [
    ("base", 86_530_984), ("large", 304_430_568), ("base-masked", 91_965_776),
    ("large-masked", 311_534_016)])
def test_published_sizes(size, count):
    """Counted on the reference, which has each head's tensors and no more."""
    head = "BeitForMaskedImageModeling" if "masked" in size else "BeitForImageClassification"
    beit = mirada.build("beit", size=size, architecture=head, device="meta")
    assert sum(p.numel() for p in beit.parameters()) == count


def test_offsets_of_a_grid_that_is_no_square():
    """One table row for each pair's offset, as the reference counts them; stretched, what says
    "so many rows down" and "so many columns right" still says it."""
    beit = mirada.build("beit:tiny", image=(12, 20), architecture="BeitModel").double()
    bias = beit.body.blocks[0].attn.f.score_bias
    theirs, places = BeitRelativePositionBias.generate_relative_position_index((3, 5)), range(16)
    bias.table.data[:, 3] = torch.arange(len(bias.table)).double()
    ours = bias.rows(bias.table, None, *[torch.tensor(places)] * 2)[0, 3]
    assert torch.equal(ours.long(), theirs)
    rows, columns = torch.meshgrid(torch.arange(-2.0, 3), torch.arange(-4.0, 5), indexing="ij")
    bias.table.data[:-3, 0], bias.table.data[:-3, 1] = rows.flatten(), columns.flatten()
    bias.table.data[-3:, 2] = torch.tensor([5.0, 6.0, 7.0]).double()
    places = torch.arange(1 + 6 * 10)
    wide = bias.stretched((6, 10)).rows(bias.table, None, places, places)[0]  # (H, T, T)
    down, right = (w[1:, 1:].unflatten(0, (6, 10)).unflatten(2, (6, 10)) for w in wide[:2])
    assert (down.diff(dim=0) >= 0).all() and (down.diff(dim=1).abs() < 1e-9).all()
    assert (right.diff(dim=1) >= 0).all() and (right.diff(dim=0).abs() < 1e-9).all()
    assert down[5, 0, 0, 0] > 1.5 and right[0, 9, 0, 0] > 3.5
    assert wide[2, 0, 0] == 7 and (wide[2, 0, 1:] == 5).all() and (wide[2, 1:, 0] == 6).all()
    same = bias.stretched(bias.window).table
    assert torch.allclose(same, bias.table, atol=1e-12)


def test_one_table_of_all_layers_is_one_tensor():
    beit = mirada.build("beit:tiny", seed=0)
    biases = {id(block.attn.f.score_bias) for block in beit.body.blocks}
    assert len(biases) == 1
    with pytest.raises(MiradaError, match="all share one table"):
        mirada.build("beit:tiny", relative=True)


def test_older_files_also_hold_which_offset_a_pair_has(tmp_path):
    """It is not read, and written back as it was."""
    mirada.save(mirada.build("beit:tiny", shared=False, relative=True, seed=0), tmp_path / "today")
    file = tmp_path / "today" / "model.safetensors"
    name = ("beit.encoder.layer.{}.attention.attention.relative_position_bias."
            "relative_position_index")
    index = BeitRelativePositionBias.generate_relative_position_index((8, 8))
    save_file(load_file(file) | {name.format(n): index.clone() for n in range(2)}, file,
              metadata={"format": "pt"})
    mirada.save(mirada.load(tmp_path / "today"), tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name.format(n)], index) for n in range(2))


def test_a_body_without_its_pooler(tmp_path):
    config = transformers.BeitConfig(**TINY)
    theirs = transformers.BeitModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    beit = mirada.load(tmp_path / "theirs")
    pixels = torch.randn(1, 3, 24, 24)
    out = beit(pixel_values=pixels)
    assert list(out) == ["last_hidden_state"]
    assert (out.last_hidden_state - theirs(pixels).last_hidden_state).abs().max() < 1e-5


def test_labels_are_of_hidden_patches():
    beit = mirada.build("beit:tiny", architecture="BeitForMaskedImageModeling")
    pixels, hidden = torch.zeros(1, 3, 32, 32), torch.zeros(1, 64)
    hidden[0, :3] = 1
    assert beit(pixel_values=pixels, bool_masked_pos=hidden, labels=torch.zeros(3).long()).loss > 0
    with pytest.raises(MiradaError, match="say which are hidden"):
        beit(pixel_values=pixels, labels=torch.zeros(3).long())
    with pytest.raises(MiradaError, match="no loss can be taken of labels"):
        beit(pixel_values=pixels, bool_masked_pos=hidden, labels=torch.zeros(4).long())
    with pytest.raises(MiradaError, match="no vector for hidden patches"):
        mirada.build("beit:tiny", masks=False)(pixel_values=pixels, bool_masked_pos=hidden)

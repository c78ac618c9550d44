"""ViT against the reference: square and rectangular pictures, hidden patches, a larger grid."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

import mirada
from mirada.errors import MiradaError
from parity.harness import BAR, Row, compare, pair, run_theirs, table

TINY = dict(image_size=24, patch_size=8, num_channels=3, hidden_size=24, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=40, encoder_stride=8, layer_norm_eps=1e-5)


def picture(row: Row) -> dict:
    """pixel_values of the size that the row's config names."""
    size = row.settings["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return {"pixel_values": torch.randn(2, row.settings["num_channels"], height, width)}


def hidden(row: Row) -> dict:
    """A picture with some patches hidden, (B, N)."""
    count = (row.settings["image_size"] // row.settings["patch_size"]) ** 2
    return picture(row) | {"bool_masked_pos": torch.rand(2, count) < 0.4}


def larger(row: Row) -> dict:
    """A larger and rectangular picture than the model's, its positions stretched."""
    return {"pixel_values": torch.randn(2, 3, 40, 56), "interpolate_pos_encoding": True}


def row(architecture: str, inputs=picture, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt")}
    return Row(architecture, "ViTConfig", TINY | more, inputs, pads=False, left=False, **keys)


ROWS = [
    row("ViTForImageClassification", num_labels=5),
    row("ViTForImageClassification", name="odd", image_size=[16, 40], patch_size=[4, 8],
        num_channels=1, qkv_bias=False, hidden_act="prelu", layer_norm_eps=1e-3),
    row("ViTForImageClassification", larger, name="larger"),
    row("ViTModel"),
    row("ViTModel", name="odd", pooler_output_size=10, pooler_act="prelu", image_size=30),
    row("ViTForMaskedImageModeling", hidden),
    row("ViTForMaskedImageModeling", name="whole", encoder_stride=4),
]
test_parity = table(ROWS)


@pytest.mark.scope("1.2.7")
@pytest.mark.parametrize("height, width", [(384, 384), (224, 224), (192, 320)])
def test_a_model_of_224_pixels_sees_other_sizes(height, width):
    small = row("ViTModel", name="224", image_size=224, patch_size=32, hidden_size=8)
    both, shape = pair(small), (1, 3, height, width)
    batch = {"pixel_values": torch.randn(shape), "interpolate_pos_encoding": True}
    ours = both.ours(**batch)
    assert ours.last_hidden_state.shape == (1, 1 + height * width // 32**2, 8)
    assert compare(both, batch, ours, run_theirs(both, batch)) < BAR
    unstretched = both.ours.body.embed.position
    same = torch.equal(both.ours.body.embed.stretch(batch["pixel_values"]), unstretched)
    assert same == ((height, width) == (224, 224))


def test_a_stretched_rectangular_grid_keeps_its_rows_and_columns():
    # the reference takes every grid for a square; here what says "row" and "column" must stay so
    vit = mirada.build("vit:tiny", image=(64, 88), architecture="ViTModel").double()
    embed = vit.body.embed
    down, right = torch.meshgrid(torch.arange(8.0), torch.arange(11.0), indexing="ij")
    embed.position.data[0, 1:, 0] = down.flatten()
    embed.position.data[0, 1:, 1] = right.flatten()
    out = embed.stretch(torch.zeros(1, 3, 128, 176))[0, 1:].unflatten(0, (16, 22))  # (.., .., D)
    rows, columns = out[..., 0], out[..., 1]
    assert torch.allclose(rows, rows[:, :1]) and (rows.diff(dim=0) > 0.1)[2:-2].all()
    assert torch.allclose(columns, columns[:1]) and (columns.diff(dim=1) > 0.1)[:, 2:-2].all()


@pytest.mark.parametrize("size, count", [("base", 86_567_656), ("large", 304_326_632),
                                         ("huge", 632_045_800)])
def test_published_sizes(size, count):
    vit = mirada.build("vit", size=size, device="meta")
    assert sum(p.numel() for p in vit.parameters()) == count


@pytest.mark.parametrize("batch, said", [
    ({"pixel_values": torch.zeros(1, 1, 32, 32)}, "3 channels"),
    ({"pixel_values": torch.zeros(3, 32, 32)}, r"given \(3, 32, 32\)"),
    ({"pixel_values": torch.zeros(1, 3, 32, 40)}, r"\(32, 40\) pixels and the model \(32, 32\)"),
    ({"pixel_values": torch.zeros(1, 1, 64, 64), "interpolate_pos_encoding": True}, "3 channels"),
    ({"input_ids": torch.zeros(1, 4, dtype=torch.long)}, "does not read input_ids"),
    ({"pixel_values": torch.zeros(1, 3, 32, 32), "bool_masked_pos": torch.ones(1, 16).bool()},
     "no vector for hidden patches"),
])
def test_what_a_picture_may_not_be(batch, said):
    vit = mirada.build("vit:tiny")
    with pytest.raises(MiradaError, match=said):
        vit(**batch)


def test_a_patch_must_fit_the_picture_and_hidden_patches_the_stride():
    with pytest.raises(MiradaError, match="holds no patch"):
        mirada.build("vit:tiny", image=(32, 7))
    vit = mirada.build("vit:tiny", stride=4, architecture="ViTForMaskedImageModeling")
    batch = {"pixel_values": torch.zeros(1, 3, 32, 32)}
    assert vit(**batch).reconstruction.shape == (1, 3, 16, 16)
    with pytest.raises(MiradaError, match="patch_size must equal encoder_stride"):
        vit(**batch, bool_masked_pos=torch.ones(1, 16))


def test_hidden_patches_may_be_ones_and_the_loss_counts_them_alone():
    vit = mirada.build("vit:tiny", image=(16, 32), architecture="ViTForMaskedImageModeling", seed=0)
    pixels, masked = torch.randn(2, 3, 16, 32), torch.zeros(2, 8, dtype=torch.long)
    masked[:, 5] = 1  # the second patch of the second row
    out = vit(pixel_values=pixels, bool_masked_pos=masked)
    wrong = (pixels - out.reconstruction).abs()[:, :, 8:16, 8:16].mean()
    assert out.reconstruction.shape == pixels.shape
    assert torch.allclose(out.loss, wrong, rtol=1e-5)
    assert torch.equal(vit(pixel_values=pixels, bool_masked_pos=masked.bool()).loss, out.loss)


def test_a_body_without_its_pooler(tmp_path):
    theirs = transformers.ViTModel(transformers.ViTConfig(**TINY), add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    vit = mirada.load(tmp_path / "theirs")
    pixels = torch.randn(1, 3, 24, 24)
    out = vit(pixel_values=pixels)
    assert list(out) == ["last_hidden_state"]
    wanted = theirs(pixels).last_hidden_state
    assert (out.last_hidden_state - wanted).abs().max() < 1e-5
    mirada.save(vit, tmp_path / "ours")
    names = load_file(tmp_path / "ours" / "model.safetensors").keys()
    assert names == load_file(tmp_path / "theirs" / "model.safetensors").keys()
    assert not any("pooler" in name for name in names)


def test_files_with_parts_that_a_head_does_not_use_keep_them(tmp_path):
    config = transformers.ViTConfig(**TINY)
    theirs = transformers.ViTModel(config, add_pooling_layer=True, use_mask_token=True)
    theirs.save_pretrained(tmp_path / "theirs")
    vit = mirada.load(tmp_path / "theirs")
    assert list(vit.origin.carried) == ["embeddings.mask_token"]
    mirada.save(vit, tmp_path / "ours")
    before, after = (load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

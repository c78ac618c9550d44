"""MAE against the reference: the same patches hidden, the same pixels painted."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

import mirada
from mirada.errors import MiradaError
from mirada.models import patches
from parity.harness import Row, table
from parity.test_vit import TINY as VIT

TINY = {k: v for k, v in VIT.items() if k != "encoder_stride"} | dict(
    image_size=32, decoder_hidden_size=16, decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2, decoder_intermediate_size=20)


def noisy(row: Row, size: int | None = None, across: int | None = None) -> dict:
    """Pixels, and noise that says which patches are seen."""
    size = size or row.settings["image_size"]
    across, patch = across or size, row.settings["patch_size"]
    pixels = torch.randn(2, row.settings["num_channels"], size, across, dtype=torch.float64)
    return {"pixel_values": pixels, "noise": torch.rand(2, (size // patch) * (across // patch))}


def larger(row: Row) -> dict:
    return noisy(row, 40, 56) | {"interpolate_pos_encoding": True}


def row(architecture: str, inputs=noisy, **more) -> Row:
    name, whole = more.pop("name", ""), architecture.endswith("ForPreTraining")
    fixed = (("vit." * whole + "embeddings.position_embeddings",)
             + ("decoder.decoder_pos_embed",) * whole)
    return Row(architecture, "ViTMAEConfig", TINY | more, inputs, name, pads=False, left=False,
               frozen=fixed)


ROWS = [
    row("ViTMAEForPreTraining"),
    row("ViTMAEForPreTraining", name="odd", norm_pix_loss=True, mask_ratio=0.4, qkv_bias=False,
        num_channels=1, hidden_act="prelu", layer_norm_eps=1e-3),
    row("ViTMAEModel"),
    row("ViTMAEModel", larger, name="larger"),
]
test_parity = pytest.mark.scope("1.8.6")(table(ROWS))


def test_new_positions_are_the_references_own():
    """Of a grid that is no square; published weights have the column first."""
    for rows, columns, d in ((3, 5, 16), (14, 14, 64)):
        theirs = build_2d_sinusoidal_position_embedding(rows, columns, d, dtype=torch.float64)
        theirs = torch.cat([theirs[:, d // 2 :], theirs[:, : d // 2]], 1)
        ours = patches.sincos((rows, columns), d).flatten(0, 1)
        assert torch.allclose(ours.double(), theirs, atol=1e-5)
    model = mirada.build("vit_mae:tiny", seed=0)
    for position in (model.body.embed.position, model.head.decoder.embed.position):
        assert not position[0, 0].any() and position[0, 1:].std() > 0.5
        assert not position.requires_grad
    with pytest.raises(MiradaError, match="multiple of 4"):
        mirada.build("vit_mae:tiny", d=60, heads=4, decoder_d=30)


def test_published_files_name_the_decoders_blocks_otherwise(tmp_path):
    config = transformers.ViTMAEConfig(**TINY)
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    theirs.save_pretrained(tmp_path / "today")
    file = tmp_path / "today" / "model.safetensors"
    today = load_file(file)
    published = {name.replace("decoder_encoder.layer.", "decoder_layers."): tensor
                 for name, tensor in today.items()}
    assert published.keys() != today.keys()
    save_file(published, file, metadata={"format": "pt"})
    ours = mirada.load(tmp_path / "today")
    mirada.save(ours, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == published.keys()
    batch = noisy(ROWS[0])
    batch["pixel_values"] = batch["pixel_values"].float()
    assert (ours(**batch).logits - theirs(**batch).logits).abs().max() < 1e-5


@pytest.mark.parametrize("share, seen", [(0.75, 16), (0.5, 32), (0.0, 64), (1.0, 0), (0.99, 0)])
def test_as_many_are_hidden_as_the_share_says(share, seen):
    model = mirada.build("vit_mae:tiny", share=share, seed=0)
    pixels = torch.randn(3, 3, 32, 32)
    out = model(pixel_values=pixels)
    assert (out.mask.sum(1) == 64 - seen).all() and out.logits.shape == (3, 64, 48)
    assert torch.isfinite(out.loss) and (out.loss == 0) == (seen == 64)
    body = mirada.build("vit_mae:tiny", share=share, architecture="ViTMAEModel")
    assert body(pixel_values=pixels).last_hidden_state.shape == (3, 1 + seen, 64)


def test_the_body_and_the_head_mean_the_same_patches():
    """Hidden pixels change nothing that is painted; seen ones do; each call draws anew."""
    model = mirada.build("vit_mae:tiny", seed=0).double()
    pixels, noise = torch.randn(2, 3, 32, 32).double(), torch.rand(2, 64)
    out = model(pixel_values=pixels, noise=noise)
    hidden = patches.joined(out.mask[..., None].expand(-1, -1, 48), (8, 8), (4, 4)).bool()
    other = torch.where(hidden, torch.randn_like(pixels), pixels)
    again = model(pixel_values=other, noise=noise)
    assert torch.equal(again.logits, out.logits) and again.loss != out.loss
    other = torch.where(hidden, pixels, torch.randn_like(pixels))
    again = model(pixel_values=other, noise=noise)
    assert not torch.equal(again.logits, out.logits)
    drawn = [model(pixel_values=pixels).mask for _ in range(2)]
    assert not torch.equal(*drawn) and (drawn[0].sum(1) == 48).all()


def test_a_larger_picture_is_painted_whole():
    """The decoder's positions are stretched in two directions: a table of rows stays one."""
    model = mirada.build("vit_mae:tiny", seed=0).double()
    embed = model.head.decoder.embed
    embed.position.data[0, 1:, 0] = torch.arange(8.0).repeat_interleave(8).double()
    embed.hidden.data.zero_()
    embed.project.weight.data.zero_()
    seen = []
    embed.register_forward_hook(lambda module, args, x: seen.append(x))
    pixels = torch.randn(1, 3, 48, 64).double()
    out = model(pixel_values=pixels, interpolate_pos_encoding=True)
    assert out.logits.shape == (1, 12 * 16, 48)
    rows = seen[0][0, 1:, 0].unflatten(0, (12, 16))
    assert torch.allclose(rows, rows[:, :1]) and (rows.diff(dim=0) > 0.1)[2:-2].all()


def test_patches_are_cut_and_joined():
    pixels = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    made = patches.cut(pixels, (2, 3))
    assert made.shape == (2, 4, 18)
    assert made[1, 3].tolist() == pixels[1, :, 2:4, 3:6].permute(1, 2, 0).flatten().tolist()
    assert torch.equal(patches.joined(made, (2, 2), (2, 3)), pixels)


@pytest.mark.parametrize("batch, said", [
    ({"noise": torch.rand(1, 63)}, r"must be \(1, 64\), and is \(1, 63\)"),
    ({"bool_masked_pos": torch.ones(1, 64)}, "no vector for hidden patches"),
    ({"labels": torch.zeros(1)}, "its head has no loss"),
])
def test_what_it_may_not_be_given(batch, said):
    model = mirada.build("vit_mae:tiny")
    with pytest.raises(MiradaError, match=said):
        model(pixel_values=torch.zeros(1, 3, 32, 32), **batch)
    with pytest.raises(MiradaError, match="does not read noise"):
        mirada.build("vit:tiny")(pixel_values=torch.zeros(1, 3, 32, 32), noise=torch.rand(1, 16))


@pytest.mark.parametrize("size, count", [("base", 111_907_840), ("large", 329_541_888),
                                         ("huge", 657_074_508)])
def test_published_sizes(size, count):
    """Counted on the reference, positions included."""
    model = mirada.build("vit_mae", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count

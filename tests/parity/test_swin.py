"""Swin against the reference: windows that shift, grids that do not divide, hidden patches."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.swin.modeling_swin import SwinAttention

import mirada
from mirada.core.attention import Attention
from mirada.core.bias import Window2D
from mirada.core.context import Ctx, Inputs
from mirada.core.mask import Mask
from mirada.errors import MiradaError
from mirada.models.grids import Merge, Windows, cut
from parity.harness import BAR, VISIBLE, Row, compare, pair, run_theirs, table

TINY = dict(image_size=32, patch_size=2, num_channels=3, embed_dim=8, depths=[2, 2],
            num_heads=[2, 4], window_size=4, mlp_ratio=2.0, encoder_stride=4)


def pixels(*shape: int) -> dict:
    return {"pixel_values": torch.randn(2, *shape, dtype=torch.float64)}


def picture(row: Row) -> dict:
    """pixel_values of the size that the row's config names."""
    size = row.settings["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return pixels(row.settings["num_channels"], height, width)


def hidden(row: Row) -> dict:
    """A picture with some patches hidden, (B, N)."""
    count = (row.settings["image_size"] // row.settings["patch_size"]) ** 2
    return picture(row) | {"bool_masked_pos": torch.rand(2, count) < 0.4}


def larger(row: Row) -> dict:
    """Another size than the model's, no multiple of patches, windows or merges."""
    return pixels(3, 37, 51)


def stretched(row: Row) -> dict:
    """A larger and rectangular picture, its positions stretched."""
    return pixels(3, 40, 56) | {"interpolate_pos_encoding": True}


def patterns(both, theirs) -> dict:
    """The weights of every block; the reference hands out the last of each stage."""
    found, all_count = [], torch.ones(1)
    handles = [m.register_forward_hook(lambda m, args, out: found.append((out[1], all_count)))
               for m in both.theirs.modules() if isinstance(m, SwinAttention)]
    run_theirs(both, both.batch)
    for handle in handles:
        handle.remove()
    depths = both.row.settings["depths"]
    ends = [sum(depths[: n + 1]) - 1 for n in range(len(depths))]
    assert all(torch.equal(found[n][0], a) for n, a in zip(ends, theirs.attentions, strict=True))
    return {"encoder": found}


def row(architecture: str, inputs=picture, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt")}
    return Row(architecture, "SwinConfig", TINY | more, inputs, pads=False, left=False,
               patterns=patterns, **keys)


ROWS = [
    row("SwinForImageClassification", num_labels=5),
    row("SwinForImageClassification", name="odd", image_size=[44, 76], patch_size=[2, 4],
        num_channels=1, qkv_bias=False, hidden_act="relu", layer_norm_eps=1e-3, window_size=5,
        depths=[2, 1, 2], num_heads=[1, 2, 4], mlp_ratio=1.7),
    row("SwinForImageClassification", larger, name="larger"),
    row("SwinForImageClassification", stretched, name="stretched", use_absolute_embeddings=True),
    row("SwinModel", use_absolute_embeddings=True),
    row("SwinModel", name="one-window", image_size=8, depths=[2], num_heads=[2]),
    row("SwinForMaskedImageModeling", hidden),
    row("SwinForMaskedImageModeling", name="whole", encoder_stride=8),
]
test_parity = pytest.mark.scope("1.8.4")(table(ROWS))


def _windows(model) -> list[Windows]:
    return [m for m in model.modules() if isinstance(m, Windows)]


def _each(change):
    """A fault of every window of a model."""
    return lambda model: [change(w) for w in _windows(model)]


def _corners(model) -> None:
    """The corners of each merge in another order."""
    merge = next(m for m in model.modules() if isinstance(m, Merge))
    parts = merge.reduce.weight.data.chunk(4, 1)
    merge.reduce.weight.data = torch.cat([parts[n] for n in (0, 2, 1, 3)], 1)


def _turned(window: Windows) -> None:
    """Offsets down and right take each other's places."""
    bias = window.f.score_bias
    side = 2 * window.window - 1
    bias.table.data = bias.table.data.unflatten(0, (side, side)).transpose(0, 1).flatten(0, 1)


FAULTS = {
    "no shift": _each(lambda w: setattr(w, "shift", 0)),
    "another shift": _each(lambda w: setattr(w, "shift", w.shift and 1)),
    "sides meet": _each(lambda w: setattr(w, "_pieces", lambda *args: Mask())),
    "offsets turned": _each(_turned),
    "offsets reversed": _each(lambda w: w.f.score_bias.table.data.copy_(
        w.f.score_bias.table.flip(0))),
    "corners": _corners,
}


@pytest.mark.scope("1.8.4")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_its_own_parts_shows(fault):
    both = pair(ROWS[0])
    model = copy.deepcopy(both.ours)
    FAULTS[fault](model)
    theirs = run_theirs(both, both.batch)
    assert compare(both, both.batch, both.ours(**both.batch), theirs) < BAR
    assert compare(both, both.batch, model(**both.batch), theirs) > VISIBLE


def _attention(window: int, d=8, heads=2) -> Attention:
    attention = Attention(d, heads, bias="qkvo", score_bias=Window2D((window, window), heads))
    attention.score_bias.table.data.normal_()
    return attention.double().requires_grad_(False)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_a_place_is_heard_within_its_window_and_side_only(shift):
    torch.manual_seed(shift)
    windows, (Y, X) = Windows(_attention(4), 4, shift), (12, 8)
    x = torch.randn(1, Y, X, 8, dtype=torch.float64)
    before = windows(x, Ctx())
    for y, at in [(0, 0), (3, 4), (5, 7), (11, 0), (10, 6)]:
        other = x.clone()
        other[0, y, at] += 1
        heard = (windows(other, Ctx()) != before).any(-1)[0]

        def side(n: int, size: int) -> torch.Tensor:
            """Places that share n's window: windows begin at `shift`, what is before is apart."""
            return (torch.arange(size) - shift) // 4 == (n - shift) // 4

        assert torch.equal(heard, side(y, Y)[:, None] & side(at, X))


def test_places_of_windows_are_all_places_once():
    windows = Windows(_attention(4), 4, 2)
    for Y, X in [(8, 12), (7, 9), (4, 11), (3, 3)]:
        places = windows.places(Y, X)
        assert places.shape == (-(-Y // 4) * -(-X // 4), 16)
        assert sorted(places[places >= 0].tolist()) == list(range(Y * X))
    assert windows.places(4, 8)[0].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25,
                                                26, 27]  # one window spans it: not shifted
    assert windows.places(8, 8)[0, :5].tolist() == [18, 19, 20, 21, 26]


@pytest.mark.parametrize("side", [4, 3])
def test_a_window_that_covers_the_grid_is_plain_attention(side):
    """Smaller grids, which the reference cannot run, are padded as any other."""
    attention, window = _attention(4), 4
    x = torch.randn(2, side, side, 8, dtype=torch.float64)
    padded = torch.zeros(2, window, window, 8, dtype=torch.float64)
    padded[:, :side, :side] = x
    wanted = attention(padded.flatten(1, 2), Ctx()).unflatten(1, (window, window))
    for shift in (0, 2):
        assert torch.equal(Windows(attention, window, shift)(x, Ctx()), wanted[:, :side, :side])


def test_layers_of_equal_windows_share_one_dense_mask():
    model = mirada.build("swin:tiny", depths=(6, 2), seed=0)
    ctx = Ctx()
    model.body(Inputs(pixel_values=torch.zeros(2, 3, 32, 32)), ctx)
    kept = [v[0] for k, v in ctx.mask.memo.items() if k[0] != "windows"]
    dense = [t for t in kept if t.dtype == torch.bool]
    assert [tuple(t.shape) for t in dense] == [(32, 1, 16, 16), (8, 1, 16, 16)]


def test_patterns_say_which_place_looks_where():
    """A tape's rows are windows: laid out by `places`, they are one map over the grid."""
    model = mirada.build("swin:tiny", seed=0).double()
    batch = {"pixel_values": torch.randn(2, 3, 32, 32, dtype=torch.float64)}
    with model.record() as tape:
        model(**batch)
    shapes = [tuple(tape.pattern(n).shape) for n in tape.layers()]
    assert shapes == [(32, 2, 16, 16)] * 2 + [(8, 4, 16, 16)] * 2
    assert tape.selfcheck < 1e-12
    places = model.body.blocks[1].attn.f.places(16, 16)  # (W, 16)
    found = tape.pattern(1).unflatten(0, (2, 16))  # (B, W, H, 16, 16)
    line, column = places // 16, places % 16
    for side in (line, column):  # a window's places from two sides of the grid do not meet
        far = (side[:, :, None] - side[:, None]).abs() > 3
        assert far.any() and found.transpose(1, 2)[:, :, far].abs().max() == 0


@pytest.mark.scope("1.8.4")
@pytest.mark.parametrize("size, count", [("t", 28_288_354), ("s", 49_606_258), ("b", 87_768_224),
                                         ("l", 196_532_476)])
def test_published_sizes(size, count):
    swin = mirada.build("swin", size=size, device="meta")
    assert sum(p.numel() for p in swin.parameters()) == count


@pytest.mark.parametrize("bare", [False, True])
def test_an_older_file_brings_the_offsets_of_its_windows(bare, tmp_path):
    both = pair(ROWS[4] if bare else ROWS[0])
    old = load_file(both.folder / "model.safetensors")
    bias = next(m for m in both.theirs.modules() if isinstance(m, SwinAttention))
    index = bias.relative_position_bias.relative_position_index.view(16, 16)
    prefix = "" if bare else "swin."
    old |= {f"{prefix}encoder.layers.{i}.blocks.{j}.attention.self.relative_position_index":
            index.clone() for i in range(2) for j in range(2)}
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    raw = json.loads((both.folder / "config.json").read_text()) | {"path_norm": True}
    (tmp_path / "old" / "config.json").write_text(json.dumps(raw))
    model = mirada.load(tmp_path / "old")
    for name, wanted in both.ours(**both.batch).items():
        assert torch.equal(model(**both.batch)[name], wanted)
    mirada.save(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == old.keys()
    assert all(torch.equal(again[name], old[name]) for name in old)


def test_hidden_patches_may_be_ones_and_the_loss_counts_them_alone():
    swin = mirada.build("swin:tiny", image=(16, 32), architecture="SwinForMaskedImageModeling",
                        seed=0)
    given, masked = torch.randn(2, 3, 16, 32), torch.zeros(2, 8 * 16, dtype=torch.long)
    masked[:, 16 + 3] = 1  # the fourth patch of the second line
    out = swin(pixel_values=given, bool_masked_pos=masked)
    wrong = (given - out.reconstruction).abs()[:, :, 2:4, 6:8].mean()
    assert out.reconstruction.shape == given.shape
    assert torch.allclose(out.loss, wrong, rtol=1e-4)
    assert torch.equal(swin(pixel_values=given, bool_masked_pos=masked.bool()).loss, out.loss)


@pytest.mark.parametrize("architecture, batch, said", [
    ("SwinModel", {"pixel_values": torch.zeros(1, 1, 32, 32)}, "3 channels"),
    ("SwinModel", {"pixel_values": torch.zeros(3, 32, 32)}, r"given \(3, 32, 32\)"),
    ("SwinModel", {"input_ids": torch.zeros(1, 4, dtype=torch.long)}, "does not read input_ids"),
    ("SwinModel", {"pixel_values": torch.zeros(1, 3, 32, 32),
                   "bool_masked_pos": torch.ones(1, 256).bool()}, "no vector for hidden patches"),
    ("SwinForMaskedImageModeling", {"pixel_values": torch.zeros(1, 3, 32, 32),
                                    "bool_masked_pos": torch.ones(1, 64).bool()}, r"\(1, 256\)"),
    ("SwinForMaskedImageModeling", {"pixel_values": torch.zeros(1, 3, 34, 32),
                                    "bool_masked_pos": torch.ones(1, 272).bool()},
     r"\(34, 32\) pixels come back with \(36, 32\)"),
])
def test_what_a_picture_may_not_be(architecture, batch, said):
    swin = mirada.build("swin:tiny", architecture=architecture)
    with pytest.raises(MiradaError, match=said):
        swin(**batch)


@pytest.mark.parametrize("changes, said", [
    (dict(depths=(2, 2, 2)), "3 stages and num_heads 2"),
    (dict(depths=(), stage_heads=()), "0 stages"),
    (dict(stage_heads=(2, 5)), "stage 2 is 32 wide, which cannot be cut into 5"),
    (dict(ratio=0.01), "mlp_ratio"), (dict(depths=(2, 0)), "too small")])
def test_stages_must_fit_together(changes, said):
    with pytest.raises(MiradaError, match=said):
        mirada.build("swin:tiny", device="meta", **changes)


def test_positions_that_are_learned_ask_for_their_size():
    swin = mirada.build("swin:tiny", absolute=True)
    given = torch.zeros(1, 3, 40, 32)
    with pytest.raises(MiradaError, match=r"\(40, 32\) pixels and the model \(32, 32\)"):
        swin(pixel_values=given)
    assert swin(pixel_values=given, interpolate_pos_encoding=True).logits.shape == (1, 10)


def test_cut_goes_line_by_line():
    grid = torch.arange(4 * 6).view(1, 4, 6, 1)
    assert cut(grid, 2)[:3, :, 0].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]

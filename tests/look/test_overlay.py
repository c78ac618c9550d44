"""Attention over a picture, per head, on average and rolled out, against the formulas written out;
and the picture as patches."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import mirada
from image.scene import scene
from look.test_views import inside
from mirada import look
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.look.overlay import cut

PICTURE = scene(61, 47)
ROWS, COLUMNS, EXTRA = 4, 6, 1


@pytest.fixture(scope="module")
def model():
    made = mirada.build("vit:tiny", image=(32, 48), layers=3, seed=0)
    for block in made.body.blocks:  # looks that differ from one another
        block.attn.f.q.weight.data *= 12
        block.attn.f.k.weight.data *= 12
    return made


@pytest.fixture(scope="module")
def tape(model):
    batch = [PICTURE, PICTURE.transpose(Image.Transpose.ROTATE_180)]
    with torch.inference_mode(), model.record() as tape:
        model(**model.processor(batch))
    return tape


@pytest.fixture(scope="module")
def formula(model):
    """(L, H, T, T) the weights of the picture, by equations alone."""
    double = mirada.build("vit:tiny", image=(32, 48), layers=3).double()
    double.load_state_dict(model.state_dict())
    H, K, found = 4, 16, []
    with torch.no_grad():
        x = double.body.embed.project(model.processor(PICTURE)["pixel_values"].double())
        x = torch.cat([double.body.embed.cls, x.flatten(2).transpose(1, 2)], 1)
        x = (x + double.body.embed.position)[0]
        for block in double.body.blocks:
            y, own = block.attn.pre(x), block.attn.f
            q, k, v = ((y @ p.weight.T + p.bias).view(-1, H, K).transpose(0, 1)
                       for p in (own.q, own.k, own.v))
            found.append((q @ k.transpose(1, 2) / math.sqrt(K)).softmax(-1))
            x = x + (found[-1] @ v).transpose(0, 1).flatten(1) @ own.o.weight.T + own.o.bias
            x = x + block.mlp.f(block.mlp.pre(x))
    return torch.stack(found)


@pytest.mark.scope("1.8.2")
@pytest.mark.parametrize("patch, image", [(8, 32), ((4, 8), (16, 40)), (16, 224), (7, (14, 21))])
def test_unfold_and_linear_equal_the_strided_convolution(patch, image):
    vit = mirada.build("vit:tiny", patch=patch, image=image, seed=0).double()
    embed = vit.body.embed
    pixels = torch.randn(2, 3, *embed.image, dtype=torch.float64)
    patches = cut(pixels, embed.patch)
    py, px = embed.patch
    assert patches.shape == (2, embed.grid[0] * embed.grid[1], 3 * py * px)
    last = pixels[:, :, -py:, -px:].flatten(1)
    assert torch.equal(patches[:, -1], last), "a patch's numbers, channel by channel"
    weight = embed.project.weight.flatten(1)
    linear = F.linear(patches, weight, embed.project.bias)
    strided = embed.project(pixels).flatten(2).transpose(1, 2)
    assert (linear - strided).abs().max() < 1e-12
    assert (F.linear(patches.flip(2), weight, embed.project.bias) - strided).abs().max() > 1e-3


@pytest.mark.scope("1.8.8")
@pytest.mark.parametrize("layer", [0, 1, 2, -1])
def test_each_head_and_their_mean_are_the_formula(tape, formula, layer):
    found = look.over_picture(tape, PICTURE, layer=layer)
    wanted = formula[layer, :, 0, EXTRA:]
    assert found.heads.shape == (4, ROWS * COLUMNS)
    assert (found.heads - wanted).abs().max() < 1e-5
    assert (found.rest - formula[layer, :, 0, 0]).abs().max() < 1e-5
    assert (found.heads.sum(1) + found.rest - 1).abs().max() < 1e-5
    assert torch.equal(found.chosen.flatten(), found.heads.mean(0))
    for head in range(4):
        chosen = look.over_picture(tape, PICTURE, layer=layer, head=head).chosen
        assert (chosen - wanted[head].view(ROWS, COLUMNS)).abs().max() < 1e-5
    other = formula[layer, :, 1, EXTRA:]
    assert (found.heads - other).abs().max() > 1e-2, "another place looks elsewhere"


@pytest.mark.scope("1.8.8")
@pytest.mark.parametrize("at", [None, (0, 0), (3, 5), (1, 4)])
def test_rollout_is_the_formula(tape, formula, at):
    whole = torch.eye(25, dtype=torch.float64)
    for weights in formula:  # 2005.00928: half the heads' mean, half the residual, multiplied
        step = (weights.mean(0) + torch.eye(25)) / 2
        whole = step @ whole
    own = 0 if at is None else EXTRA + at[0] * COLUMNS + at[1]
    found = look.over_picture(tape, PICTURE, at=at)
    assert (found.rolled - whole[own, EXTRA:]).abs().max() < 1e-5
    assert (found.heads - formula[-1, :, own, EXTRA:]).abs().max() < 1e-5
    assert (found.mixed() - whole).abs().max() < 1e-5
    raw = torch.stack([w.mean(0) for w in formula])
    unmixed = raw[2] @ raw[1] @ raw[0]
    assert (found.rolled - unmixed[own, EXTRA:]).abs().max() > 1e-3


@pytest.mark.scope("1.8.8")
def test_the_heat_lies_on_the_patch_that_was_looked_at(model):
    """A planted look: the class token's queries and one patch's key share a direction."""
    made = mirada.build("vit:tiny", image=(32, 48), layers=1, seed=0)
    black = torch.zeros(32, 48, 3, dtype=torch.uint8)
    black[8:16, 40:48] = 255  # row 1, column 5
    attention = made.body.blocks[0].attn.f
    with torch.no_grad():
        made.body.embed.position.zero_()
        attention.q.weight.zero_()
        attention.q.bias.fill_(1.0)
        attention.k.bias.zero_()
        white = made.processor(torch.full_like(black, 255))["pixel_values"]
        x = made.body.embed.project(white)[0, :, 0, 0]
        y = made.body.blocks[0].attn.pre(x)
        attention.k.weight.copy_((y / y.norm()).expand(64, 64))
    with torch.inference_mode(), made.record() as tape:
        made(**made.processor(black))
    found = look.over_picture(tape, black)
    assert divmod(int(found.chosen.argmax()), COLUMNS) == (1, 5)
    assert found.chosen.max() > 0.9
    figure = found.figure()
    large = [a for a in figure.get_axes() if a.get_title(loc="left").startswith("Layer 0")][0]
    (grey, heat) = large.get_images()
    assert np.array_equal(heat.get_array(), found.chosen.numpy())
    assert heat.get_extent() == [-0.5, 47.5, 31.5, -0.5] and heat.origin == grey.origin == "upper"
    assert np.array(grey.get_array())[8:16, 40:48].min() > np.array(grey.get_array())[:8].max()


@pytest.mark.scope("1.8.8")
@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "html"])
def test_it_is_drawn(tape, tmp_path, ending):
    found = look.over_picture(tape, PICTURE, head=2, at=(2, 3), lang="es")
    path = tmp_path / f"a.{ending}"
    assert found.save(path) == str(path) and path.stat().st_size > 5000
    if ending == "svg":
        assert "Visto desde: parche 2, 3" in path.read_text().replace("<!-- ", "")
    if ending == "png":
        assert np.array(Image.open(path).convert("L")).std() > 20


def test_the_page_holds_every_look(tape, formula):
    found = look.over_picture(tape, PICTURE, layer=1)
    about, blob = inside(found.html())
    assert (about["grid"], about["size"], about["queries"]) == ([4, 6], [32, 48], 25)
    assert (about["layer"], about["head"], about["query"], about["extra"]) == (1, None, 0, 1)
    pixels, count = 32 * 48 * 3, 3 * 4 * 25 * 25
    assert len(blob) == pixels + count + 25 * 25
    assert blob[:pixels] == found.picture.numpy().tobytes()
    bytes_ = np.frombuffer(blob, np.uint8)[pixels:]
    weights = torch.from_numpy((bytes_[:count] / 255.0) ** 2).view(3, 4, 25, 25)
    assert (weights - formula).abs().max() < about["stated"]
    mixed = torch.from_numpy((bytes_[count:] / 255.0) ** 2).view(25, 25)
    assert (mixed - found.mixed()).abs().max() < about["stated"]
    assert "Seen from" in json.dumps(about["words"])


def test_a_page_too_large_for_every_place_holds_the_one_asked_for(tape, monkeypatch):
    monkeypatch.setattr("mirada.look.overlay.CELLS", 1000)
    found = look.over_picture(tape, PICTURE, at=(1, 2))
    about, blob = inside(found.html())
    assert about["queries"] == 1 and about["asked"] == "patch 1, 2"
    kept = np.frombuffer(blob, np.uint8)[32 * 48 * 3 :]
    weights = torch.from_numpy((kept[: 3 * 4 * 25] / 255.0) ** 2).view(3, 4, 25)
    assert (weights[2, :, 1:] - found.heads).abs().max() < about["stated"]


def test_rows_of_a_batch_and_numbers_for_programs(tape):
    first, second = (look.over_picture(tape, PICTURE, row=n) for n in (0, 1))
    assert (first.heads - second.heads).abs().max() > 1e-3
    data = json.loads(json.dumps(first.data()))
    assert np.allclose(data["heads"][3], first.heads[3].view(ROWS, COLUMNS))
    assert np.allclose(data["mean"], np.mean(data["heads"], 0), atol=1e-6)
    assert data["grid"] == [4, 6] and data["layer"] == 2
    said = str(first)
    best = divmod(int(first.heads[0].argmax()), COLUMNS)
    assert f"most at {best}" in said.splitlines()[1] and "not why" in said


@pytest.mark.parametrize("family, extra", [
    ("vit", ["[CLS]"]), ("deit", ["[CLS]", "[DIST]"]), ("beit", ["[CLS]"]),
    ("clip_vision", ["[CLS]"])])
def test_every_kin_of_the_vision_transformer(family, extra):
    kin = mirada.build(f"{family}:tiny", seed=0)
    with torch.inference_mode(), kin.record() as tape:
        kin(**kin.processor(PICTURE))
    found = look.over_picture(tape, PICTURE, layer=0)
    assert found.extra == len(extra) and found.heads.shape[1] == math.prod(found.grid)
    assert (found.heads.sum(1) + found.rest - 1).abs().max() < 1e-5
    assert torch.equal(found.heads, tape.pattern(0, rows=0)[0, :, 0, len(extra):])
    named = look.head_view(tape).arms[0].queries
    assert named[: len(extra) + 2] == [*extra, "0,0", "0,1"]
    assert len(named) == found.mixed().shape[0]


def test_a_tower_beside_a_text_tower():
    clip = mirada.build("clip:tiny", seed=0)
    pixels, ids = clip.processor(PICTURE), torch.tensor([[3, 4, 5]])
    with torch.inference_mode(), clip.record() as tape:
        clip(input_ids=ids, **pixels)
    found = look.over_picture(tape, PICTURE, stack="vision", layer=0)
    assert torch.equal(found.heads, tape.pattern(0, stack="vision", rows=0)[0, :, 0, 1:])
    with pytest.raises(MiradaError, match="no pictures into patches in its stack text"):
        look.over_picture(tape, PICTURE, stack="text")


def test_windows_are_no_picture():
    swin = mirada.build("swin:tiny", seed=0)
    with torch.inference_mode(), swin.record() as tape:
        swin(**swin.processor(PICTURE))
    with pytest.raises(MiradaError, match="looks at all of its patches at once"):
        look.over_picture(tape, PICTURE)


@pytest.mark.parametrize("options, said", [
    (dict(layer=3), "was not recorded"), (dict(head=4), "head"), (dict(at=(4, 0)), "no patch"),
    (dict(row=2), "row of the batch"), (dict(stack="decoder"), "no stack"),
    (dict(lang="fr"), "speak")])
def test_what_is_not_there(tape, options, said):
    with pytest.raises(MiradaError, match=said):
        look.over_picture(tape, PICTURE, **options)


def test_only_the_picture_of_the_pass_and_only_of_models_that_see(tape):
    small = mirada.build("vit:tiny")
    with torch.inference_mode(), small.record() as other:
        small(pixel_values=torch.zeros(1, 3, 48, 48), interpolate_pos_encoding=True)
    with pytest.raises(MiradaError, match="has 4 x 4 patches here, and the recorded pass 37"):
        look.over_picture(other, PICTURE)
    bert = mirada.build("bert:tiny")
    with torch.inference_mode(), bert.record() as text:
        bert(torch.ones(1, 4, dtype=torch.long))
    for call in (lambda: look.over_picture(text, PICTURE), lambda: look.patches(bert, PICTURE)):
        with pytest.raises(MiradaError, match="no pictures"):
            call()


def test_the_guides_figure():
    found = look.patches("vit:base", PICTURE)
    assert found.grid == (14, 14) and found.vectors.shape == (196, 768)
    assert str(found) == ("224 x 224 pixels of 3: 14 x 14 patches of 16 x 16, 196 vectors of 768 "
                          "numbers")
    seen = found.picture.permute(2, 0, 1)
    assert torch.equal(found.vectors[15], seen[:, 16:32, 16:32].flatten())
    whole, apart = found.figure().get_axes()
    sheet, gap = apart.get_images()[0].get_array(), 2
    assert sheet.shape == (14 * 18 - gap, 14 * 18 - gap, 3)
    assert np.array_equal(sheet[18:34, 36:52], found.picture[16:32, 32:48])
    assert (sheet[16:18] == 255).all() and (sheet[:, 34:36] == 255).all()
    assert np.array_equal(whole.get_images()[0].get_array(), found.picture)
    assert apart.get_title(loc="left") == "14 × 14 patches of 16 × 16: 196 vectors of 768"


def test_pixels_that_make_no_whole_patch_are_cut_off_as_the_model_does():
    vit = mirada.build("vit:tiny", image=30, seed=0)
    found = look.patches(vit, PICTURE)
    assert found.picture.shape == (24, 24, 3) and found.data()["grid"] == [3, 3]
    grey = mirada.build("vit:tiny", channels=1)
    assert look.patches(grey, PICTURE).vectors.shape == (16, 64)
    assert look.patches(grey, PICTURE).figure()


def test_one_command_draws_it(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mirada.save(model, "vit")
    PICTURE.save("house.png")
    assert not main(["look", "vit", "house.png", "--layer", "1", "--head", "3", "-o", "a.html"])
    assert not main(["look", "vit", "house.png", "--json"])
    said = capsys.readouterr()
    assert "layer 1, seen from [CLS], over 4 x 6 patches" in said.out
    assert json.loads(said.out[said.out.index("\n{") :])["layer"] == 2
    assert {"a.html", "attention.png"} <= {p.name for p in tmp_path.iterdir()}
    assert not main(["look", "vit:base", "house.png", "--patches", "-o", "cut.png"])
    assert "14 x 14 patches of 16 x 16" in capsys.readouterr().out
    assert Image.open("cut.png").size[0] > 1000
    assert main(["look", "vit", "none.png"]) == 2
    assert main(["look", "vit", "house.png", "--lens"]) == 2
    assert "reads no text" in capsys.readouterr().err

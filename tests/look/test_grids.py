"""Models of pictures: what is said of them, recorded of them and reckoned for them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mirada
from mirada import look, registry
from mirada.errors import MiradaError
from mirada.look.describe import describe, reach
from mirada.look.plan import plan

VISION = [name for name in registry.families() if registry.family(name).KIND == "vision"]


def pictures(model, rows: int = 2) -> dict:
    embed = model.body.embed
    shape = (rows, embed.project.in_channels, *embed.image)
    return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("name", VISION)
def test_every_row_of_a_tape_adds_to_one(name):
    model = mirada.build(f"{name}:tiny", seed=0)
    with model.record() as tape:
        model(**pictures(model))
    assert tape.layers() == list(range(model.config.layers)) and tape.selfcheck < 1e-5
    for layer in tape.layers():
        assert (tape.pattern(layer).sum(-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", VISION)
def test_a_model_of_pictures_holds_what_it_says(name, tmp_path):
    model = mirada.load(mirada.save(mirada.build(f"{name}:tiny", seed=0), tmp_path / "model"))
    report = mirada.verify(model)
    assert report.ok, str(report)
    assert [c.word for c in report.checks] == ["PASS"] * len(report.checks)


def test_stages_and_windows_in_words():
    page = describe("swin:t")
    assert page.facts["layers"] == (
        "12: 2 of width 96 with 3 heads, 2 of width 192 with 6 heads, 6 of width 384 with 12 "
        "heads, 2 of width 768 with 24 heads")
    assert page.facts["input"] == "56 x 56 patches of 4 x 4 pixels"
    assert page.facts["positions"] == "Window2D added to scores"
    assert page.facts["attends"] == ("both ways; windows of 7 x 7 places in 6 layers; windows of "
                                     "7 x 7 places, shifted by 3 in 6 layers")
    assert "Windows (7 x 7 places, shifted by 3)" in str(page)


def test_plain_patches_in_words():
    page = describe("vit:base")
    assert page.facts["layers"] == "12" and page.facts["attends"] == "both ways"
    assert page.facts["input"] == "14 x 14 patches of 16 x 16 pixels"
    assert page.facts["positions"] == "learned, one a patch"


@pytest.mark.parametrize("size, billions", [("t", 4.5), ("s", 8.7), ("b", 15.4), ("l", 34.5)])
def test_work_is_what_was_published(size, billions):
    """Of multiplications and additions in pairs, as 2103.14030's tables 1 and 7 count them."""
    page, tokens = describe(f"swin:{size}"), 56 * 56
    work = tokens * (page.flops + 49 * page.flops_attention)
    assert work / 2e9 == pytest.approx(billions, abs=0.05)
    assert plan(f"swin:{size}", serve=True).flops == work


def test_work_is_what_a_counter_counts():
    model = mirada.build("swin:tiny", depths=(2, 1, 2), stage_heads=(1, 2, 4), seed=0)
    page = describe(model)
    with FlopCounterMode(display=False) as counter, mirada.kernel("exact"), torch.no_grad():
        model(**pictures(model, 1))
    each = page.flops + reach(model) * page.flops_attention
    scores = 2 * model.config.widths[-1] * model.config.labels  # once a picture
    assert counter.get_total_flops() == 16 * 16 * each + scores


def test_what_joins_layers_refuses_windows():
    model = mirada.build("swin:tiny", seed=0)
    with model.record(resid=True) as tape:
        model(**pictures(model))
    assert tape.real().shape == (2, 256) and tape.resid(2).shape == (2, 8, 8, 32)
    for function in (look.flow, look.rollout, look.max_flow, look.lens, look.redundant,
                     type(tape).lens):
        with pytest.raises(MiradaError, match="windows of grids"):
            function(tape)
    with pytest.raises(MiradaError, match="several shapes"):
        tape.pooled(4)
    assert tape.pooled(4, layers=[0, 1]).shape == (2, 32, 2, 4, 4)

"""The figures beside the formulas: positions, learning rates, costs."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mirada
from mirada import look
from mirada.errors import MiradaError
from mirada.train import optim


@pytest.mark.scope("1.18.13")
def test_positions_as_a_heat_map(tmp_path):
    found = look.positions(16, 40)
    at = torch.arange(40, dtype=torch.float64)
    byhand = torch.stack([(at / 1e4 ** (n // 2 * 2 / 16)).sin() if n % 2 == 0 else
                          (at / 1e4 ** (n // 2 * 2 / 16)).cos() for n in range(16)], 1)
    assert (found.vectors - byhand).abs().max() < 1e-5
    drawn = found.figure().get_axes()
    assert drawn[0].images[0].get_array().shape == (40, 16)
    assert drawn[1].images[0].get_array().shape == (40, 40)
    apart = [found.likeness.diagonal(k) for k in (0, 1, 5)]
    assert all((x - x[0]).abs().max() < 1e-5 for x in apart), "a distance has one cosine"
    assert apart[0][0] > apart[1][0] > apart[2][0]
    model = mirada.build("gpt2", size="tiny")
    own = look.positions(model, 10_000)
    assert torch.equal(own.vectors, model.body.embed.position.weight.detach())
    assert own.kind == "learned, of gpt2" and json.dumps(own.data())
    assert open(found.save(tmp_path / "p.png"), "rb").read(4) == b"\x89PNG"
    with pytest.raises(MiradaError, match="adds no position vectors"):
        look.positions(mirada.build("llama", size="tiny"))
    with pytest.raises(MiradaError, match="without numbers"):
        look.positions("gpt2:tiny")


@pytest.mark.scope("1.18.13")
def test_the_rates_drawn_are_those_that_run():
    recipes = optim.PRESETS
    found = look.rates({**recipes, "own": lambda step, steps: 1e-3}, 9000, 50)
    for name, recipe in recipes.items():
        opt = optim.optimizer(torch.nn.Linear(1, 1), recipe)
        ran = [optim.set_rate(opt, recipe, x, 9000) for x in found.xs]
        assert found.rows[name] == ran
    noam = found.rows["transformer"]
    assert found.xs[max(range(50), key=noam.__getitem__)] == pytest.approx(4000, abs=200)
    lines = {line.get_label(): line.get_ydata() for line in found.figure().get_axes()[0].lines}
    assert list(lines["transformer"]) == noam and set(lines) == {*recipes, "own"}
    assert set(found.rows["own"]) == {1e-3} and "Learning rate" in str(found)
    with pytest.raises(MiradaError, match="two steps"):
        look.rates(recipes, 1)


@pytest.mark.scope("1.18.13")
def test_costs_are_those_that_torch_counts(tmp_path):
    model = mirada.build("bert", size="tiny", device="meta", context=256).requires_grad_(False)
    d, layer = model.config.d, model.body.blocks[0].attn.f
    found = look.costs(d, (64, 128, 256))
    for n, looks, rest in zip(found.xs, *list(found.rows.values())[:2], strict=True):
        with FlopCounterMode(display=False) as count, torch.no_grad():
            model(input_ids=torch.zeros(1, n, dtype=torch.long, device="meta"))
        inside = sum(count.get_flop_counts()[f"Model.body.blocks.0.attn.f.{part}"].popitem()[1]
                     for part in "qkvo")
        assert inside == 2 * rest
        whole = sum(count.get_flop_counts()["Model.body.blocks.0.attn.f"].values())
        assert whole - inside == 2 * looks
    assert layer.heads > 1 and "overtake the projections at 128 tokens" in str(found)
    assert open(found.save(tmp_path / "c.svg")).read(5) == "<?xml"


@pytest.mark.scope("1.18.13")
def test_gradients_and_variance_have_their_figures(tmp_path):
    """By depth, and with the scale and without: an axis for each, of which the values are tested
    where they are measured."""
    model = mirada.build("gpt2", size="tiny", seed=1)
    for found, name in ((look.gradients(model, torch.arange(5, 17)[None]), "g.svg"),
                        (look.scaling(4, 64), "s.svg")):
        assert open(found.save(tmp_path / name)).read().count('id="axes_') >= 2

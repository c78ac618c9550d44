"""How weights are moved: schedules, which decay, clipping, and the guides' numbers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import mirada
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.train import optim
from mirada.train.log import history
from mirada.train.loop import fit
from mirada.train.optim import PRESETS, SCHEDULES, Recipe
from train.test_loop import PLAN, RECIPE, Words, small, weights


@pytest.mark.scope("1.17.1")
def test_the_original_warm_up(tmp_path):
    recipe = replace(PRESETS["transformer"], width=64)
    assert recipe.warmup == 4000
    rates = [recipe.rate * recipe.at(step, 20_000) for step in range(20_000)]
    for s in (1, 2, 17, 3999, 4000, 4001, 12_345, 20_000):
        assert rates[s - 1] == pytest.approx(64**-0.5 * min(s**-0.5, s * 4000**-1.5), rel=1e-12)
    assert max(range(20_000), key=rates.__getitem__) == 4000 - 1
    run = replace(recipe, warmup=6, width=16)
    fit(small(), Words(), PLAN, run, out=str(tmp_path / "run"))
    took = [line["rate"] for line in history(tmp_path / "run")]
    assert took == [pytest.approx(optim.noam(s, 16, 6)) for s in range(1, 22)]
    assert took.index(max(took)) == 6 - 1
    picture = tmp_path / "rate.png"
    assert main(["runs", str(tmp_path / "run"), "--of", "rate", "--out", str(picture)]) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_every_schedule_warms_up_and_comes_down():
    for name in SCHEDULES.keys() - {"noam"}:
        recipe = Recipe(schedule=name, warmup=10)
        shares = [recipe.at(step, 100) for step in range(100)]
        assert shares[:10] == [pytest.approx((n + 1) / 10) for n in range(10)], name
        assert all(a >= b for a, b in zip(shares[9:], shares[10:], strict=False)), name
        if name in ("cosine", "linear"):
            assert shares[-1] == pytest.approx(recipe.floor)
    middle = Recipe(schedule="cosine", floor=0.0)
    assert middle.at(49, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    root = Recipe(schedule="inverse_sqrt", warmup=4)
    assert root.at(63, 100) == pytest.approx((4 / 64) ** 0.5)


@pytest.mark.scope("1.17.3")
def test_gradients_are_clipped_and_their_norm_is_logged(tmp_path):
    def gradients(clip):
        model, seen = small(dropout=0.0), {}
        recipe = replace(RECIPE, clip=clip)
        plain = nn.utils.clip_grad_norm_
        fit(model, Words(), replace(PLAN, steps=1), recipe, out=str(tmp_path / str(clip)),
            watch=lambda line: seen.update({n: p.grad.clone()
                                            for n, p in model.named_parameters()}))
        norm = math.sqrt(sum(float(g.square().sum()) for g in seen.values()))
        assert nn.utils.clip_grad_norm_ is plain
        return seen, norm, history(tmp_path / str(clip))[0]["norm"]

    whole, norm, logged = gradients(None)
    assert logged == pytest.approx(norm, rel=1e-5) and norm > 0.05
    cut, cut_norm, told = gradients(0.05)
    assert told == pytest.approx(norm, rel=1e-5) and cut_norm == pytest.approx(0.05, rel=1e-3)
    share = 0.05 / (norm + 1e-6)
    assert all(torch.allclose(cut[n], whole[n] * share, atol=1e-7) for n in whole)
    assert Recipe().clip == PRESETS["guide"].clip == 1.0


@pytest.mark.scope("1.17.4")
def test_decay_is_decoupled_and_spares_norms_and_biases():
    model = mirada.build("gpt2:tiny", layers=2, d=16, heads=2, vocab=32, context=16)
    before = weights(model)
    opt = optim.optimizer(model, Recipe(rate=0.1, decay=0.5, schedule="constant"))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    for name, p in model.named_parameters():
        share = 1 - 0.1 * 0.5 if p.ndim >= 2 else 1.0  # (1 - rate * decay) w, whatever the moments
        assert torch.allclose(p, before[name] * share, atol=1e-7), name
        assert p.ndim >= 2 or name.endswith("bias") or "norm" in name or ".pre." in name
    guide = PRESETS["guide"]
    assert (guide.rate, guide.betas, guide.eps, guide.decay, guide.decoupled) == (
        5e-5, (0.9, 0.98), 1e-9, 0.01, True)


@pytest.mark.scope("1.17.4")
@pytest.mark.parametrize("decoupled", [True, False])
def test_a_step_is_the_papers(decoupled):
    """Against 1412.6980, alg. 1, and 1711.05101, alg. 2, written out in float64."""
    torch.manual_seed(0)
    model = nn.Linear(3, 4).double()
    recipe = Recipe(rate=0.01, schedule="constant", betas=(0.8, 0.95), eps=1e-9, decay=0.1,
                    decoupled=decoupled, clip=None)
    opt = optim.optimizer(model, recipe)
    w, m, v = model.weight.detach().clone(), torch.zeros(4, 3), torch.zeros(4, 3)
    for step in range(1, 6):
        grad = torch.randn(4, 3, dtype=torch.float64)
        model.weight.grad, model.bias.grad = grad.clone(), torch.zeros(4, dtype=torch.float64)
        opt.step()
        if not decoupled:
            grad = grad + 0.1 * w
        m, v = 0.8 * m + 0.2 * grad, 0.95 * v + 0.05 * grad**2
        move = m / (1 - 0.8**step) / ((v / (1 - 0.95**step)).sqrt() + 1e-9)
        w = w - 0.01 * (move + (0.1 * w if decoupled else 0))
        assert torch.allclose(model.weight, w, atol=1e-12)


@pytest.mark.scope("1.17.5")
def test_gradients_reach_every_depth_by_residuals_and_norms():
    model = mirada.build("gpt2:tiny", layers=16, d=32, heads=2, vocab=32, context=16)
    fit(model, Words(), replace(PLAN, steps=3), RECIPE)
    ids = torch.arange(3, 15)[None]

    def spread(depths):
        return max(depths.gradient) / min(depths.gradient)

    found = mirada.look.gradients(model, ids)
    assert len(found.usual.gradient) == 16 + 1 and spread(found.usual) < 10
    assert spread(found.without) > 10 * spread(found.usual)
    assert str(found).count("\n") >= 16
    bare, normed = (mirada.build("gpt2:tiny", layers=16, d=32, heads=2, vocab=32, context=16)
                    for _ in range(2))
    with torch.no_grad():  # weights of the size that keeps the stream's: norms have work to do
        for model in (bare, normed):
            for name, p in model.named_parameters():
                if ".blocks." in name and p.ndim == 2:
                    p.normal_(std=1.5 * p.shape[1] ** -0.5)
    for block in bare.body.blocks:
        for sublayer in block.children():
            sublayer.pre = nn.Identity()
    assert spread(mirada.look.gradients(bare, ids).usual) > 10 * spread(
        mirada.look.gradients(normed, ids).usual)


def test_the_table_says_which_weights_move_how_fast():
    model = small()
    recipe = Recipe(rate=1e-3, layer_decay=0.5)
    shares = {n: g.share for g in optim.groups(model, recipe) for n in g.names}
    assert set(shares) == {n for n, _ in model.named_parameters()}
    by_depth = [shares[n] for n in ("body.embed.token.weight", "body.blocks.0.mlp.f.up.weight",
                                    "body.blocks.1.mlp.f.up.weight", "body.norm.weight")]
    assert by_depth == [0.5**3, 0.5**2, 0.5, 1.0]
    told = optim.table(model, recipe)
    assert "1.00e-03" in told and "1.25e-04" in told and "body.norm.weight" in told


def test_what_is_no_recipe():
    for given, says in (({"schedule": "up"}, "no schedule is called 'up'; there are"),
                        ({"rate": -1}, "rate is -1; it must be"),
                        ({"layer_decay": 0}, "layer_decay is 0")):
        with pytest.raises(MiradaError, match=says):
            Recipe(**given)

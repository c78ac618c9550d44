"""Pictures with hidden patches: what is hidden, what the loss counts, and that it is learned."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import mirada
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.models.patches import cut
from mirada.parts import dvae
from mirada.train import masked_images, objectives, order
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe

COLOURS = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1.]])
MASKED = "BeitForMaskedImageModeling"


def shapes(count: int, seed: int = 0, size: int = 32) -> torch.Tensor:
    """Pictures (count, 3, size, size): a rectangle of one colour on another, duller one."""
    draw, made = random.Random(seed), torch.empty(count, 3, size, size)
    for picture in made:
        ground, ink = draw.sample(list(COLOURS), 2)
        picture[:] = 0.5 * ground[:, None, None]
        high, wide = (draw.randint(size // 4, 5 * size // 8) for _ in range(2))
        top, left = draw.randint(0, size - high), draw.randint(0, size - wide)
        picture[:, top : top + high, left : left + wide] = ink[:, None, None]
    return made


def drawn(objective, count: int, seed: int = 0) -> dict:
    return objective.batch([objective.sample(i, order.draw(seed, i)) for i in range(count)])


@pytest.fixture(scope="module")
def pictures():
    return shapes(256), shapes(64, seed=1)


@pytest.fixture(scope="module")
def autoencoder(pictures):
    """Trained for some steps: enough for a few codes that stand for colours."""
    model = dvae.build(codes=64)
    objective = masked_images.VisualCodes(pictures[0], temperature=0.5)
    fit(model, objective, Plan(100, 16, dtype="float32"), Recipe(rate=5e-3, warmup=10))
    model.zero_grad(set_to_none=True)
    return model.eval()


@pytest.mark.scope("1.8.6", "1.12.9")
def test_mae_paints_better_than_the_mean_patch(pictures):
    """Held-out pictures, of which it sees a quarter; the mean patch is that of its place."""
    train, held = pictures
    model = mirada.build("vit_mae:tiny", seed=0)
    result = fit(model, masked_images.HiddenPatches(train, model),
                 Plan(110, 16, dtype="float32"), Recipe(rate=3e-3, warmup=10))
    losses = [line["loss"] for line in result.history]
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    noise = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(pixel_values=held, noise=noise)
    plain = (cut(held, (4, 4)) - cut(train, (4, 4)).mean(0)).square().mean(-1)
    assert out.loss < 0.8 * (plain * out.mask).sum() / out.mask.sum()


@pytest.mark.scope("1.8.5", "1.12.9")
def test_beit_names_hidden_codes_better_than_the_most_frequent(pictures, autoencoder):
    train, held = pictures
    model = mirada.build("beit:tiny", architecture=MASKED, seed=0)
    objective = masked_images.HiddenCodes(train, model, autoencoder, least=8)
    fit(model, objective, Plan(50, 16, dtype="float32"), Recipe(rate=2e-3, warmup=10))
    batch = drawn(masked_images.HiddenCodes(held, model, autoencoder, least=8), 64)
    with torch.no_grad():
        codes, told = autoencoder.codes(held), model(**batch).logits.argmax(-1)
    hidden = batch["bool_masked_pos"]
    guess = torch.bincount(autoencoder.codes(train).flatten()).argmax()
    right, plain = ((w == codes)[hidden].float().mean() for w in (told, guess))
    assert right > 1.3 * plain and right > 0.5


@pytest.mark.scope("1.8.5")
def test_the_autoencoder_paints_by_codes(pictures, autoencoder):
    """One code a place, of several in use, tells the picture better than the mean picture does."""
    train, held = pictures
    with torch.no_grad():
        codes = autoencoder.codes(held)
        painted = autoencoder.paint(codes.unflatten(1, (8, 8)))
        assert torch.equal(autoencoder(held)[0], painted)
    wrong, plain = ((held - p).square().mean() for p in (painted, train.mean(0)))
    assert wrong < 0.6 * plain and len(codes.unique()) >= 6


def test_the_loss_of_hidden_patches_is_the_models_own(pictures):
    """Summed over the pictures, whose share is hidden by the model; a patch normed where asked."""
    model = mirada.build("vit_mae:tiny", normed=True, share=0.5, seed=0).double()
    objective = masked_images.HiddenPatches(pictures[0].double(), model)
    batch = drawn(objective, 4)
    loss, _ = objective.loss(model, batch)
    out = model(**batch)
    assert (out.mask.sum(1) == 32).all() and objective.weight(batch) == 4
    wanted = cut(batch["pixel_values"], (4, 4))
    wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6).sqrt()
    by_hand = sum(F.mse_loss(out.logits[row, hidden], wanted[row, hidden])
                  for row, hidden in enumerate(out.mask.bool()))
    assert torch.allclose(loss, by_hand)
    again = drawn(objective, 4)
    assert torch.equal(again["noise"], batch["noise"])
    assert not torch.equal(drawn(objective, 4, seed=1)["noise"], batch["noise"])


def test_only_hidden_codes_are_told(pictures, autoencoder):
    model = mirada.build("beit:tiny", architecture=MASKED, seed=0)
    objective = masked_images.HiddenCodes(pictures[0], model, autoencoder)
    batch = drawn(objective, 4)
    hidden = batch["bool_masked_pos"]
    loss, _ = objective.loss(model, batch)
    out = model(**batch, labels=autoencoder.codes(batch["pixel_values"])[hidden])
    assert objective.weight(batch) == hidden.sum()
    assert torch.allclose(loss / hidden.sum(), out.loss)
    weights = {n: p.detach().clone() for n, p in autoencoder.named_parameters()}
    loss.backward()
    assert all(p.grad is None and torch.equal(p, weights[n])
               for n, p in autoencoder.named_parameters())


@pytest.mark.parametrize("rows, columns, share, least", [(14, 14, 0.4, 16), (8, 8, 0.4, 4),
                                                         (4, 12, 0.75, 1), (2, 2, 0.1, 16)])
def test_blocks_are_hidden_until_it_is_enough(rows, columns, share, least):
    """More than the share, by less than the last block; a hidden patch has hidden neighbours."""
    counts = []
    for seed in range(50):
        hidden = masked_images.blockwise(rows, columns, random.Random(seed), share, least)
        assert len(hidden) == rows * columns and sum(hidden) > share * rows * columns
        counts.append(sum(hidden))
        grid = torch.tensor(hidden).unflatten(0, (rows, columns))
        if (rows, columns) == (14, 14):
            around = 9 * F.avg_pool2d(grid[None, None].float(), 3, 1, 1)[0, 0]  # itself among them
            assert (around[grid] > 3.5).all()
    assert len({*counts}) > 1 or rows == 2
    if (rows, columns) == (14, 14):
        assert 0.4 < sum(counts) / 50 / 196 < 0.55


def test_blocks_are_as_high_as_wide_on_average_and_everywhere():
    """Each patch of the grid is hidden at times, the middle more often than a corner."""
    made = [masked_images.blockwise(14, 14, random.Random(seed)) for seed in range(300)]
    often = torch.tensor(made).float().mean(0).unflatten(0, (14, 14))
    assert often.min() > 0.02 and often[6:8, 6:8].mean() > 2 * often[0, 0]
    assert torch.allclose(often.mean(0), often.mean(1), atol=0.1)


def test_an_even_choice_is_no_distance_away():
    assert dvae.DiscreteVAE.divergence(torch.zeros(2, 8, 3, 3)).abs().max() < 1e-6
    one = torch.full((1, 8, 1, 1), -1e4).index_fill(1, torch.tensor([3]), 0.0)
    assert torch.allclose(dvae.DiscreteVAE.divergence(one), torch.tensor(8.0).log())
    model = dvae.build(codes=8, patch=2, width=8, d=8)
    model.encode[-1].weight.data.mul_(20)
    picture = torch.randn(2, 3, 8, 8)
    objective = masked_images.VisualCodes(picture, even=0.5)
    torch.manual_seed(0)
    loss, said = objective.loss(model, drawn(objective, 2))
    assert torch.allclose(loss / 2, torch.tensor(said["wrong"] + 0.5 * said["far"]))
    assert said["far"] > 0.1 and loss.requires_grad


def test_training_mixes_codes_so_that_a_gradient_comes_through():
    model = dvae.build(codes=8, patch=2, width=8, d=8)
    pixels = torch.randn(2, 3, 8, 8)
    model.train()(pixels, 0.5)[0].square().sum().backward()
    assert model.encode[0].weight.grad.abs().max() > 0
    assert torch.equal(*(model.eval()(pixels)[0] for _ in range(2)))
    assert not torch.equal(*(model.train()(pixels)[0] for _ in range(2)))
    for patch in (1, 3, 6):
        with pytest.raises(MiradaError, match="2, 4, 8"):
            dvae.build(patch=patch)


@pytest.mark.parametrize("make, said", [
    (lambda p, m, a: masked_images.HiddenPatches(p[:, :1], m("vit_mae:tiny")), "reads \\(3, 32"),
    (lambda p, m, a: masked_images.HiddenPatches(p, m("vit:tiny")), "hides no patches by itself"),
    (lambda p, m, a: masked_images.HiddenCodes(p, m("beit:tiny"), a), "does not tell the codes"),
    (lambda p, m, a: masked_images.HiddenCodes(p, m("beit:tiny", MASKED, codes=32), a), "64 codes"),
    (lambda p, m, a: masked_images.HiddenCodes(p, m("beit:tiny", MASKED, patch=8), a), "64 codes"),
    (lambda p, m, a: masked_images.blockwise(4, 4, random.Random(0), 1.0), "a part of the patches"),
])
def test_what_does_not_fit_is_said(pictures, make, said):
    untrained = dvae.build(codes=64)

    def model(name, architecture=None, **changes):
        return mirada.build(name, architecture=architecture, device="meta", **changes)

    with pytest.raises(MiradaError, match=said):
        make(pictures[0][:2], model, untrained)


def test_a_run_goes_on_where_it_was(pictures, tmp_path):
    """Noise is a function of seed and step, so that a run in two parts ends at the same weights."""
    ends = []
    for name, stops in (("once", ()), ("twice", (3,))):
        for stop in (*stops, None):
            model = mirada.build("vit_mae:tiny", seed=0)
            objective = masked_images.HiddenPatches(pictures[0], model)
            fit(model, objective, Plan(6, 4, dtype="float32", save=1), Recipe(rate=1e-3),
                out=str(tmp_path / name), watch=lambda line, stop=stop: line["step"] == stop)
        ends.append(model.state())
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.scope("1.8.6", "1.12.9")
def test_a_run_on_a_file_of_pictures_ends_with_an_autoencoder_that_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grey = ((shapes(12, size=16).mean(1) + 1) * 127).byte().numpy()
    np.savez("set.npz", images=grey, labels=np.zeros(12, np.int64))
    (tmp_path / "run.toml").write_text("\n".join([
        'model = "vit_mae:tiny"', 'data = "set.npz"', 'objective = "painted"',
        "[plan]", "steps = 3", "batch = 4", "[changes]", "image = 16", "patch = 4", "channels = 1",
        "normed = true", "[options]", "flip = true", "shift = 1"]))
    assert main(["train", "run.toml", "--out", "made"]) in (0, None)
    model = mirada.load("made/model")
    assert model.architecture == "ViTMAEForPreTraining" and model.config.normed
    assert "id2label" not in model.origin.raw
    assert torch.isfinite(model(pixel_values=torch.randn(1, 1, 16, 16)).loss)
    with pytest.raises(MiradaError, match="learns by objective 'painted', not 'next'"):
        objectives.chosen("next", model, "made")

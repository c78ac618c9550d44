"""The recipes on pictures: the digits are read as they are, and the curve says what it should."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from mirada.cli import main
from mirada.train import config, pictures
from recipes import cnn_vit, data
from tools import recipes
from train.test_recipes import tar


def test_digits_are_the_bytes_that_they_were(tmp_path, monkeypatch):
    points = np.random.default_rng(0).integers(0, 256, (10, 110, 784))
    files = {f"package/src/digits/{n}.json": json.dumps(
        {"data": [round(v / 255, 3) for v in some.flatten().tolist()]}).encode()
        for n, some in enumerate(points)}
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    monkeypatch.setattr(data, "fetched", lambda name: tar(files | {"package/x.json": b"no"}))
    data.digits()
    learned, held = (pictures.read([tmp_path / f"{name}.npz"]) for name in ("digits",
                                                                           "digits-test"))
    assert len(held.pictures) == 1000 and len(learned.pictures) == 100
    found = {(one.tobytes(), int(held.names[n])) for one, n in (
        *zip(learned.pictures, learned.labels, strict=True),
        *zip(held.pictures, held.labels, strict=True))}
    assert found == {(one.astype(np.uint8).tobytes(), n) for n, some in enumerate(points)
                     for one in some}
    assert len({*learned.labels[:50]}) > 5  # the first of them are of all kinds


@pytest.fixture
def halves():
    """Pictures that are bright on the left or on the right; of ten labels two are used."""
    def some(count, seed):
        draw = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (count,), generator=draw)
        points = torch.rand(count, 1, 28, 28, generator=draw) - 1
        for one, label in zip(points, labels, strict=True):
            one[..., 14 * label : 14 * label + 14] += 0.7
        return pictures.of(points, labels, list(map(str, range(10))))
    return some(64, 0), some(50, 1)


@pytest.mark.scope("1.8.7")
def test_a_curve_of_all_models(halves, tmp_path):
    said = []
    results = {count: cnn_vit.curve(*halves, count, steps=12,
                                    say=lambda line, flush: said.append(line))
               for count in (8, 64)}
    assert all(found.keys() == cnn_vit.RATES.keys() for found in results.values())
    assert results[64]["ResNet"] > 0.8 and len(said) == 10
    assert "12 steps  CNN " in said[0] and f"{results[8]['CNN']:.1%}" in said[0]
    cnn_vit.draw(results, str(tmp_path / "x.png"))
    assert Image.open(tmp_path / "x.png").size[0] > 600
    assert [len(cnn_vit.first(halves[0], n).labels) for n in (8, 64)] == [8, 64]


def test_a_plan_of_digits_is_one(tmp_path):
    """What the recipe says builds the model that the curve draws, and reads digits as it does."""
    run = config.read(data.FOLDER.parent / "digits.toml", {})
    assert run.objective == "pictures" and run.changes | {"labels": 10} == cnn_vit.VIT
    points = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", images=points, labels=np.arange(20) % 10)
    run = config.Run(run.model, (str(tmp_path / "digits.npz"),), run.objective,
                     changes=run.changes, options=run.options)
    config.create(run, tmp_path / "x")
    _, model, objective = config.open_run(tmp_path / "x")
    assert objective.places == 17 and model.config.labels == 10
    seen = torch.stack([objective.sample(n, None)[0] for n in range(20)])
    assert torch.allclose(seen, torch.from_numpy(points)[:, None].float() / 127.5 - 1, atol=1e-6)
    moved = objective.sample(3, random.Random(1))[0]
    assert (moved[:, 2:-2, 2:-2] - seen[3, :, 2:-2, 2:-2]).abs().max() > 0.1


def test_pictures_are_measured(tmp_path, monkeypatch):
    """Three dark pictures and a bright one; the nearest is the picture itself."""
    points = np.full((4, 8, 8), 20, dtype=np.uint8)
    points[3] = 250
    (tmp_path / "data").mkdir()
    for name in "ab":
        np.savez(tmp_path / "data" / f"{name}.npz", images=points, labels=[0, 0, 0, 1],
                 names=["dark", "bright"])
    words = ["train", "vit:tiny", "--data", str(tmp_path / "data" / "a.npz"), "--steps", "1"]
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    monkeypatch.setattr(recipes, "mirada", lambda words, out: main([*words, "--out", str(out)]))
    monkeypatch.setattr(pictures, "accuracy", lambda model, held: held.count / 10)
    found = recipes.pictures({"text": "a.npz", "test": "b.npz"}, words, tmp_path / "run")
    assert found == (0.4, {"always dark": 0.75, "nearest": 1.0})

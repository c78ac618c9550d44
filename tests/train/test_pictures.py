"""Pictures with labels: read, changed by chance, learned from; killed and begun again."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mirada
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.parts import conv
from mirada.train import config, convnets, loop, objectives, optim, pictures
from mirada.train.log import history
from train import toys

CHANGES = {"shift": lambda x, draw: pictures.shift(x, draw, 3), "flip": pictures.flip,
           "crop": lambda x, draw: pictures.crop(x, draw, 0.2)}


def small(seed=0, **changes):
    """A ViT that sees pictures of 16 x 16 in patches of 4."""
    return mirada.build("vit:tiny", seed=seed, **dict(image=16, patch=4, channels=1, d=32, heads=2,
                                                      hidden=64, labels=4) | changes)


@pytest.mark.scope("1.8.1", "1.8.7")
@pytest.mark.parametrize("model, steps, rate, least", [
    (small, 300, 3e-3, 0.85),
    (lambda: conv.build("cnn", widths=(16, 32), labels=4), 120, 1e-2, 0.9),
    (lambda: conv.build("resnet:tiny", stem=8, widths=(16,), depths=(1,), labels=4), 60, 1e-2, 0.9),
], ids=["vit", "cnn", "resnet"])
def test_each_learns_shapes_in_the_same_loop(model, steps, rate, least):
    model, (learned, held) = model(), (pictures.of(*toys.shapes(n, seed)) for n, seed in (
        (600, 0), (200, 1)))
    held = pictures.Pictures(held)
    before = pictures.accuracy(model, held)
    loop.fit(model, pictures.Pictures(learned), loop.Plan(steps=steps, batch=16, dtype="float32"),
             optim.Recipe(rate=rate, warmup=20))
    assert before < 0.5 and pictures.accuracy(model, held) > least


# Changes


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_the_draw_s_alone(name):
    x, change = torch.rand(3, 9, 12), CHANGES[name]
    kept = x.clone()
    made = [change(x, random.Random(n)) for n in (1, 1, 2, 3, 4, 5)]
    assert torch.equal(made[0], made[1]) and torch.equal(x, kept)
    assert any(not torch.equal(made[0], one) for one in made[2:])
    assert all(one.shape == x.shape for one in made)


def test_what_changes_do():
    x = torch.arange(1.0, 26).view(1, 5, 5)
    draw = random.Random(0)
    moved = [pictures.shift(x, draw, 2) for _ in range(400)]
    centres = {float(one[0, 2, 2]) for one in moved}
    assert centres == set(range(1, 26))  # each of 25 shifts, and the middle shows each pixel
    for one in moved:  # what comes in is the edge's
        down, right = divmod(int(one[0, 2, 2]) - 1, 5)
        rows, columns = ((torch.arange(5) + at - 2).clamp(0, 4) for at in (down, right))
        assert torch.equal(one[0], x[0][rows][:, columns])
    sides = [pictures.flip(x, draw) for _ in range(40)]
    assert {float(one[0, 0, 0]) for one in sides} == {1.0, 5.0}
    ramp = torch.linspace(0, 1, 20).repeat(1, 20, 1)
    spans = [float(one.max() - one.min()) for one in (
        pictures.crop(ramp, draw, 0.1) for _ in range(200))]
    assert 0.2 < min(spans) < 0.5 and max(spans) > 0.9
    assert torch.allclose(pictures.crop(ramp[..., :1].expand(1, 20, 20), draw, 0.1),
                          torch.zeros(1, 20, 20))
    assert pictures.changes() == [] and len(pictures.changes(2, True, 0.5)) == 3
    for wrong in ((1.5,), (-1,), (0, 1), (0, True, 0.0), (0, True, 1.1)):
        with pytest.raises(MiradaError, match="correct them"):
            pictures.changes(*wrong)


def test_held_out_pictures_are_seen_as_they_are():
    pixels, labels = toys.shapes(4)
    objective = pictures.Pictures(pictures.of(pixels, labels), changes=pictures.changes(3, True))
    assert all(torch.equal(objective.sample(n, None)[0], pixels[n]) for n in range(4))
    drawn = [objective.sample(0, random.Random(n))[0] for n in range(9)]
    assert any(not torch.equal(one, pixels[0]) for one in drawn)


# Data


@pytest.fixture
def drawn(tmp_path):
    """The same twelve pictures as a folder, as .npz and as .jsonl; labels 2, 9 and 10."""
    pixels, numbers = toys.shapes(12)
    points = ((pixels[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    names = [("9", "10", "2")[n % 3] for n in numbers]
    order = sorted(range(12), key=lambda n: (names[n], n))  # as folders are listed
    points, names = points[order], [names[n] for n in order]
    rows = []
    for n, (name, one) in enumerate(zip(names, points, strict=True)):
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(tmp_path / "set" / name / f"{n:02}.png")
        path = f"set/{name}/{n:02}.png"
        rows.append({"image": path if n % 2 else one.tolist(),
                     "label": name if n % 3 else int(name)})
    (tmp_path / "set" / ".hidden").mkdir()
    (tmp_path / "set" / "9" / "read me.txt").write_text("not a picture")
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.savez(tmp_path / "set.npz", images=points, labels=[("2", "9", "10").index(n) for n in names],
             names=["2", "9", "10"])
    return tmp_path, points, names


def test_a_set_is_the_same_from_any_file(drawn):
    folder, points, names = drawn
    model = small(labels=3)
    for path in ("set", "set.npz", "set.jsonl"):
        found = pictures.read([folder / path])
        assert found.names == ["2", "9", "10"]  # numbers by size
        assert [found.names[n] for n in found.labels] == names
        objective = objectives.made("pictures", found, 0, model, {})
        seen = objective.batch([objective.sample(n, None) for n in range(12)])
        wanted = torch.from_numpy(points).float()[:, None] / 127.5 - 1
        assert torch.allclose(seen["pixel_values"], wanted, atol=1e-6), path
    both = pictures.read([folder / "set", folder / "set.npz"])
    assert both.labels == 2 * found.labels
    assert objective.places == 17
    ordered = pictures.read([folder / "set"], names=["10", "9", "2", "1"])
    assert [ordered.names[n] for n in ordered.labels] == names


def test_data_that_are_wrong(drawn, monkeypatch):
    folder, points, _ = drawn

    def refused(said, **arrays):
        np.savez(folder / "bad.npz", **arrays)
        with pytest.raises(MiradaError, match=said):
            pictures.read([folder / "bad.npz"])

    refused("images: must be bytes", images=points.astype(float), labels=range(12))
    refused("images: must be bytes", labels=range(12))
    refused("labels: must be 12 numbers", images=points, labels=range(11))
    refused("labels: must be 12 numbers", images=points, labels=[-1] * 12)
    refused("names: has none for label 1", images=points, labels=[1] * 12, names=["a"])
    refused("no .npz of numbers", images=points, labels=np.array([None] * 12, dtype=object))
    whole = (folder / "set.npz").read_bytes()
    for bad in (b"PK nothing", b"", whole[:900], whole[:200] + b"x" + whole[201:],
                whole.replace(b"(12, 16, 16)", b"(9999999999,16,16)"[:12])):
        (folder / "bad.npz").write_bytes(bad)
        with pytest.raises(MiradaError, match="no .npz of numbers"):
            pictures.read([folder / "bad.npz"])
    monkeypatch.setattr(pictures, "LIMIT", 100)
    with pytest.raises(MiradaError, match="unpacks to .* bytes"):
        pictures.read([folder / "set.npz"])
    for row, said in (({"image": [[1, 2], [3]], "label": "a"}, "unequal length"),
                      ({"image": [[1, 256]], "label": "a"}, "rows of whole numbers, 0 to 255"),
                      ({"image": [[0.5]], "label": "a"}, "rows of whole numbers"),
                      ({"image": "x.png"}, "'label' holds no name"), ("x", "not an object")):
        (folder / "bad.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(MiradaError, match=f"row 1: .*{said}"):
            pictures.read([folder / "bad.jsonl"])
    (folder / "empty").mkdir()
    with pytest.raises(MiradaError, match="there is no picture"):
        pictures.read([folder / "empty"])
    with pytest.raises(MiradaError, match="labelled '10', and the model tells a, b apart"):
        pictures.read([folder / "set"], names=["a", "b"])
    for labels, said in (([-1], "one is -1"), ([], "there are none"), ([3], "a label 3")):
        with pytest.raises(MiradaError, match=said):
            pictures.of(torch.zeros(len(labels), 1, 2, 2), labels, ["a"])
    with pytest.raises(MiradaError, match="2 pictures and 1 labels"):
        pictures.Pictures(pictures.of(torch.zeros(2, 1, 2, 2), [0]))


# Runs


def test_running_means_go_on_where_they_were(tmp_path):
    """Those of a ResNet's norms are no weights, and without them it is another network."""
    def run(out, steps):
        model = conv.build("resnet:tiny", stem=4, widths=(8,), depths=(1,), labels=4)
        objective = pictures.Pictures(pictures.of(*toys.shapes(40)), changes=pictures.changes(2))
        loop.fit(model, objective, loop.Plan(steps=6, batch=8, save=2, dtype="float32"),
                 optim.Recipe(rate=1e-2), out=str(out), watch=lambda line: line["step"] == steps)
        return model.state_dict()

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "cut", 3)
    again = run(tmp_path / "cut", 6)
    assert int(whole["stem.norm.num_batches_tracked"]) == 6
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert [x["loss"] for x in history(tmp_path / "cut")] == [
        x["loss"] for x in history(tmp_path / "whole")]


def test_from_a_folder_to_a_model_and_on(drawn, tmp_path, capsys):
    folder, points, names = drawn
    (tmp_path / "run.toml").write_text(
        'model = "vit:tiny"\ndata = "set"\nobjective = "pictures"\n'
        "[changes]\nimage = 16\npatch = 4\nchannels = 1\nd = 32\nlayers = 1\n"
        "[options]\nshift = 1\nsmoothing = 0.1\n[plan]\nsteps = 6\nbatch = 4\nsave = 2\n")
    words = ["train", str(tmp_path / "run.toml"), "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    cut = tmp_path / "cut"
    config.create(config.read(tmp_path / "run.toml", {}), cut)
    run, model, objective = config.open_run(cut)
    loop.fit(model, objective, run.whole_plan(), run.whole_recipe(), out=str(cut),
             watch=lambda line: line["step"] == 3)
    assert main(["train", "--resume", str(cut)]) == 0
    cut, model = (mirada.load(path / "model") for path in (cut, tmp_path / "whole"))
    assert all(map(torch.equal, cut.parameters(), model.parameters()))
    assert pictures.label_names(model) == ["2", "9", "10"] and model.config.labels == 3
    pixels = model.processor(list(points))["pixel_values"]
    assert torch.allclose(pixels, torch.from_numpy(points).float()[:, None] / 127.5 - 1, atol=1e-6)
    assert main(["train", str(tmp_path / "whole" / "model"), "--data", str(folder / "set.npz"),
                 "--steps", "1", "--out", str(tmp_path / "on"), "--objective", "pictures"]) == 0
    next((folder / "set" / "9").glob("*.png")).write_bytes(b"another")
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "whole")]) == 2
    assert "set is not the file that" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["gpt2:tiny", "--data", "set"], "not 'pictures'"),
    (["vit:tiny", "--data", "set.txt", "--objective", "pictures"], "holds no pictures with labels"),
    (["vit:tiny", "--data", "set", "--objective", "causal"], "does not end in one of .txt"),
    (["vit:tiny", "--data", "set", "--objective", "taught"], "teacher")])
def test_what_a_user_may_do_wrong(drawn, tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set.txt").write_text("text")
    assert main(["train", *words, "--steps", "1", "--out", "x"]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not (tmp_path / "x").exists()


def test_the_page_s_example_runs(drawn, monkeypatch):
    folder, _, _ = drawn
    monkeypatch.chdir(folder)
    (folder / "set").rename("digits")
    page = (Path(__file__).parents[2] / "docs/objectives.md").read_text()
    [source] = [one for one in re.findall(r"```python\n(.*?)```", page, re.S) if "convnets" in one]
    exec(compile(source.replace("steps=500", "steps=2"), "page", "exec"), {})
    assert convnets.load("teacher").names == ["2", "9", "10"]

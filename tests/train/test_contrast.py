"""Pictures and texts that learn to find each other: the loss, its factor, and coloured shapes."""

import math
import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

import mirada
from mirada.errors import MiradaError
from mirada.models import clip
from mirada.train import config
from mirada.train.contrast import Contrast
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from train import toys

SIDE = 16
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
SHAPES = {  # of places down and right of the middle, in units of the shape's size
    "square": lambda y, x: (y.abs() < 1) & (x.abs() < 1),
    "bar": lambda y, x: (y.abs() < 0.35) & (x.abs() < 1),
    "cross": lambda y, x: ((y.abs() < 0.35) | (x.abs() < 0.35)) & (y.abs() < 1) & (x.abs() < 1),
}
CAPTIONS = [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]


def drawn(count: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """(N, 3, SIDE, SIDE) pictures from -1 to 1 of a shape somewhere, and what they show."""
    draw, pictures, texts = random.Random(seed), [], []
    down, right = torch.meshgrid(*[torch.arange(float(SIDE))] * 2, indexing="ij")
    for _ in range(count):
        colour, shape = draw.choice(list(COLOURS)), draw.choice(list(SHAPES))
        size = draw.uniform(4.5, 6.5)
        y, x = (SIDE / 2 + draw.uniform(-1, 1) for _ in range(2))
        inside = SHAPES[shape]((down - y) / size, (right - x) / size)
        paint = torch.tensor(COLOURS[colour]).float()[:, None, None]
        pictures.append(torch.where(inside, paint, 0.0) * 2 - 1)
        texts.append(f"a {colour} {shape}")
    noise = torch.Generator().manual_seed(seed)
    return torch.stack(pictures) + 0.05 * torch.randn(count, 3, SIDE, SIDE, generator=noise), texts


@pytest.fixture(scope="module")
def reader():
    return toys.tokenizer(CAPTIONS)


def small(reader, **more):
    text = replace(clip.SIZES["tiny"].text, vocab=reader.size, context=8, d=32, hidden=64,
                   eos=reader.sep_id, pad=reader.pad_id, layers=1)
    vision = replace(clip.SIZES["tiny"].vision, image=SIDE, patch=4, d=48, hidden=96)
    made = mirada.build("clip:tiny", seed=1, text=text, vision=vision, **more)
    made.tokenizer = reader
    return made


@torch.no_grad()
def found(model, pictures, texts) -> float:
    """The share of pictures for which the right one of all captions scores highest."""
    asked = model.tokenizer(CAPTIONS)
    out = model.eval()(input_ids=asked["input_ids"], attention_mask=asked["attention_mask"],
                       pixel_values=pictures)
    told = [CAPTIONS[n] for n in out.logits_per_image.argmax(-1)]
    return sum(a == b for a, b in zip(told, texts, strict=True)) / len(texts)


@pytest.mark.scope("1.9.1", "1.12.8")
def test_coloured_shapes_find_their_captions(reader):
    """At least 95 of 100 pictures that were not trained on, among 12 captions: chance finds 8."""
    model = small(reader)
    held, names = drawn(200, seed=9)
    before = found(model, held, names)
    began = model.head.scale.item()
    result = fit(model, Contrast(*drawn(1200, seed=1), model), Plan(250, batch=32, dtype="float32"),
                 Recipe(rate=2e-3))
    after = found(model, held, names)
    assert before < 0.3 and after >= 0.95, (before, after)
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert model.head.scale.item() != pytest.approx(began, abs=1e-2), "the factor is learnt"


@pytest.mark.scope("1.12.8")
def test_the_loss_is_figure_3_written_out(reader):
    model = small(reader).double().eval()
    pairs = Contrast(drawn(6, seed=2)[0].double(), CAPTIONS[:6], model)
    batch = pairs.batch([pairs.sample(n, None) for n in range(6)])
    loss, numbers = pairs.loss(model, batch)
    seen = model.body(model_inputs(batch), context(model, batch))
    image = model.head.vision(seen["vision"], None, None)["image_embeds"]
    text = model.head.text(seen["text"], model_inputs(batch), None)["text_embeds"]
    image, text = (x / x.pow(2).sum(-1, keepdim=True).sqrt() for x in (image, text))
    factor = math.exp(model.head.scale.item())
    scores = image @ text.T * factor
    assert factor == pytest.approx(1 / 0.07, rel=1e-4)
    rows = -(scores.exp() / scores.exp().sum(1, keepdim=True)).diagonal().log().mean()
    columns = -(scores.exp() / scores.exp().sum(0, keepdim=True)).diagonal().log().mean()
    assert float(loss / 6) == pytest.approx(float((rows + columns) / 2), abs=1e-12)
    assert abs(float(rows - columns)) > 1e-6, "both sides are one: neither could be missing"
    whole = model(**batch, return_loss=True).loss
    assert float(whole) == pytest.approx(float(loss / 6), abs=1e-12)
    assert numbers["factor"] == pytest.approx(factor)


def model_inputs(batch):
    from mirada.core.context import Inputs
    return Inputs(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"])


def context(model, batch):
    return model._ctx(model_inputs(batch), batch["attention_mask"], None, None, None)


def test_the_factor_is_at_most_a_hundred_and_learns_below(reader):
    model = small(reader, scale=7.0)
    pairs = Contrast(*drawn(8, seed=3), model)
    batch = pairs.batch([pairs.sample(n, None) for n in range(8)])
    loss, numbers = pairs.loss(model, batch)
    assert numbers["factor"] == pytest.approx(100, rel=1e-5)
    loss.backward()
    assert model.head.scale.grad.abs() > 0


def test_a_long_text_keeps_its_end_and_pictures_are_made_ready(reader):
    model = small(reader)
    long = " ".join(["red"] * 20)
    raw = torch.randint(0, 255, (20, 24, 3), dtype=torch.uint8)
    pairs = Contrast([raw, raw], [long, "a red bar"], model)
    picture, ids = pairs.sample(0, None)
    assert len(ids) == 8 and ids[-1] == reader.sep_id
    assert picture.shape == (3, SIDE, SIDE)
    batch = pairs.batch([pairs.sample(0, None), pairs.sample(1, None)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 8)
    assert torch.isfinite(pairs.loss(model, batch)[0])
    turned = Contrast([raw], ["a red bar"], model, changes=[lambda p, draw: p.flip(-1)])
    assert torch.equal(turned.sample(0, random.Random(1))[0], picture.flip(-1))
    assert torch.equal(turned.sample(0, None)[0], picture)


def test_what_cannot_be_matched(reader):
    model = small(reader)
    with pytest.raises(MiradaError, match="2 pictures and 1 texts"):
        Contrast(torch.zeros(2, 3, SIDE, SIDE), ["a red bar"], model)
    alone = mirada.build("clip_vision:tiny")
    with pytest.raises(MiradaError, match="does not match texts with pictures"):
        Contrast(torch.zeros(1, 3, 32, 32), ["a red bar"], alone)


def test_a_run_goes_on_from_a_saved_model(reader, tmp_path):
    """By the command's own words: pictures in a folder of folders, whose names make the texts."""
    model = small(reader)
    model.processor = model.processor  # of its own: saved, and what the run's pictures go through
    mirada.save(model, tmp_path / "model")
    pictures, texts = drawn(24, seed=5)
    for n, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        folder = tmp_path / "data" / text.removeprefix("a ")
        folder.mkdir(parents=True, exist_ok=True)
        points = ((picture.permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).to(torch.uint8).numpy()
        Image.fromarray(points).save(folder / f"{n}.png")
    words = dict(objective="contrast", options={"template": "a {}"}, plan={"steps": 2, "batch": 8})
    config.create(config.Run(str(tmp_path / "model"), (str(tmp_path / "data"),), **words),
                  tmp_path / "run")
    run, loaded, pairs = config.open_run(tmp_path / "run")
    assert pairs.count == 24
    picture, ids = pairs.sample(0, None)
    assert picture.shape == (3, SIDE, SIDE)
    text = reader.decode(ids)
    which = texts.index(text)
    assert (picture - pictures[which].clamp(-1, 1)).abs().max() < 0.02, "each with its own"
    result = fit(loaded, pairs, run.whole_plan(), run.whole_recipe())
    assert result.reason == "done" and math.isfinite(result.loss)
    config.create(config.Run("clip:tiny", (str(tmp_path / "data"),), **words), tmp_path / "new")
    with pytest.raises(MiradaError, match="this model has none"):
        config.open_run(tmp_path / "new")

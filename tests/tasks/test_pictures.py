"""Tasks on pictures give what the reference's pipelines give, for a tiny seeded model."""

import json

import numpy as np
import pytest
import torch
import transformers

import mirada
from image.scene import noise, scene
from mirada.cli import main
from mirada.errors import MiradaError
from mirada.image import Processor
from mirada.tasks.pipeline import served

TINY = dict(image_size=24, patch_size=8, hidden_size=24, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=40)
LABELS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]
PICTURES = [scene(61, 47), noise(30, 50), scene(20, 90), noise(24, 24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A labelling model as the reference saves it, and two pictures."""
    where, names = tmp_path_factory.mktemp("vit"), dict(enumerate(LABELS))
    torch.manual_seed(0)
    config = transformers.ViTConfig(**TINY, id2label=names,
                                    label2id={name: n for n, name in names.items()})
    model = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        model.classifier.weight.normal_(0, 1)
    model.eval().save_pretrained(where)
    transformers.DeiTImageProcessorPil(size={"height": 27, "width": 30}, crop_size={
        "height": 24, "width": 24}).save_pretrained(where)
    for n, picture in enumerate(PICTURES[:2]):
        picture.save(where / f"{n}.png")
    return where


@pytest.fixture(scope="module")
def ours(folder):
    return mirada.pipeline("image-classification", folder)


@pytest.fixture(scope="module")
def theirs(folder):
    return transformers.pipeline("image-classification", model=str(folder))


def same(found, wanted) -> bool:
    """Equal labels in the same order, scores to float32's rounding."""
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return found["label"] == wanted["label"] and found["score"] == pytest.approx(
        wanted["score"], rel=1e-5)


@pytest.mark.scope("1.14.10")
@pytest.mark.parametrize("options", [
    {}, {"top_k": 1}, {"top_k": 3}, {"top_k": 100}, {"top_k": None},
    {"function_to_apply": "sigmoid"}, {"function_to_apply": "none", "top_k": 2}])
def test_labels_are_the_references(folder, ours, theirs, options):
    for given in (PICTURES[0], PICTURES, str(folder / "0.png"),
                  [str(folder / "0.png"), PICTURES[1]]):
        assert same(ours(given, **options), theirs(given, **options))


KIN = {"DeiTForImageClassificationWithTeacher": TINY, "BeitForImageClassification": TINY,
       "SwinForImageClassification": dict(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1],
                                          num_heads=[2, 2], window_size=4)}


@pytest.mark.parametrize("name", KIN)
def test_labels_of_every_kin(name, tmp_path):
    kind = getattr(transformers, name)
    config = kind.config_class(num_labels=6, **KIN[name])
    torch.manual_seed(0)
    kind(config).eval().save_pretrained(tmp_path)
    size = {"height": config.image_size, "width": config.image_size}
    transformers.BeitImageProcessorPil(size=size).save_pretrained(tmp_path)
    theirs = transformers.pipeline("image-classification", model=str(tmp_path))
    ours = mirada.pipeline("image-classification", tmp_path)
    assert same(ours(PICTURES, top_k=6), theirs(PICTURES, top_k=6))
    assert not same(ours(PICTURES[:1]), ours(PICTURES[1:2]))


@pytest.mark.scope("1.14.10")
def test_a_broken_preparation_shows(folder, theirs):
    wrong = mirada.pipeline("image-classification", folder, image_processor=Processor((24, 24)))
    assert not same(wrong(PICTURES), theirs(PICTURES))


def test_the_kinds_of_input(folder, ours):
    wanted = ours(PICTURES[0])
    assert len(wanted) == 5 and sum(one["score"] for one in ours(PICTURES[0], top_k=9)) == (
        pytest.approx(1))
    array = np.array(PICTURES[0])
    for given in (array, torch.from_numpy(array), folder / "0.png"):
        assert ours(given) == wanted
    assert list(ours(one for one in PICTURES[:2])) == ours(PICTURES[:2])
    assert ours(array[None]) == [wanted] == ours((array,))
    assert same(ours(PICTURES, batch_size=1), ours(PICTURES))
    assert ours({"image": array, "label": 3}) == wanted
    assert ours([]) == []


@pytest.mark.parametrize("call, said", [
    (lambda task: task(PICTURES[0], top_k=0), "top_k is 0"),
    (lambda task: task(PICTURES[0], function_to_apply="max"), "it can be sigmoid"),
    (lambda task: task(PICTURES[0], truncation=True), "has no option 'truncation'"),
    (lambda task: task("none.png"), "there is no such file"),
    (lambda task: task([PICTURES[0], 7]), "not of type int")])
def test_what_cannot_be(ours, call, said):
    with pytest.raises(MiradaError, match=said):
        call(ours)


def test_models_and_tasks_that_fit(folder):
    model = mirada.load(folder)
    assert served(model) == ["image-classification", "image-feature-extraction"]
    with pytest.raises(MiradaError, match="needs a head that labels pictures"):
        mirada.pipeline("image-classification", mirada.build("vit:tiny", architecture="ViTModel"))
    with pytest.raises(MiradaError, match="needs a head that labels pictures"):
        mirada.pipeline("image-classification", mirada.build("bert:tiny"))


def test_models_of_the_older_library_bring_their_processor(folder, theirs):
    model = transformers.ViTForImageClassification.from_pretrained(folder)
    for processor in (theirs.image_processor, str(folder), Processor.beside(folder)):
        task = mirada.pipeline("image-classification", model, image_processor=processor)
        assert same(task(PICTURES), theirs(PICTURES))
    with pytest.raises(MiradaError, match="image_processor="):
        mirada.pipeline("image-classification", model)
    with pytest.raises(MiradaError, match="no preprocessor_config.json"):
        mirada.pipeline("image-classification", model, image_processor="none")


def test_features_are_the_references(folder, tmp_path):
    torch.manual_seed(1)
    transformers.ViTModel(transformers.ViTConfig(**TINY)).save_pretrained(tmp_path)
    Processor.beside(folder).save(tmp_path)
    theirs = transformers.pipeline("image-feature-extraction", model=str(tmp_path))
    ours = mirada.pipeline("image-feature-extraction", tmp_path)
    for options in ({}, {"pool": True}):
        found, wanted = ours(PICTURES, **options), theirs(PICTURES, **options)
        for one, other in zip(found, wanted, strict=True):
            one, other = torch.tensor(one), torch.tensor(other)
            assert one.shape == other.shape and (one - other).abs().max() < 1e-5
    assert ours(PICTURES[0], return_tensors=True).shape == (1, 10, 24)
    with pytest.raises(MiradaError, match="has no pooler"):
        mirada.pipeline("image-feature-extraction", folder)(PICTURES[0], pool=True)


@pytest.mark.scope("1.14.10")
def test_one_command_labels_pictures(folder, ours, capsys, tmp_path):
    paths = [str(folder / f"{n}.png") for n in range(2)]
    named = ["task", "image-classification", str(folder)]
    assert not main([*named, *paths, "--json"])
    assert same(json.loads(capsys.readouterr().out), ours(paths))
    assert not main([*named, paths[0], "-o", "top_k=2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{one['score']:.4f}  {one['label']}" for one in ours(paths[0], top_k=2)]
    assert main([*named, "-"]) == 2
    listed, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    listed.write_text("image\n" + "\n".join([*paths, "none.png"]) + "\n")
    assert main([*named, "--in", str(listed), "--out", str(out)]) == 1
    records = [json.loads(line) for line in out.read_text().splitlines()]
    answered = [one["result"] for one in records if "result" in one]
    assert same(answered, ours(paths))
    assert any("none.png" in one.get("error", "") for one in records)

"""pixel_values equal to the reference's, bit for bit, for files of every kind and age."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

import mirada
from image.scene import encoded, noise, scene
from mirada.errors import MiradaError, UntrustedInputError
from mirada.image import Processor
from mirada.image.processor import FILTERS, cropped, resized

PICTURES = {"scene": scene(61, 47), "tall": scene(33, 90), "same": noise(24, 24),
            "small": noise(9, 13), "line": noise(40, 1), "large": noise(301, 222)}
HALF, SIDE = [0.5] * 3, {"height": 24, "width": 24}
THEIRS = {  # as each class writes itself, at sizes that a test can afford
    "vit": transformers.ViTImageProcessorPil(size=SIDE),
    "vit wide": transformers.ViTImageProcessorPil(size={"height": 16, "width": 40}, resample=3),
    "vit bare": transformers.ViTImageProcessorPil(size=SIDE, do_rescale=False, do_normalize=False),
    "vit unscaled": transformers.ViTImageProcessorPil(size=SIDE, do_rescale=False),
    "vit raw": transformers.ViTImageProcessorPil(size=SIDE, do_normalize=False),
    "deit": transformers.DeiTImageProcessorPil(
        size={"height": 30, "width": 30}, crop_size={"height": 23, "width": 24}),
    "deit padded": transformers.DeiTImageProcessorPil(size=SIDE, crop_size={
        "height": 29, "width": 24}),
    "beit": transformers.BeitImageProcessorPil(size=SIDE, do_center_crop=True, crop_size={
        "height": 20, "width": 21}),
    "clip": transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=SIDE),
}


def theirs(processor, picture) -> torch.Tensor:
    return processor(picture, return_tensors="pt")["pixel_values"].float()


def folder_of(processor, folder):
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", THEIRS)
def test_equal_to_the_reference_bit_for_bit(kind, tmp_path):
    ours = Processor.beside(folder_of(THEIRS[kind], tmp_path))
    for name, picture in PICTURES.items():
        wanted = theirs(THEIRS[kind], picture)
        made = ours(picture)["pixel_values"]
        assert made.dtype == torch.float32 and torch.equal(made, wanted), name
        assert wanted.isfinite().all() and wanted.std() > 0


@pytest.mark.parametrize("number", range(6))
def test_every_filter_is_pillows(number):
    reference = transformers.ViTImageProcessorPil(size=SIDE, resample=number)
    ours = Processor((24, 24), filter=FILTERS[number])
    for picture in PICTURES.values():
        assert torch.equal(ours(picture)["pixel_values"], theirs(reference, picture))


@pytest.mark.parametrize("change", [
    dict(filter="bicubic"), dict(size=(24, 25)), dict(size=24), dict(crop=(22, 24)),
    dict(mean=(0.5, 0.5, 0.4)), dict(std=(0.5, 0.4, 0.5)), dict(scale=1 / 256), dict(scale=None),
    dict(mean=None, std=None)])
def test_a_wrong_setting_shows(change):
    right, picture = Processor((24, 24)), PICTURES["scene"]
    made = replace(right, **change)(picture)["pixel_values"]
    wanted = theirs(THEIRS["vit"], picture)
    assert made.shape != wanted.shape or (made - wanted).abs().max() > 1e-3


def test_channels_and_rows_are_where_they_belong():
    swapped = np.array(PICTURES["scene"])[..., ::-1].copy()
    right = Processor((24, 24))(PICTURES["scene"])["pixel_values"]
    assert not torch.equal(Processor((24, 24))(swapped)["pixel_values"], right)
    assert torch.equal(Processor((24, 24))(swapped)["pixel_values"], right.flip(1))
    red = torch.zeros(24, 30, 3, dtype=torch.uint8)
    red[2, 5, 0] = 255
    found = Processor(None, scale=1 / 255, mean=None, std=None)(red)["pixel_values"]
    assert found.nonzero().tolist() == [[0, 0, 2, 5]]


OLD = {  # files as hubs still hold them: before kinds had today's names, sizes as numbers
    "vit": ({"do_normalize": True, "do_resize": True, "image_mean": HALF, "image_std": HALF,
             "feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 24}, "vit"),
    "swin": ({"do_normalize": True, "do_resize": True, "feature_extractor_type":
              "ViTFeatureExtractor", "image_mean": [0.485, 0.456, 0.406], "size": 24,
              "image_std": [0.229, 0.224, 0.225], "resample": 3}, "vit"),
    "deit": ({"crop_size": 23, "do_center_crop": True, "do_normalize": True, "do_resize": True,
              "feature_extractor_type": "DeiTFeatureExtractor", "image_mean": HALF,
              "image_std": HALF, "resample": 3, "size": 30}, "deit"),
    "beit": ({"crop_size": 20, "do_center_crop": False, "do_normalize": True, "do_resize": True,
              "feature_extractor_type": "BeitFeatureExtractor", "image_mean": HALF,
              "image_std": HALF, "resample": 2, "size": 24, "reduce_labels": False}, "beit"),
    "clip": ({"crop_size": 24, "do_center_crop": True, "do_normalize": True, "do_resize": True,
              "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": 26,
              "image_mean": [0.48145466, 0.4578275, 0.40821073],
              "image_std": [0.26862954, 0.26130258, 0.27577711]}, "clip"),
    "fast": ({"crop_size": None, "data_format": "channels_first", "default_to_square": True,
              "device": None, "disable_grouping": None, "do_center_crop": None, "do_pad": None,
              "do_convert_rgb": None, "do_normalize": True, "do_rescale": True, "do_resize": True,
              "image_mean": HALF, "image_processor_type": "ViTImageProcessorFast", "size": SIDE,
              "image_std": HALF, "input_data_format": None, "pad_size": None, "resample": 2,
              "rescale_factor": 0.00392156862745098, "return_tensors": None}, "vit"),
    "least": ({"image_processor_type": "CLIPImageProcessor"}, "clip"),
}


@pytest.mark.parametrize("name", OLD)
def test_older_files_mean_what_they_meant(name, tmp_path):
    raw, kind = OLD[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(raw))
    ours = Processor.beside(tmp_path)
    reference = type(THEIRS[kind]).from_pretrained(tmp_path)
    for picture in (PICTURES["scene"], PICTURES["tall"]):
        assert torch.equal(ours(picture)["pixel_values"], theirs(reference, picture))
    ours.save(tmp_path)
    kept = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert kept == raw, "the file's own keys are written back"


def test_a_changed_setting_is_written_and_means_the_same_there(tmp_path):
    came = Processor.parse(OLD["clip"][0])
    changed = replace(came, size=(40, 30), filter="bilinear", crop=None)
    for made in (changed, Processor((20, 28)), Processor(30, (24, 24), "lanczos", mean=None,
                                                         std=None), Processor(None, scale=None)):
        made.save(tmp_path)
        assert Processor.beside(tmp_path) == made
        reference = transformers.AutoImageProcessor.from_pretrained(tmp_path)
        assert torch.equal(made(PICTURES["scene"])["pixel_values"],
                           theirs(reference, PICTURES["scene"]))


def test_the_newest_layout_nests_it(tmp_path):
    inner = json.loads(THEIRS["clip"].to_json_string())
    (tmp_path / "processor_config.json").write_text(json.dumps(
        {"image_processor": inner, "processor_class": "CLIPProcessor"}))
    assert Processor.beside(tmp_path) == Processor.parse(inner)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OLD["vit"][0]))
    assert Processor.beside(tmp_path) == Processor.parse(inner), "as in the reference"
    (tmp_path / "processor_config.json").write_text('{"image_seq_length": 9}')
    assert Processor.beside(tmp_path) == Processor.parse(OLD["vit"][0])
    assert Processor.beside(tmp_path / "none") is None


@pytest.mark.parametrize("change, said", [
    ({"crop_pct": 0.9}, "crop_pct: this key"), ({"do_pad": True}, "do_pad: this key"),
    ({"data_format": "channels_last"}, "data_format"), ({"size": "24"}, "a height and a width"),
    ({"size": {"longest_edge": 9}}, "longest_edge"), ({"size": 10**6}, "1 to 8,192"),
    ({"size": [24]}, "a height and a width"), ({"size": True}, "a height and a width"),
    ({"size": 2.5}, "a height and a width"), ({"size": 0}, "a height and a width"),
    ({"resample": 7}, "a number of 0 to 5"), ({"resample": True}, "resample"),
    ({"do_resize": 1}, "true or false"), ({"image_mean": [0.5]}, "for each of"),
    ({"image_std": [0, 1, 1]}, "no std 0"), ({"image_mean": "x"}, "x"),
    ({"rescale_factor": "x"}, "x"), ({"do_center_crop": True}, "crop is"),
    ({"image_processor_type": "ConvNextImageProcessor"}, "none that mirada knows"),
    ({"image_processor_type": None, "feature_extractor_type": None}, "none that mirada knows")])
def test_a_key_is_a_field_or_inert_or_an_error(tmp_path, change, said):
    where = tmp_path / "preprocessor_config.json"
    where.write_text(json.dumps(OLD["vit"][0] | change))
    with pytest.raises(UntrustedInputError, match=said) as found:
        Processor.beside(tmp_path)
    assert str(where) in str(found.value)


def test_code_that_a_file_names_is_never_acted_on(tmp_path):
    raw = OLD["vit"][0] | {"auto_map": {"AutoImageProcessor": "evil.Processor"}, "_name": "x"}
    ours = Processor.parse(raw)
    assert ours == Processor.parse(OLD["vit"][0]) and "auto_map" not in ours.data()


def test_a_picture_too_narrow_for_its_shorter_edge_is_refused():
    with pytest.raises(MiradaError, match="too narrow"):
        Processor(224)(torch.zeros(1, 400_000, 3, dtype=torch.uint8))
    with pytest.raises(MiradaError, match="filter is 'cubic'"):
        Processor(filter="cubic")


def test_one_or_several():
    ours, picture = Processor((24, 24)), PICTURES["scene"]
    one = ours(picture)["pixel_values"]
    assert one.shape == (1, 3, 24, 24)
    two = ours([picture, PICTURES["tall"]])["pixel_values"]
    assert torch.equal(two[:1], one) and two.shape == (2, 3, 24, 24)
    array = np.stack([np.array(picture)] * 2)
    assert torch.equal(ours(array)["pixel_values"], one.expand(2, -1, -1, -1))
    assert torch.equal(ours(torch.from_numpy(array))["pixel_values"], one.expand(2, -1, -1, -1))
    with pytest.raises(MiradaError, match="2 sizes"):
        Processor(None)([picture, PICTURES["tall"]])
    with pytest.raises(MiradaError, match="no picture"):
        ours([])
    grey = Processor((24, 24), mean=(0.5,), std=(0.5,), channels=1)
    assert grey(picture)["pixel_values"].shape == (1, 1, 24, 24)


@pytest.mark.parametrize("height, width", [(5, 5), (4, 7), (9, 3), (6, 6), (1, 12)])
def test_the_middle_is_the_middle(height, width):
    x = torch.arange(1, 37, dtype=torch.uint8).view(6, 6, 1)
    made = cropped(x, height, width)
    assert made.shape == (height, width, 1)
    tall, wide = min(height, 6), min(width, 6)
    inside = x[(6 - tall) // 2 :, (6 - wide) // 2 :][:tall, :wide]
    top, left = -(-(height - tall) // 2), -(-(width - wide) // 2)
    assert torch.equal(made[top : top + tall, left : left + wide], inside)
    assert made.sum() == inside.sum(), "the rest is black"


def test_resizing_to_the_same_size_changes_nothing():
    x = torch.from_numpy(np.array(PICTURES["same"]))
    assert resized(x, 24, 24) is x


def test_a_models_processor(tmp_path):
    vit = mirada.build("vit:tiny", channels=1, image=(16, 24))
    plain = vit.processor
    assert plain == Processor((16, 24), mean=(0.5,), std=(0.5,), channels=1)
    pixels = vit.processor(PICTURES["scene"])
    assert vit(**pixels).logits.shape == (1, 10)
    assert pixels["pixel_values"].min() >= -1 and pixels["pixel_values"].max() <= 1
    mirada.save(vit, tmp_path / "assumed")
    assert not (tmp_path / "assumed" / "preprocessor_config.json").exists()
    vit.processor = replace(plain, filter="lanczos")
    mirada.save(vit, tmp_path / "said")
    again = mirada.load(tmp_path / "said")
    assert again.processor == vit.processor and again.processor is again.processor
    mirada.save(again, tmp_path / "again")
    one, two = ((tmp_path / who / "preprocessor_config.json").read_bytes()
                for who in ("said", "again"))
    assert one == two
    assert mirada.build("bert:tiny").processor is None


def test_what_the_files_say_wrongly_stops_the_save_and_not_the_load(tmp_path):
    mirada.save(mirada.build("vit:tiny"), tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text('{"image_processor_type": "X"}')
    m = mirada.load(tmp_path / "m")
    with pytest.raises(UntrustedInputError, match="none that mirada knows"):
        mirada.save(m, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    m.processor = Processor((32, 32))
    mirada.save(m, tmp_path / "out")


def test_a_file_read_by_path_equals_the_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PICTURES["scene"], "PNG"))
    ours = Processor((24, 24))
    assert torch.equal(ours(tmp_path / "a.png")["pixel_values"],
                       theirs(THEIRS["vit"], PICTURES["scene"]))

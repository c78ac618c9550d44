"""Reading pictures: every kind becomes the same bytes, every hostile one a sentence, at once."""

import os
import resource
import sys
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from image.scene import encoded, noise, png, scene
from mirada.errors import MiradaError, UntrustedInputError
from mirada.image import Processor, decode, read

PICTURE = scene()
WANTED = torch.from_numpy(np.array(PICTURE))
SECONDS, BYTES = 2.0, 256 << 20


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "GIF"])
def test_files_that_lose_nothing(tmp_path, form):
    picture = PICTURE.quantize(64).convert("RGB")  # GIF has 256 colours
    path = tmp_path / "picture"  # no ending: the bytes say what it is
    path.write_bytes(encoded(picture, form, **({"lossless": True} if form == "WEBP" else {})))
    for source in (path, str(path), Image.open(path)):
        x = read(source)
        assert x.dtype == torch.uint8 and torch.equal(x, torch.from_numpy(np.array(picture)))


def test_a_jpeg_is_what_pillow_makes_of_it(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(PICTURE, "JPEG"))
    assert torch.equal(read(path), torch.from_numpy(np.array(Image.open(path))))
    assert (read(path).int() - WANTED.int()).abs().float().mean() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_says_which_side_is_up(tmp_path, orientation):
    turns = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180,
             Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.TRANSPOSE,
             Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_270]
    turn, exif = turns[orientation - 1], Image.Exif()
    exif[0x0112] = orientation
    stored = PICTURE if turn is None else PICTURE.transpose(turn)
    (tmp_path / "a.png").write_bytes(encoded(stored, "PNG", exif=exif))
    assert torch.equal(read(tmp_path / "a.png"), WANTED)


@pytest.mark.parametrize("mode", ["L", "1", "P", "PA", "LA", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_three_colours(mode):
    converted = PICTURE.convert("P").convert("PA") if mode == "PA" else PICTURE.convert(mode)
    wanted = np.array(converted.convert("RGB"))
    assert torch.equal(read(converted), torch.from_numpy(wanted))
    assert read(converted, 1).shape == (*WANTED.shape[:2], 1)


def test_what_is_transparent_lies_on_white():
    clear = PICTURE.convert("RGBA")
    clear.putalpha(0)
    assert (read(clear) == 255).all() and (read(clear, 1) == 255).all()
    half = np.array(PICTURE.convert("RGBA"))
    half[..., 3] = 128
    mixed = (WANTED.float() * 128 / 255 + 255 * 127 / 255)
    for source in (Image.fromarray(half), half, torch.from_numpy(half).permute(2, 0, 1)):
        assert (read(source).float() - mixed).abs().max() <= 1
    palette = PICTURE.quantize(8)
    index = int(np.array(palette)[0, 0])
    palette.info["transparency"] = index
    x = read(palette)
    assert (x[torch.from_numpy(np.array(palette) == index)] == 255).all() and (x != 255).any()


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 60).reshape(6, 10).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    wanted = torch.from_numpy(np.rint(deep / 257.0)).byte()[:, :, None]
    for source in (tmp_path / "deep.png", deep, deep.astype(">u2")):
        assert torch.equal(read(source, 1), wanted)
        assert torch.equal(read(source), wanted.expand(-1, -1, 3))


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for form in ("GIF", "PNG", "WEBP"):
        path = tmp_path / f"a.{form}"
        frames[0].save(path, form, save_all=True, append_images=frames[1:], lossless=True)
        assert read(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("make", [
    lambda x: x, lambda x: x.permute(2, 0, 1), lambda x: x.float() / 255, lambda x: x.double(),
    lambda x: x.int(), lambda x: x.numpy(), lambda x: x.numpy()[::1].astype(np.int64),
    lambda x: x.numpy() / 255, lambda x: x.permute(2, 0, 1).numpy()])
def test_arrays_and_tensors(make):
    assert torch.equal(read(make(WANTED)), WANTED)


def test_grey_arrays_and_other_numbers_of_channels():
    grey = WANTED[..., 0]
    assert torch.equal(read(grey), grey[..., None].expand(-1, -1, 3))
    assert torch.equal(read(grey[None], 1), grey[..., None])
    assert torch.equal(read(grey > 100, 1), ((grey > 100) * 255).byte()[..., None])
    assert torch.equal(read(PICTURE, 1)[..., 0], torch.from_numpy(np.array(PICTURE.convert("L"))))
    seven = torch.randint(0, 256, (5, 6, 7), dtype=torch.uint8)
    assert torch.equal(read(seven, 7), seven)
    with pytest.raises(MiradaError, match="cannot become one of 7 channels"):
        read(PICTURE, 7)
    own = grey.clone()
    read(own, 1).zero_()
    assert torch.equal(own, grey), "the caller's picture is left as it was"


@pytest.mark.parametrize("wrong, said", [
    (torch.zeros(2, 3, 4, 5), r"of shape \(2, 3, 4, 5\)"), (np.zeros((6, 5, 2)), "of shape"),
    (np.zeros((0, 5, 3)), "of shape"), (torch.randn(3, 8, 8), "pixel_values go to the model"),
    (np.full((4, 4), np.nan), "between 0 and 255"), (np.full((4, 4), 300), "to 300"),
    (np.full((4, 4), 2.5), "neither"), (7, "not of type int"), (b"abc", "not of type bytes"),
    (None, "NoneType"), (Image.new("F", (3, 3), 9.5), "neither"),
    (Image.new("I", (3, 3), 70000), "to 7e")])
def test_what_is_no_picture(wrong, said):
    with pytest.raises(MiradaError, match=said):
        read(wrong)


HOSTILE = {
    "empty": b"", "text": b"hello", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "zip": b"PK\x03\x04" + b"\0" * 60,
    "tiff": encoded(scene(), "TIFF"), "ico": encoded(scene(), "ICO"),
    "jpeg 2000": encoded(scene(), "JPEG2000"), "ppm": encoded(scene(), "PPM"),
    "huge": png(50_000, 50_000), "wide": png(2**31 - 1, 1), "large": png(9_000, 9_000),
    "no size": png(0, 0), "cut png": encoded(noise(300, 300), "PNG")[:5000],
    "cut jpeg": encoded(noise(300, 300), "JPEG")[:5000], "cut gif": encoded(scene(), "GIF")[:300],
    "cut webp": encoded(noise(300, 300), "WEBP")[:3000], "head only": png(64, 64)[:40],
    "bad crc": png(8, 8).replace(b"IDAT", b"IDAX"), "cut bmp": encoded(scene(), "BMP")[:60],
    "text bomb": png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(b"\0" * (1 << 24)))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_one_sentence_at_once(tmp_path, name):
    path = tmp_path / "picture.png"
    path.write_bytes(HOSTILE[name])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UntrustedInputError) as found:
        read(path)
    assert time.process_time() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < BYTES
    said = str(found.value)
    assert str(path) in said and "\n" not in said and " at 0x" not in said
    assert found.value.__cause__ is None


def test_limits_are_told_before_anything_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(scene(), "PNG"))
    monkeypatch.setattr(decode, "PIXELS", 61 * 47 - 1)
    with pytest.raises(UntrustedInputError, match="more than 2,866 pixels"):
        read(path)
    monkeypatch.setattr(decode, "PIXELS", 61 * 47)
    assert read(path).shape == (47, 61, 3)
    monkeypatch.setattr(decode, "BYTES", 100)
    with pytest.raises(UntrustedInputError, match="more than 100"):
        read(path)
    with open(tmp_path / "sparse.png", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UntrustedInputError, match="bytes, more than"):
        read(tmp_path / "sparse.png")


def test_no_folder_pipe_device_or_address(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "none.png", "a\0b",
                 "file:///etc/passwd", "data:image/png;base64,AAAA"):
        with pytest.raises(UntrustedInputError, match="file: "):
            read(path)


def test_without_pillow_one_sentence_says_so(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(scene(), "PNG"))
    monkeypatch.setitem(sys.modules, "PIL", None)  # as where it is not installed
    x = torch.zeros(224, 224, 3, dtype=torch.uint8)
    assert read(x).shape == x.shape and Processor()(x)["pixel_values"].shape == (1, 3, 224, 224)
    for call in (lambda: read(path), lambda: Processor()(x[:100]), lambda: read(x, 1)):
        with pytest.raises(MiradaError, match=r"needs Pillow: pip install 'mirada\[look\]'"):
            call()

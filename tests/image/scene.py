"""Pictures for tests: a drawn scene with edges and slopes, noise, and files of every kind."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw


def scene(width: int = 61, height: int = 47) -> Image.Image:
    """A house on a hill under a sun; its sky is a slope of colours."""
    down = np.linspace(0, 1, height)[:, None, None]
    sky = (1 - down) * np.array([110, 160, 230]) + down * np.array([235, 220, 190])
    made = Image.fromarray(np.broadcast_to(sky, (height, width, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(made)
    pen.ellipse((width * .7, height * .1, width * .85, height * .3), fill=(255, 215, 60))
    pen.polygon([(0, height), (0, height * .7), (width * .45, height * .5), (width, height * .75),
                 (width, height)], fill=(70, 130, 70))
    pen.rectangle((width * .25, height * .5, width * .5, height * .85), fill=(190, 90, 60))
    return made


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(picture: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG that claims a size, with whatever chunks."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(
            ">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join(chunk(*one) for one in (chunks or ((b"IDAT", zlib.compress(b"\0" * 100)),)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")

"""A raw picture, of a file, PIL, an array or a tensor, as bytes (Y, X, C); no file is trusted."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mirada.errors import MiradaError, UntrustedInputError
from mirada.weights.paths import open_regular

PIXELS = 1 << 26  # most of a picture, 8,192 x 8,192
BYTES = 1 << 27  # most of a file
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # no other decoder of Pillow's is ever asked
MODES = {1: "L", 3: "RGB"}  # channels -> Pillow's name


def read(source, channels: int = 3) -> Tensor:
    """A picture as uint8 (Y, X, C), `channels` of them: 3 colours or 1 of grey.

    source: a path (PNG, JPEG, WebP, GIF, BMP; of an animation its first frame), a PIL picture, or
    an array or tensor (Y, X), (Y, X, C) or (C, Y, X), the latter where both could be: bytes,
    16 bits, whole numbers to 255 or parts of 1. An EXIF orientation is applied; what is transparent
    lies on white. Raises MiradaError, UntrustedInputError for a file that breaks a rule: more than
    PIXELS pixels (told before decoding) or BYTES bytes, another format, cut short, no regular file.
    """
    if isinstance(source, str | os.PathLike):
        return _file(source, channels)
    if isinstance(source, np.ndarray | Tensor):
        return _array(np.asarray(source.detach().cpu() if torch.is_tensor(source) else source),
                      channels)
    if "PIL.Image" in sys.modules and isinstance(source, sys.modules["PIL.Image"].Image):
        with _decoding("picture"):
            return _bytes(source, channels, "picture")
    raise MiradaError("a picture is a path, a PIL picture, an array or a tensor, and not of type "
                      f"{type(source).__name__}")


def pillow():
    """PIL.Image. Raises MiradaError where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise MiradaError("reading and resizing pictures needs Pillow: pip install "
                          "'mirada[look]'") from None
    return Image


def _file(path, channels: int) -> Tensor:
    opener = pillow().open
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > BYTES:
            raise UntrustedInputError(path, "size", f"is {size:,} bytes, more than {BYTES:,}")
        data = file.read(size)
    with _decoding(path):
        return _bytes(opener(io.BytesIO(data), formats=FORMATS), channels, path)


@contextmanager
def _decoding(path) -> Iterator[None]:
    """Whatever a decoder raises becomes one sentence: broken files make it raise nearly anything,
    and some of its messages hold addresses."""
    from PIL import Image, UnidentifiedImageError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except MiradaError:
        raise
    except UnidentifiedImageError:
        raise UntrustedInputError(path, "format", "is no picture that mirada reads: "
                                  f"{', '.join(FORMATS)}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _large(path) from None
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UntrustedInputError(path, "picture", f"cannot be decoded: {reason}") from None


def _large(path) -> UntrustedInputError:
    return UntrustedInputError(path, "size", f"has more than {PIXELS:,} pixels")


def _bytes(picture, channels: int, path) -> Tensor:
    """Of an opened PIL picture whose pixels may not have been decoded yet."""
    from PIL import ImageOps
    if picture.width * picture.height > PIXELS:
        raise _large(path)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):  # Pillow would clip what is deeper than bytes
        return _array(np.asarray(picture), channels)
    return torch.from_numpy(_plane(np.array(_converted(picture, channels))))


def _converted(picture, channels: int):
    """In the mode of so many channels, what is transparent on white. # differs: the reference's
    pipelines drop transparency and show what lies under it; its processors do this."""
    from PIL import Image
    if channels not in MODES:
        raise MiradaError(f"a picture of {'/'.join(picture.getbands())} cannot become one of "
                          f"{channels} channels: give an array that has them")
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        above = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return picture.convert(MODES[channels])


def _array(x: np.ndarray, channels: int) -> Tensor:
    counts = (1, 3, 4, channels)
    if x.ndim == 3 and x.shape[0] in counts:
        x = np.moveaxis(x, 0, 2)
    x = _plane(x)
    if x.ndim != 3 or x.shape[2] not in counts or x.size == 0:
        raise MiradaError(f"a picture is (height, width), (height, width, channels) or (channels, "
                          f"height, width), and this is of shape {x.shape}")
    x = levels(x)
    if x.shape[2] != channels:
        x = _plane(np.array(_converted(pillow().fromarray(x.squeeze(2) if x.shape[2] == 1 else x),
                                       channels)))
    return torch.from_numpy(np.array(x))  # an own one: the caller's may change, or not be written


def _plane(x: np.ndarray) -> np.ndarray:
    """Grey without an axis of channels, given one."""
    return x[:, :, None] if x.ndim == 2 else x


def levels(x: np.ndarray) -> np.ndarray:
    """Numbers as bytes: 16 bits scaled, bytes and whole numbers to 255 as they are, parts of 1
    times 255. Raises MiradaError for others, which no picture has."""
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "u" and x.dtype.itemsize == 2:  # of either byte order
        return ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = float(x.min()), float(x.max())
    if not (0 <= low and high <= 255):  # so written, NaN is refused too
        raise MiradaError(f"a picture's numbers lie between 0 and 255, or 0 and 1, and these go "
                          f"from {low:.4g} to {high:.4g}; pixel_values go to the model as they are")
    if high <= 1 and not np.issubdtype(x.dtype, np.integer):
        return np.rint(x.astype(np.float64) * 255).astype(np.uint8)
    if (x != np.rint(x)).any():
        raise MiradaError("a picture's numbers are whole ones to 255, or parts of 1, and these are "
                          f"neither (they go to {high:.4g})")
    return x.astype(np.uint8)

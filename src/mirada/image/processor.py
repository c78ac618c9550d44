"""From pictures to pixel_values: resize, crop, rescale, normalise, as a model's files say."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError, UntrustedInputError
from mirada.weights import jsonfile
from mirada.weights.config import passed_on

from .decode import PIXELS, pillow, read

FILES = ("processor_config.json", "preprocessor_config.json")  # the first where it has a part on it
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
COMMON = {
    "do_resize": True, "size": 224, "resample": 2, "do_center_crop": False, "crop_size": None,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "default_to_square": True}
KINDS = {  # what a file of each kind means by the keys that it leaves out
    "ViT": COMMON,
    "DeiT": COMMON | {"size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224},
    "Beit": COMMON | {"resample": 3, "crop_size": 224},
    "CLIP": COMMON | {
        "resample": 3, "do_center_crop": True, "crop_size": 224, "default_to_square": False,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711]}}
NAMED = ("image_processor_type", "feature_extractor_type")  # today's name of the kind, and before
INERT = {*NAMED, "processor_class", "device", "disable_grouping", "return_tensors",
         "do_convert_rgb", "do_reduce_labels", "reduce_labels"}  # the last two: of segmentations


@dataclass(frozen=True)
class Processor:
    """What a picture goes through before a model sees it.

    size: (height, width) in pixels, or one number for the shorter edge, the other in proportion;
    None leaves it as it is. crop: (height, width) cut from the middle, what lies outside is black.
    filter: of FILTERS, Pillow's. scale: what bytes are multiplied by. mean, std: of each channel,
    taken off and divided by. raw: the keys of the file that it came from. Raises MiradaError.
    """

    size: tuple[int, int] | int | None = (224, 224)
    crop: tuple[int, int] | None = None
    filter: str = "bilinear"
    scale: float | None = 1 / 255
    mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    std: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    channels: int = 3
    raw: dict = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self):
        edge = (self.size, self.size) if type(self.size) is int else self.size
        for name, sides in (("size", edge), ("crop", self.crop)):
            if sides is not None and not (isinstance(sides, tuple) and len(sides) == 2 and all(
                    type(n) is int and 0 < n and n * n <= PIXELS for n in sides)):
                raise MiradaError(f"{name} is {sides!r:.60}; it is a height and a width, of 1 to "
                                  f"{math.isqrt(PIXELS):,} pixels each")
        if self.filter not in FILTERS:
            raise MiradaError(f"filter is {self.filter!r}; it can be {', '.join(FILTERS)}")
        told = (self.mean or ()) + (self.std or ())
        if (self.mean is None) != (self.std is None) or not all(map(math.isfinite, told)) or (
                told and not len(self.mean) == len(self.std) == self.channels) or (
                0 in (self.std or ())):
            raise MiradaError(f"mean {self.mean} and std {self.std} must be a number for each of "
                              f"{self.channels} channels, and no std 0")

    @classmethod
    def beside(cls, folder) -> Processor | None:
        """Of a model's folder; None where it holds no file on it. Raises UntrustedInputError."""
        for where in (Path(folder) / name for name in FILES):
            if where.is_file():
                raw = jsonfile.read(where)
                if where.name == FILES[0] and isinstance(raw, dict):
                    raw = raw.get("image_processor")
                if isinstance(raw, dict):
                    return cls.parse(raw, where)
        return None

    @classmethod
    def plain(cls, config) -> Processor:
        """For a model that came without: its own size of picture, every value from -1 to 1."""
        sides, channels = config.image, config.channels
        half = (0.5,) * channels
        return cls((sides, sides) if isinstance(sides, int) else tuple(sides), mean=half, std=half,
                   channels=channels)

    @classmethod
    def parse(cls, raw: dict, path=FILES[1]) -> Processor:
        """From a file's keys, each of them known. Raises UntrustedInputError."""
        told = COMMON | _kind(raw, path) | {k: v for k, v in raw.items() if v is not None}
        for name, value in told.items():
            if name not in COMMON and name not in INERT and passed_on(name) and (
                    name, value) not in (("data_format", "channels_first"), ("do_pad", False)):
                raise UntrustedInputError(path, name, f"this key (value {value!r:.60}) is not "
                                          "known, and pictures read without it could be silently "
                                          "wrong; where it changes none, take it out of the file")
            if name.startswith("do_") and not isinstance(value, bool):
                raise UntrustedInputError(path, name, f"{value!r:.60} is not true or false")
        try:
            return cls(**_fields(told), raw=raw)
        except (TypeError, ValueError, LookupError, MiradaError) as error:
            raise UntrustedInputError(path, "picture", str(error)) from None

    def data(self) -> dict:
        """The file's keys: those it came with, and ours where they say something else."""
        came = Processor.parse(self.raw)._said() if self.raw else {}
        kept = {k: v for k, v in self.raw.items() if passed_on(k)}
        kept = kept or {NAMED[0]: "ViTImageProcessor"}
        return kept | {k: v for k, v in self._said().items() if k not in came or came[k] != v}

    def save(self, folder) -> None:
        """Write preprocessor_config.json."""
        jsonfile.write(Path(folder) / FILES[1], self.data())

    def __call__(self, images) -> dict[str, Tensor]:
        """{"pixel_values": (B, C, Y, X)} in float32, of one picture or a list (an array or tensor
        of four axes is one too); what a picture may be, see read. Raises MiradaError."""
        stacked = isinstance(images, np.ndarray | Tensor) and images.ndim == 4
        several = list(images) if stacked or isinstance(images, list | tuple) else [images]
        if not several:
            raise MiradaError("there is no picture: give one or more")
        made = [self.pixels(self.seen(image)) for image in several]
        shapes = sorted({tuple(x.shape[1:]) for x in made})
        if len(shapes) > 1:
            raise MiradaError(f"these pictures have {len(shapes)} sizes ({shapes[0]}, {shapes[1]} "
                              "...), and this model's files bring them to no single one: give them "
                              "one by one")
        return {"pixel_values": torch.stack(made)}

    def seen(self, image) -> Tensor:
        """(Y, X, C) uint8: a picture cut and sized as the model sees it. Raises MiradaError."""
        x = read(image, self.channels)
        if self.size is not None:
            x = resized(x, *self._target(*x.shape[:2]), self.filter)
        return x if self.crop is None else cropped(x, *self.crop)

    def pixels(self, seen: Tensor) -> Tensor:
        """(..., C, Y, X) float32, of what seen() gave; rounded where the reference rounds."""
        x = seen.movedim(-1, -3)
        x = x.float() if self.scale is None else (x.double() * self.scale).float()
        if self.mean is None:
            return x
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None]
                     for v in (self.mean, self.std))
        return (x - mean) / std

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.size, int):
            return self.size
        short, long = sorted((height, width))
        other = int(self.size * long / short)
        return (self.size, other) if height <= width else (other, self.size)

    def _said(self) -> dict:
        """These fields in a file's form."""
        sides = self.size if self.size is not None else (224, 224)
        of = {"shortest_edge": sides} if isinstance(sides, int) else _named(sides)
        return {"do_resize": self.size is not None, "size": of,
                "resample": FILTERS.index(self.filter), "do_center_crop": self.crop is not None,
                **({"crop_size": _named(self.crop)} if self.crop else {}),
                "do_rescale": self.scale is not None,
                **({"rescale_factor": self.scale} if self.scale is not None else {}),
                "do_normalize": self.mean is not None,
                **({"image_mean": [*self.mean], "image_std": [*self.std]} if self.mean else {})}


def _named(sides) -> dict:
    return {"height": sides[0], "width": sides[1]}


def _kind(raw: dict, path) -> dict:
    """What the keys mean that a file leaves out: that is for its kind to say."""
    named = str(next((raw[key] for key in NAMED if raw.get(key)), ""))
    name = named
    for tail in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(tail)
    if name not in KINDS:
        raise UntrustedInputError(path, NAMED[0], f"{named!r} is none that mirada knows: "
                                  f"{', '.join(f'{kind}ImageProcessor' for kind in KINDS)}")
    return KINDS[name]


def _fields(told: dict) -> dict:
    """Ours, of a file's keys. Raises what wrong types raise."""
    made: dict = {"size": None, "scale": None, "mean": None, "std": None}
    if type(told["resample"]) is not int or not 0 <= told["resample"] < len(FILTERS):
        raise MiradaError(f"resample is {told['resample']!r:.60}; it is a number of 0 to "
                          f"{len(FILTERS) - 1}: {', '.join(FILTERS)}")
    if told["do_resize"]:
        made["size"] = _sides(told["size"], told["default_to_square"])
    if told["do_center_crop"]:
        made["crop"] = _sides(told["crop_size"], True)
    if told["do_rescale"]:
        made["scale"] = float(told["rescale_factor"])
    if told["do_normalize"]:
        mean, std = (told[name] for name in ("image_mean", "image_std"))
        made["channels"] = next((len(x) for x in (mean, std) if isinstance(x, list)), 3)
        made["mean"], made["std"] = (tuple(map(float, x if isinstance(x, list) else
                                               [x] * made["channels"])) for x in (mean, std))
    return made | {"filter": FILTERS[told["resample"]]}


def _sides(given, square: bool) -> tuple[int, int] | int:
    """A size as files say it: a number, [height, width] or an object with names."""
    if isinstance(given, list):
        return tuple(given)
    if not isinstance(given, dict):
        return (given, given) if square else given
    if given.keys() == {"height", "width"}:
        return given["height"], given["width"]
    if given.keys() == {"shortest_edge"}:
        return given["shortest_edge"]
    raise ValueError(f"a size has height and width, or shortest_edge, and this one has "
                     f"{', '.join(map(str, given))}")


def resized(x: Tensor, height: int, width: int, filter: str = "bilinear") -> Tensor:
    """(height, width, C) uint8 by Pillow's filter, which its fixed-point sums make exact; each
    channel for itself. Raises MiradaError."""
    if tuple(x.shape[:2]) == (height, width):
        return x
    if not 0 < height * width <= PIXELS:
        raise MiradaError(f"a picture of {x.shape[1]} x {x.shape[0]} pixels would become one of "
                          f"{width} x {height}: it is too narrow for this model")
    how, image = FILTERS.index(filter), pillow()
    planes = [image.fromarray(plane.contiguous().numpy()).resize((width, height), how)
              for plane in x.unbind(2)]
    return torch.stack([torch.from_numpy(np.array(plane)) for plane in planes], 2)


def cropped(x: Tensor, height: int, width: int) -> Tensor:
    """(height, width, C) from the middle of (Y, X, C); black where it does not reach."""
    for axis, side in ((0, height), (1, width)):
        missing = side - x.shape[axis]
        if missing > 0:
            before = (missing + 1) // 2
            around = [0, 0] * (2 - axis) + [before, missing - before]  # F.pad: the last axis first
            x = F.pad(x, around)
        else:
            x = x.narrow(axis, -missing // 2, side)
    return x

"""Pictures with labels: from tensors, folders, .npz and .jsonl; changed by chance, and told apart.

The changes are what small sets of pictures live on: shifts, mirror images, and crops of any size
(Szegedy et al., 1409.4842, sec. 6).
"""

from __future__ import annotations

import math
import random
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError, UntrustedInputError
from mirada.text.records import values
from mirada.weights.paths import open_regular

from .loss import wide

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # of pictures in folders
LIMIT = 4 << 30  # bytes that an .npz may unpack to
BROKEN = (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Labelled:
    """pictures: tensors (C, Y, X) as a model reads them, or what its processor makes such of:
    paths, bytes (Y, X) or (Y, X, C). labels: a number each, of names."""

    pictures: Sequence[Any]
    labels: list[int]
    names: list[str]


class Pictures:
    """Which of the labels a picture shows: cross-entropy, and the share of right answers.

    processor: a model's, where data.pictures are not (C, Y, X) already. changes: functions of
    (picture, draw), in their order. smoothing: the share of the target that all labels divide
    (1512.00567, sec. 7). places: tokens that a model makes of a picture.
    """

    def __init__(self, data: Labelled, processor=None, *,
                 changes: Sequence[Callable] = (), smoothing: float = 0.0, places: int = 1):
        if len(data.pictures) != len(data.labels):
            raise MiradaError(f"there are {len(data.pictures)} pictures and {len(data.labels)} "
                              "labels: each picture has one")
        self.data, self.processor, self.changes = data, processor, tuple(changes)
        self.smoothing, self.places, self.count = smoothing, places, len(data.labels)

    def sample(self, index: int, draw) -> tuple[Tensor, int]:
        """draw: None for a picture as it is."""
        picture = self.data.pictures[index]
        if self.processor is not None:
            picture = self.processor(picture)["pixel_values"][0]
        for change in self.changes if draw is not None else ():
            picture = change(picture, draw)
        return picture, self.data.labels[index]

    def batch(self, samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([picture for picture, _ in samples]),
                "labels": torch.tensor([label for _, label in samples])}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["labels"]))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        labels = batch["labels"].to(model.device)
        logits = wide(model(pixel_values=batch["pixel_values"].to(model.device))["logits"])
        right = float((logits.argmax(-1) == labels).float().mean())
        return F.cross_entropy(logits, labels, reduction="sum",
                               label_smoothing=self.smoothing), {"accuracy": right}


def label_names(model) -> list[str] | None:
    """What a model's files call its labels, in the order of its scores; None where nothing does."""
    told = model.origin.raw.get("id2label") or {}
    names = [told.get(str(n)) for n in range(len(told))]
    return None if None in names or not names else names


@torch.no_grad()
def accuracy(model, pictures: Pictures, batch: int = 256) -> float:
    """The share of pictures, as they are, whose label a model gives the highest score."""
    was, right = model.training, 0
    model.eval()
    try:
        for start in range(0, pictures.count, batch):
            some = pictures.batch([pictures.sample(n, None) for n in range(
                start, min(start + batch, pictures.count))])
            told = model(pixel_values=some["pixel_values"].to(model.device))["logits"].argmax(-1)
            right += int((told.cpu() == some["labels"]).sum())
    finally:
        model.train(was)
    return right / pictures.count


# Changes: functions of a picture (C, Y, X) and the draw


def shift(picture: Tensor, draw: random.Random, most: int) -> Tensor:
    """Moved by up to `most` pixels each way; what comes in is the edge's."""
    Y, X = picture.shape[1:]
    down, right = (draw.randint(0, 2 * most) for _ in range(2))
    wider = F.pad(picture[None], (most, most, most, most), mode="replicate")[0]
    return wider[:, down : down + Y, right : right + X]


def flip(picture: Tensor, draw: random.Random) -> Tensor:
    """Every other one mirrored. Not for what has a side to it, such as digits."""
    return picture.flip(-1) if draw.random() < 0.5 else picture


def crop(picture: Tensor, draw: random.Random, least: float) -> Tensor:
    """A part of it, from `least` of its area to all, from 3:4 to 4:3, drawn to its whole size."""
    Y, X = picture.shape[1:]
    area, ratio = draw.uniform(least, 1.0), math.exp(draw.uniform(-1, 1) * math.log(4 / 3))
    high = min(Y, max(1, round(Y * math.sqrt(area / ratio))))
    broad = min(X, max(1, round(X * math.sqrt(area * ratio))))
    top, left = draw.randint(0, Y - high), draw.randint(0, X - broad)
    part = picture[None, :, top : top + high, left : left + broad]
    return F.interpolate(part, size=(Y, X), mode="bilinear", antialias=True)[0]


def changes(most: int = 0, mirror: bool = False, least: float = 1.0) -> list[Callable]:
    """Of the words of a run: pixels to shift by, whether to mirror, the least share to crop to."""
    if type(most) is not int or most < 0 or type(mirror) is not bool or not 0 < least <= 1:
        raise MiradaError(f"shift is {most!r}, a number of pixels; flip {mirror!r}, true or false; "
                          f"crop {least!r}, a share of the area above 0, at most 1: correct them")
    return [change for change, used in (
        (partial(crop, least=least), least < 1), (partial(shift, most=most), most > 0),
        (flip, mirror)) if used]


# Data


def of(pictures: Sequence[Any] | Tensor, labels: Sequence[int], names: Sequence[str] | None = None
       ) -> Labelled:
    """Pictures and numbers, which are named by themselves unless told."""
    numbers = [int(n) for n in labels]
    if not numbers or min(numbers) < 0:
        raise MiradaError("each picture has a label, a number from 0 on; "
                          + (f"one is {min(numbers)}" if numbers else "there are none"))
    found = list(names) if names is not None else list(map(str, range(max(numbers) + 1)))
    if max(numbers) >= len(found):
        raise MiradaError(f"there are {len(found)} names of labels, and a label {max(numbers)}")
    return Labelled(pictures, numbers, found)


def read(paths: Sequence[str | Path], names: Sequence[str] | None = None) -> Labelled:
    """Pictures of folders (folder/label/picture.png), .npz files (images: bytes (N, Y, X) or
    (N, Y, X, C); labels: numbers (N,); names, unless the labels are their own) and .jsonl files
    ({"image": a path beside it, or rows of 0 to 255; "label": a name}), all as one set.

    names: those that a model tells apart, in its order; None: those that are found, in theirs.
    Raises MiradaError, UntrustedInputError.
    """
    found = [(picture, name) for path in map(Path, paths) for picture, name in _reader(path)(path)]
    if not found:
        raise MiradaError(f"{', '.join(map(str, paths))}: there is no picture; a folder holds one "
                          f"folder a label, with pictures ({', '.join(KINDS)}) in it")
    names = list(names or sorted({name for _, name in found}, key=_ordered))
    numbers = {name: n for n, name in enumerate(names)}
    other = next((name for _, name in found if name not in numbers), None)
    if other is not None:
        raise MiradaError(f"a picture is labelled {other!r}, and the model tells "
                          f"{', '.join(names[:10])}{' ...' if names[10:] else ''} apart")
    return Labelled([picture for picture, _ in found], [numbers[name] for _, name in found], names)


def _ordered(name: str) -> tuple:
    """Numbers by size, before names by letter."""
    whole = name.isascii() and name.isdigit()
    return (not whole, int(name) if whole else 0, name)


def _reader(path: Path) -> Callable:
    if path.is_dir():
        return _folder
    known = {".npz": _arrays, ".jsonl": _records}
    if path.suffix.lower() not in known:
        raise MiradaError(f"{path} holds no pictures with labels: give a folder of one folder a "
                          "label, an .npz, or a .jsonl")
    return known[path.suffix.lower()]


def _folder(path: Path) -> list[tuple[Path, str]]:
    return [(picture, label.name) for label in sorted(path.iterdir())
            if label.is_dir() and not label.name.startswith(".")
            for picture in sorted(label.iterdir())
            if picture.suffix.lower() in KINDS and not picture.name.startswith(".")]


def _arrays(path: Path) -> list[tuple[np.ndarray, str]]:
    with open_regular(path) as file:
        try:
            size = sum(one.file_size for one in zipfile.ZipFile(file).infolist())
            if size > LIMIT:
                raise UntrustedInputError(path, "size", f"unpacks to {size:,} bytes; at most "
                                          f"{LIMIT:,} are read")
            file.seek(0)
            held = {name: value for name, value in np.load(file, allow_pickle=False).items()}
        except BROKEN as error:
            raise UntrustedInputError(path, "file", f"is no .npz of numbers: {error}") from None
    images, labels = held.get("images"), held.get("labels")
    if images is None or images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UntrustedInputError(path, "images", "must be bytes, (N, Y, X) or (N, Y, X, C)")
    if (labels is None or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"
            or not len(labels) or labels.min() < 0):
        raise UntrustedInputError(path, "labels", f"must be {len(images)} numbers, 0 or more: one "
                                  "a picture")
    names = held.get("names", np.arange(labels.max() + 1)).astype(str)
    if names.ndim != 1 or labels.max() >= len(names):
        raise UntrustedInputError(path, "names", f"has none for label {labels.max()}")
    return [(image, str(names[n])) for image, n in zip(images, labels, strict=True)]


def _records(path: Path) -> list[tuple[Any, str]]:
    rows = []
    for record in values(path, {}):
        said = record.error
        item = {} if said else record.item
        image, label = item.get("image"), item.get("label")
        if said is None and not (isinstance(label, str) or type(label) is int):
            said = "'label' holds no name"
        if said is None:
            image, said = _image(image, path)
        if said is not None:
            raise MiradaError(f"{path}, row {record.row}: {said}")
        rows.append((image, str(label)))
    return rows


def _image(said, path: Path) -> tuple[Any, str | None]:
    """(the picture, None), or what is wrong with it."""
    if isinstance(said, str):
        return path.parent / said, None
    try:
        points = np.array(said)
    except ValueError:  # rows of unequal length
        return None, "'image' has rows of unequal length"
    if points.ndim not in (2, 3) or points.dtype.kind not in "iu" or not (
            0 <= points.min(initial=0) <= points.max(initial=0) <= 255):
        return None, "'image' is neither a path nor rows of whole numbers, 0 to 255"
    return points.astype(np.uint8), None

"""Masked pictures: MAE paints the hidden patches (2111.06377); BEiT names their visual tokens
(2106.08254), which a small autoencoder learned before (2102.12092)."""

from __future__ import annotations

import torch
from torch import Tensor

from mirada.errors import MiradaError

from .loss import IGNORED, token_loss, wide
from .pictures import Labelled, Pictures


class HiddenPatches:
    """MAE: a share of the patches is hidden, anew each epoch, and painted from the others; how many
    and whether each patch is normed say the model's config. pictures: see shown."""

    def __init__(self, pictures: Tensor | Pictures, model):
        if "noise" not in model.reads:
            raise MiradaError(f"{model.architecture} hides no patches by itself: patches are "
                              "painted by ViTMAEForPreTraining")
        self.pictures, self.grid = shown(pictures, model), model.body.embed.grid
        self.count, self.places = self.pictures.count, self.pictures.places

    def sample(self, index: int, draw) -> tuple[Tensor, list[float]]:
        rows, columns = self.grid
        picture, _ = self.pictures.sample(index, draw)
        return picture, [draw.random() for _ in range(rows * columns)]

    def batch(self, samples: list) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([picture for picture, _ in samples]),
                "noise": torch.tensor([noise for _, noise in samples])}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["noise"]))  # of each picture as many patches are hidden

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        return wide(model(**given).loss) * len(given["noise"]), {}


class HiddenCodes:
    """BEiT: blocks of patches are hidden, and the code that `autoencoder` (parts.dvae) gives to
    each is told. share, least: see blockwise. pictures: see shown."""

    def __init__(self, pictures: Tensor | Pictures, model, autoencoder, share: float = 0.4,
                 least: int = 16):
        if not model.architecture.endswith("ForMaskedImageModeling") or not model.config.masks:
            raise MiradaError(f"{model.architecture} does not tell the codes of hidden patches: "
                              "build BeitForMaskedImageModeling with masks=True")
        codes, patch = autoencoder.config.codes, (autoencoder.config.patch,) * 2
        if (codes, patch) != (model.config.codes, model.body.embed.patch):
            raise MiradaError(f"the autoencoder has {codes} codes, each of {patch} pixels: a model "
                              "that tells them is built with as many codes and patches as large")
        self.pictures, self.grid = shown(pictures, model), model.body.embed.grid
        self.count, self.places = self.pictures.count, self.pictures.places
        self.autoencoder = autoencoder.eval().to(model.device)
        self.share, self.least = share, least

    def sample(self, index: int, draw) -> tuple[Tensor, list[bool]]:
        rows, columns = self.grid
        picture, _ = self.pictures.sample(index, draw)
        return picture, blockwise(rows, columns, draw, self.share, self.least)

    def batch(self, samples: list) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack([picture for picture, _ in samples]),
                "bool_masked_pos": torch.tensor([hidden for _, hidden in samples])}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(batch["bool_masked_pos"].sum())

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        given = {k: v.to(model.device) for k, v in batch.items()}
        with torch.no_grad():
            codes = self.autoencoder.codes(given["pixel_values"].to(self.autoencoder.dtype))
        hidden = given["bool_masked_pos"]
        logits = model(**given).logits  # (B, N, V)
        right = float((logits.argmax(-1) == codes)[hidden].float().mean())
        return token_loss(logits, codes.where(hidden, IGNORED)), {"right": right}


class VisualCodes:
    """What trains the autoencoder: the pixels' squared error, and `even` times how far its choices
    are from even (eq. 1). pictures: (count, C, Y, X). temperature: of the Gumbel softmax."""

    def __init__(self, pictures: Tensor, temperature: float = 1.0, even: float = 0.0):
        self.pictures, self.count = pictures, len(pictures)
        self.temperature, self.even = temperature, even

    def sample(self, index: int, draw) -> Tensor:
        return self.pictures[index]

    def batch(self, samples: list) -> dict[str, Tensor]:
        return {"pixel_values": torch.stack(samples)}

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float(len(batch["pixel_values"]))

    def loss(self, model, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        pixels = batch["pixel_values"].to(model.device, model.dtype)
        painted, scores = model(pixels, self.temperature)
        wrong = (wide(painted) - pixels).square().mean()
        far = model.divergence(wide(scores)).mean()
        return (wrong + self.even * far) * len(pixels), {
            "wrong": float(wrong.detach()), "far": float(far.detach())}


def blockwise(rows: int, columns: int, draw, share: float = 0.4, least: int = 16) -> list[bool]:
    """Which patches are hidden, row by row: rectangles of at least `least` patches, 0.3 to 1 / 0.3
    times as high as wide, until more than `share` of all are (BEiT, algorithm 1)."""
    if not 0 < share < 1 or least < 1:
        raise MiradaError(f"share is {share} and least {least}: a part of the patches is hidden, "
                          "in blocks of 1 or more")
    hidden: set[int] = set()
    wanted = share * rows * columns
    while len(hidden) <= wanted:
        size = draw.uniform(least, max(least, wanted - len(hidden)))
        ratio = draw.uniform(0.3, 1 / 0.3)
        high = min(rows, max(1, round((size * ratio) ** 0.5)))
        broad = min(columns, max(1, round((size / ratio) ** 0.5)))
        top, left = draw.randint(0, rows - high), draw.randint(0, columns - broad)
        hidden |= {row * columns + column for row in range(top, top + high)
                   for column in range(left, left + broad)}
    return [place in hidden for place in range(rows * columns)]


def shown(pictures: Tensor | Pictures, model) -> Pictures:
    """Pictures (count, C, Y, X), or such as `train.pictures` draws, whose labels are not read; if
    the model can read them. Raises MiradaError."""
    if isinstance(pictures, Tensor):
        pictures = Pictures(Labelled(list(pictures), [0] * len(pictures), ["any"]))
    embed = model.body.embed
    found, wanted = pictures.sample(0, None)[0].shape, (embed.project.in_channels, *embed.image)
    if tuple(found) != wanted:
        raise MiradaError(f"a picture is {tuple(found)}, and this model reads {wanted}: channels, "
                          "height, width")
    return pictures

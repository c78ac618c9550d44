"""Convolutional networks, which a vision Transformer is held against: a small plain one (LeCun et
al. 1998) and ResNet (He et al., 1512.03385).

Each reads pixel_values (B, C, Y, X) and gives {"logits": (B, labels)}, so that what trains a
classifier of pictures trains it too. The same weights are used at every place of a picture, and a
place sees its neighbours alone: what attention has to learn from data, they begin with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mirada.core.mlp import activation
from mirada.errors import MiradaError


@dataclass(frozen=True)
class Config:
    """Of a ResNet. stem: channels behind the first convolution. widths, depths: channels and layers
    of each stage. bottleneck: layers of three convolutions, the middle one of a quarter of the
    width. act: behind the first convolution and each sum; within a layer it is ReLU, as in the
    reference. halves: the first stage too halves both sides. early: a bottleneck strides in its
    first convolution (the paper), else in its second (ResNet 1.5)."""

    channels: int = 3
    stem: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    act: str = "relu"
    halves: bool = False
    early: bool = False
    labels: int = 1000


SIZES = {
    "18": Config(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), bottleneck=False),
    "34": Config(widths=(64, 128, 256, 512), bottleneck=False),
    "50": Config(),
    "101": Config(depths=(3, 4, 23, 3)),
    "152": Config(depths=(3, 8, 36, 3)),
    "tiny": Config(channels=1, stem=32, widths=(32, 64), depths=(1, 1), bottleneck=False,
                   labels=10),
}


class Network(nn.Module):
    """What a training loop reads of a Model is here."""

    device = property(lambda self: next(self.parameters()).device)
    dtype = property(lambda self: next(self.parameters()).dtype)

    def _checked(self, pixels: Tensor, channels: int) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != channels:
            raise MiradaError(f"this network sees pictures: pixel_values must be (batch, "
                              f"{channels} channels, height, width), and are {tuple(pixels.shape)}")
        return pixels.to(self.dtype)


class CNN(Network):
    """Stages of a 3 x 3 convolution, ReLU and 2 x 2 maximum; then the mean over all places, and
    a score for each label. widths: of the stages, each of which halves both sides."""

    def __init__(self, channels: int = 1, labels: int = 10,
                 widths: tuple[int, ...] = (32, 64, 128)):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(
            (channels, *widths), widths, strict=False))
        self.score = nn.Linear(widths[-1], labels)

    def features(self, pixel_values: Tensor) -> Tensor:
        """(B, D, Y', X'): what is seen at each place."""
        x = self._checked(pixel_values, self.stages[0].in_channels)
        for stage in self.stages:
            x = nn.functional.max_pool2d(torch.relu(stage(x)), 2)
        return x

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.score(self.features(pixel_values).mean((2, 3)))}


class Convolution(nn.Module):
    """act(norm(conv(x))): no bias, as the norm has one. act: None leaves it out."""

    def __init__(self, a: int, b: int, size: int, stride: int = 1, act: str | None = None):
        super().__init__()
        self.conv = nn.Conv2d(a, b, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(b)
        self.act = nn.Identity() if act is None else activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Layer(nn.Module):
    """act(f(x) + x) (eq. 1); where f changes the shape, x goes through a 1 x 1 convolution
    (eq. 2)."""

    def __init__(self, a: int, b: int, stride: int, c: Config):
        super().__init__()
        if c.bottleneck:  # fig. 5, right
            first, second = (stride, 1) if c.early else (1, stride)
            parts = [Convolution(a, b // 4, 1, first, "relu"),
                     Convolution(b // 4, b // 4, 3, second, "relu"), Convolution(b // 4, b, 1)]
        else:
            parts = [Convolution(a, b, 3, stride, "relu"), Convolution(b, b, 3)]
        self.f = nn.Sequential(*parts)
        self.way = nn.Identity() if a == b and stride == 1 else Convolution(a, b, 1, stride)
        self.act = activation(c.act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.f(x) + self.way(x))


class ResNet(Network):
    """Stages of `Layer`s, each but the first halving both sides; then the mean over all places."""

    def __init__(self, c: Config):
        super().__init__()
        if len(c.widths) != len(c.depths) or min(*c.depths, *c.widths, c.stem) < 1:
            raise MiradaError(f"each stage has a width and a depth, 1 or more; there are "
                              f"{c.widths} and {c.depths}")
        self.config = c
        self.stem = Convolution(c.channels, c.stem, 7, 2, c.act)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages, a = [], c.stem
        for n, (b, depth) in enumerate(zip(c.widths, c.depths, strict=True)):
            stride = 2 if n or c.halves else 1
            stages.append(nn.Sequential(*(Layer(b if k else a, b, 1 if k else stride, c)
                                          for k in range(depth))))
            a = b
        self.stages = nn.ModuleList(stages)
        self.score = nn.Linear(a, c.labels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., 1502.01852, eq. 14
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, pixel_values: Tensor) -> Tensor:
        """(B, D, Y', X'): what is seen at each place."""
        x = self.pool(self.stem(self._checked(pixel_values, self.config.channels)))
        for stage in self.stages:
            x = stage(x)
        return x

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.score(self.features(pixel_values).mean((2, 3)))}


def build(name: str = "cnn", seed: int = 0, **changes) -> Network:
    """ "cnn", or "resnet:18" and the other SIZES, with random weights. changes: arguments of CNN,
    or fields of Config that differ."""
    kind, _, size = name.partition(":")
    if kind not in ("cnn", "resnet") or (kind == "resnet" and size not in SIZES):
        raise MiradaError(f"no network is called {name!r}; there are cnn, "
                          f"{', '.join(f'resnet:{one}' for one in SIZES)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CNN(**changes) if kind == "cnn" else ResNet(replace(SIZES[size], **changes))

"""ResNets in folders, as transformers writes and reads them: teachers of vision Transformers."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mirada.core.mlp import ACTIVATIONS
from mirada.errors import MiradaError, UntrustedInputError
from mirada.parts import conv
from mirada.weights import config, jsonfile, tensorfile
from mirada.weights.paths import new_folder

KIND, HEAD = "resnet", "ResNetForImageClassification"
NAMES = (  # of our tensors, and a file's
    (r"^stem\.", "resnet.embedder.embedder."),
    (r"^stages\.(\d+)\.(\d+)\.f\.", r"resnet.encoder.stages.\1.layers.\2.layer."),
    (r"^stages\.(\d+)\.(\d+)\.way\.", r"resnet.encoder.stages.\1.layers.\2.shortcut."),
    (r"\.conv\.", ".convolution."), (r"\.norm\.", ".normalization."),
    (r"^score\.", "classifier.1."),
)
LEAST = 8  # tensors of a layer: two convolutions, each with its norm
INERT = {"out_features": config.ANY, "out_indices": config.ANY, "stage_names": config.ANY}


@dataclass(frozen=True)
class File:
    """conv.Config as a file says it."""

    channels: int = config.size("num_channels", 3)
    stem: int = config.size("embedding_size", 64)
    widths: tuple[int, ...] = config.key("hidden_sizes", (256, 512, 1024, 2048), low=1,
                                         required=True)
    depths: tuple[int, ...] = config.key("depths", (3, 4, 6, 3), low=1, high=2048, required=True)
    layer: str = config.key("layer_type", "bottleneck", choices={"basic", "bottleneck"})
    act: str = config.key("hidden_act", "relu", choices=set(ACTIVATIONS))
    halves: bool = config.key("downsample_in_first_stage", False)
    early: bool = config.key("downsample_in_bottleneck", False)


def is_one(folder: str | os.PathLike) -> bool:
    """Whether a folder says that it holds a ResNet."""
    file = Path(folder) / "config.json"
    raw = jsonfile.read(file) if file.is_file() else None
    return isinstance(raw, dict) and raw.get("model_type") == KIND


class ResNet(conv.ResNet):
    """One that knows its labels' names."""

    names: list[str] | None = None


def load(folder: str | os.PathLike) -> ResNet:
    """The network of a folder, every tensor of it used. Raises MiradaError."""
    where = Path(folder) / "config.json"
    raw: Any = jsonfile.read(where)
    if not isinstance(raw, dict) or raw.get("architectures") not in (None, [HEAD]):
        raise UntrustedInputError(where, "architectures", f"only {HEAD} can be loaded")
    said = asdict(config.read(File, raw, where, inert=INERT).config)
    told = raw.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    if not isinstance(told, dict) or told.keys() != {str(n) for n in range(len(told))}:
        raise UntrustedInputError(where, "id2label", "must name each label from 0 on")
    bottleneck = said.pop("layer") == "bottleneck"
    c = conv.Config(**said, bottleneck=bottleneck, labels=len(told))
    with tensorfile.open_folder(folder) as files:
        if LEAST * sum(c.depths) > len(files.names()):
            raise UntrustedInputError(where, "depths", f"asks for {sum(c.depths)} layers, and the "
                                      f"weights hold only {len(files.names())} tensors")
        with torch.device("meta"):
            model = ResNet(c)
        model.names = [str(told[str(n)]) for n in range(len(told))]
        wanted = model.state_dict()
        named = {_theirs(name): name for name in wanted}
        odd = named.keys() ^ {*files.names()} or {
            name for name in named if files.shape(name) != wanted[named[name]].shape}
        if odd:
            raise UntrustedInputError(folder, f"tensor {min(odd)!r}", "is missing, unknown, or not "
                                      "of the shape that its config says")
        state = {ours: files.get(theirs) for theirs, ours in named.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def save(model: conv.ResNet, folder: str | os.PathLike, names: list[str] | None = None) -> Path:
    """Write a folder that `load` and transformers read. names: of the labels."""
    c = model.config
    told = names or [f"LABEL_{n}" for n in range(c.labels)]
    if len(told) != c.labels:
        raise MiradaError(f"the network tells {c.labels} labels apart, and {len(told)} are named")
    fields = {n: v for n, v in asdict(c).items() if n not in ("bottleneck", "labels")}
    said = config.write(File(**fields, layer="bottleneck" if c.bottleneck else "basic")) | {
        "model_type": KIND, "architectures": [HEAD],
        "id2label": {str(n): name for n, name in enumerate(told)},
        "label2id": {name: n for n, name in enumerate(told)}}

    def write(aside: Path) -> None:
        jsonfile.write(aside / "config.json", said)
        tensorfile.save(aside, {_theirs(n): t.contiguous() for n, t in model.state_dict().items()})

    return new_folder(folder, write)


def _theirs(name: str) -> str:
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name

"""One checkpoint cut over consolidated.00.pth, .01 ...: each file holds a slice of every tensor.

So the first LLaMA files are kept: a file for each device of the model parallelism they ran under.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mirada.errors import MiradaError, UntrustedInputError
from mirada.weights import torchbin
from mirada.weights.paths import inside
from mirada.weights.tensorfile import SHARDS, TensorFile

PATTERN = "consolidated.*.pth"


class Joined:
    """The tensors of all files under one set of names, each joined when it is read.

    axis: (name, shape of its slices) -> the axis along which a tensor was cut; None: every file
    has the whole of it. A `with` statement or `close()` releases the files and their copies.
    """

    def __init__(self, files: list[TensorFile], axis: Callable[[str, tuple], int | None],
                 scratch: TemporaryDirectory):
        self.files, self.axis, self.scratch = files, axis, scratch
        first = files[0].entries
        for file in files[1:]:
            if odd := sorted(first.keys() ^ file.entries.keys()):
                raise UntrustedInputError(file.path, f"tensor {odd[0]!r}", "must be in every file: "
                                          f"{files[0].path.name} and this one do not agree")
        self.where = {name: self._cut(name) for name in first}

    def names(self) -> list[str]:
        return list(self.where)

    def shape(self, name: str) -> tuple[int, ...]:
        shape, axis = self.files[0].entries[name].shape, self.where[name]
        return tuple(n * len(self.files) if at == axis else n for at, n in enumerate(shape))

    def dtype(self, name: str) -> torch.dtype:
        return self.files[0].entries[name].dtype

    def form(self, name: str) -> None:
        """These files hold no quantized blocks."""

    def get(self, name: str) -> torch.Tensor:
        parts = [file.get(name) for file in self.files]
        if self.where[name] is not None:
            return torch.cat(parts, self.where[name])
        for file, part in zip(self.files, parts, strict=True):
            if not torch.equal(part, parts[0]):
                raise UntrustedInputError(file.path, f"tensor {name!r}", "must hold the same "
                                          f"numbers as in {self.files[0].path.name}")
        return parts[0]

    def close(self) -> None:
        for file in self.files:
            file.close()
        self.scratch.cleanup()

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _cut(self, name: str) -> int | None:
        entry = self.files[0].entries[name]
        for file in self.files[1:]:
            mine = file.entries[name]
            if (mine.shape, mine.dtype) != (entry.shape, entry.dtype):
                raise UntrustedInputError(
                    file.path, f"tensor {name!r}", f"{list(mine.shape)} of {mine.dtype} does not "
                    f"join {list(entry.shape)} of {entry.dtype} in {self.files[0].path.name}")
        return self.axis(name, entry.shape)


def open_parts(folder: str | os.PathLike, axis: Callable[[str, tuple], int | None]) -> Joined:
    """Open consolidated.00.pth and those that follow it, each rewritten aside by a restricted
    child process (torchbin). Raises MiradaError where one is missing, UntrustedInputError."""
    folder = Path(folder)
    names = sorted(path.name for path in folder.glob(PATTERN))
    wanted = [f"consolidated.{n:02}.pth" for n in range(len(names))]
    if not names or names != wanted or len(names) > SHARDS:
        absent = sorted({*wanted, "consolidated.00.pth"} - {*names})
        raise MiradaError(f"{folder}: the weights must be consolidated.00.pth and those that "
                          f"follow it, at most {SHARDS}; missing: {', '.join(absent[:3])}")
    paths = [inside(folder, name, folder) for name in names]
    scratch, files = TemporaryDirectory(prefix="mirada-"), []
    try:
        for path in paths:
            files.append(TensorFile(torchbin.convert(path, scratch.name), path))
        return Joined(files, axis, scratch)
    except BaseException:
        for file in files:
            file.close()
        scratch.cleanup()
        raise

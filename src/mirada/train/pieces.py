"""Tensors of which each process holds a piece: cut for a checkpoint, joined again from one.

A piece is a tensor in a safetensors file whose metadata say where it begins and how large the whole
is. A file without such metadata holds whole tensors. So a run goes on with any number of processes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mirada.errors import UntrustedInputError

FILE = re.compile(r"(.+)-\d{5}-of-\d{5}(\.safetensors)")


def cut(tensor: Tensor) -> bool:
    """Whether this process holds but a piece (a DTensor)."""
    return hasattr(tensor, "device_mesh")


def region(tensor) -> tuple[slice, ...]:
    """Where a DTensor's local piece lies in the whole."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as found
    shape, offset = found(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(at, at + n) for at, n in zip(offset, shape, strict=True))


def save(tensors: dict[str, Tensor], path: Path, rank: int) -> None:
    """Write what this process has to write: pieces that no process before it holds too."""
    mine, where = {}, {}
    for name, tensor in tensors.items():
        if not cut(tensor):
            if rank == 0:
                mine[name] = tensor.detach().contiguous()
        elif _first(tensor) and tensor.to_local().numel():
            mine[name] = tensor.to_local().detach().contiguous()
            where[name] = {"shape": list(tensor.shape),
                           "offset": [part.start for part in region(tensor)]}
    save_file(mine, path, {"pieces": json.dumps(where, sort_keys=True)})


def _first(tensor) -> bool:
    """Whether no process of a lower rank holds the same piece."""
    place = tensor.device_mesh.get_coordinate()
    return all(at == 0 for at, how in zip(place, tensor.placements, strict=True)
               if how.is_replicate())


class Joined(Mapping):
    """name -> whole tensor, from several files, read when it is asked for."""

    def __init__(self, files: list[Path]):
        self.files, self.parts = files, {}  # name -> [(file, offset)]
        self.shapes: dict[str, list[int]] = {}
        for file in files:
            try:
                with safe_open(file, "pt") as opened:
                    where = json.loads((opened.metadata() or {}).get("pieces", "{}"))
                    for name in opened.keys():  # noqa: SIM118  it is no dict
                        shape = opened.get_slice(name).get_shape()
                        said = where.get(name, {"shape": shape, "offset": [0] * len(shape)})
                        self._note(file, name, shape, said)
            except (SafetensorError, ValueError, TypeError, KeyError) as error:
                raise UntrustedInputError(file, "pieces", f"cannot be read: {error}") from None
        for name, shape in self.shapes.items():
            held = sum(math.prod(part) for _, _, part in self.parts[name])
            if held != math.prod(shape):
                raise UntrustedInputError(files[0], name, f"{held:,} of its {math.prod(shape):,} "
                                          "numbers are there")

    def _note(self, file: Path, name: str, part: list[int], said: dict) -> None:
        shape, offset = said["shape"], said["offset"]
        inside = len(shape) == len(offset) == len(part) and all(
            isinstance(n, int) and 0 <= at <= at + p <= n
            for at, p, n in zip(offset, part, shape, strict=True))
        if not inside or self.shapes.setdefault(name, shape) != shape:
            raise UntrustedInputError(file, name, "lies outside the tensor it is a piece of")
        self.parts.setdefault(name, []).append((file, offset, part))

    def __getitem__(self, name: str) -> Tensor:
        whole = None
        for file, offset, part in self.parts[name]:
            with safe_open(file, "pt") as opened:
                piece = opened.get_tensor(name)
            if list(piece.shape) == self.shapes[name]:
                return piece
            whole = piece.new_empty(self.shapes[name]) if whole is None else whole
            whole[tuple(slice(at, at + n) for at, n in zip(offset, part, strict=True))] = piece
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def place(target, whole: Tensor) -> None:
    """Copy a whole tensor, or this process's piece of it, in place."""
    with torch.no_grad():
        if cut(target):
            target.to_local().copy_(whole[region(target)])
        else:
            target.copy_(whole)


def like(target, whole: Tensor) -> Tensor:
    """A copy of a whole tensor, in pieces as `target` is where it has the shape of one."""
    if not cut(target) or whole.shape != target.shape:
        return whole.clone()
    fresh = torch.empty_like(target)
    place(fresh, whole)
    return fresh

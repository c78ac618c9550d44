"""GGUF files, version 3, written: header and keys, then the tensors one at a time.

The format is the one that gguf.md of the ggml project describes.
"""

import math
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from tqdm import tqdm

from mirada.errors import MiradaError, WorkFailed
from mirada.weights.blocks import BY_NAME, IDS

ALIGNMENT = 32
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # value types
# what general.file_type says of a file by the type that most of its weights have
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9,
              "Q4_K": 15, "Q5_K": 17, "Q6_K": 18, "BF16": 32}


class Entry(NamedTuple):
    """One tensor to write: its shape as torch has it, and what gives its blocks when asked."""

    name: str
    type: str
    shape: tuple[int, ...]
    blocks: Callable[[], torch.Tensor]  # (..., bytes per row) uint8

    @property
    def nbytes(self) -> int:
        elements, size = BY_NAME[self.type]
        return math.prod(self.shape) // elements * size


def write(path: str | os.PathLike, metadata: dict, entries: list[Entry]) -> Path:
    """Write a new file, aside first: it appears whole or not at all.

    metadata: key -> str, bool, int, float, or a list of one of them. Raises MiradaError where
    something is there already, WorkFailed when the disk is full or refuses.
    """
    target = Path(os.path.abspath(path))
    if os.path.lexists(target):
        raise MiradaError(f"{target} is there already; nothing was written. Choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                _write(file, metadata, entries)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o644)
            os.rename(aside, target)
        except BaseException:
            os.unlink(aside)
            raise
    except OSError as error:
        raise WorkFailed(f"{target} could not be written, and nothing is there: "
                         f"{error.strerror}") from None
    return target


def _write(file: BinaryIO, metadata: dict, entries: list[Entry]) -> None:
    file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(metadata)))
    for key, value in metadata.items():
        file.write(_text(key) + _value(value, key))
    offset = 0
    for entry in entries:
        dims = entry.shape[::-1]
        file.write(_text(entry.name) + struct.pack(
            f"<I{len(dims)}QIQ", len(dims), *dims, IDS[entry.type], offset))
        offset += _padded(entry.nbytes)
    file.write(bytes(-file.tell() % ALIGNMENT))
    for entry in tqdm(entries, "write", unit="tensor", disable=None, leave=False):
        flat = entry.blocks().detach().cpu().contiguous().reshape(-1)
        if flat.nbytes != entry.nbytes:
            raise ValueError(f"{entry.name} has {flat.nbytes} bytes and not {entry.nbytes}")
        file.write(memoryview(flat.numpy()))
        file.write(bytes(_padded(entry.nbytes) - entry.nbytes))


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value, key: str) -> bytes:
    """A type's number and the value."""
    values = value if isinstance(value, list) else [value]
    kind = _kind(values, key, signed=isinstance(value, list))
    head = struct.pack("<IIQ", ARRAY, kind, len(values)) if values is value else struct.pack(
        "<I", kind)
    if kind == STRING:
        return head + b"".join(map(_text, values))
    return head + struct.pack(f"<{len(values)}{CODES[kind]}", *values)


CODES = {U32: "I", I32: "i", F32: "f", BOOL: "?"}


def _kind(values: list, key: str, signed: bool) -> int:
    """The value type of all values. Lists of whole numbers are signed, as llama.cpp's files have
    them, and single ones where they must be."""
    found = {type(v) for v in values}
    if found == {int}:
        return I32 if signed or values[0] < 0 else U32
    kinds = {str: STRING, bool: BOOL, float: F32}
    if len(found) != 1 or not found <= kinds.keys():
        raise MiradaError(f"{key}: GGUF holds text, numbers and truth values, and lists of one of "
                          f"them, and not {values[:3]}")
    return kinds[found.pop()]

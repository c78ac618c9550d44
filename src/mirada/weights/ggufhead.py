"""The header of a GGUF file (little-endian, versions 2 and 3), every number of it bounded first.

magic, version, counts of tensors and keys; typed keys; name, dims, type and offset of each tensor;
padding; the data. Nothing is allocated or looped over on the word of the file alone: a count must
fit the bytes that are left. The format is the one that gguf.md of the ggml project describes.
No torch here: a vocabulary can be read before torch is imported.
"""

import math
import os
import re
import struct
import weakref
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mirada.errors import UntrustedInputError
from mirada.weights.blocks import TYPES

HEADER = 64 << 20  # bytes before the data; 49,152 tokens with their merges take 1.8 MB
KEYS = 65_536
KEY = 1024  # bytes
TENSORS = 100_000
ITEMS = 1 << 21  # in all arrays together: vocabulary, scores, types and merges
ALIGNMENT = 1 << 20
MIN_KEY, MIN_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8  # bytes of the smallest record

# value types: struct's letter for a number, bool apart
BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, BOOL, 10, 11, 12), "BbHhIifBQqd", strict=True))
ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class TensorInfo(NamedTuple):
    """One tensor: its name, type name (as in `blocks`), shape as torch has it, place in bytes."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int


class Header:
    """What stands before the data.

    metadata: key -> number, bool, str or list of them; tensors: name -> TensorInfo; stamp: the
    file's size and time when it was read. Readers of a file share it, and none changes it.
    """

    def __init__(self, file: BinaryIO, path: Path):
        self.stamp = stamp(file)
        self.metadata, self.tensors = _parse(_Reader(file.fileno(), path, size=self.stamp[0]))


_held: weakref.WeakValueDictionary[tuple, Header] = weakref.WeakValueDictionary()


def read(file: BinaryIO, path: Path) -> Header:
    """The header of an open file; parsed once for as long as somebody holds it.

    Raises UntrustedInputError for any broken rule or limit.
    """
    key = (str(path.absolute()), *stamp(file))
    header = _held.get(key)
    if header is None:
        header = _held[key] = Header(file, path)
    return header


def stamp(file: BinaryIO) -> tuple[int, int]:
    """Its size, and when it was last written to, in nanoseconds."""
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


class _Reader:
    """A cursor over the header. It reads from the file in steps and never past HEADER bytes."""

    def __init__(self, descriptor: int, path: Path, size: int):
        self.path, self.size, self.pos = path, size, 0
        self._descriptor, self._limit, self._data = descriptor, min(size, HEADER), bytearray()

    def fail(self, field: str, limit: str) -> UntrustedInputError:
        return UntrustedInputError(self.path, field, limit)

    @property
    def left(self) -> int:
        """Bytes between here and the end of what a header may use."""
        return self._limit - self.pos

    def need(self, count: int, field: str) -> int:
        """Make `count` bytes available; returns where they start and moves behind them."""
        start, end = self.pos, self.pos + count
        if end > self._limit:
            where = "the file" if self._limit == self.size else f"a header of {HEADER:,} bytes"
            raise self.fail(field, f"needs {count:,} bytes, beyond the end of {where}")
        while len(self._data) < end:
            step = max(end - len(self._data), 4 << 20)
            more = os.pread(self._descriptor, step, len(self._data))
            if not more:
                raise self.fail(field, "was cut off while it was read")
            self._data += more
        self.pos = end
        return start

    def number(self, code: str, field: str):
        """One little-endian number, struct's `code`."""
        start = self.need(struct.calcsize("<" + code), field)
        return struct.unpack_from("<" + code, self._data, start)[0]

    def numbers(self, code: str, count: int, field: str) -> list:
        start = self.need(count * struct.calcsize("<" + code), field)
        return list(struct.unpack_from(f"<{count}{code}", self._data, start))

    def text(self, field: str, limit: int = HEADER) -> str:
        """A string: u64 length, UTF-8 bytes."""
        length = self.number("Q", field)
        if length > limit:
            raise self.fail(field, f"is {length:,} bytes long, more than {limit:,}")
        start = self.need(length, field)
        try:
            return self._data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(field, "must be UTF-8") from None

    def texts(self, count: int, field: str) -> list[str]:
        """`count` strings. A vocabulary and its merges have 100,000: no call for each."""
        length, data, start = struct.Struct("<Q").unpack_from, self._data, self.pos
        found: list[bytes | bytearray] = []
        for _ in range(count):
            end = start + 8
            if end <= len(data):
                end += length(data, start)[0]
            if end > min(len(data), self._limit) or end == start + 8:
                self.pos = start
                found.append(self.text(field).encode())
                end = self.pos
            else:
                found.append(data[start + 8 : end])
            start = end
        self.pos = start
        try:
            return [text.decode() for text in found]
        except UnicodeDecodeError:
            raise self.fail(field, "must be UTF-8") from None


def _parse(reader: _Reader) -> tuple[dict, dict[str, TensorInfo]]:
    tensor_count, key_count = _start(reader)
    metadata: dict[str, object] = {}
    items = 0
    for index in range(key_count):
        key = reader.text(f"key {index}", KEY)
        if not key or not key.isprintable() or key in metadata:
            limit = "must be printable and occur once"
            raise reader.fail(f"key {index} {key!r}", limit)
        metadata[key] = value = _value(reader, f"key {key!r}", ITEMS - items)
        items += len(value) if isinstance(value, list) else 0
    alignment = _check_general(reader, metadata)
    infos = [_tensor(reader, f"tensor {index}", alignment) for index in range(tensor_count)]
    start = -(-reader.pos // alignment) * alignment
    return metadata, _place(reader, infos, start)


def _start(reader: _Reader) -> tuple[int, int]:
    """Magic, version and the two counts."""
    if reader.size < 24 or reader.number("4s", "magic") != b"GGUF":
        raise reader.fail("magic", "is not a GGUF file")
    version = reader.number("I", "version")
    if version in (2 << 24, 3 << 24):
        raise reader.fail("version", "is a big-endian file; convert it to little-endian")
    if version not in (2, 3):
        raise reader.fail("version", f"{version} cannot be read, only 2 and 3")
    tensors, keys = reader.number("Q", "tensor count"), reader.number("Q", "key count")
    if tensors > min(TENSORS, reader.left // MIN_TENSOR):
        raise reader.fail("tensor count", f"{tensors:,} do not fit the file or pass {TENSORS:,}")
    if keys > min(KEYS, reader.left // MIN_KEY):
        raise reader.fail("key count", f"{keys:,} do not fit the file or pass {KEYS:,}")
    return tensors, keys


def _value(reader: _Reader, field: str, items: int):
    """One typed value; an array may have `items` members and no array inside."""
    kind = reader.number("I", field)
    if kind != ARRAY:
        return _scalar(reader, kind, field)
    kind, count = reader.number("I", field), reader.number("Q", field)
    if kind == ARRAY:
        raise reader.fail(field, "must not hold arrays in an array")
    if kind != STRING and kind not in NUMBERS:
        raise reader.fail(field, f"has the unknown value type {kind}")
    smallest = 8 if kind == STRING else struct.calcsize("<" + NUMBERS[kind])
    if count > min(items, reader.left // smallest):
        limit = f"claims {count:,} items, more than the file holds or {ITEMS:,} in all arrays"
        raise reader.fail(field, limit)
    if kind == STRING:
        return reader.texts(count, field)
    values = reader.numbers(NUMBERS[kind], count, field)
    return [_bool(reader, byte, field) for byte in values] if kind == BOOL else values


def _scalar(reader: _Reader, kind: int, field: str):
    if kind == STRING:
        return reader.text(field)
    if kind not in NUMBERS:
        raise reader.fail(field, f"has the unknown value type {kind}")
    value = reader.number(NUMBERS[kind], field)
    if kind == BOOL:
        return _bool(reader, value, field)
    if isinstance(value, float) and not math.isfinite(value):
        raise reader.fail(field, "must be a finite number")
    return value


def _bool(reader: _Reader, byte: int, field: str) -> bool:
    if byte > 1:
        raise reader.fail(field, "a bool must be 0 or 1")
    return bool(byte)


def _check_general(reader: _Reader, metadata: dict) -> int:
    """The keys that say how to read the rest; returns the alignment."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not ARCHITECTURE.fullmatch(architecture):
        raise reader.fail("general.architecture", "must name the model's architecture")
    parts = metadata.get("split.count", 1)
    if type(parts) is not int or parts > 1:
        limit = f"is one of {parts} parts; join them first with llama-gguf-split --merge"
        raise reader.fail("split.count", limit)
    alignment = metadata.get("general.alignment", 32)
    if (
        type(alignment) is not int
        or not 8 <= alignment <= ALIGNMENT
        or alignment.bit_count() != 1
    ):
        limit = f"must be a power of two from 8 to {ALIGNMENT:,}"
        raise reader.fail("general.alignment", limit)
    return alignment


def _tensor(reader: _Reader, field: str, alignment: int) -> TensorInfo:
    """One tensor's record; its offset still counts from the start of the data."""
    name = reader.text(f"{field} name", 63)
    field = f"tensor {name!r}"
    if not name or not name.isprintable():
        raise reader.fail(field, "must have a printable name")
    rank = reader.number("I", field)
    if not 1 <= rank <= 4:
        raise reader.fail(field, f"has {rank:,} dimensions, not 1 to 4")
    dims = reader.numbers("Q", rank, field)
    kind, offset = reader.number("I", field), reader.number("Q", field)
    if kind not in TYPES:
        raise reader.fail(field, f"has the unknown or removed type {kind}")
    type_name, elements, size = TYPES[kind]
    if 0 in dims or dims[0] % elements:
        limit = f"has the shape {dims}, whose rows are no whole number of {type_name} blocks"
        raise reader.fail(field, limit)
    if offset % alignment:
        raise reader.fail(field, f"has the offset {offset:,}, no multiple of {alignment}")
    nbytes = math.prod(dims) // elements * size
    return TensorInfo(name, type_name, tuple(reversed(dims)), offset, nbytes)


def _place(reader: _Reader, infos: list[TensorInfo], start: int) -> dict[str, TensorInfo]:
    """Tensors by name, offsets from the start of the file; each alone in its place inside it."""
    tensors, end = {}, 0
    for info in infos:
        if info.name in tensors:
            raise reader.fail(f"tensor {info.name!r}", "must not occur twice")
        tensors[info.name] = info._replace(offset=start + info.offset)
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset < end:
            raise reader.fail(f"tensor {info.name!r}", "overlaps another")
        end = info.offset + info.nbytes
        if start + end > reader.size:
            limit = f"ends at byte {start + end:,}, the file has {reader.size:,}: truncated?"
            raise reader.fail(f"tensor {info.name!r}", limit)
    return tensors

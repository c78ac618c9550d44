"""Checkpoints in folders: safetensors, single or sharded, read tensor by tensor, and written.

The format: a little-endian u64 n, n bytes of JSON (name -> dtype, shape, data_offsets), the data.
A file is opened once; its header is validated in full before anything is allocated; a tensor is
read into memory of its own from that same open file. So a file that is replaced, cut or rewritten
later can give a clear error, but neither crash the process nor change a loaded model: a memory
map could do both. The reading is here because the validated header leaves nothing else to do,
and a second parser behind the first might disagree with it.
"""

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple

import torch

from mirada.errors import MiradaError, UntrustedInputError, WorkFailed
from mirada.weights import jsonfile, torchbin
from mirada.weights.paths import inside, open_regular, read_into

# In the order of the reference writer: it lays out the last kind first.
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64,
    "F64": torch.float64, "I64": torch.int64, "U64": torch.uint64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

HEADER = 25_000_000  # bytes; a tensor takes about 100
TENSORS = 100_000  # in one file
NAME = 512  # characters
RANK = 16
SHARDS = 512  # each holds an open file, and 1,024 is the usual limit of a process
INDEX = 32 << 20  # bytes

SINGLE, SHARDED = "model.safetensors", "model.safetensors.index.json"
BIN_SINGLE, BIN_SHARDED = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Entry(NamedTuple):
    """One tensor of a file: what it is and where its bytes lie."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file
    nbytes: int


class TensorFile:
    """One open .safetensors file: `entries` by name and string `metadata`.

    named: the file to name in errors, where `path` is a temporary copy of it.
    """

    def __init__(self, path: str | os.PathLike, named: Path | None = None):
        self.path = Path(named or path)
        self.file = open_regular(path)
        try:
            self.entries, self.metadata = _header(self.file, self.path)
        except BaseException:
            self.file.close()
            raise

    def get(self, name: str) -> torch.Tensor:
        """Read the tensor `name` from the file into new memory."""
        entry = self.entries[name]
        raw = torch.empty(entry.nbytes, dtype=torch.uint8)
        read_into(memoryview(raw.numpy()), self.file, entry.start, self.path, f"tensor {name!r}")
        if entry.dtype == torch.bool and entry.nbytes and raw.max() > 1:
            raise UntrustedInputError(self.path, name, "is BOOL but has bytes other than 0 and 1")
        return raw.view(entry.dtype).reshape(entry.shape)

    def close(self) -> None:
        self.file.close()


class Checkpoint:
    """The tensors of one or more open files under one set of names.

    metadata: the first file's; files: the paths read, in order.
    A `with` statement or `close()` releases the files and any temporary copy.
    """

    def __init__(self, files: list[TensorFile], scratch: TemporaryDirectory | None = None):
        self.metadata = files[0].metadata
        self.files = [file.path for file in files]
        self._open, self._scratch = files, scratch
        self._where = {name: file for file in files for name in file.entries}

    def names(self) -> list[str]:
        """Every tensor's name, in the order of the files."""
        return list(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).dtype

    def get(self, name: str) -> torch.Tensor:
        """The tensor `name` in memory of its own; no other tensor is read."""
        self._entry(name)
        return self._where[name].get(name)

    def close(self) -> None:
        for file in self._open:
            file.close()
        if self._scratch:
            self._scratch.cleanup()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        if name not in self._where:
            raise UntrustedInputError(self.files[0], f"tensor {name!r}", "is not in the file")
        return self._where[name].entries[name]


def open_file(path: str | os.PathLike) -> Checkpoint:
    """Open one .safetensors file. Raises UntrustedInputError."""
    return Checkpoint([TensorFile(path)])


def open_folder(folder: str | os.PathLike) -> Checkpoint:
    """Open the weights of a model folder.

    Looks for model.safetensors, its sharded form, then the same two of pytorch_model.bin; these
    are rewritten as safetensors in a temporary folder by a restricted child process (torchbin).
    Raises MiradaError (nothing there) or UntrustedInputError (a file breaks a rule).
    """
    folder = Path(folder)
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise MiradaError(f"{folder} {problem}; give the folder that holds the model's files")
    if _there(folder, SINGLE):
        return open_file(inside(folder, SINGLE, folder))
    if _there(folder, SHARDED):
        weight_map = _weight_map(folder / SHARDED, ".safetensors")
        paths = _shard_paths(folder / SHARDED, weight_map)
        return _open_shards(folder / SHARDED, weight_map, paths)
    if _there(folder, BIN_SINGLE):
        return _open_bins(folder, None, {BIN_SINGLE: inside(folder, BIN_SINGLE, folder)})
    if _there(folder, BIN_SHARDED):
        weight_map = _weight_map(folder / BIN_SHARDED, ".bin")
        paths = _shard_paths(folder / BIN_SHARDED, weight_map)
        return _open_bins(folder / BIN_SHARDED, weight_map, paths)
    wanted = ", ".join((SINGLE, SHARDED, BIN_SINGLE, BIN_SHARDED))
    raise MiradaError(f"{folder} has no weights: looked for {wanted}")


def nonfinite(checkpoint: Checkpoint) -> list[str]:
    """The names of the tensors that hold a NaN or an infinity. Reads every tensor once."""
    return [
        name for name in checkpoint.names()
        if checkpoint.dtype(name).is_floating_point and not _finite(checkpoint.get(name))
    ]


def save(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = 5 << 30,
) -> list[Path]:
    """Write model.safetensors, or shards and their index, into the existing folder `path`.

    tensors may be a generator: at most one shard's tensors are held. A shard closes before it
    would pass `shard_bytes`. Equal input gives equal bytes. Returns the files written.
    The caller writes aside and renames the folder when this returns.
    Raises WorkFailed when the disk is full or refuses.
    """
    metadata = {"format": "pt"} | dict(metadata or {})
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    folder = Path(path)
    shards: list[tuple[Path, dict[str, int]]] = []
    try:
        for shard in _shards(items, shard_bytes):
            part = folder / f"model-{len(shards) + 1:05}.safetensors"
            write_file(part, shard, metadata)
            shards.append((part, {name: tensor.nbytes for name, tensor in shard}))
        return _name_shards(folder, shards)
    except OSError as error:
        raise WorkFailed(f"{folder}: the weights could not be written: {error.strerror}") from None


def _header(file: BinaryIO, path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Read and validate everything a file says of itself."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise UntrustedInputError(path, "header", f"a file of {size} bytes is no safetensors file")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > HEADER:
        raise UntrustedInputError(path, "header length", f"{length:,} is more than {HEADER:,}")
    if length > size - 8:
        limit = f"{length:,} is more than the file has ({size:,} bytes): truncated?"
        raise UntrustedInputError(path, "header length", limit)
    data = file.read(length)
    if not data.startswith(b"{"):
        raise UntrustedInputError(path, "header", "must begin with {")
    if data.count(b"{") > TENSORS + 2:
        raise UntrustedInputError(path, "header", f"names more than {TENSORS:,} tensors")
    _refuse_disguise(file, path, size, data)
    header = jsonfile.parse(data, path, limit=HEADER)
    assert isinstance(header, dict)  # it begins with {
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UntrustedInputError(path, "__metadata__", "must map names to strings")
    data_start = 8 + length
    entries = {name: _entry(name, raw, path, data_start) for name, raw in header.items()}
    _check_layout(entries, path, data_start, size)
    return entries, metadata


def _entry(name: str, raw: object, path: Path, data_start: int) -> Entry:
    field = f"tensor {name[:NAME]!r}"
    if not _valid_name(name):
        raise UntrustedInputError(path, field, f"a name must be 1 to {NAME} printable characters")
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise UntrustedInputError(path, field, "must have dtype, shape and data_offsets only")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UntrustedInputError(path, field, f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > RANK:
        limit = f"shape must be at most {RANK} whole numbers from 0"
        raise UntrustedInputError(path, field, limit)
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        limit = "data_offsets must be two whole numbers, begin <= end"
        raise UntrustedInputError(path, field, limit)
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != nbytes:
        given = offsets[1] - offsets[0]
        limit = f"shape and dtype need {nbytes:,} bytes, data_offsets give {given:,}"
        raise UntrustedInputError(path, field, limit)
    return Entry(DTYPES[dtype], tuple(shape), data_start + offsets[0], nbytes)


def _valid_name(name: str) -> bool:
    return 0 < len(name) <= NAME and name.isprintable()


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_layout(entries: dict[str, Entry], path: Path, start: int, size: int) -> None:
    """The data must be filled from end to end: no overlap, no hole, nothing after it."""
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != end:
            problem = "overlaps another" if entry.start < end else "leaves a hole before it"
            raise UntrustedInputError(path, f"tensor {name!r}", problem)
        end += entry.nbytes
    if end > size:
        limit = f"needs {end:,} bytes, the file has {size:,}: truncated?"
        raise UntrustedInputError(path, "data", limit)
    if end < size:
        raise UntrustedInputError(path, "data", f"{size - end:,} bytes follow the last tensor")


def _refuse_disguise(file: BinaryIO, path: Path, size: int, header: bytes) -> None:
    """A file that another program opens as a PDF or a zip archive is nobody's honest checkpoint."""
    if b"%PDF-" in header[:1024]:
        raise UntrustedInputError(path, "header", "is a PDF document at the same time")
    tail = os.pread(file.fileno(), 22 + 0xFFFF, max(0, size - 22 - 0xFFFF))
    mark = tail.rfind(b"PK\5\6")  # four bytes may come by chance, a directory before them not
    if 0 <= mark <= len(tail) - 22:
        (directory,) = struct.unpack_from("<I", tail, mark + 12)
        start = size - len(tail) + mark - directory
        is_zip = start >= 0 and os.pread(file.fileno(), 4, start) == b"PK\1\2"
        if is_zip or tail[max(0, mark - 20):].startswith(b"PK\6\7"):
            raise UntrustedInputError(path, "data", "is a zip archive at the same time")


def _weight_map(index: Path, suffix: str) -> dict[str, str]:
    """tensor -> file of an index, names checked as text; `inside` checks them on the disk."""
    raw = jsonfile.read(index, limit=INDEX)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UntrustedInputError(index, "weight_map", "must map tensor names to file names")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(suffix):
            limit = f"{file!r} is not the name of a {suffix} file"
            raise UntrustedInputError(index, f"weight_map {name!r}", limit)
    if (count := len(set(weight_map.values()))) > SHARDS:
        raise UntrustedInputError(index, "weight_map", f"names {count} files, more than {SHARDS}")
    return weight_map


def _shard_paths(index: Path, weight_map: dict[str, str]) -> dict[str, Path]:
    return {name: inside(index.parent, name, index) for name in sorted(set(weight_map.values()))}


def _open_shards(
    index: Path, weight_map: dict[str, str], paths: dict[str, Path],
    named: dict[str, Path] | None = None, scratch: TemporaryDirectory | None = None,
) -> Checkpoint:
    """Open the files of `weight_map` and hold them to it: each key once, where it says."""
    files: dict[str, TensorFile] = {}
    try:
        for name, path in paths.items():
            files[name] = TensorFile(path, (named or paths)[name])
        _check_shards(index, weight_map, files)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return Checkpoint(list(files.values()), scratch)


def _check_shards(index: Path, weight_map: dict[str, str], files: dict[str, TensorFile]) -> None:
    count = Counter(name for file in files.values() for name in file.entries)
    if twice := [name for name, n in count.items() if n > 1]:
        raise UntrustedInputError(index, _some(twice), "in more than one file")
    if extra := [name for name in count if name not in weight_map]:
        raise UntrustedInputError(index, _some(extra), "in a file but not in weight_map")
    if absent := [n for n, file in weight_map.items() if n not in files[file].entries]:
        limit = f"not in {weight_map[absent[0]]}, where weight_map says"
        raise UntrustedInputError(index, _some(absent), limit)


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:80]) for name in names[:3])
    return f"tensor {shown}" if len(names) <= 3 else f"tensors {shown} and {len(names) - 3} more"


def _open_bins(
    index: Path, weight_map: dict[str, str] | None, paths: dict[str, Path]
) -> Checkpoint:
    """Have each .bin rewritten into a temporary folder that the Checkpoint owns."""
    scratch = TemporaryDirectory(prefix="mirada-")
    try:
        copies = {name: torchbin.convert(path, scratch.name) for name, path in paths.items()}
        if weight_map is None:
            files = [TensorFile(copies[name], paths[name]) for name in paths]
            return Checkpoint(files, scratch)
        return _open_shards(index, weight_map, copies, paths, scratch)
    except BaseException:
        scratch.cleanup()
        raise


def _there(folder: Path, name: str) -> bool:
    return os.path.lexists(folder / name)


def _finite(tensor: torch.Tensor) -> bool:
    tensor = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # no isfinite for 8 bits
    return bool(torch.isfinite(tensor).all())


def _shards(items: Iterable[tuple[str, torch.Tensor]], limit: int):
    """Lists of (name, tensor) of at most `limit` bytes each, in order."""
    shard: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in items:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append((name, tensor))
        size += tensor.nbytes
    yield shard


def _name_shards(folder: Path, shards: list[tuple[Path, dict[str, int]]]) -> list[Path]:
    """Give the parts their final names, which hold their number, and write the index."""
    if len(shards) == 1:
        return [shards[0][0].rename(folder / SINGLE)]
    written, weight_map = [], {}
    for number, (part, sizes) in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        written.append(part.rename(folder / name))
        weight_map.update(dict.fromkeys(sizes, name))
    total = sum(sum(sizes.values()) for _, sizes in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    jsonfile.write(folder / SHARDED, index)
    return [*written, folder / SHARDED]


def write_file(
    path: str | os.PathLike,
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write one new safetensors file, laid out as the reference writer does, and flush it to disk.

    Raises MiradaError for a dtype the format lacks, a name it cannot hold or two equal names.
    """
    ordered = sorted(tensors, key=lambda item: item[0])
    for name, tensor in ordered:
        if tensor.dtype not in NAMES or not _valid_name(name) or name == "__metadata__":
            raise MiradaError(f"{path}: safetensors cannot hold {tensor.dtype} named {name!r}")
    ranks = {dtype: rank for rank, dtype in enumerate(NAMES)}
    ordered.sort(key=lambda item: -ranks[item[1].dtype])  # stable: by name within a kind
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in ordered:
        if name in header:
            raise MiradaError(f"{path}: two tensors are named {name!r}")
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data start aligned
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(memoryview(flat.view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())

"""The hostile files: each is a small function that writes one file, and what must be said of it.

`files()` gives the cases; `row` is the number in the published list of hostile inputs.
"""

import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch


class Case(NamedTuple):
    row: int
    name: str
    kind: str  # what opens it: safetensors, folder, gguf, json
    says: str  # a part of the sentence that must refuse it
    make: Callable[[Path], Path]  # writes into an empty folder, returns what is opened


_CASES: list[Case] = []


def files(kind: str | None = None) -> list[Case]:
    return [case for case in _CASES if kind in (None, case.kind)]


def _add(row: int, name: str, kind: str, says: str, make: Callable[[Path], Path]) -> None:
    _CASES.append(Case(row, name, kind, says, make))


def _bytes(file: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / file
        path.write_bytes(content if isinstance(content, bytes) else content())
        return path

    return make


# ---- safetensors

def tensor(dtype="F32", shape=(2,), offsets=(0, 8)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def st(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with any header: bytes as they are, anything else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _st(row: int, name: str, says: str, content: bytes | Callable[[], bytes]) -> None:
    _add(row, name, "safetensors", says, _bytes("model.safetensors", content))


def _long_header(folder: Path) -> Path:
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_100) + b"{")
        file.truncate(100_000_200)
    return path


def _many(count: int) -> bytes:
    entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return st(("{" + ",".join(entry % i for i in range(count)) + "}").encode())


def _zip(parts: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def _zip_inside() -> bytes:
    inside = _zip({"a.txt": b"hello"})
    return st({"a": tensor("U8", [len(inside)], [0, len(inside)])}, inside)


EIGHT = b"\0" * 8
_st(1, "length_2_63", "header length", st({}, length=2**63))
_st(1, "length_2_64_less_1", "header length", st({}, length=2**64 - 1))
_st(1, "length_beyond_file", "truncated", st({}, length=100))
_add(2, "header_100_MB", "safetensors", "header length", _long_header)
_st(3, "duplicate_key", "must not occur twice",
    st(b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode(),) * 2), EIGHT))
_st(3, "duplicate_dtype", "must not occur twice",
    st(b'{"a":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}', EIGHT))
_st(4, "nested_lists", "nested deeper", lambda: st(b'{"a":' + b"[" * 200_000))
_st(4, "nested_objects", "nested deeper", lambda: st(b'{"a":' * 99_000))
_st(5, "overlap", "overlaps", st({"a": tensor(), "b": tensor(offsets=(4, 12))}, b"\0" * 12))
_st(5, "same_place", "overlaps", st({"a": tensor(), "b": tensor()}, EIGHT))
_st(6, "shape_2_32_squared", "need", st({"a": tensor(shape=(2**32, 2**32))}, EIGHT))
_st(6, "shape_wraps_to_8", "need", st({"a": tensor(shape=(2**62 + 2,))}, EIGHT))
_st(6, "rank_1000", "shape", st({"a": tensor(shape=[1] * 1000, offsets=(0, 4))}, b"\0" * 4))
_st(7, "hole_at_start", "hole", st({"a": tensor(offsets=(8, 16))}, b"\0" * 16))
_st(7, "hole_between", "hole", st({"a": tensor(), "b": tensor(offsets=(12, 20))}, b"\0" * 20))
_st(7, "trailing_bytes", "follow the last tensor", st({"a": tensor()}, EIGHT + b"x"))
_st(8, "truncated_data", "truncated", st({"a": tensor()}, EIGHT[:5]))
for _n in range(8):
    _st(9, f"{_n}_bytes", "no safetensors file", b"\x02\0\0\0\0\0\0"[:_n])
for _name, _text in {"null": b"null", "list": b"[]", "leading_space": b" {}", "empty": b"",
                     "string": b'"x"', "bom": b"\xef\xbb\xbf{}"}.items():
    _st(9, f"header_{_name}", "must begin with {", st(_text))
_st(9, "header_open", "is not JSON", st(b"{"))
_st(9, "header_not_utf8", "UTF-8", st(b'{"\xff":1}'))
_st(9, "header_garbage_after", "is not JSON", st(b"{}x"))
_st(10, "million_tensors", "header length", lambda: _many(1_000_000))
_st(10, "tensors_over_the_count", "100,000 tensors", lambda: _many(100_002))
for _name, _key in {"nul": "a\0b", "newline": "a\nERROR: b", "ansi": "\x1b[31m", "empty": "",
                    "rtl": "a\u202egnp", "megabyte": "a" * 1_000_000}.items():
    _st(11, f"name_{_name}", "printable characters", st({_key: tensor()}, EIGHT))
_st(12, "metadata_number", "__metadata__", st({"__metadata__": {"a": 1}}))
_st(12, "metadata_list", "__metadata__", st({"__metadata__": ["a"]}))
_st(12, "metadata_50_MB", "header length",
    lambda: st({"__metadata__": {"a": "x" * 50_000_000}}))
for _dtype in ("F4", "F6_E2M3", "F6_E3M2", "f32", "Q4_K", "", 7, None, ["F32"]):
    _st(13, f"dtype_{_dtype}", "is not one of", st({"a": tensor(_dtype)}, EIGHT))
for _name, _offsets in {"begin_after_end": [8, 0], "negative": [-8, 0], "float": [0.0, 8.0],
                        "huge": [0, 10**30], "bool": [False, 8], "one": [8], "three": [0, 4, 8],
                        "text": ["0", "8"], "null": [None, None]}.items():
    _st(14, f"offsets_{_name}", "data_offsets", st({"a": tensor(offsets=_offsets)}, EIGHT))
_st(14, "offsets_exponent", "data_offsets",
    st(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8e0]}}', EIGHT))
_st(14, "offsets_digits", "digits",
    st(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,%s]}}' % (b"9" * 5000), EIGHT))
for _name, _shape in {"negative": [-2], "float": [2.0], "bool": [True, 2], "text": ["2"]}.items():
    _st(14, f"shape_{_name}", "shape", st({"a": tensor(shape=_shape)}, EIGHT))
_st(14, "extra_field", "only", st({"a": tensor() | {"path": "/etc/passwd"}}, EIGHT))
_st(14, "missing_field", "only", st({"a": {"dtype": "F32", "shape": [2]}}, EIGHT))
_st(14, "entry_is_list", "only", st({"a": [1, 2]}, EIGHT))
_st(16, "zip_appended", "zip archive", lambda: st({"a": tensor()}, EIGHT + _zip({"a": b"b"})))
_st(16, "zip_in_a_tensor", "zip archive", _zip_inside)
_st(16, "pdf", "PDF", st({"__metadata__": {"a": "%PDF-1.7"}, "a": tensor()}, EIGHT))


# ---- GGUF

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_FORMS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B",
          U64: "Q", I64: "q", F64: "d"}


def text(value: str | bytes) -> bytes:
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def key(name: str | bytes, kind: int, value) -> bytes:
    """One key of a GGUF file; `value` may be bytes, taken as they are."""
    if not isinstance(value, bytes):
        value = text(value) if kind == STRING else struct.pack("<" + _FORMS[kind], value)
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def info(name="a", dims=(32,), kind=8, offset=0, rank=None) -> bytes:
    """One tensor's record, Q8_0 unless told."""
    rank = len(dims) if rank is None else rank
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", rank, *dims, kind, offset)


ARCH = key("general.architecture", STRING, "llama")


def gguf(keys=(ARCH,), infos=(), data=b"", magic=b"GGUF", version=3, n_keys=None, n_tensors=None,
         alignment=32) -> bytes:
    """A GGUF file from its records, with any counts."""
    head = magic + struct.pack(
        "<IQQ", version, len(infos) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    ) + b"".join(keys) + b"".join(infos)
    return head + b"\0" * (-len(head) % alignment if data else 0) + data


def _gg(row: int, name: str, says: str, content: bytes | Callable[[], bytes]) -> None:
    _add(row, name, "gguf", says, _bytes("model.gguf", content))


def _kv(row: int, name: str, says: str, *keys: bytes) -> None:
    _gg(row, name, says, gguf(keys=(ARCH, *keys)))


BLOCK = b"\0" * 34
_gg(17, "magic", "is not a GGUF file", gguf(magic=b"GGML", data=BLOCK))
_gg(17, "empty", "is not a GGUF file", b"")
_gg(17, "magic_only", "is not a GGUF file", b"GGUF")
_gg(17, "all_zero", "is not a GGUF file", b"\0" * 64)
for _v in (0, 1, 4, 99, 2**32 - 1):
    _gg(17, f"version_{_v}", "version", gguf(version=_v))
_gg(17, "big_endian", "big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + EIGHT)
_gg(18, "keys_2_63", "key count", gguf(n_keys=2**63 - 1))
_gg(18, "keys_2_64", "key count", gguf(n_keys=2**64 - 1))
_gg(18, "keys_one_more", "needs", gguf(keys=(ARCH, key("a", U32, 1)), n_keys=3))
_gg(19, "tensors_2_63", "tensor count", gguf(n_tensors=2**63 - 1))
_gg(19, "tensors_2_64", "tensor count", gguf(n_tensors=2**64 - 1))
_gg(19, "tensors_one_more", "needs", gguf(infos=(info(),), n_tensors=2))
_kv(20, "string_2_62", "more than", key("a", STRING, struct.pack("<Q", 2**62)))
_kv(20, "key_2_62", "more than", struct.pack("<Q", 2**62) + b"a" * 20)
_kv(20, "string_not_utf8", "UTF-8", key("a", STRING, b"\x02" + b"\0" * 7 + b"\xff\xfe"))
_kv(20, "string_in_array", "more than", key("a", ARRAY, array(STRING, 1, b"\xff" * 8)))
_kv(21, "array_u32_2_40", "claims", key("a", ARRAY, array(U32, 2**40)))
_kv(21, "array_strings_2_40", "claims", key("a", ARRAY, array(STRING, 2**40)))
_kv(22, "array_u8_10_9", "claims", key("a", ARRAY, array(U8, 10**9)))
_gg(22, "array_over_all", "claims",
    lambda: gguf(keys=(ARCH, *(key(n, ARRAY, array(U8, 2**20, b"\0" * 2**20)) for n in "abc"))))
_kv(23, "array_of_array", "in an array",
    key("a", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0"))))
_gg(23, "array_100k_deep", "in an array",
    lambda: gguf(keys=(ARCH, key("a", ARRAY, array(ARRAY, 1) * 100_000))))
_kv(23, "array_of_unknown", "value type", key("a", ARRAY, array(13, 1, EIGHT)))
_kv(23, "value_type_99", "value type", key("a", 99, EIGHT))
_kv(23, "bool_2", "bool", key("a", BOOL, 2))
_kv(23, "nan", "finite", key("a", F32, float("nan")))
for _name, _kind, _value in (("0", U32, 0), ("1", U32, 1), ("4", U32, 4), ("13", U32, 13),
                             ("48", U32, 48), ("text", STRING, "32"), ("float", F32, 32.0),
                             ("bool", BOOL, 1), ("negative", I32, -32)):
    _kv(24, f"alignment_{_name}", "general.alignment", key("general.alignment", _kind, _value))
_kv(25, "alignment_2_31", "general.alignment", key("general.alignment", U32, 2**31))
_kv(25, "alignment_2_21", "general.alignment", key("general.alignment", U32, 2**21))
_gg(26, "offset_2_40", "truncated", gguf(infos=(info(offset=2**40),), data=BLOCK))
_gg(26, "offset_wraps", "truncated", gguf(infos=(info(offset=2**64 - 32),), data=BLOCK))
_gg(26, "tensor_beyond_file", "truncated", gguf(infos=(info(dims=(32, 2**20)),), data=BLOCK))
_gg(26, "truncated_by_1", "truncated", gguf(infos=(info(),), data=BLOCK[:-1]))
_gg(26, "no_data", "truncated", gguf(infos=(info(),)))
for _rank in (0, 5, 8, 2**31, 2**32 - 1):
    _gg(27, f"rank_{_rank}", "dimensions", gguf(infos=(info(rank=_rank),), data=BLOCK))
for _name, _dims in {"2_32_squared": (2**32, 2**32), "wraps_to_0": (2**33, 2**31),
                     "wraps_to_32": (2**64 - 32, 2**64 - 1),
                     "four_large": (2**62, 2**62, 2**62, 2**62)}.items():
    _gg(28, f"dims_{_name}", "truncated", gguf(infos=(info(dims=_dims),), data=BLOCK))
_gg(28, "dim_0", "shape", gguf(infos=(info(dims=(32, 0)),), data=BLOCK))
_gg(29, "duplicate_tensor", "twice",
    gguf(infos=(info(), info(offset=64)), data=b"\0" * 128))
_kv(29, "duplicate_key", "occur once", key("a", U32, 1), key("a", U32, 2))
_kv(29, "empty_key", "printable", key("", U32, 1))
_kv(29, "key_control", "printable", key("a\n\x1b[2J", U32, 1))
_kv(29, "key_long", "more than", key("a" * 5000, U32, 1))
_gg(29, "no_architecture", "general.architecture", gguf(keys=(key("a", U32, 1),)))
_gg(29, "architecture_number", "general.architecture",
    gguf(keys=(key("general.architecture", U32, 1),)))
_gg(29, "architecture_path", "general.architecture",
    gguf(keys=(key("general.architecture", STRING, "../llama"),)))
_gg(30, "name_64", "more than 63", gguf(infos=(info("n" * 64),), data=BLOCK))
_gg(30, "name_empty", "name", gguf(infos=(info(""),), data=BLOCK))
_gg(30, "name_rtl", "name", gguf(infos=(info("a\u202eb"),), data=BLOCK))
_gg(30, "name_nul", "name", gguf(infos=(info("a\0b"),), data=BLOCK))
_gg(31, "row_of_33", "blocks", gguf(infos=(info(dims=(33,)),), data=BLOCK * 2))
_gg(31, "row_of_16_by_2", "blocks", gguf(infos=(info(dims=(16, 2)),), data=BLOCK))
for _kind in (4, 5, 31, 36, 42, 255, 2**32 - 1):
    _gg(31, f"type_{_kind}", "unknown or removed", gguf(infos=(info(kind=_kind),), data=BLOCK))
_gg(31, "type_iq2_xxs", "IQ2_XXS", gguf(infos=(info(dims=(256,), kind=16),), data=b"\0" * 66))
_gg(32, "overlap", "overlaps", gguf(infos=(info(), info("b", offset=32)), data=b"\0" * 96))
_gg(32, "same_place", "overlaps", gguf(infos=(info(), info("b")), data=BLOCK))
_gg(32, "offset_7", "offset", gguf(infos=(info(offset=7),), data=b"\0" * 64))
_gg(32, "offset_of_other_alignment", "offset",
    gguf(keys=(ARCH, key("general.alignment", U32, 64)), infos=(info(offset=32),), alignment=64,
         data=b"\0" * 128))
_kv(37, "split_65535", "parts", key("split.count", U16, 65535), key("split.no", U16, 0))
_kv(37, "split_names", "parts", key("split.count", U16, 2),
    key("split.files", ARRAY, array(STRING, 1, text("../../etc/passwd"))))


# ---- folders with an index

GOOD = st({"a": tensor()}, struct.pack("<2f", 1, 2))


def index(folder: Path, weight_map: object, name="model.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _folder(row: int, name: str, says: str):
    def register(make):
        _add(row, name, "folder", says, make)
        return make

    return register


def _outside(folder: Path) -> Path:
    """A good weight file beside the model's folder: the thing that must not be read."""
    secret = folder.parent / "secret"
    secret.mkdir(exist_ok=True)
    (secret / "model.safetensors").write_bytes(GOOD)
    return secret / "model.safetensors"


for _name, _target in {
    "parent": "../secret/model.safetensors", "inner_parent": "x/../../secret/model.safetensors",
    "drive": "C:\\model.safetensors", "drive_relative": "C:model.safetensors",
    "unc": "\\\\host\\share\\model.safetensors", "backslash": "..\\secret\\model.safetensors",
    "nul": "a\0.safetensors", "newline": "a\n.safetensors", "rtl": "a\u202e.safetensors",
    "subfolder": "sub/model.safetensors", "url": "file:model.safetensors",
    "long": "a" * 300 + ".safetensors", "dot": "./model.safetensors",
}.items():
    @_folder(38 if "parent" in _name else 39, f"index_{_name}", "plain file name")
    def _(folder: Path, target=_target) -> Path:
        _outside(folder)
        return index(folder, {"a": target})


@_folder(39, "index_absolute", "plain file name")
def _(folder: Path) -> Path:
    return index(folder, {"a": str(_outside(folder))})


@_folder(39, "index_link_out", "link to a place outside")
def _(folder: Path) -> Path:
    (folder / "s.safetensors").symlink_to(_outside(folder))
    return index(folder, {"a": "s.safetensors"})


@_folder(39, "index_link_chain_out", "link to a place outside")
def _(folder: Path) -> Path:
    (folder / "t").symlink_to(_outside(folder))
    (folder / "s.safetensors").symlink_to("t")
    return index(folder, {"a": "s.safetensors"})


@_folder(39, "single_link_out", "link to a place outside")
def _(folder: Path) -> Path:
    (folder / "model.safetensors").symlink_to(_outside(folder))
    return folder


@_folder(39, "link_loop", "cannot be read")
def _(folder: Path) -> Path:
    (folder / "s.safetensors").symlink_to("s.safetensors")
    return index(folder, {"a": "s.safetensors"})


@_folder(40, "shard_fifo", "regular file")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "s.safetensors")
    return index(folder, {"a": "s.safetensors"})


@_folder(40, "single_fifo", "regular file")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "model.safetensors")
    return folder


@_folder(40, "index_fifo", "regular file")
def _(folder: Path) -> Path:
    os.mkfifo(folder / "model.safetensors.index.json")
    return folder


@_folder(40, "shard_dev_zero", "link to a place outside")
def _(folder: Path) -> Path:
    (folder / "s.safetensors").symlink_to("/dev/zero")
    return index(folder, {"a": "s.safetensors"})


@_folder(40, "index_dev_zero", "regular file")
def _(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").symlink_to("/dev/zero")
    return folder


@_folder(40, "shard_is_folder", "regular file")
def _(folder: Path) -> Path:
    (folder / "s.safetensors").mkdir()
    return index(folder, {"a": "s.safetensors"})


@_folder(40, "shard_is_the_index", "is not the name of")
def _(folder: Path) -> Path:
    return index(folder, {"a": "model.safetensors.index.json"})


@_folder(41, "missing_shard", "no such file")
def _(folder: Path) -> Path:
    return index(folder, {"a": "model-00001-of-00002.safetensors"})


@_folder(41, "key_not_in_shard", "'b', 'c': not in s.safetensors")
def _(folder: Path) -> Path:
    (folder / "s.safetensors").write_bytes(GOOD)
    return index(folder, {"a": "s.safetensors", "b": "s.safetensors", "c": "s.safetensors"})


@_folder(41, "key_not_in_map", "'b': in a file but not in weight_map")
def _(folder: Path) -> Path:
    two = st({"a": tensor(), "b": tensor(offsets=(8, 16))}, b"\0" * 16)
    (folder / "s.safetensors").write_bytes(two)
    return index(folder, {"a": "s.safetensors"})


@_folder(41, "key_in_two_shards", "'a': in more than one file")
def _(folder: Path) -> Path:
    for name in ("s.safetensors", "t.safetensors"):
        (folder / name).write_bytes(GOOD)
    return index(folder, {"a": "s.safetensors", "b": "t.safetensors"})


for _name, _map in {"list": ["a"], "empty": {}, "null": None, "number": {"a": 1},
                    "nested": {"a": {"b": "s.safetensors"}}}.items():
    @_folder(41, f"weight_map_{_name}", "weight_map")
    def _(folder: Path, weight_map=_map) -> Path:
        return index(folder, weight_map)


@_folder(41, "many_shards", "files, more than")
def _(folder: Path) -> Path:
    return index(folder, {str(i): f"{i}.safetensors" for i in range(10_000)})


# ---- JSON

def _json(row: int, name: str, says: str, content: bytes | Callable[[], bytes]) -> None:
    _add(row, name, "json", says, _bytes("config.json", content))


def _huge_json(folder: Path) -> Path:
    path = folder / "config.json"
    with open(path, "wb") as file:
        file.write(b'{"a": "')
        file.truncate(100_000_000)
    return path


for _word in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400"):
    _json(45, f"number_{_word.decode()}", "number", b'{"eps": %s}' % _word)
_json(45, "duplicate_key", "'hidden_size'", b'{"hidden_size": 1, "hidden_size": 2}')
_json(45, "duplicate_deep", "'b'", b'{"a": [{"b": 1, "c": 0, "b": 1}]}')
_json(45, "bom", "byte order mark", b"\xef\xbb\xbf{}")
_json(45, "utf16", "byte order mark", '{"a": 1}'.encode("utf-16"))
_json(45, "not_utf8", "UTF-8", b'{"a": "\xff"}')
_json(45, "surrogate", "UTF-8", b'{"a": "\\ud800"}')
_json(45, "empty", "is not JSON", b"")
_json(45, "scalar", "object or array", b"3")
_json(45, "half", "is not JSON", b'{"a": [1, 2')
_json(45, "digits", "digits", b'{"a": %s}' % (b"9" * 100_000))
_json(45, "depth_10_5", "nested deeper", b"[" * 100_000)
_json(45, "depth_10_5_closed", "nested deeper", b"[" * 100_000 + b"]" * 100_000)
_json(45, "depth_objects", "nested deeper", b'{"a":' * 100_000)
_json(45, "depth_behind_strings", "nested deeper", b'["]]]\\"]]",' * 200 + b"1" + b"]" * 200)
_json(45, "depth_101", "nested deeper", b"[" * 101 + b"]" * 101)
_json(45, "many_lists", "lists and objects", lambda: b"[" + b"[]," * 2_500_000 + b"[]]")
_json(45, "many_quotes", "is not JSON", lambda: b'"' * (8 << 20))
_json(45, "many_escaped_quotes", "is not JSON", lambda: b'["' + b'\\"' * (4 << 20 - 2))
_add(45, "size_100_MB", "json", "more than", _huge_json)


# ---- pytorch_model.bin

class Runs:
    """Pickles into a call: `function(*args)` runs when it is unpickled without restraint."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def torch_file(value: object, legacy=False) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def reparted(parts: dict[str, bytes | None], compression=zipfile.ZIP_STORED) -> bytes:
    """A good torch file with parts replaced, added, or (None) taken out."""
    with zipfile.ZipFile(io.BytesIO(torch_file({"a": torch.ones(3)}))) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    return _zip({name: part for name, part in (old | parts).items() if part is not None},
                compression)


def _bin(row: int, name: str, says: str, content: bytes | Callable[[], bytes]) -> None:
    make = _bytes("pytorch_model.bin", content)
    _add(row, name, "folder", says, lambda folder: make(folder).parent)


def _touch(folder: Path, legacy: bool) -> Path:
    trap = Runs(os.system, f"touch '{folder / 'RAN'}'")
    (folder / "pytorch_model.bin").write_bytes(torch_file({"a": trap}, legacy))
    return folder


def _eval(folder: Path) -> Path:
    trap = Runs(eval, f"open({str(folder / 'RAN')!r}, 'w')")
    (folder / "pytorch_model.bin").write_bytes(torch_file({"a": trap}))
    return folder


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return out.getvalue()


def _overlapping_zip() -> bytes:
    """Many directory entries that point at the same megabyte."""
    data = reparted({"archive/data/1": b"\0" * 2**20})
    (end,) = struct.unpack("<I", data[-6:-2])
    directory = data[end:-22]
    entry = directory[directory.rindex(b"PK\1\2"):]
    extra = b"".join(entry.replace(b"archive/data/1", b"archive/data/%d" % i) for i in range(2, 10))
    count = directory.count(b"PK\1\2") + 8
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory + extra), end, 0)
    return data[:end] + directory + extra + tail


def _huge_storage() -> bytes:
    """Claims 8 GiB: this machine would give them, the bound must not."""
    data = torch_file({"a": torch.zeros(3)}, legacy=True)
    small = b"K\x03N"  # the storage's element count in its persistent id
    assert data.count(small) == 1
    return data.replace(small, b"\x8a\x06" + (2**31).to_bytes(6, "little") + b"N")


_add(48, "bin_os_system", "folder", "system", lambda folder: _touch(folder, legacy=False))
_add(48, "bin_os_system_legacy", "folder", "system", lambda folder: _touch(folder, legacy=True))
_add(48, "bin_eval", "folder", "eval", _eval)
_bin(49, "bin_legacy_tar", "re-save", _tar)
_bin(49, "bin_plain_pickle", "re-save", b"\x80\x04}.")
_bin(49, "bin_setitem_on_list", "Can only SETITEM",
     reparted({"archive/data.pkl": b"\x80\x02]K\0K\1s."}))
_bin(49, "bin_storage_smaller", "does not match expected size",
     lambda: reparted({"archive/data/0": b"\0" * 4}))
_bin(49, "bin_storage_8_GiB", "allocate", _huge_storage)
_bin(49, "bin_module", "Linear", lambda: torch_file(torch.nn.Linear(2, 2)))
_bin(49, "bin_nested", "entry 'model'", lambda: torch_file({"model": {"a": torch.ones(2)}}))
_bin(49, "bin_number_key", "entry '3'", lambda: torch_file({3: torch.ones(2)}))
_bin(49, "bin_list", "must be a dict", lambda: torch_file([torch.ones(2)]))
_bin(49, "bin_sparse", "dense", lambda: torch_file({"a": torch.eye(2).to_sparse()}))
_bin(49, "bin_stride_bomb", "unfold",
     lambda: torch_file({"a": torch.zeros(1).expand(10**6, 10**6)}))
_bin(50, "bin_deflated_bomb", "stored, not compressed",
     lambda: reparted({"archive/data/0": b"\0" * (50 << 20)}, zipfile.ZIP_DEFLATED))
_bin(50, "bin_overlap_bomb", "claims more bytes", _overlapping_zip)
for _name in ("../RAN", "archive/../../RAN", "/tmp/RAN", "archive/code/a.py", "C:\\RAN"):
    _bin(50, f"bin_part_{_name.replace('/', '_')}", "does not belong", reparted({_name: b"x"}))
_bin(50, "bin_no_directory", "zip directory", lambda: torch_file({"a": torch.ones(3)})[:-30])
_bin(50, "bin_no_pickle", "content", lambda: reparted({"archive/data.pkl": None}))

"""A GGUF file as written: read back by our reader and the `gguf` package; whole or not at all."""

import errno

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from mirada.errors import MiradaError, WorkFailed
from mirada.kernels.blocks import GGML
from mirada.kernels.pack import pack
from mirada.weights import ggufwrite
from mirada.weights.gguf import GGUF
from mirada.weights.ggufwrite import FILE_TYPES, Entry, write

KEYS = {"general.architecture": "llama", "llama.block_count": 2, "a.negative": -3, "a.float": 0.5,
        "a.flag": True, "a.text": "Ñandú ⏎", "a.texts": ["", "b", "ç"], "a.numbers": [1, -2, 3],
        "a.floats": [0.0, 1.5], "a.flags": [True, False]}


def entries() -> list[Entry]:
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    made = [Entry(f"w.{t}", t, (3, 512), lambda t=t: pack(x, t)) for t in GGML]
    v = torch.arange(5.0)
    cube = torch.randn(2, 3, 64)
    return [*made, Entry("v", "F32", (5,), lambda: pack(v, "F32")),
            Entry("cube", "Q8_0", (2, 3, 64), lambda: pack(cube, "Q8_0"))]


@pytest.mark.scope("1.15.9")
def test_both_readers_find_what_was_written(tmp_path):
    wanted = entries()
    path = write(tmp_path / "m.gguf", KEYS, wanted)
    theirs = gguf.GGUFReader(path)
    with GGUF(path) as ours:
        assert ours.metadata == KEYS and ours.names() == [e.name for e in wanted]
        assert [t.name for t in theirs.tensors] == ours.names()
        for entry, tensor in zip(wanted, theirs.tensors, strict=True):
            blocks = entry.blocks()
            assert torch.equal(ours.blocks(entry.name), blocks)
            assert ours.shape(entry.name) == entry.shape == tuple(tensor.shape.tolist()[::-1])
            assert tensor.tensor_type.name == entry.type
            assert tensor.data_offset % ggufwrite.ALIGNMENT == 0
            if entry.type != "BF16":  # the package gives its bytes as they are
                numbers = quants.dequantize(tensor.data, tensor.tensor_type)
                assert np.array_equal(numbers.reshape(entry.shape), ours.get(entry.name).numpy())
    for key, value in KEYS.items():
        assert theirs.fields[key].contents() == value


def test_the_same_bytes_every_time(tmp_path):
    a, b = (write(tmp_path / n, KEYS, entries()[:-1]).read_bytes() for n in ("a", "b"))
    assert a == b


def test_file_types_are_ggmls():
    for name, number in FILE_TYPES.items():
        said = gguf.LlamaFileType(number).name
        assert said in (f"MOSTLY_{name}", f"MOSTLY_{name}_M", f"ALL_{name}"), said


def test_what_is_there_stays(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("mine")
    with pytest.raises(MiradaError, match="there already"):
        write(path, KEYS, entries())
    assert path.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["m.gguf"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ggufwrite.os, "fsync", full)
    with pytest.raises(WorkFailed, match="No space left.*|nothing is there"):
        write(tmp_path / "m.gguf", KEYS, entries())
    assert not list(tmp_path.iterdir())


def test_an_interruption_leaves_nothing(tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "m.gguf", KEYS, [Entry("v", "F32", (5,), interrupted)])
    assert not list(tmp_path.iterdir())


def test_values_that_gguf_lacks_are_refused(tmp_path):
    for value in ({}, [1, "a"], [], None):
        with pytest.raises(MiradaError, match="a.key: GGUF holds"):
            write(tmp_path / "m.gguf", {"a.key": value}, [])
    assert not list(tmp_path.iterdir())

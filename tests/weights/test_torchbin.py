"""pytorch_model.bin: rewritten aside by a restricted child, gone when the checkpoint closes."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from mirada.errors import UntrustedInputError, WorkFailed
from mirada.weights import tensorfile, torchbin


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_reads_both_kinds(tmp_path, scratch, zipped):
    folder = model(tmp_path)
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"w": shared, "tied": shared, "t": shared.T, "half": torch.ones(2).bfloat16(),
             "ids": torch.arange(3), "p": torch.nn.Parameter(torch.ones(1)), "yes": shared > 2,
             "none": torch.empty(0)}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    before = (folder / "pytorch_model.bin").stat()
    with tensorfile.open_folder(folder) as checkpoint:
        assert sorted(checkpoint.names()) == sorted(state)
        for name, tensor in state.items():
            got = checkpoint.get(name)
            assert torch.equal(got, tensor) and got.dtype == tensor.dtype
        assert checkpoint.files == [folder / "pytorch_model.bin"]
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())
    assert [p.name for p in folder.iterdir()] == ["pytorch_model.bin"]
    assert (folder / "pytorch_model.bin").stat().st_mtime_ns == before.st_mtime_ns


def test_reads_shards(tmp_path, scratch):
    folder = model(tmp_path)
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name, key in zip(names, "ab", strict=True):
        torch.save({key: torch.ones(3)}, folder / name)
    index = {"metadata": {}, "weight_map": {"a": names[0], "b": names[1]}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with tensorfile.open_folder(folder) as checkpoint:
        assert checkpoint.names() == ["a", "b"] and checkpoint.get("b").tolist() == [1] * 3
        assert [path.name for path in checkpoint.files] == names
    index["weight_map"]["b"] = names[0]
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(UntrustedInputError, match="'b': not in"):
        tensorfile.open_folder(folder)
    assert not list(scratch.iterdir())


def test_safetensors_come_first(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    tensorfile.save(tmp_path, {"a": torch.ones(1)})
    with tensorfile.open_folder(tmp_path) as checkpoint:
        assert checkpoint.names() == ["a"]


def test_a_module_beside_the_file_is_not_imported(tmp_path, monkeypatch):
    folder = model(tmp_path)
    for name in ("torch", "json", "mirada", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w')")
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    monkeypatch.chdir(folder)
    with tensorfile.open_folder(folder) as checkpoint:
        assert checkpoint.get("a").tolist() == [1]
    assert not (tmp_path / "RAN").exists()


def test_the_child_cannot_start_programs_or_connect():
    """The hook that the child sets: a second wall behind weights_only."""
    for event in ("os.system", "subprocess.Popen", "socket.connect", "os.exec",
                  "pickle.find_class", "os.posix_spawn"):
        with pytest.raises(PermissionError, match="forbidden"):
            torchbin._forbid(event, ())
    torchbin._forbid("open", ())


def test_the_child_bounds_itself_before_it_reads(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "m.bin")
    size = (tmp_path / "m.bin").stat().st_size
    script = f"""
import os, resource
from mirada.weights import torchbin
with open({str(tmp_path / "m.bin")!r}, "rb") as file:
    torchbin.load(file, "m.bin", {size})
bound = resource.getrlimit(resource.RLIMIT_AS)[0]
assert bound <= torchbin._address_space() + 4 * {size} + (256 << 20), bound
os.system("true")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.endswith("PermissionError: os.system is forbidden while weights are read\n")


def test_no_room_is_failed_work(tmp_path):
    (tmp_path / "target").mkdir()
    torch.save({"a": torch.ones(1)}, tmp_path / "m.bin")
    (tmp_path / "target" / "m.bin.safetensors").mkdir()  # stands where the copy would go
    with pytest.raises(WorkFailed, match="cannot be rewritten"):
        torchbin.convert(tmp_path / "m.bin", tmp_path / "target")


def test_no_file(tmp_path):
    with pytest.raises(UntrustedInputError, match="no such file"):
        torchbin.convert(tmp_path / "m.bin", tmp_path)


def test_a_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "m.bin")
    with pytest.raises(UntrustedInputError, match="regular file"):
        torchbin.convert(tmp_path / "m.bin", tmp_path)


def test_a_real_file(scratch):
    found = importlib.util.find_spec("rxnmapper")
    if found is None:
        pytest.skip("needs the package rxnmapper==0.4.3 (pip install --no-deps)")
    folder = Path(next(iter(found.submodule_search_locations)))
    folder = folder / "models" / "transformers" / "albert_heads_8_uspto_all_1310k"
    with tensorfile.open_folder(folder) as checkpoint:
        assert len(checkpoint.names()) == 32
        assert checkpoint.shape("albert.embeddings.word_embeddings.weight") == (591, 128)
        assert tensorfile.nonfinite(checkpoint) == []

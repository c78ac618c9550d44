"""A checkpoint is whole or it is none: kills, power cuts, full disks and broken files."""

import errno
import json
import os
import random
import resource
import shutil
import signal
from functools import partial

import pytest
import torch

from mirada.errors import UntrustedInputError, WorkFailed
from mirada.train import checkpoint
from mirada.train.checkpoint import Checkpoint
from train import kills


def made(step):
    """A checkpoint whose every number says its step, and its file."""
    return Checkpoint(step, {name: {f"w{n}": torch.full((40 + n,), step + more) for n in range(3)}
                             for name, more in (("weights.safetensors", 0.0),
                                                ("optimizer.safetensors", 0.5))},
                      {"recent": [float(step)], "skipped": 0})


def whole(found, step):
    want = made(step)
    return found.step == step and found.state == want.state and all(
        torch.equal(t, found.tensors[file][name])
        for file, part in want.tensors.items() for name, t in part.items())


def stood(folder, steps=(1, 2)):
    for step in steps:
        checkpoint.write(folder, made(step))
    return folder


CALLS = ["os.mkdir", "checkpoint.save_file", "pathlib.Path.write_text", "os.fsync", "os.rename",
         "checkpoint.shutil.rmtree"]


def wrapped(patch, around):
    """Each call that writes is made through around(name, call, *args)."""
    homes = {"os": os, "checkpoint": checkpoint, "shutil": shutil}
    for path in CALLS[:2] + CALLS[3:]:
        *_, home, name = path.split(".")
        patch(homes[home], name, partial(around, name, getattr(homes[home], name)))
    patch(checkpoint.Path, "write_text",
          lambda self, text, _old=checkpoint.Path.write_text: around(
              "write_text", lambda path: _old(path, text), self))


def count_calls(folder):
    """The calls of one write, in order."""
    calls = []

    def around(name, call, *args, **more):
        calls.append(name)
        return call(*args, **more)

    stood(folder)
    with pytest.MonkeyPatch.context() as patch:
        wrapped(patch.setattr, around)
        checkpoint.write(folder, made(3))
    return calls


def dies(folder, at, behind):
    """In a process of its own: write, and be killed at the at-th call, before or behind it."""
    calls = []

    def around(name, call, *args, **more):
        calls.append(name)
        if len(calls) == at + 1 and not behind:
            os.kill(os.getpid(), signal.SIGKILL)
        done = call(*args, **more)
        if len(calls) == at + 1:
            if name == "save_file":  # in the midst of it
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    wrapped(setattr, around)
    checkpoint.write(folder, made(3))


def test_killed_at_every_call(tmp_path):
    calls = count_calls(tmp_path / "count")
    assert set(calls) == {path.rpartition(".")[2] for path in CALLS}
    renamed = calls.index("rename")
    for at in range(1, len(calls)):  # the first finds its folder there already
        for behind in (False, True):
            folder = stood(tmp_path / f"{at}-{behind}")
            child = kills.process(dies, folder, at, behind)
            child.join()
            assert child.exitcode == -signal.SIGKILL
            found = checkpoint.newest(folder, say=pytest.fail)
            assert whole(found, 3 if (at, behind) >= (renamed, True) else 2)
            assert not list(folder.glob(".tmp-*"))


def test_power_cut_at_every_call(tmp_path):
    """What was not forced onto the disk may be there, be half there, or not be there: every state
    that a cut behind any call can leave must hold one of the two checkpoints, whole."""
    folder, states = stood(tmp_path / "live"), []
    forced = {p.stat().st_ino for p in folder.rglob("*")}
    busy: list[bool] = []

    def around(name, call, *args, **more):
        if busy:  # the copy of a state is no call of its own
            return call(*args, **more)
        done = call(*args, **more)
        if name == "fsync":
            forced.add(os.fstat(args[0]).st_ino)
        busy.append(True)
        state = tmp_path / f"{len(states)}-{name}"
        shutil.copytree(folder, state)
        busy.clear()
        loose = [p.relative_to(folder) for p in folder.rglob("*")
                 if p.is_file() and p.stat().st_ino not in forced]
        states.append((state, loose))
        return done

    with pytest.MonkeyPatch.context() as patch:
        wrapped(patch.setattr, around)
        checkpoint.write(folder, made(3))
    assert len(states) > 12 and any(loose for _, loose in states)
    for state, loose in states:
        for loss in ("none", "empty", "half", "zeros", "gone"):
            cut = tmp_path / "cut"
            shutil.rmtree(cut, ignore_errors=True)
            shutil.copytree(state, cut)
            for path in loose:
                _lose(cut / path, loss)
            found = checkpoint.newest(cut, say=lambda text: None)
            assert found is not None and (whole(found, 2) or whole(found, 3)), (state, loss)


def _lose(file, loss):
    size = file.stat().st_size
    if loss == "gone":
        file.unlink()
    elif loss in ("empty", "half"):
        os.truncate(file, 0 if loss == "empty" else size // 2)
    elif loss == "zeros":
        file.write_bytes(bytes(size))


def test_files_are_forced_onto_the_disk_before_the_name_is_theirs(tmp_path):
    calls = count_calls(tmp_path / "x")
    named = calls.index("rename")
    assert calls[:named].count("fsync") == 5  # 2 of tensors, state, manifest; their folder
    assert calls[named + 1] == "fsync" and calls[-1] == "rmtree"  # the old goes last


@pytest.mark.parametrize("share", range(20))
def test_a_file_may_grow_no_further(share, tmp_path):
    folder = stood(tmp_path)
    room = share * max(p.stat().st_size for p in folder.rglob("*.*") if p.is_file()) // 20
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(WorkFailed, match="checkpoint of step 3 could not be written"):
            checkpoint.write(folder, made(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000001", "step-00000002"]
    assert whole(checkpoint.newest(folder, say=pytest.fail), 2)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_the_disk_fails_at_every_call(code, tmp_path):
    calls = count_calls(tmp_path / "count")
    for at in range(1, calls.index("rename") + 1):  # the first finds its folder there already
        folder, seen = stood(tmp_path / str(at)), []

        def around(name, call, *args, seen=seen, at=at, **more):
            seen.append(name)
            if len(seen) == at + 1:
                raise OSError(code, os.strerror(code))
            return call(*args, **more)

        with pytest.MonkeyPatch.context() as patch:
            wrapped(patch.setattr, around)
            with pytest.raises(WorkFailed, match=os.strerror(code)):
                checkpoint.write(folder, made(3))
        assert whole(checkpoint.newest(folder, say=pytest.fail), 2)
        assert not list(folder.glob(".tmp-*"))


def test_too_little_room_is_seen_before(tmp_path, monkeypatch):
    folder = stood(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage",
                        lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(WorkFailed, match="make room"):
        checkpoint.write(folder, made(3))
    assert whole(checkpoint.newest(folder, say=pytest.fail), 2)


def broken(folder, say):
    """It is found out, the file named, and the checkpoint before is taken."""
    said = []
    found = checkpoint.newest(folder, say=said.append)
    assert whole(found, 1) and len(said) == 1 and say in said[0], said
    assert (folder / "step-00000002.corrupt").is_dir()


def test_every_flipped_bit_and_every_cut_is_found(tmp_path):
    draw = random.Random(3)
    two = stood(tmp_path / "good") / "step-00000002"
    files = sorted(two.iterdir())
    content = {file: file.read_bytes() for file in files}
    for number in range(200 + 50):
        file = draw.choice(files)
        at = draw.randrange(len(content[file]))
        bent = bytearray(content[file])
        if number < 200:
            bent[at] ^= 1 << draw.randrange(8)
        file.write_bytes(bent if number < 200 else bent[:at])
        with pytest.raises(UntrustedInputError) as raised:
            checkpoint.read(two)
        assert str(two) in str(raised.value)
        file.write_bytes(content[file])
    assert whole(checkpoint.read(two), 2)


def _page(two):
    file = two / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-96] + bytes(96))


def _swap(two):
    a, b = two / "weights.safetensors", two / "optimizer.safetensors"
    a.rename(two / "x")
    b.rename(a)
    (two / "x").rename(b)


def _forged(two):  # well formed, of this step, and of a file that was made another
    file = two / "weights.safetensors"
    checkpoint.save_file({"w0": torch.zeros(3)}, file)


CASES = {
    "zeroed": (_page, "weights.safetensors"),
    "swapped": (_swap, ".safetensors"),
    "lost": (lambda two: (two / "optimizer.safetensors").unlink(), "files"),
    "no manifest": (lambda two: (two / "MANIFEST.json").unlink(), "MANIFEST.json"),
    "stale manifest": (lambda two: shutil.copy(two.parent / "step-00000001/MANIFEST.json", two),
                       "MANIFEST.json"),
    "more": (lambda two: (two / "x").write_text(""), "files"),
    "a link": (lambda two: (os.rename(two / "state.json", two.parent / "s"),
                            (two / "state.json").symlink_to(two.parent / "s")), "state.json"),
    "forged": (_forged, "weights.safetensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_what_was_written_falls_back(case, tmp_path):
    # stale manifest: both folders' weights have equal sizes, so that only the hash tells
    spoil, says = CASES[case]
    folder = stood(tmp_path)
    spoil(folder / "step-00000002")
    broken(folder, says)


def test_of_another_run_no_tensor_is_taken(tmp_path):
    folder = stood(tmp_path)
    found = checkpoint.newest(folder)
    part = found.tensors["weights.safetensors"]
    for other in ({"w0": torch.zeros(40), "w1": torch.zeros(41)},
                  {"w0": torch.zeros(40), "w1": torch.zeros(41), "w2": torch.zeros(41)},
                  {"w0": torch.zeros(40), "w1": torch.zeros(41),
                   "w2": torch.zeros(42, dtype=torch.float64)}):
        with pytest.raises(UntrustedInputError, match="another run's"):
            checkpoint.put(other, part, folder)
        assert not any(t.any() for t in other.values())


def test_the_oldest_go_and_none_that_is_needed(tmp_path):
    for step in range(1, 6):
        checkpoint.write(tmp_path, made(step), keep=3)
        assert whole(checkpoint.newest(tmp_path), step)
    assert checkpoint.steps(tmp_path) == [3, 4, 5]
    manifest = json.loads((tmp_path / "step-00000005/MANIFEST.json").read_text())
    assert manifest["step"] == 5 and len(manifest["files"]) == 3

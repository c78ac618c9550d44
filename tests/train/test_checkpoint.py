"""A checkpoint is whole or it is none: kills, power cuts, full disks and broken files."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import stat
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
         "os.unlink", "os.rmdir"]


def wrapped(patch, around):
    """Each call that writes is made through around(name, call, *args)."""
    homes = {"os": os, "checkpoint": checkpoint}
    for path in CALLS[:2] + CALLS[3:]:
        home, name = path.split(".")
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
    points = [(at, behind) for at in range(len(calls)) for behind in (False, True)]
    for at, behind in points[::4]:  # each in a process of its own; all of them: see below
        folder = stood(tmp_path / f"{at}-{behind}")
        child = kills.process(dies, folder, at, behind)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        found = checkpoint.newest(folder, say=pytest.fail)
        assert whole(found, 3 if (at, behind) >= (renamed, True) else 2)
        assert all(checkpoint.NAME.fullmatch(p.name) for p in folder.iterdir())


class Dead(BaseException):
    """What nothing in the writer catches: from there on it does not run."""


SITUATIONS = {  # what stands, what is written, how many are kept
    "another": ((1, 2), 3, 2), "the first": ((), 3, 2), "this step again": ((1, 2), 2, 1),
    "the only one again": ((2,), 2, 1)}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_dead_before_and_behind_every_call(situation, tmp_path):
    stands, step, keep = SITUATIONS[situation]
    points = 0
    for at in range(100):
        for behind in (False, True):
            folder, calls = stood(tmp_path / f"{at}-{behind}", stands), []

            def around(name, call, *args, calls=calls, at=at, behind=behind, **more):
                calls.append(name)
                if len(calls) == at + 1 and not behind:
                    raise Dead
                done = call(*args, **more)
                if len(calls) == at + 1:
                    raise Dead
                return done

            try:
                with pytest.MonkeyPatch.context() as patch:
                    wrapped(patch.setattr, around)
                    checkpoint.write(folder, made(step), keep)
            except Dead:
                points += 1
            else:
                assert at == len(calls) and points >= 28
                return
            found = checkpoint.newest(folder, say=pytest.fail)
            if found is None:  # nothing stood, and the name was not given yet
                assert not stands and "rename" not in calls[: len(calls) - (not behind)]
            else:
                assert whole(found, found.step) and found.step >= max(stands, default=0)
            checkpoint.write(folder, made(9), keep)
            assert whole(checkpoint.newest(folder, say=pytest.fail), 9)
            assert all(checkpoint.NAME.fullmatch(p.name) for p in folder.iterdir())


class Disk:
    """What a disk holds of a folder while a program writes to it, in the hardest reading of POSIX:
    a file's content is there once the file was forced, a name once its folder was; until then
    either may be there or not, whatever came later. A rename is one change, done or not."""

    def __init__(self, root):
        self.root, self.handles = root, {}
        self.names = self.seen()  # (folder's inode, name) -> inode, as the program sees it
        self.held = dict(self.names)  # as the disk has it for certain
        self.content = {i: self.read(i) for i in self.handles}  # forced; None: a folder
        self.pending: list[tuple[int, dict]] = []  # (folder's inode, what a change does to names)

    def seen(self):
        found = {}
        for path in sorted(self.root.rglob("*")):
            inode = path.stat().st_ino
            if inode not in self.handles:  # held open, so that no other file is given its number
                self.handles[inode] = os.open(path, os.O_RDONLY)
            found[path.parent.stat().st_ino, path.name] = inode
        return found

    def read(self, inode):
        if stat.S_ISDIR(os.fstat(self.handles[inode]).st_mode):
            return None
        return os.pread(self.handles[inode], 1 << 20, 0)

    def changed(self, name, args):
        """A call was made: remember what it may have left undone."""
        now = self.seen()
        changes = {key: now.get(key) for key in self.names.keys() | now.keys()
                   if self.names.get(key) != now.get(key)}
        self.names = now
        if name == "rename":
            self.pending.append((next(iter(changes))[0], changes))
        else:
            self.pending += [(key[0], {key: to}) for key, to in sorted(changes.items())]
        if name == "fsync":
            inode = os.fstat(args[0]).st_ino
            self.content[inode] = self.read(inode) if inode in self.handles else None
            for folder, changes in self.pending:
                if folder == inode:
                    self.held |= changes
            self.pending = [(f, c) for f, c in self.pending if f != inode]

    def states(self):
        """Name trees that a cut may leave: of the changes, none, the first n, one alone, all but
        one; and with each, what became of content that was not forced."""
        all_of = range(len(self.pending))
        for chosen in {frozenset(c) for c in (
                *(all_of[:n] for n in range(len(self.pending) + 1)), *([n] for n in all_of),
                *([m for m in all_of if m != n] for n in all_of))}:
            names = dict(self.held)
            for n in sorted(chosen):
                names |= self.pending[n][1]
            for loss in ("none", "empty", "half", "zeros"):
                yield self.tree(names, os.stat(self.root).st_ino, loss)

    def tree(self, names, folder, loss):
        """name -> bytes or a tree, hashable."""
        inside = []
        for (parent, name), inode in sorted(names.items(), key=lambda x: (x[0], x[1] or 0)):
            if parent != folder or inode is None:
                continue
            content = self.read(inode)
            if content is None:
                inside.append((name, self.tree(names, inode, loss)))
                continue
            kept = {"none": content, "empty": b"", "half": content[: len(content) // 2],
                    "zeros": bytes(len(content))}[loss]
            inside.append((name, self.content.get(inode, kept)))
        return tuple(inside)


def laid(folder, tree):
    folder.mkdir()
    for name, content in tree:
        if isinstance(content, tuple):
            laid(folder / name, content)
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_power_cut_at_every_call(situation, tmp_path):
    """Every state that a cut behind any call can leave holds a whole checkpoint, none older than
    the one that stood; and once `write` is back, the new one."""
    stands, step, keep = SITUATIONS[situation]
    root = tmp_path / "run"
    root.mkdir()
    if stands:
        stood(root / "checkpoints", stands)
    disk, states, busy = Disk(root), [], []

    def around(name, call, *args, **more):
        done = call(*args, **more)
        if not busy:
            busy.append(1)
            disk.changed(name, args)
            states.append(set(disk.states()))
            busy.clear()
        return done

    with pytest.MonkeyPatch.context() as patch:
        wrapped(patch.setattr, around)
        checkpoint.write(root / "checkpoints", made(step), keep)
    every = set().union(*states)
    assert len(every) > 40
    for number, state in enumerate(every):
        cut = tmp_path / str(number)
        laid(cut, state)
        found = checkpoint.newest(cut / "checkpoints", say=lambda text: None)
        if found is None:
            assert not stands and state not in states[-1]
        else:
            assert whole(found, found.step) and found.step >= max(stands, default=step)
            assert found.step == step or state not in states[-1]
        shutil.rmtree(cut)
    for handle in disk.handles.values():
        os.close(handle)


def test_files_are_forced_onto_the_disk_before_the_name_is_theirs(tmp_path):
    calls = count_calls(tmp_path / "x")
    named = calls.index("rename")
    assert calls[:named].count("fsync") == 5  # 2 of tensors, state, manifest; their folder
    assert calls[named + 1 : named + 3] == ["fsync", "rename"]  # of the folder; then the old goes
    assert calls[-1] == "rmdir"


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
    for at in range(calls.index("rename") + 1):
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
    for number in range(500 + 100):
        file = draw.choice(files)
        at = draw.randrange(len(content[file]))
        bent = bytearray(content[file])
        if number < 500:
            bent[at] ^= 1 << draw.randrange(8)
        file.write_bytes(bent if number < 500 else bent[:at])
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

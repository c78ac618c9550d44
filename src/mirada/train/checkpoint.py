"""Checkpoints: written aside, hashed, forced to disk, then renamed; the newest valid one counts.

A checkpoint is a folder `step-00000120` of safetensors files, state.json and MANIFEST.json, which
holds the size and SHA-256 of every other file. Nothing is pickled. A folder whose manifest does not
hold is no checkpoint: it is put aside as `.corrupt` and said so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mirada.errors import MiradaError, UntrustedInputError, WorkFailed

from . import pieces
from .disk import folder_made, forced

NAME = re.compile(r"step-(\d{8,12})")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
STATE_BYTES = 16 << 20
OLD = ".old"  # of a checkpoint that one of the same step takes the place of


@dataclass
class Checkpoint:
    """tensors: file name -> name -> tensor; state: plain JSON; step: updates that are in it."""

    step: int
    tensors: dict[str, Mapping[str, Tensor]]
    state: dict


def _save(tensors: dict[str, Mapping[str, Tensor]], aside: Path) -> None:
    for name, part in tensors.items():
        save_file({k: v.detach().contiguous() for k, v in part.items()}, aside / name)


def write(folder: Path, checkpoint: Checkpoint, keep: int = 2, save=_save) -> Path:
    """Write one and drop the oldest beyond `keep`; its folder. save: puts the tensors into files.

    Raises WorkFailed where the disk is full or fails; what stood before still stands. At every
    moment, of a kill or of a power cut, the newest checkpoint that stood or this one is whole.
    """
    _room(folder, sum(t.nbytes for part in checkpoint.tensors.values() for t in part.values()))
    aside = folder / f".tmp-{checkpoint.step}-{uuid.uuid4().hex[:8]}"
    final = folder / f"step-{checkpoint.step:08d}"
    try:
        folder_made(folder)
        aside.mkdir()
        save(checkpoint.tensors, aside)
        (aside / "state.json").write_text(json.dumps(checkpoint.state))
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                    for file in sorted(aside.iterdir())}
        (aside / "MANIFEST.json").write_text(json.dumps({"step": checkpoint.step,
                                                         "files": manifest}))
        for file in aside.iterdir():
            forced(file)
        forced(aside)
        if final.exists():  # of this very step; after a kill here `newest` brings it back
            os.rename(final, final.with_suffix(OLD))
        os.rename(aside, final)
        forced(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if error.errno in FULL:
            raise WorkFailed(f"{folder}: the checkpoint of step {checkpoint.step} could not be "
                             f"written: {error.strerror}") from error
        raise
    except Exception as error:  # safetensors wraps the system's error in one of its own
        shutil.rmtree(aside, ignore_errors=True)
        raise WorkFailed(f"{folder}: the checkpoint of step {checkpoint.step} could not be "
                         f"written: {error}") from error
    _retire(folder, keep)
    return final


def _room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents)
                                  if p.exists())).free
    if free < 1.2 * size:
        raise WorkFailed(f"{folder}: a checkpoint takes {size / 1e6:,.0f} MB and {free / 1e6:,.0f} "
                         "MB are free; make room, or save elsewhere")


def _retire(folder: Path, keep: int) -> None:
    """Remove what is older than the newest `keep`, and what a newer one took the place of."""
    old = [folder / f"step-{step:08d}" for step in steps(folder)[: -max(1, keep)]]
    try:
        for path in [*old, *folder.glob(f"step-*{OLD}")]:
            gone = folder / f".tmp-{path.name}-{uuid.uuid4().hex[:8]}"
            os.rename(path, gone)  # so that no half of it bears a checkpoint's name
            shutil.rmtree(gone)
    except OSError as error:
        raise WorkFailed(f"{folder}: an old checkpoint could not be removed: "
                         f"{error.strerror}") from error


def steps(folder: Path) -> list[int]:
    """The steps of which a folder stands there, oldest first; nothing is said of their content."""
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := NAME.fullmatch(p.name)))


def newest(folder: Path, say=lambda text: print(text, file=sys.stderr)) -> Checkpoint | None:
    """The newest valid one, or None. What is broken is put aside, and what a kill left half
    written is removed; `say` is told of the former."""
    if not folder.is_dir():
        return None
    for left in folder.glob(".tmp-*"):
        shutil.rmtree(left)
    for old in folder.glob(f"step-*{OLD}"):
        if old.with_suffix("").exists():
            shutil.rmtree(old)
        else:
            os.rename(old, old.with_suffix(""))
    for step in reversed(steps(folder)):
        path = folder / f"step-{step:08d}"
        try:
            return read(path)
        except UntrustedInputError as error:
            bad = path.with_name(f"{path.name}.corrupt")
            shutil.rmtree(bad, ignore_errors=True)
            os.rename(path, bad)
            say(f"mirada: {error}; it is put aside as {bad.name}, an older one is tried")
    return None


def read(path: Path) -> Checkpoint:
    """One checkpoint, every byte of it checked first. Raises UntrustedInputError."""
    manifest = _json(path / "MANIFEST.json")
    files = manifest.get("files")
    step = NAME.fullmatch(path.name)
    if not isinstance(files, dict) or step is None or manifest.get("step") != int(step[1]):
        raise UntrustedInputError(path / "MANIFEST.json", "step", "is not this checkpoint's")
    if {p.name for p in path.iterdir()} != {*files, "MANIFEST.json"}:
        raise UntrustedInputError(path, "files", "are not those of its manifest")
    for name, said in files.items():
        file = path / name
        if not isinstance(said, dict) or file.is_symlink() or not file.is_file():
            raise UntrustedInputError(file, "file", "is no plain file")
        if file.stat().st_size != said.get("bytes") or _sha256(file) != said.get("sha256"):
            raise UntrustedInputError(file, "sha256", "is not what was written")
    state = _json(path / "state.json")
    held: dict[str, list[Path]] = {}
    for name in sorted(files):
        if name.endswith(".safetensors"):
            held.setdefault(pieces.FILE.sub(r"\1\2", name), []).append(path / name)
    return Checkpoint(int(step[1]), {
        name: load_file(found[0]) if found[0].name == name else pieces.Joined(found)
        for name, found in held.items()}, state)


def put(target: dict[str, Tensor], source: Mapping[str, Tensor], path) -> None:
    """Copy tensors in place, all of them or none. Raises UntrustedInputError where they differ."""
    for name in target.keys() | source.keys():
        a, b = target.get(name), source.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            words = [("none" if t is None else f"{tuple(t.shape)} {t.dtype}") for t in (a, b)]
            raise UntrustedInputError(path, f"tensor {name!r}", f"the run has {words[0]}, the "
                                      f"checkpoint {words[1]}: it is another run's")
    for name, tensor in target.items():
        pieces.place(tensor, source[name])


def optimizer_tensors(model, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and counts under the names of their weights: exp_avg/body.blocks.0..."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {f"{kind}/{names[id(p)]}": value for p, held in opt.state.items()
            for kind, value in held.items() if torch.is_tensor(value)}


def load_optimizer(model, opt: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """The inverse: the optimizer goes on where it was."""
    params = dict(model.named_parameters())
    for key, value in saved.items():
        kind, _, name = key.partition("/")
        if name not in params:
            raise MiradaError(f"the checkpoint has moments of {name!r}, which does not train here")
        opt.state[params[name]][kind] = pieces.like(params[name], value)


def _json(path: Path) -> dict:
    try:
        if path.stat().st_size > STATE_BYTES:
            raise UntrustedInputError(path, "file", f"is larger than {STATE_BYTES:,} bytes")
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UntrustedInputError(path, "file", f"cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UntrustedInputError(path, "file", "is no JSON object")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

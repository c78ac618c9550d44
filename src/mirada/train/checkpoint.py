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
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mirada.errors import MiradaError, UntrustedInputError, WorkFailed

NAME = re.compile(r"step-(\d{8,12})")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
STATE_BYTES = 16 << 20


@dataclass
class Checkpoint:
    """tensors: file name -> name -> tensor; state: plain JSON; step: updates that are in it."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict


def write(folder: Path, checkpoint: Checkpoint, keep: int = 2) -> Path:
    """Write one and drop the oldest beyond `keep`; its folder.

    Raises WorkFailed where the disk is full or fails; what stood before still stands.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = sum(t.nbytes for part in checkpoint.tensors.values() for t in part.values())
    free = shutil.disk_usage(folder).free
    if free < 1.2 * size:
        raise WorkFailed(f"{folder}: a checkpoint takes {size / 1e6:,.0f} MB and {free / 1e6:,.0f} "
                         "MB are free; make room, or save elsewhere")
    aside = folder / f".tmp-{checkpoint.step}-{uuid.uuid4().hex[:8]}"
    final = folder / f"step-{checkpoint.step:08d}"
    try:
        aside.mkdir()
        for name, part in checkpoint.tensors.items():
            save_file({k: v.detach().contiguous() for k, v in part.items()}, aside / name)
        (aside / "state.json").write_text(json.dumps(checkpoint.state))
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                    for file in sorted(aside.iterdir())}
        (aside / "MANIFEST.json").write_text(json.dumps({"step": checkpoint.step,
                                                         "files": manifest}))
        for file in aside.iterdir():
            _sync(file)
        _sync(aside)
        if final.exists():  # of this very step, by a run that was stopped and begun again
            shutil.rmtree(final)
        os.rename(aside, final)
        _sync(folder)
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
    for old in steps(folder)[: -max(1, keep)]:
        shutil.rmtree(folder / f"step-{old:08d}")
    return final


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
    return Checkpoint(int(step[1]), {name: load_file(path / name) for name in files
                                     if name.endswith(".safetensors")}, state)


def put(target: dict[str, Tensor], source: dict[str, Tensor], path) -> None:
    """Copy tensors in place, all of them or none. Raises UntrustedInputError where they differ."""
    for name in target.keys() | source.keys():
        a, b = target.get(name), source.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            words = [("none" if t is None else f"{tuple(t.shape)} {t.dtype}") for t in (a, b)]
            raise UntrustedInputError(path, f"tensor {name!r}", f"the run has {words[0]}, the "
                                      f"checkpoint {words[1]}: it is another run's")
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])


def optimizer_tensors(model, opt: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments and counts under the names of their weights: exp_avg/body.blocks.0..."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {f"{kind}/{names[id(p)]}": value for p, held in opt.state.items()
            for kind, value in held.items() if torch.is_tensor(value)}


def load_optimizer(model, opt: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """The inverse: the optimizer goes on where it was."""
    params = dict(model.named_parameters())
    for key, value in saved.items():
        kind, _, name = key.partition("/")
        if name not in params:
            raise MiradaError(f"the checkpoint has moments of {name!r}, which does not train here")
        opt.state[params[name]][kind] = value.clone()


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


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The processes of a run: one alone, or many that share its batches and its weights (torchrun)."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mirada.errors import MiradaError, WorkFailed

from . import checkpoint, pieces

ASKED = (None, "enough", "stop")


class Alone:
    """One process: nothing is shared. scale: what a loss is multiplied with before its gradients
    are averaged over the processes."""

    lead, scale = True, 1.0

    def mine(self, places: range) -> range:
        """The places of a part's samples that this process reads."""
        return places

    def total(self, number: float) -> float:
        """The sum over the processes that read other samples."""
        return number

    def agree(self, asked: str | None) -> str | None:
        """The strongest wish of all processes."""
        return asked

    def clip(self, weights: list[nn.Parameter], most: float) -> float:
        """Cut the gradients to a norm of `most`; the norm they had."""
        return float(nn.utils.clip_grad_norm_(weights, most))

    def newest(self, folder: Path) -> checkpoint.Checkpoint | None:
        return checkpoint.newest(folder)

    def write(self, folder: Path, held: checkpoint.Checkpoint, keep: int) -> None:
        checkpoint.write(folder, held, keep)


class Ranks:
    """Processes on a mesh with the dimensions "data" and "tensor"; see edit.parallel."""

    def __init__(self, mesh):
        self.mesh, self.rank = mesh, dist.get_rank()
        self.lead = self.rank == 0
        self.scale = float(mesh["data"].size())

    def mine(self, places: range) -> range:
        data = self.mesh["data"]
        if len(places) % data.size():
            raise MiradaError(f"{len(places)} samples at a time cannot be shared by "
                              f"{data.size()} processes: choose a batch that can")
        size = len(places) // data.size()
        return places[data.get_local_rank() * size :][:size]

    def total(self, number: float) -> float:
        held = torch.tensor(number, dtype=torch.float64, device=self.mesh.device_type)
        dist.all_reduce(held, group=self.mesh["data"].get_group())
        return float(held)

    def agree(self, asked: str | None) -> str | None:
        held = torch.tensor(ASKED.index(asked), device=self.mesh.device_type)
        dist.all_reduce(held, dist.ReduceOp.MAX)
        return ASKED[int(held)]

    def clip(self, weights: list[nn.Parameter], most: float) -> float:
        squares = torch.zeros((), dtype=torch.float64, device=self.mesh.device_type)
        for p in weights:
            squares += _local(p.grad).double().square().sum() / self._copies(p)
        dist.all_reduce(squares)
        norm = float(squares.sqrt())
        if norm > most:  # as torch cuts: a little below
            for p in weights:
                _local(p.grad).mul_(most / (norm + 1e-6))
        return norm

    def _copies(self, p) -> int:
        """How many processes hold the same numbers of a tensor."""
        if not pieces.cut(p):
            return self.mesh.size()
        cuts = math.prod(n for n, how in zip(p.device_mesh.shape, p.placements, strict=True)
                         if not how.is_replicate())
        return self.mesh.size() // cuts

    def newest(self, folder: Path) -> checkpoint.Checkpoint | None:
        found = checkpoint.newest(folder) if self.lead else None
        step = int(self.told("-1" if found is None else str(found.step)))
        if step < 0:
            return None
        return found or checkpoint.read(folder / f"step-{step:08d}")

    def write(self, folder: Path, held: checkpoint.Checkpoint, keep: int) -> None:
        """Every process writes its pieces aside; the first one makes them a checkpoint."""
        def save(tensors: dict, aside: Path) -> None:
            for file, part in tensors.items():
                number = f"-{self.rank + 1:05d}-of-{self.mesh.size():05d}.safetensors"
                pieces.save(part, aside / (Path(file).stem + number), self.rank)

        def together(tensors: dict, aside: Path) -> None:
            reached.append(self.told(aside.name))
            self._tried(lambda: save(tensors, aside))
            reached.append("saved")

        reached: list[str] = []  # by the first process: the others wait for a word at each
        if self.lead:
            try:
                checkpoint.write(folder, held, keep, together)
            except Exception:
                if len(reached) != 1:  # else they know
                    self.told("")
                raise
            self.told("kept")
            return
        name = self.told("")
        if name:
            self._tried(lambda: save(held.tensors, folder / name))
        if not name or not self.told(""):
            raise WorkFailed("the first process of this run could not keep the checkpoint of step "
                             f"{held.step}; it says why")

    def told(self, word: str) -> str:
        """What the first process says, at most 4,096 bytes. No pickle, which torch's own way is."""
        said = torch.zeros(4096, dtype=torch.uint8)
        if self.lead and word:
            text = bytearray(word.encode())
            said[: len(text)] = torch.frombuffer(text, dtype=torch.uint8)
        said = said.to(self.mesh.device_type)
        dist.broadcast(said, 0)
        return bytes(said.tolist()).rstrip(b"\0").decode()

    def _tried(self, work: Callable[[], None]) -> None:
        """Do work(); where it fails in any process, each raises."""
        wrong: Exception | None = None
        try:
            work()
        except Exception as error:  # noqa: BLE001  raised below: first the others must know
            wrong = error
        failed = torch.tensor(float(wrong is not None), device=self.mesh.device_type)
        dist.all_reduce(failed)
        if wrong is not None:
            raise wrong
        if failed:
            raise WorkFailed("another process of this run could not write its part of the "
                             "checkpoint; it says why")


def join(tensor: int = 1, timeout: float = 600.0) -> Ranks | None:
    """The processes that torchrun began, as a mesh; None where there is one alone.

    tensor: how many of them share each product. timeout: seconds that one waits for the others.
    """
    from torch.distributed.device_mesh import init_device_mesh
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        if tensor != 1:
            raise MiradaError(f"{tensor} processes cannot share a product where one runs: begin "
                              f"with torchrun --nproc-per-node {tensor}")
        return None
    if size % tensor:
        raise MiradaError(f"{size} processes cannot stand in groups of {tensor}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if not dist.is_initialized():
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
        # torchrun keeps its store when it begins again: the addresses in it are of the dead
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=rank,
                                world_size=size, timeout=timedelta(seconds=timeout))
    return Ranks(init_device_mesh(device, (size // tensor, tensor),
                                  mesh_dim_names=("data", "tensor")))


def leave(code: int = 0) -> NoReturn:
    """End a process of many. gloo's threads abort some processes that end as others do, after all
    work is done and kept; this way there is nothing left to abort."""
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _local(t) -> Tensor:
    return t.to_local() if pieces.cut(t) else t

"""A run of many processes is the run of one: its losses, its checkpoints, its end."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mirada
from mirada import MiradaError, edit
from mirada.errors import UntrustedInputError, WorkFailed
from mirada.look.describe import describe
from mirada.train import checkpoint, pieces, world
from mirada.train.log import history
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from train import kills, ranks

STEPS = int(os.environ.get("MIRADA_STEPS", "12"))  # the claim of 50: make test-slow
PLAN = Plan(steps=STEPS, batch=8, parts=2, save=5, dtype="float64")
RECIPE = Recipe(rate=1e-2, warmup=2, clip=0.5)


class Ids:
    """Made-up tokens of unequal lengths, so that the processes' shares weigh differently."""

    count = 40

    def __init__(self, both=False):
        self.both = both

    def sample(self, index, draw):
        return [draw.randrange(200) for _ in range(5 + index % 8)]

    def batch(self, samples):
        ids = torch.full((len(samples), 12), -100)
        for row, sample in enumerate(samples):
            ids[row, : len(sample)] = torch.tensor(sample)
        return {"labels": ids}

    def weight(self, batch):
        return float((batch["labels"][:, 1:] >= 0).sum())

    def loss(self, model, batch):
        labels = batch["labels"]
        ids, real = labels.clamp(min=0), (labels >= 0).long()
        given = {"decoder_input_ids": ids} if model.encoder_decoder else {}
        logits = model(ids, real, **given).logits
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"), {}


def uneven():
    """257 tokens, one table for reading and writing, grouped heads."""
    return mirada.build("llama:tiny", vocab=257, tied=True, seed=0, dtype=torch.float64)


def biased():
    return mirada.build("t5:tiny", seed=0, dtype=torch.float64)


def sloped():
    return mirada.build("bloom:tiny", seed=0, dtype=torch.float64)


def normed():
    return mirada.build("qwen3:tiny", seed=0, dtype=torch.float64)


def routed():
    return mirada.build("mixtral:tiny", seed=0, dtype=torch.float64)


def twice():
    """One block that runs several times."""
    return mirada.build("albert:tiny", seed=0, dtype=torch.float64)


def adapted():
    torch.manual_seed(0)
    return edit.lora(uneven(), rank=4)


def trained(build, folder=None, shared=None, until=None, plan=PLAN):
    """(loss, norm) of each step of a run of this process, alone or of a group."""
    from mirada.edit.parallel import parallel
    model = build()
    if shared is not None:
        parallel(model, shared.mesh)
    found = fit(model, Ids(), plan, RECIPE, world=shared, watch=lambda line: line["step"] == until,
                out=None if folder is None else str(folder))
    return [(x["loss"], x["norm"]) for x in found.history]


MODELS = {"uneven": uneven, "biased": biased, "sloped": sloped, "normed": normed,
          "routed": routed, "twice": twice, "adapted": adapted}
TWO = {"data": (1, ("uneven", "biased", "adapted")), "tensor": (2, ("uneven", "biased", "sloped"))}
FOUR = {"data": (1, ("uneven", "routed")), "both": (2, ("uneven", "biased", "sloped", "normed",
                                                        "twice", "adapted"))}


def two(folder):
    _all(TWO, folder)


def four(folder):
    _all(FOUR, folder)


def _all(layouts, folder):
    for layout, (tensor, names) in layouts.items():
        shared = world.join(tensor)
        for name in names:
            found = trained(MODELS[name], shared=shared)
            if shared.lead:
                ranks.keep(folder / f"{layout}-{name}.json", found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.scope("1.17.7")
@pytest.mark.parametrize("function, layouts", [(two, TWO), (four, FOUR)])
def test_many_processes_are_one(function, layouts, tmp_path):
    """FSDP x2 and x4, tensor parallel x2, and 2 x 2: float64, every loss and every norm."""
    assert set(ranks.together(function, 2 if layouts is TWO else 4, tmp_path)) == {0}
    alone: dict = {}
    for layout, (_, names) in layouts.items():
        for name in names:
            alone.setdefault(name, trained(MODELS[name]))
            found = json.loads((tmp_path / f"{layout}-{name}.json").read_text())
            assert len(found) == STEPS
            for (loss, norm), (loss1, norm1) in zip(found, alone[name], strict=True):
                assert abs(loss - loss1) <= 1e-12, (layout, name)
                assert abs(norm - norm1) <= 1e-10, (layout, name)
    assert all(losses[-1][0] < losses[0][0] for losses in alone.values()), "they learn nothing"


def stands(folder):
    """The first half of a run, in pieces on 2 x 2 processes."""
    trained(uneven, folder / "run", world.join(2), until=STEPS // 2)


def goes_on(folder):
    """The other half on two processes, each with its samples and pieces of all weights."""
    trained(uneven, folder / "run", world.join(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.scope("1.17.7")
def test_goes_on_with_another_number_of_processes(tmp_path):
    """Saved by 2 x 2, a vocabulary of 257 in unequal pieces; gone on with by one, and by two."""
    assert set(ranks.together(stands, 4, tmp_path)) == {0}
    half = tmp_path / "run/checkpoints" / f"step-{STEPS // 2:08d}"
    assert len(list(half.glob("weights-*-of-00004.safetensors"))) == 4
    shutil.copytree(tmp_path / "run", tmp_path / "one/run")
    assert set(ranks.together(goes_on, 2, tmp_path)) == {0}
    trained(uneven, tmp_path / "one/run")
    alone = trained(uneven)
    for run in ("run", "one/run"):
        lines = history(tmp_path / run)
        assert [x["step"] for x in lines] == list(range(1, STEPS + 1))
        for line, (loss, norm) in zip(lines, alone, strict=True):
            assert abs(line["loss"] - loss) <= 1e-12 and abs(line["norm"] - norm) <= 1e-10


def killed(folder):
    """Many steps, so that there is time for a kill; the same plan each time."""
    trained(uneven, folder / "run", world.join(1), plan=replace(PLAN, steps=30, save=2))


def survives(folder, times, seed=0):
    """SIGKILL of one of two at chance moments; what they keep at the end is the same to the last
    bit as what two keep that nothing interrupted."""
    assert set(ranks.together(killed, 2, folder / "whole")) == {0}
    draw, number = random.Random(seed), 0
    for _ in range(times):
        cut = folder / str(number)
        children = ranks.begin(killed, 2, cut)
        kills.wait(children[1], cut / "run", len(history(cut / "run")) + draw.randrange(1, 7))
        time.sleep(draw.random() * 0.03)
        victim = draw.randrange(2)
        children[victim].kill()
        codes = ranks.ended(children)
        if codes == [0, 0]:  # it had ended: the next kills are of a new run
            _same_end(folder, cut)
            number += 1
            continue
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] != 0 or len(history(cut / "run")) == 30, "ends as if well"
    _same_end(folder, cut)


def _same_end(folder, cut):
    assert set(ranks.together(killed, 2, cut)) == {0}
    assert [x["step"] for x in history(cut / "run")] == list(range(1, 31))
    ends = [json.loads((run / "run/checkpoints/step-00000030/MANIFEST.json").read_text())
            for run in (folder / "whole", cut)]
    assert ends[0]["files"] == ends[1]["files"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.scope("1.17.7")
def test_a_run_whose_process_was_killed_ends_as_if_it_was_not(tmp_path):
    survives(tmp_path, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_killed_often(tmp_path):
    survives(tmp_path, kills.OFTEN, seed=1)


def full(folder):
    """One process's disk is full in the middle of a checkpoint."""
    shared = world.join(1)
    if not shared.lead:
        def save(*args):
            raise OSError(28, "No space left on device")
        pieces.save = save
    try:
        trained(uneven, folder / "run", shared)
    except (OSError, WorkFailed) as error:
        ranks.keep(folder / f"{shared.rank}.json", str(error))


@pytest.mark.filterwarnings("ignore")
def test_all_processes_hear_of_a_full_disk(tmp_path):
    assert set(ranks.together(full, 2, tmp_path)) == {0}
    assert "another process" in (tmp_path / "0.json").read_text()
    assert "No space left" in (tmp_path / "1.json").read_text()
    assert checkpoint.newest(tmp_path / "run/checkpoints") is None
    assert not list((tmp_path / "run/checkpoints").iterdir())


@pytest.mark.slow
def test_torchrun_begins_a_run_again_by_itself(tmp_path):
    """A process dies once; --max-restarts brings the run to its end."""
    book = tmp_path / "book.txt"
    book.write_text("\n".join(f"the {n} cats saw {n * 7 % 13} dogs" for n in range(300)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
               "--max-restarts", "1", "-m", "mirada", "train", "gpt2:tiny", "--data", str(book),
               "--steps", "60", "--batch", "4", "--length", "32", "--tokens", "300",
               "--save", "5", "-o", str(tmp_path / "run")]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while len(history(tmp_path / "run")) < 12 and time.monotonic() < deadline:
            time.sleep(0.02)
        (worker, *_) = _workers(running.pid)
        os.kill(worker, signal.SIGKILL)
        assert running.wait(120) == 0
    finally:
        running.kill()
    assert [x["step"] for x in history(tmp_path / "run")] == list(range(1, 61))


def _workers(launcher: int) -> list[int]:
    """Processes that a torchrun began and that train."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"PPid:\t{launcher}\n" in status.read_text():
                found.append(int(status.parent.name))
    return found


def test_a_piece_that_lies_elsewhere_is_refused(tmp_path):
    whole = torch.arange(12.0).reshape(4, 3)
    for number, rows in ((1, slice(0, 2)), (2, slice(2, 4))):
        said = {"a": {"shape": [4, 3], "offset": [rows.start, 0]}}
        save_file({"a": whole[rows].clone()}, tmp_path / f"w-0000{number}-of-00002.safetensors",
                  {"pieces": json.dumps(said)})
    files = sorted(tmp_path.glob("w-*"))
    assert torch.equal(pieces.Joined(files)["a"], whole)
    with pytest.raises(UntrustedInputError, match="6 of its 12 numbers"):
        pieces.Joined(files[:1])
    for wrong in ({"shape": [4, 3], "offset": [3, 0]}, {"shape": [4], "offset": [0, 0]},
                  {"shape": [4, 3], "offset": [-1, 0]}, {"shape": "x", "offset": 1}, 7):
        save_file({"a": whole[:2].clone()}, files[0], {"pieces": json.dumps({"a": wrong})})
        with pytest.raises(UntrustedInputError):
            pieces.Joined(files)


def imagined(folder, data, tensor, name, length):
    """One of many processes that are not there, on tensors that hold nothing."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from mirada.edit.parallel import parallel
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0,
                                         world_size=data * tensor)
    mesh = init_device_mesh("cpu", (data, tensor), mesh_dim_names=("data", "tensor"))
    model = mirada.build(name, device="meta").train()
    parallel(model, mesh)
    found = {"whole": sum(p.numel() for p in model.parameters()),
             "piece": sum((p.to_local() if pieces.cut(p) else p).numel()
                          for p in model.parameters())}
    if length:
        logits = model(torch.zeros(1, length, dtype=torch.long, device="meta")).logits
        logits.float().sum().backward()
        found |= {"shape": list(logits.shape),
                  "gradients": all(p.grad is not None for p in model.parameters())}
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
    ranks.keep(Path(folder) / "found.json", found | {"peak": int(peak) * 1024})
    os._exit(0)


@pytest.mark.scope("1.17.7")
@pytest.mark.parametrize("data, tensor, name, length", [
    (64, 8, "llama:llama3-405b", 0), (1, 8, "llama:llama3-8b", 8192), (16, 8, "gpt3", 0),
    pytest.param(1, 8, "llama:llama3-405b", 8192, marks=pytest.mark.slow)])
def test_the_largest_shapes_without_their_memory(data, tensor, name, length, tmp_path):
    """405B on 512 processes: each holds its part of the numbers, and here none of the bytes."""
    child = kills.process(imagined, str(tmp_path), data, tensor, name, length)
    child.join(300)
    assert child.exitcode == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["whole"] == describe(name).parameters
    even = found["whole"] / (data * tensor)  # some biases are whole in each, and rows not halved
    assert found["piece"] == pytest.approx(even, rel=2e-3)
    assert found["peak"] < 1 << 30
    if length:
        assert found["gradients"] and found["shape"] == [1, length, 128256]


def test_processes_that_cannot_be(monkeypatch):
    with pytest.raises(MiradaError, match="torchrun --nproc-per-node 2"):
        world.join(2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(MiradaError, match="3 processes cannot stand in groups of 2"):
        world.join(2)

"""What goes wrong in a run: no number, no memory, no room, another clock; and the order of data."""

import errno
import json
import os
import shutil
import time
from dataclasses import replace

import pytest
import torch

from mirada.errors import UntrustedInputError, WorkFailed
from mirada.train import checkpoint, log
from mirada.train.log import Folder, history
from mirada.train.loop import fit
from train import kills
from train.test_loop import PLAN, RECIPE, Words, same, small, weights

THREE = replace(PLAN, steps=21, batch=6, parts=3, save=1, keep=21)  # 3 epochs of 7 batches


class Noted(Words):
    """Remembers which samples were drawn."""

    count = 42

    def __init__(self):
        self.seen = []

    def sample(self, index, draw):
        self.seen.append(index)
        return super().sample(index, draw)


def test_resumed_behind_every_step_of_three_epochs(tmp_path):
    model, words = small(), Noted()
    fit(model, words, THREE, RECIPE, out=str(tmp_path / "whole"))
    want = weights(model)
    assert [sorted(words.seen[at : at + 42]) for at in (0, 42, 84)] == [list(range(42))] * 3
    for step in range(1, 21):
        part = tmp_path / str(step)
        shutil.copytree(tmp_path / "whole", part)
        for later in checkpoint.steps(part / "checkpoints"):
            if later > step:
                shutil.rmtree(part / "checkpoints" / f"step-{later:08d}")
        model, rest = small(dropout=0.1), Noted()
        fit(model, rest, replace(THREE, save=21), RECIPE, out=str(part))
        assert rest.seen == words.seen[step * 6 :]
        assert same(weights(model), want)


class Died(BaseException):
    """What nothing catches."""


def test_dead_in_every_part_of_every_step(tmp_path):
    """21 updates of 3 parts: the run dies in each of the 63, one after another, and goes on."""
    want, seen = kills.trained(lambda: (small(), Noted(), THREE, RECIPE))[0], {}

    class Mortal(Noted):
        def loss(self, model, batch):
            self.parts += 1
            if self.parts > self.lives:
                raise Died
            return super().loss(model, batch)

    for death in range(63):
        model, words = small(), Mortal()
        words.parts, words.lives = 0, death % 3 + (3 if death % 3 == 0 and death else 0)
        begins = [0] if death == 0 else checkpoint.steps(tmp_path / "checkpoints") or [0]
        with pytest.raises(Died):
            fit(model, words, replace(THREE, keep=1), RECIPE, out=str(tmp_path))
        for place, index in enumerate(words.seen, begins[-1] * 6):
            assert seen.setdefault(place, index) == index
    assert len(history(tmp_path)) == 20  # the death of the last part is of the last step
    model = small()
    fit(model, Noted(), replace(THREE, keep=1), RECIPE, out=str(tmp_path))
    assert same(weights(model), want) and len(seen) == 126
    assert [x["step"] for x in history(tmp_path)] == list(range(1, 22))


def test_the_same_run_is_the_same(tmp_path):
    runs = [kills.trained(lambda: (small(), Words(), PLAN, RECIPE)) for _ in range(5)]
    assert all(same(runs[0][0], other) for other, _ in runs[1:])
    other = kills.trained(lambda: (small(), Words(), replace(PLAN, seed=1), RECIPE))
    assert not same(runs[0][0], other[0])


@pytest.mark.parametrize("where", ["loss", "gradient", "input"])
@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 11, 13, 16, 19, 21])
def test_no_number_moves_no_weight(where, step, tmp_path):
    model = small()
    first = model.get_parameter("body.blocks.0.mlp.f.up.weight")
    calls = []

    class Poisoned(Words):
        def loss(self, model, batch):
            calls.append(1)
            hit = (len(calls) + 2) // 3 == step
            table = model.get_parameter("body.embed.token.weight")
            if hit and where == "input":
                kept, table.data = table.data, table.data.clone().fill_(torch.inf)
            loss, numbers = super().loss(model, batch)
            if hit and where == "input":
                table.data = kept
            if hit and where == "gradient":
                handle = first.register_hook(lambda grad: (handle.remove(), grad * torch.nan)[1])
            return (loss * torch.nan if hit and where == "loss" else loss), numbers

    with pytest.raises(WorkFailed, match=f"step {step}: .*learning rate"):
        fit(model, Poisoned(), replace(PLAN, save=2), RECIPE, out=str(tmp_path))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert event["what"] == "not a number" and len(event["samples"]) == 6
    assert checkpoint.steps(tmp_path / "checkpoints") == [
        s for s in range(2, step, 2)][-2:]  # none of the poisoned step


def test_a_rate_that_explodes_says_so(tmp_path):
    with pytest.raises(WorkFailed, match="lower the learning rate"):
        fit(small(), Words(), PLAN, replace(RECIPE, rate=1e30, warmup=0), out=str(tmp_path))


def test_a_spike_is_an_event(tmp_path):
    class Spiked(Words):
        calls = 0

        def loss(self, model, batch):
            Spiked.calls += 1
            loss, numbers = super().loss(model, batch)
            return (loss * 50 if Spiked.calls == 140 else loss), numbers

    plan = replace(PLAN, steps=142, batch=2, parts=1)
    fit(small(), Spiked(), plan, RECIPE, out=str(tmp_path))
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["what"] == "spike"] == [140]


def test_a_batch_that_does_not_fit_says_what_would(tmp_path):
    class Large(Words):
        def loss(self, model, batch):
            torch.empty(1 << 60)

    for parts, says in ((1, "6 samples at a time .* parts=2 reads 3 at a time"),
                        (2, "3 samples .* parts=3 reads 2"), (6, "shorter samples")):
        with pytest.raises(WorkFailed, match=says):
            fit(small(), Large(), replace(PLAN, parts=parts), RECIPE)

    class Broken(Words):
        def loss(self, model, batch):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        fit(small(), Broken(), PLAN, RECIPE)


def test_a_full_disk_stops_or_is_survived(tmp_path, monkeypatch, capsys):
    want = kills.trained(lambda: (small(), Words(), PLAN, RECIPE))[0]

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = small()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "forced", full)
        with pytest.raises(WorkFailed, match="step 4 could not be written: No space left"):
            fit(small(), Words(), PLAN, RECIPE, out=str(tmp_path / "stop"))
        fit(model, Words(), replace(PLAN, full="warn"), RECIPE, out=str(tmp_path / "warn"))
    assert same(weights(model), want)
    events = (tmp_path / "warn/events.jsonl").read_text()
    assert events.count("not saved") == 6 and "No space left" in events
    assert not list((tmp_path / "warn/checkpoints").iterdir())
    model = small()
    fit(model, Words(), PLAN, RECIPE, out=str(tmp_path / "stop"))  # there is room again
    assert same(weights(model), want)


def test_a_log_that_takes_no_more(tmp_path, monkeypatch, capsys):
    real, broken = log._append, []

    def append(file, line):
        if broken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, line)

    monkeypatch.setattr(log, "_append", append)

    def watch(line):
        if line["step"] == 5:
            broken.append(1)

    with pytest.raises(WorkFailed, match="log.jsonl cannot be written: No space left"):
        fit(small(), Words(), PLAN, RECIPE, out=str(tmp_path / "stop"), watch=watch)
    broken.clear()
    model = small()
    result = fit(model, Words(), replace(PLAN, full="warn"), RECIPE, out=str(tmp_path / "warn"),
                 watch=watch)
    assert result.reason == "done" and len(history(tmp_path / "warn")) == 5
    assert "not logged" in capsys.readouterr().err


def test_a_line_that_does_not_fit_leaves_no_half(tmp_path):
    import resource
    folder = Folder(tmp_path)
    folder.log({"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(WorkFailed, match="too large"):
            folder.log({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder.log({"step": 3})
    assert [x["step"] for x in history(tmp_path)] == [1, 3]
    folder.close()


def test_the_log_is_on_the_disk_before_a_checkpoint_is(tmp_path, monkeypatch):
    told, real = [], (Folder.flush, checkpoint.write)
    monkeypatch.setattr(Folder, "flush", lambda self: (told.append("log"), real[0](self)))
    monkeypatch.setattr(checkpoint, "write", lambda *a: (told.append("save"), real[1](*a)))
    fit(small(), Words(), replace(PLAN, steps=8), RECIPE, out=str(tmp_path))
    assert told == ["log", "save"] * 2


def test_a_run_that_says_nothing_readable(tmp_path):
    fit(small(), Words(), replace(PLAN, steps=1), RECIPE, out=str(tmp_path))
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UntrustedInputError, match="run.json: file: is no JSON"):
        fit(small(), Words(), replace(PLAN, steps=1), RECIPE, out=str(tmp_path))


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    want = kills.trained(lambda: (small(), Words(), PLAN, RECIPE))[0]
    jumps = iter([0, 1e9, -1e9, 5, -3] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    model = small()
    fit(model, Words(), PLAN, RECIPE, out=str(tmp_path))
    assert same(weights(model), want)
    assert all(0 <= line["seconds"] < 60 for line in history(tmp_path))


def test_another_machine_is_noted(tmp_path):
    model = small()
    fit(model, Words(), replace(PLAN, steps=3), RECIPE, out=str(tmp_path))
    assert not (tmp_path / "events.jsonl").exists()
    file = tmp_path / "run.json"
    run = json.loads(file.read_text())
    assert run["machine"] == {"threads": torch.get_num_threads(), "torch": torch.__version__,
                              "products": "torch.float32"}
    run["machine"]["threads"] = 96
    file.write_text(json.dumps(run))
    fit(small(), Words(), replace(PLAN, steps=3), RECIPE, out=str(tmp_path))
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert event["what"] == "another machine" and event["was"]["threads"] == 96


def test_a_finished_model_holds_the_running_mean(tmp_path):
    plan, model = replace(PLAN, steps=6, ema=0.5), small()
    mean = weights(model)

    def watch(line):  # the weights, as each step leaves them
        for name, p in weights(model).items():
            mean[name] = 0.5 * mean[name] + 0.5 * p

    fit(model, Words(), plan, RECIPE, out=str(tmp_path), watch=watch)
    assert all(torch.allclose(p, mean[n], atol=1e-6) for n, p in weights(model).items())
    last = checkpoint.newest(tmp_path / "checkpoints").tensors
    assert same(weights(model), last["ema.safetensors"])
    assert not same(weights(model), last["weights.safetensors"])
    again = small()
    fit(again, Words(), plan, RECIPE, out=str(tmp_path))  # done is done
    assert same(weights(again), weights(model))

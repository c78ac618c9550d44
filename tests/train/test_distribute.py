"""A run of many processes is the run of one: its losses, its checkpoints, its end."""

import json
import os
from dataclasses import replace

import pytest
import torch

import mirada
from mirada import edit
from mirada.train import checkpoint, world
from mirada.train.log import history
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from train import ranks

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


SMALL = {"layers": 2, "heads": 4}


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


def trained(build, folder=None, shared=None, steps=STEPS):
    """(losses, norms) of a run of this process, alone or of a group."""
    from mirada.edit.parallel import parallel
    model = build()
    if shared is not None:
        parallel(model, shared.mesh)
    found = fit(model, Ids(), replace(PLAN, steps=steps), RECIPE, world=shared,
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
    """Half a run in pieces: 2 x 2 processes."""
    trained(uneven, folder / "run", world.join(2), steps=STEPS)


def goes_on(folder):
    """The same on two processes."""
    found = trained(uneven, folder / "run", world.join(1), steps=2 * STEPS)
    if world.join(1).lead:
        ranks.keep(folder / "after.json", found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.scope("1.17.7")
def test_goes_on_with_another_number_of_processes(tmp_path):
    """Saved by 2 x 2, a vocabulary of 257 in unequal pieces; gone on with by one, and by two."""
    assert set(ranks.together(stands, 4, tmp_path)) == {0}
    files = {p.name for p in (tmp_path / "run/checkpoints" / f"step-{STEPS:08d}").iterdir()}
    assert "weights-00004-of-00004.safetensors" in files
    whole = trained(uneven, steps=STEPS)
    (tmp_path / "run/run.json").unlink()  # a run of more steps is another run, but for this test
    held = checkpoint.newest(tmp_path / "run/checkpoints")
    assert held.tensors["weights.safetensors"]["body.embed.token.weight"].shape == (257, 64)
    assert set(ranks.together(goes_on, 2, tmp_path)) == {0}
    after = json.loads((tmp_path / "after.json").read_text())
    alone = trained(uneven, steps=2 * STEPS)
    assert [x["step"] for x in history(tmp_path / "run")] == list(range(1, 2 * STEPS + 1))
    rate = Recipe(rate=1e-2, warmup=2, clip=0.5).at
    assert rate(STEPS, 2 * STEPS) != rate(STEPS - 1, STEPS)  # cosine: the halves differ in rate
    assert len(whole) == STEPS and len(after) == STEPS and len(alone) == 2 * STEPS

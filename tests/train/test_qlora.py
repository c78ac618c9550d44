"""QLoRA: four bits that do not move, and an adapter that learns on them."""

from dataclasses import replace

import pytest
import torch

import mirada
from mirada.core.linear import Quantized
from mirada.errors import MiradaError
from mirada.train import checkpoint
from mirada.train.loop import fit
from train import kills
from train.test_loop import PLAN, RECIPE, Words

ONCE = replace(PLAN, steps=40, parts=1, ema=None, dtype="float32")


def base(kind="nf4d"):
    plain = mirada.build("gpt2:tiny", seed=1, layers=2, d=64, heads=2, vocab=32, context=32)
    return mirada.edit.quantize(plain, kind)


def adapted(dropout=0.05, **more):
    return mirada.edit.lora(base(), 4, 8, "all", dropout=dropout, seed=2, **more)


def learns(model):
    before = {n: b.clone() for n, b in model.named_buffers()}
    stays = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    result = fit(model, Words(), ONCE, RECIPE)
    assert result.loss < 0.85 * result.history[0]["loss"], result.history[-1]
    assert before and all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert stays and all(torch.equal(p, stays[n]) for n, p in model.named_parameters()
                         if n in stays)


@pytest.mark.scope("1.13.9")
def test_the_adapter_learns_and_no_bit_of_the_base_moves():
    model = adapted()
    held = [m for m in model.modules() if isinstance(m, Quantized)]
    assert len(held) == 2 * 6 and {m.type for m in held} == {"NF4D"}
    learns(model)


@pytest.mark.gpu
def test_it_learns_on_a_gpu():
    learns(adapted().to("cuda"))


@pytest.mark.scope("1.13.9")
def test_gradients_are_those_of_the_expanded_base():
    """The same adapter on the same numbers held in full: only how they are kept differs."""
    model = adapted(dropout=0).double()
    plain = mirada.edit.merge(mirada.edit.lora(base(), 1, seed=0)).double()  # B is zero: the base
    wide = mirada.edit.lora(plain, 4, 8, "all", seed=2).double()
    ids, losses, theirs = torch.arange(3, 20)[None], [], dict(wide.named_parameters())
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad:
                theirs[n].copy_(p.normal_(std=0.1))
    for each in (model, wide):
        out = each(input_ids=ids, labels=ids)
        out.loss.backward()
        losses.append(float(out.loss.detach()))
    assert abs(losses[0] - losses[1]) < 1e-12
    checked = [n for n, p in model.named_parameters() if p.requires_grad
               and torch.allclose(p.grad, theirs[n].grad, rtol=1e-9, atol=1e-14)]
    assert len(checked) == 2 * 10


@pytest.mark.scope("1.13.9")
def test_checkpoints_hold_the_adapter_and_nothing_else(tmp_path):
    model = adapted()
    fit(model, Words(), replace(ONCE, steps=2), RECIPE, out=str(tmp_path / "run"))
    held = checkpoint.newest(tmp_path / "run" / "checkpoints").tensors
    names = set(held["weights.safetensors"])
    assert names == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(".adapters.default." in n for n in names)
    # the adapter alone goes to another copy of the base, and merging expands what is in blocks
    mirada.edit.save_adapter(model, tmp_path / "adapter")
    again = mirada.edit.load_adapter(base(), tmp_path / "adapter")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    merged = mirada.edit.merge(model)
    assert mirada.edit.merge_error(model, merged, ids) < 1e-5
    mirada.save(merged, tmp_path / "merged")
    with torch.no_grad():
        assert (mirada.load(tmp_path / "merged")(ids).logits - model(ids).logits).abs().max() < 1e-5


def test_a_quantized_model_alone_does_not_train():
    with pytest.raises(MiradaError, match="nothing trains: every weight of this model is frozen"):
        fit(base(), Words(), ONCE, RECIPE)


def setup():
    return adapted(), Words(), replace(ONCE, steps=10, save=2), RECIPE


def low_rank():
    plain = mirada.build("gpt2:tiny", seed=1, layers=2, d=16, heads=2, vocab=32, context=16)
    model = mirada.edit.lora(plain, 4, dropout=0.1, seed=2)
    return model, Words(), replace(PLAN, steps=10, save=2), RECIPE


@pytest.mark.scope("1.13.9")
@pytest.mark.parametrize("setup", [setup, low_rank])
def test_killed(setup, tmp_path):
    kills.survives(setup, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("setup", [setup, low_rank])
def test_killed_often(setup, tmp_path):
    kills.survives(setup, tmp_path, kills=kills.OFTEN, seed=1)

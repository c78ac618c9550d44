"""GPT-3 against the reference's GPT-2, whose odd layers are handed the band as a mask."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import mirada
from parity import harness
from parity.harness import Pair, wide
from parity.test_gpt2 import row

WINDOW = 3


def _banded(module, args, kwargs):
    """A reference layer's arguments, with what lies `WINDOW` or more back hidden."""
    T = args[0].shape[1]
    far = torch.ones(T, T, dtype=torch.bool).tril(-WINDOW)
    hidden = torch.finfo(torch.float64).min
    mask = kwargs.get("attention_mask")
    mask = torch.zeros(1, 1, T, T, dtype=torch.float64) if mask is None else mask
    assert mask.dtype == torch.float64, "the eager mask is added"
    return args, kwargs | {"attention_mask": mask.masked_fill(far, hidden)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Pair:
    folder, like = tmp_path_factory.mktemp("gpt3"), row("GPT2LMHeadModel", n_layer=4, cached=True)
    torch.manual_seed(7)
    config = transformers.GPT2Config(**like.settings)
    with wide():
        theirs = transformers.GPT2LMHeadModel(config).double().eval()
        harness.shake(theirs)
        theirs.save_pretrained(folder)
        theirs = harness.read_reference(transformers.GPT2LMHeadModel, folder)
    for block in theirs.transformer.h[1::2]:
        block.attn.register_forward_pre_hook(_banded, with_kwargs=True)
    raw = json.loads((folder / "config.json").read_text()) | {
        "model_type": "gpt3", "architectures": ["GPT3LMHeadModel"], "window_size": WINDOW}
    (folder / "config.json").write_text(json.dumps(raw))
    return Pair(like, folder, theirs, mirada.load(folder), like.inputs(like))


@pytest.mark.scope("1.6.3")
@pytest.mark.parametrize("check", ["outputs", "right_padding", "left_padding", "cached",
                                   "gradients", "loss", "recording", "broken"])
def test_parity(pair, check, tmp_path):
    harness.CHECKS[check](pair, tmp_path)


@pytest.mark.scope("1.6.3")
def test_only_the_odd_layers_are_banded(pair):
    masks = [block.attn.f.mask for block in pair.ours.body.blocks]
    assert [mask.window for mask in masks] == [None, WINDOW, None, WINDOW]
    assert all(mask.causal for mask in masks)


def test_files(pair, tmp_path):
    mirada.save(pair.ours, tmp_path / "saved")
    before, after = (load_file(f / "model.safetensors") for f in (pair.folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = mirada.load(tmp_path / "saved")
    assert again.config == pair.ours.config and again.family == "gpt3"


@pytest.mark.scope("1.6.3")
@pytest.mark.parametrize("size, said", [
    ("small", 125e6), ("medium", 350e6), ("large", 760e6), ("2.7b", 2.7e9), ("6.7b", 6.7e9)])
def test_table_2_1(size, said):
    model = mirada.build("gpt3", size=size, device="meta")
    assert abs(sum(p.numel() for p in model.parameters()) / said - 1) < 0.02


@pytest.mark.scope("1.6.3")
def test_the_175b_shape():
    model = mirada.build("gpt3:175b", device="meta")
    c = model.config
    assert (c.layers, c.d, c.heads, c.d // c.heads, c.context) == (96, 12288, 96, 128, 2048)
    assert sum(p.numel() for p in model.parameters()) == 174_604_259_328
    assert [b.attn.f.mask.window for b in model.body.blocks] == [None, 256] * 48

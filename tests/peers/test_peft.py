"""PEFT: it loads the adapters we write and gives our logits, and we load its own.

It runs in a child process, from the folders in MIRADA_PEERS.
"""

import os
import subprocess
import sys

import pytest
import torch

import mirada
from edit.test_lora import EACH, logits, moved, tiny

pytestmark = pytest.mark.peer

CHILD = """
import json, sys
import torch, transformers
from peft import LoraConfig, PeftModel, get_peft_model
source, ours, theirs, architecture, ends = sys.argv[1:]
ids = torch.arange(3, 20)[None]
def logits(model):
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **more).logits
def load():
    return getattr(transformers, architecture).from_pretrained(source, dtype=torch.float64)
first = logits(PeftModel.from_pretrained(load(), ours, autocast_adapter_dtype=False))
model = get_peft_model(load(), LoraConfig(r=3, lora_alpha=5, target_modules=ends.split(),
    alpha_pattern={ends.split()[0]: 2}))
torch.manual_seed(1)
for name, p in model.named_parameters():
    if "lora_B" in name:
        p.data.normal_(std=0.3)
second = logits(model)
model.save_pretrained(theirs)
torch.save((first, second), theirs + "/logits.pt")
"""


def peft(*words):
    env = os.environ | {"PYTHONPATH": os.environ.get("MIRADA_PEERS", "")}
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, words)], env=env,
                          capture_output=True, text=True)
    if "No module named 'peft'" in done.stderr:
        pytest.skip("peft is not in MIRADA_PEERS")
    assert done.returncode == 0, done.stderr[-2000:]


@EACH
def test_adapters_go_both_ways(row, tmp_path):
    plain = tiny(row, torch.float64)
    mirada.save(plain, tmp_path / "plain")
    model = moved(mirada.edit.lora(plain, 4, 8.0, row.targets, seed=2))
    mirada.edit.save_adapter(model, tmp_path / "ours")
    peft(tmp_path / "plain", tmp_path / "ours", tmp_path / "theirs", row.architecture,
         " ".join(row.theirs))
    first, second = torch.load(tmp_path / "theirs" / "logits.pt", weights_only=True)
    assert (logits(model) - first).abs().max() < 1e-5  # it has islands of float32
    loaded = mirada.edit.load_adapter(plain, tmp_path / "theirs")
    assert (logits(loaded) - second).abs().max() < 1e-5
    assert (second - first).abs().max() > 1e-3

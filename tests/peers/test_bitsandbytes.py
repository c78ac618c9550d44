"""bitsandbytes: what transformers writes with it we read to the bit, and it reads ours.

It runs in a child process, from the folders in MIRADA_PEERS.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import mirada
from mirada.core.linear import Quantized

pytestmark = pytest.mark.peer

CHILD = """
import json, sys
import bitsandbytes as bnb
import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM
source, target, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
config = {"quantization_config": BitsAndBytesConfig(**options)} if options else {}
model = LlamaForCausalLM.from_pretrained(source, dtype=torch.float32, device_map="cpu", **config)
if options:
    model.save_pretrained(target)
weights = {}
for name, module in model.named_modules():
    if isinstance(module, bnb.nn.Linear4bit):
        w = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    elif isinstance(module, bnb.nn.Linear8bitLt):
        state, weight = module.state, module.weight
        scales = weight.SCB if weight.SCB is not None else state.SCB
        w = bnb.functional.int8_vectorwise_dequant(weight.data, scales)
    else:
        continue
    weights[name] = w.float().contiguous()
save_file(weights, target + ".weights")
print(json.dumps(model(torch.arange(3, 20)[None]).logits[0, -1].tolist()))
"""
KINDS = {"nf4": ("NF4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
         "double": ("NF4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                            "bnb_4bit_use_double_quant": True}),
         "fp4": ("FP4", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
         "int8": ("I8", {"load_in_8bit": True})}
IDS = torch.arange(3, 20)[None]


def bitsandbytes(source, target, options: dict):
    """Its logits, and each weight it holds by name."""
    words = [sys.executable, "-c", CHILD, str(source), str(target), json.dumps(options)]
    env = os.environ | {"PYTHONPATH": os.environ.get("MIRADA_PEERS", "")}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if "No module named 'bitsandbytes'" in done.stderr:
        pytest.skip("bitsandbytes is not in MIRADA_PEERS")
    assert done.returncode == 0, done.stderr[-2000:]
    logits = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    return logits, load_file(f"{target}.weights")


def held(model) -> dict[str, torch.Tensor]:
    """The weights in blocks, expanded, under the names of the files."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Quantized):
            _, _, layer, part, _, short = path.split(".")
            outer = "self_attn" if part == "attn" else "mlp"
            found[f"model.layers.{layer}.{outer}.{short}_proj"] = module.expand()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_its_files_are_read_to_the_bit(kind, tmp_path):
    type, options = KINDS[kind]
    plain = mirada.save(mirada.build("llama", "tiny", seed=1), tmp_path / "plain")
    _, weights = bitsandbytes(plain, tmp_path / kind, options)
    model = mirada.load(tmp_path / kind)
    found = held(model)
    assert found.keys() == weights.keys() and len(found) == 14
    assert all(torch.equal(found[n], weights[n]) for n in found)
    assert {m.type for m in model.modules() if isinstance(m, Quantized)} == {type}


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_it_reads_ours(kind, tmp_path):
    small = mirada.edit.quantize(mirada.build("llama", "tiny", seed=1), kind)
    path = mirada.save(small, tmp_path / kind)
    logits, weights = bitsandbytes(path, tmp_path / "out", {})
    found = held(small)
    assert all(torch.equal(found[n], weights[n]) for n in weights) and len(weights) == 14
    ours = small(IDS).logits[0, -1]
    bar = 1e-5 if kind != "int8" else 2e-2  # its products in 8 bits pass through float16
    assert (logits - ours).abs().max() < bar * ours.std()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_both_round_alike(kind, tmp_path):
    plain = mirada.build("llama", "tiny", seed=1)
    _, weights = bitsandbytes(mirada.save(plain, tmp_path / "plain"), tmp_path / kind,
                              KINDS[kind][1])
    found = held(mirada.edit.quantize(plain, kind))
    apart = sum((found[n] != weights[n]).sum().item() for n in weights)
    assert apart <= sum(w.numel() for w in weights.values()) * 1e-4, "numbers midway between codes"

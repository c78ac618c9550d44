"""llama.cpp itself reads our GGUF files and writes the same tokens as we do.

It runs in a child process, from the folders in MIRADA_PEERS: two engines in one process would
share threads and libraries.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

import mirada
from mirada.models import GGUF
from peers.golden import ANSWERS, FILES, PROMPT, digest, greedy, write

pytestmark = pytest.mark.peer

CHILD = """
import json, sys
import numpy as np
from llama_cpp import Llama
path, ids, text = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
model = Llama(path, n_ctx=128, n_threads=1, verbose=False, logits_all=True)
said, logits = list(ids), None
for _ in range(int(sys.argv[4])):
    model.reset()
    model.eval(said)
    last = model.scores[len(said) - 1]
    logits = last.tolist() if logits is None else logits
    said.append(int(np.argmax(last)))
tokens = model.tokenize(text.encode(), add_bos=False, special=True) if text else []
print(json.dumps([said[len(ids):], logits, tokens]))
"""


def llama_cpp(path, ids: list[int], text: str = "", most: int = 12):
    """Its greedy tokens, its logits after the prompt, its ids of a text."""
    words = [sys.executable, "-c", CHILD, str(path), json.dumps(ids), text, str(most)]
    env = os.environ | {"PYTHONPATH": os.environ.get("MIRADA_PEERS", "")}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if "No module named 'llama_cpp'" in done.stderr:
        pytest.skip("llama-cpp-python is not in MIRADA_PEERS")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", GGUF)
def test_every_dialect_of_random_weights(name, tmp_path):
    """float32 files; llama.cpp's activations pass tables in float16, hence the bar."""
    model = mirada.build(GGUF[name], "tiny", seed=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    path = mirada.save(model, tmp_path / "m.gguf")
    ids = [5, 17, 101, 7, 900, 33, 250, 4]
    ours, logits = greedy(model, ids)
    theirs, found, _ = llama_cpp(path, ids)
    assert theirs == ours
    assert (torch.tensor(found) - logits).abs().max() < 3e-3 * logits.std()


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"])
def test_a_real_model_in_every_type(type, real, tmp_path):
    model = mirada.load(real("smollm2"), dtype=torch.float32)
    path = mirada.save(model, tmp_path / "m.gguf", type=type)
    ours, _ = greedy(mirada.load(path, dtype=torch.float32), PROMPT, 6)
    text = "Hello world 123, it's\n\nñandú"
    theirs, _, ids = llama_cpp(path, PROMPT, text, 6)
    assert theirs == ours and ids == model.tokenizer.encode(text, special=False).ids
    assert model.tokenizer.decode(ours).startswith("The capital of France is Paris")


@pytest.mark.parametrize("name", FILES)
def test_the_answers_that_were_written_down(name, real, tmp_path):
    path = write(name, tmp_path, real)
    tokens, _, _ = llama_cpp(path, FILES[name])
    assert {"sha256": digest(path), "tokens": tokens} == ANSWERS[name]

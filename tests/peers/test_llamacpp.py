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
from mirada.models.dialects import DIALECTS
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


APART = """
import json, sys
import llama_cpp as c
import numpy as np
path, ids, first = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
c.llama_backend_init()
model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
params = c.llama_context_default_params()
params.n_ctx = params.n_batch = params.n_ubatch = 128
params.n_threads = params.n_threads_batch = 1
params.embeddings, params.pooling_type = first < 0, c.LLAMA_POOLING_TYPE_NONE
context = c.llama_init_from_model(model, params)

def numbers(pointer, count):
    return np.ctypeslib.as_array(pointer, (count,)).tolist()

def batch(tokens, start):
    made = c.llama_batch_init(len(tokens), 0, 1)
    made.n_tokens = len(tokens)
    for at, token in enumerate(tokens):
        made.token[at], made.pos[at], made.n_seq_id[at] = token, start + at, 1
        made.seq_id[at][0], made.logits[at] = 0, True
    return made

assert not c.llama_encode(context, batch(ids, 0))
if first < 0:
    width = c.llama_model_n_embd(model)
    found = [numbers(c.llama_get_embeddings_ith(context, i), width) for i in range(len(ids))]
else:
    vocab, said, found = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model)), [first], []
    for step in range(8):
        assert not c.llama_decode(context, batch(said[-1:], step))
        found.append(numbers(c.llama_get_logits_ith(context, 0), vocab))
        said.append(int(np.argmax(found[-1])))
print(json.dumps(found))
"""


def encoded(path, ids: list[int], first: int = -1) -> torch.Tensor:
    """llama.cpp's encoder stream, (T, D); with `first`, the id that a decoder begins with, that
    decoder's logits at each of 8 greedy steps, (8, V)."""
    words = [sys.executable, "-c", APART, str(path), json.dumps(ids), str(first)]
    return torch.tensor(asked(words))


def llama_cpp(path, ids: list[int], text: str = "", most: int = 12):
    """Its greedy tokens, its logits after the prompt, its ids of a text."""
    return asked([sys.executable, "-c", CHILD, str(path), json.dumps(ids), text, str(most)])


def asked(words: list[str]):
    """What a child process prints."""
    env = os.environ | {"PYTHONPATH": os.environ.get("MIRADA_PEERS", "")}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if "No module named 'llama_cpp'" in done.stderr:
        pytest.skip("llama-cpp-python is not in MIRADA_PEERS")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


IDS = [5, 17, 101, 7, 900, 33, 250, 4]
DECODERS = [name for name in GGUF if DIALECTS[name].head.endswith(("CausalLM", "LMHeadModel"))]


def shaken(name: str, **changes):
    model = mirada.build(GGUF[name], "tiny", seed=3, architecture=DIALECTS[name].head, **changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_of_random_weights(name, tmp_path):
    """float32 files; llama.cpp's activations pass tables in float16, hence the bar."""
    model = shaken(name)
    ours, logits = greedy(model, IDS)
    theirs, found, _ = llama_cpp(mirada.save(model, tmp_path / "m.gguf"), IDS)
    assert theirs == ours
    assert (torch.tensor(found) - logits).abs().max() < 3e-3 * logits.std()


@pytest.mark.parametrize("name", ["bert", "modern-bert", "roberta"])
def test_every_encoder_of_random_weights(name, tmp_path):
    model = mirada.build("roberta", "tiny", seed=3, architecture="RobertaModel") if (
        name == "roberta") else shaken(name)
    found = encoded(mirada.save(model, tmp_path / "m.gguf"), IDS)
    ours = model(torch.tensor([IDS]))["last_hidden_state"][0]
    assert (found - ours).abs().max() < 3e-3 * ours.std()


@pytest.mark.parametrize("changes", [
    {}, {"act": "gelu_new", "gated": True, "tied": False, "scaled": False}])
def test_an_encoder_decoder_of_random_weights(changes, tmp_path):
    model = shaken("t5", farthest=128, **changes)
    found = encoded(mirada.save(model, tmp_path / "m.gguf"), IDS, first=0)
    if model.config.scaled:  # llama.cpp scales no logits
        found = found * model.config.d**-0.5
    said = torch.cat([torch.tensor([0]), found.argmax(-1)[:-1]])
    ours = model(torch.tensor([IDS]), decoder_input_ids=said[None]).logits[0]
    assert ours.argmax(-1).tolist() == found.argmax(-1).tolist()
    assert (found - ours).abs().max() < 1e-2 * ours.std()


@pytest.mark.parametrize("type, least", [("F32", 0.99999), ("Q8_0", 0.999)])
def test_a_real_sentence_encoder(type, least, real, tmp_path):
    """llama.cpp's GELU is the tanh one, from a table in float16; beside blocks it rounds
    activations to 8 bits."""
    model = mirada.load(real("minilm"), dtype=torch.float32)
    ids = model.tokenizer.encode("Nobody expects the Spanish inquisition.").ids
    found = encoded(mirada.save(model, tmp_path / "m.gguf", type=type), ids).mean(0)
    for reader in (model, mirada.load(tmp_path / "m.gguf")):
        ours = reader(torch.tensor([ids]))["last_hidden_state"][0].mean(0)
        assert torch.cosine_similarity(found, ours, 0) > least


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

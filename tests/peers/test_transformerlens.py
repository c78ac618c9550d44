"""TransformerLens records the same patterns, streams and heads as we do, from the same file.

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
from mirada.look.heads import probes, scores

pytestmark = pytest.mark.peer

CHILD = """
import json, sys
import torch, transformers
from safetensors.torch import save_file
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
folder, ids, out = sys.argv[1], torch.tensor(json.loads(sys.argv[2])), sys.argv[3]
theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
bridge = build_bridge_from_module(theirs, "GPT2LMHeadModel", hf_config=theirs.config)
found = {}
with torch.inference_mode():
    found["logits"], cache = bridge.run_with_cache(ids)
    layers = range(theirs.config.n_layer)
    found["pattern"] = torch.stack([cache["pattern", n] for n in layers])
    streams = [cache["resid_pre", 0], *(cache["resid_post", n] for n in layers)]
    found["resid"] = torch.stack(streams)
    found["lens"] = torch.stack([bridge.unembed(bridge.ln_final(x)) for x in streams])

class One:  # what the detector asks of a model: its sizes, and the ids of a text
    cfg = bridge.cfg
    def to_tokens(self, row):
        return ids[row : row + 1]
    def run_with_cache(self, tokens, remove_batch_dim):
        return bridge.run_with_cache(tokens, remove_batch_dim=remove_batch_dim)

with torch.inference_mode():
    for name in ("previous_token_head", "duplicate_token_head", "induction_head"):
        found[name] = torch.stack([detect_head(One(), b, name) for b in range(len(ids))]).mean(0)
save_file({name: x.float().contiguous() for name, x in found.items()}, out)
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A GPT-2 with weights large enough for its heads to differ; its probe, tape, lens; theirs."""
    folder = tmp_path_factory.mktemp("lens")
    model = mirada.build("gpt2", "tiny", seed=3, layers=4, heads=8)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.15)
    mirada.save(model, folder / "m")
    probe = probes.repeats(model, 6, period=9, times=4)
    with torch.inference_mode(), model.record(resid=True) as tape:
        logits = model(**probe.batch)["logits"]
    words = [sys.executable, "-c", CHILD, str(folder / "m"), json.dumps(probe.ids.tolist()),
             str(folder / "out.safetensors")]
    env = os.environ | {"PYTHONPATH": os.environ.get("MIRADA_PEERS", "")}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    if "No module named 'transformer_lens'" in done.stderr:
        pytest.skip("transformer-lens is not in MIRADA_PEERS")
    assert done.returncode == 0, done.stderr[-2000:]
    return probe, tape, logits, load_file(folder / "out.safetensors")


def test_patterns_streams_and_lens_agree(both):
    probe, tape, logits, theirs = both
    layers = tape.layers("decoder")
    patterns = torch.stack([tape.pattern(n) for n in layers])
    assert (patterns - theirs["pattern"]).abs().max() < 1e-5
    streams = torch.stack([tape.resid(n) for n in range(len(layers) + 1)])
    assert (streams - theirs["resid"]).abs().max() < 1e-4 * streams.std()
    assert (logits - theirs["logits"]).abs().max() < 1e-4 * logits.std()
    ours = mirada.look.lens(tape, top=3)
    best = theirs["lens"][:, 0].softmax(-1).topk(3)
    assert torch.equal(ours.ids, best.indices)
    assert (ours.probs - best.values).abs().max() < 1e-4


def test_the_heads_it_detects_are_ours(both):
    """Its detector takes the mean over all queries, ours over those that can show the role."""
    probe, tape, _, theirs = both
    names = {"duplicate": "duplicate_token_head", "induction": "induction_head"}
    passages = probe.__class__(**vars(probe) | {"kind": "passages"})
    for role, name in [*names.items(), ("previous", "previous_token_head")]:
        made = []
        for layer in tape.layers("decoder"):
            given = passages if role == "previous" else probe
            edges = next(e for r, detail, e in scores.claims(given) if (r, detail) == (role, ""))
            made.append(scores.mass(tape.pattern(layer).float(), edges, probe.seen)[0].mean(0))
        assert spearman(torch.stack(made).flatten(), theirs[name].flatten()) >= 0.99


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]).argsort(-1).argsort(-1).double())[0, 1].item()

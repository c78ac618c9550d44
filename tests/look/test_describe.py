"""What `describe` says is what the built model has: counts, bytes and work are measured here."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mirada
from mirada import registry
from mirada.core.attention import Attention, NoBias
from mirada.core.bias import ScoreBias
from mirada.look.describe import count_words, describe, size

HEADS = [(name, head) for name in registry.families() for head in registry.family(name).HEADS]
PLAIN = ["gpt2", "llama", "neox", "bert", "t5", "vit", "deberta"]


@pytest.mark.parametrize("name, head", HEADS)
def test_every_family_and_head(name, head):
    model = mirada.build(name, size="tiny", architecture=head, device="meta")
    page = describe(model)
    assert sum(page.parts.values()) == page.parameters == sum(
        p.numel() for p in model.parameters())
    assert page.memory == {"float32": 4 * page.parameters}
    assert page.tree[0] == head and len(page.tree) < 120
    assert all(len(line) < 200 and "\n" not in line for line in page.tree)
    assert all(page.facts.values()) and page.flops > 0 and page.flops_attention > 0
    json.dumps(page.data())
    assert str(page).startswith(f"{name} {head}: {page.parameters:,} parameters")


def test_gpt2_small_in_words():
    page = describe("gpt2:small")
    assert page.parameters == 124_439_808
    assert page.parts == {"network": 56_669_184, "embedding": 39_383_808, "attention": 28_348_416,
                          "norms": 38_400}
    assert page.facts["heads"] == "12 of 64" and page.facts["kind"] == "decoder"
    assert page.facts["head"] == "LMHead, tied to the token table"
    assert "│  ├─ blocks × 12" in page.tree
    assert page.cache_bytes == 2 * 12 * 768 * 4
    assert "497.8 MB in float32" in str(page)


@pytest.mark.parametrize("name", PLAIN)
def test_work_is_what_a_counter_counts(name):
    """Work at three lengths is a quadratic: its slope and its curve are the two figures."""
    model = mirada.build(f"{name}:tiny", seed=1)
    page = describe(model)
    if name == "vit":  # patches of 8 pixels and a class token
        lengths = [1 + n * n for n in (2, 3, 4)]
        works = [_work(mirada.build("vit:tiny", image=8 * n), pixel_values=torch.zeros(
            1, 3, 8 * n, 8 * n)) for n in (2, 3, 4)]
    else:
        for attention in (m for m in model.modules() if isinstance(m, Attention)):
            if isinstance(attention.score_bias, ScoreBias):
                attention.score_bias = NoBias()  # its work is left out, and said to be
        lengths = [8, 16, 24]
        works = [_work(model, **_batch(model, T)) for T in lengths]
    powers = torch.tensor([[1, T, T * T] for T in lengths], dtype=torch.float64)
    _, slope, curve = torch.linalg.solve(powers, torch.tensor(works, dtype=torch.float64)).tolist()
    assert abs(slope / page.flops - 1) < 0.005, (slope, page.flops)
    assert abs(curve / page.flops_attention - 1) < 1e-6, (curve, page.flops_attention)


def _batch(model, T: int) -> dict:
    ids = torch.full((1, T), 5)
    return {"input_ids": ids, "decoder_input_ids": ids} if model.encoder_decoder else {
        "input_ids": ids}


def _work(model, **batch) -> int:
    model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter, mirada.kernel("exact"):
        model(**batch)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "t5"])
def test_cache_bytes_are_what_a_cache_grows_by(name):
    model = mirada.build(f"{name}:tiny", seed=1)
    cache, held = model.new_cache(), []
    given = {"encoder_outputs": model.encode(torch.full((1, 6), 5))} if name == "t5" else {}
    for length in (5, 3):
        key = "decoder_input_ids" if name == "t5" else "input_ids"
        model(**given, **{key: torch.full((1, length), 5)}, cache=cache)
        held.append(sum(c.k.nbytes + c.v.nbytes for c in cache.each()))
    assert held[1] - held[0] == 3 * describe(model).cache_bytes > 0


def test_only_what_writes_has_a_cache():
    assert describe("bert:tiny").cache_bytes == 0
    assert describe(mirada.build("gpt2:tiny", architecture="GPT2Model")).cache_bytes == 0
    assert "cache" not in str(describe("bert:tiny"))


@pytest.mark.scope("1.3.10")
def test_the_largest_takes_no_memory_and_no_three_seconds():
    """In a process of its own, so that the peak is this model's."""
    script = ("import resource, torch, mirada; b = resource.getrusage(0).ru_maxrss; "
              "d = mirada.describe('gpt3:175b'); print(d.parameters, d.flops); "
              "print(resource.getrusage(0).ru_maxrss - b)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    parameters, flops, grown = map(int, done.stdout.split())
    assert parameters == 174_604_259_328 and 348e9 < flops < 350e9
    assert grown < 150_000, "kilobytes"
    before = time.process_time()
    describe("gpt3:175b")
    assert time.process_time() - before < 3


def test_shared_layers_windows_and_scalings_are_told():
    page = describe(mirada.build("llama:tiny", architecture="MistralForCausalLM", window=64))
    assert page.facts["attends"] == "what lies before (causal); windows 64 in 2 layers"
    assert page.facts["heads"] == "4 of 16, sharing 2 of keys and values"
    scaled = mirada.build("llama:tiny", rope="linear", rope_factor=4.0)
    assert describe(scaled).facts["positions"] == "rotary, base 10000, Linear(factor=4.0)"
    assert describe("neox:tiny").facts["positions"].endswith("8 of 32 channels")
    assert describe("t5:tiny").facts["decoder attends"].endswith("and the encoder's memory")
    assert describe("vit:base").facts["input"] == "14 x 14 patches of 16 x 16 pixels"


def test_blocks_that_differ_are_drawn_apart():
    model = mirada.build("gpt2:tiny", layers=4)
    model.body.blocks[1].mlp.pre.eps = 0.5
    tree = "\n".join(describe(model).tree)
    assert all(f"blocks{label}" in tree for label in ("[0]", "[1]", "[2–3] × 2"))


@pytest.mark.parametrize("count, words", [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"),
                                          (270_600_000, "270.6 MB"), (5e12, "5.0 TB"),
                                          (1.2e15, "1,200.0 TB")])
def test_bytes_in_words(count, words):
    assert size(count) == words


def test_counts_in_words():
    words = [count_words(n) for n in (7, 1_500, 2.5e9, 3.5e14)]
    assert words == ["7 ", "1.5 k", "2.5 G", "350.0 T"]

"""A real chat model, SmolLM2-135M-Instruct in 4-bit GGUF, must answer."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import mirada
from mirada.demo import demo
from mirada.edit import lower
from mirada.generate.rows import Rows
from models import tiny_gguf

TEXT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
PROMPT = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
END = 2
FOX = "The quick brown fox jumps over the lazy dog."


@pytest.fixture(scope="module")
def model(real):
    return mirada.load(real("smollm2"), dtype=torch.float32)


@pytest.fixture(scope="module")
def small(real):
    """In the file's own blocks."""
    return mirada.load(real("smollm2"))


def greedy(model, cache, most: int = 20) -> list[int]:
    step, said = torch.tensor([PROMPT]), []
    with torch.inference_mode():
        while len(said) < most and END not in said:
            step = model(step, cache=cache).logits[:, -1:].argmax(-1)
            said.append(int(step))
    return said


@pytest.mark.parametrize("kind", ["growing", "static"])
def test_it_answers(model, kind):
    assert model.tokenizer.encode(TEXT).ids == PROMPT
    said = model.tokenizer.decode(greedy(model, model.new_cache(kind, size=64)), skip_special=False)
    assert said == "The capital of France is Paris.<|im_end|>"


def test_its_loss_on_a_sentence(model):
    ids = torch.tensor([model.tokenizer.encode(FOX, special=False).ids])
    with torch.inference_mode():
        out = model(ids, labels=ids)
    byhand = F.cross_entropy(out.logits[0, :-1], ids[0, 1:])
    assert abs(out.loss.item() - 4.012) < 5e-4
    assert abs(out.loss.item() - byhand.item()) < 1e-6


def test_its_size_and_ties(model):
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.head.out.weight is model.body.embed.token.weight
    assert model.config.rope_base == 100_000 and model.context == 8192


def test_in_its_blocks_it_is_the_same_model(model, small, real):
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        assert (small(ids).logits - model(ids).logits).abs().max() < 1e-4
    assert small.head.out.blocks is small.body.embed.token.blocks and small.dtype == torch.float32
    described = mirada.describe(small)
    assert described.parameters == 134_515_008
    file = real("smollm2").stat().st_size
    assert 0.97 * file < sum(described.memory.values()) < file, "the rest is its vocabulary"


PEAK = """
import sys, torch, mirada
from mirada import registry
from mirada.models import llama
def peak():
    lines = open("/proc/self/status").readlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) << 10
before = peak()
model = registry.load(sys.argv[1])
for tensor in model.state().values():
    tensor.max()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_loading_it_takes_little_more_than_its_file(real):
    """Peak memory of a load, and of reading every weight once."""
    words = [sys.executable, "-c", PEAK, str(real("smollm2"))]
    took = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    assert 0.9 < took / real("smollm2").stat().st_size < 1.3


def test_the_native_runtime_says_the_same(small):
    """Its 15-bit activations and half-precision keys: logits within three parts in a thousand."""
    ids = small.tokenizer.encode(f"{FOX} Paris is the capital of France, and Madrid is").ids
    rows = Rows(lower.lower(small))
    with torch.inference_mode():
        exact = small(torch.tensor([ids])).logits
    found = rows([ids], len(ids))
    assert (found - exact).abs().max() < 3e-3 * exact.abs().max()
    assert torch.equal(found.argmax(-1), exact.argmax(-1))
    written = small.generate(torch.tensor([PROMPT]), max_new_tokens=20, eos_token_id=END)
    assert small.tokenizer.decode(written[0, len(PROMPT):].tolist()) == (
        "The capital of France is Paris.")
    assert small.path().startswith("native runtime")


@pytest.mark.slow
def test_every_logit_is_the_references(model, real):
    """Against the reference's own GGUF reader, on the prompt, in float32."""
    theirs = tiny_gguf.read_reference(real("smollm2"))
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        assert (model(ids).logits - theirs(ids).logits).abs().max() < 1e-3


def test_the_demo_says_what_the_model_is(real, tmp_path, capsys):
    real("smollm2")
    demo(str(tmp_path / "attention.png"))
    said = capsys.readouterr().out
    assert said.startswith("SmolLM2-135M-Instruct: 134,515,008 parameters, loaded in ")
    assert "The capital of France is Paris." in said
    assert (tmp_path / "attention.png").stat().st_size > 10_000

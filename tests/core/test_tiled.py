"""Attention by tiles: the same numbers and gradients, whatever the tiles, in linear memory."""

import subprocess
import sys

import pytest
import torch

import mirada
from core.test_kernels import MASKS, VARIANTS, call
from mirada.core import attend, tiled
from mirada.core.attend import KERNELS, Attend, Call, choose
from mirada.core.bias import Bias, Buckets
from mirada.core.cache import KV
from mirada.core.mask import Mask


@pytest.fixture(params=[(1, 1), (2, 3), (4, 2), (5, 8), (64, 64)])
def tiles(request, monkeypatch):
    monkeypatch.setattr(tiled, "ROWS", request.param[0])
    monkeypatch.setattr(tiled, "KEYS", request.param[1])


@pytest.mark.scope("1.15.10")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MASKS)
def test_any_tiles_give_the_exact_result(name, variant, tiles):
    c = call(name, 2, torch.float64, variant)
    assert torch.allclose(KERNELS["tiled"].run(c), KERNELS["exact"].run(c), atol=1e-13)


@pytest.mark.scope("1.15.10")
@pytest.mark.parametrize("name", ["causal square", "window", "causal padding", "segments"])
def test_the_backward_pass_too(name, tiles):
    grads = []
    for kernel in ("tiled", "exact"):
        c = call(name, 2, torch.float64, "all of them")
        leaves = [t.requires_grad_() for t in (c.q, *c.kv.dense(), c.sinks.double())]
        c = Call(leaves[0], KV(leaves[1], leaves[2]), c.scale, c.mask, c.bias, c.cap, leaves[3])
        KERNELS[kernel].run(c).square().sum().backward()
        grads.append([t.grad for t in leaves])
    for ours, theirs in zip(*grads, strict=True):
        assert torch.isfinite(ours).all() and torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.scope("1.15.10")
def test_a_learned_bias_gets_its_gradient(tiles):
    torch.manual_seed(0)
    table = Buckets(heads=2, buckets=8, farthest=16)
    grads = []
    for kernel in ("tiled", "exact"):
        table.zero_grad()
        x = torch.randn(1, 2, 12, 4, generator=torch.Generator().manual_seed(1))
        out = KERNELS[kernel].run(Call(x, KV(x, x), 1.0, Mask(), Bias(table, Mask())))
        out.square().sum().backward()
        grads.append([p.grad.clone() for p in table.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        assert float(ours.abs().max()) > 0 and torch.allclose(ours, theirs, atol=1e-6)


def test_keys_that_nobody_sees_are_not_read(monkeypatch):
    monkeypatch.setattr(tiled, "ROWS", 16)
    read = []
    rows = tiled._rows
    monkeypatch.setattr(tiled, "_rows", lambda *a: read.append(a[7] - a[6]) or rows(*a))
    x = torch.randn(1, 2, 128, 4)
    with torch.no_grad():
        tiled.tiled(Call(x, KV(x, x), 1.0, Mask(causal=True, window=10)))
    assert read == [16] + [25] * 7  # a tile's own keys and nine before, of 128
    read.clear()
    with torch.no_grad():
        tiled.tiled(Call(x, KV(x, x), 1.0, Mask(causal=True)))
    assert read == list(range(16, 129, 16))


def test_dropout_keeps_the_mean(monkeypatch):
    torch.manual_seed(0)
    x, v = torch.randn(1, 1, 300, 4), torch.ones(1, 1, 300, 2)
    out = tiled.tiled(Call(x, KV(x, v), 1.0, Mask(), dropout=0.4))
    assert 0.02 < float(out.std()) and float(out.mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("mask", "more", "name"), [
    (Mask(causal=True), {}, "sdpa"), (Mask(), {}, "sdpa"),
    (Mask(causal=True, window=8), {}, "tiled"), (Mask(causal=True), {"cap": 5.0}, "tiled"),
    (Mask(padding=torch.ones(1, 6000).bool()), {}, "tiled")])
def test_long_texts_go_by_tiles_where_a_square_would_be_built(mask, more, name):
    x = torch.empty(1, 1, 6000, 2)
    assert choose(Call(x, KV(x, x), 1.0, mask, **more)) == name
    assert attend.LARGEST < 6000**2
    short = torch.empty(1, 1, 600, 2)
    mask = Mask(causal=mask.causal, window=mask.window)
    assert choose(Call(short, KV(short, short), 1.0, mask, **more)) != "tiled"


SCRIPT = """
import torch, mirada
torch.set_num_threads(1)
torch.manual_seed(0)
model = mirada.build("mistral:tiny", context=40000, layers=1, window=64,
                     architecture="MistralForCausalLM").eval()
def peak():  # of this process alone: ru_maxrss begins with its parent's
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))
ids = torch.randint(0, model.config.vocab, (1, 32768))
with torch.inference_mode():
    model(input_ids=ids[:, :512], logits_to_keep=1)
    before = peak()
    model(input_ids=ids, logits_to_keep=1)
print(peak() - before)
"""


@pytest.mark.scope("1.16.6")
def test_a_window_over_32k_tokens_builds_no_square():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400 << 20  # the square of booleans alone would be 1 GiB


@pytest.mark.scope("1.16.6")
def test_a_window_by_tiles_is_the_window(monkeypatch):
    torch.manual_seed(0)
    model = mirada.build("mistral:tiny", window=16, architecture="MistralForCausalLM")
    model = model.double().eval()
    ids = torch.randint(0, model.config.vocab, (2, 100))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        monkeypatch.setattr(attend, "LARGEST", 1)
        monkeypatch.setattr(tiled, "ROWS", 32)
        got = model(input_ids=ids).logits
        weights = Attend.weights(Call(torch.randn(1, 1, 9, 4), KV(*torch.randn(2, 1, 1, 9, 4)), 1.0,
                                      Mask(causal=True, window=3)))
    assert torch.allclose(got, wanted, atol=1e-12)
    assert int((weights > 0).sum(-1).max()) == 3

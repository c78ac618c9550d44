"""The loss without logits is the loss with them, and what trains by it learns as much."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import mirada
from mirada import edit
from mirada.train import allocator, loop, loss
from mirada.train.corpus import Corpus
from mirada.train.language import NextToken
from mirada.train.loop import Plan, fit
from mirada.train.loss import IGNORED, linear_loss, token_loss, told_loss
from mirada.train.optim import Recipe
from train.test_loop import PLAN, RECIPE, Words, small


@pytest.fixture
def stretches(monkeypatch):
    """Small ones, so that a batch takes several."""
    monkeypatch.setattr(loss, "STRETCH", 333 * 8 * 7)
    monkeypatch.setattr(loss, "INNER", 333 * 3)


@pytest.mark.scope("1.17.2")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("biased", [False, True])
def test_it_and_its_gradients_are_torchs(smoothing, biased, stretches):
    torch.manual_seed(0)
    x, w, b = (torch.randn(s, dtype=torch.float64, requires_grad=True)
               for s in ((50, 16), (333, 16), (333,)))
    labels = torch.randint(0, 333, (50,))
    given = (x, w, b) if biased else (x, w)
    wanted = F.cross_entropy(F.linear(*given), labels, reduction="sum", label_smoothing=smoothing)
    got = linear_loss(x, w, b if biased else None, labels, smoothing)
    assert float((got - wanted).detach()) == pytest.approx(0, abs=1e-10)
    for a, c in zip(torch.autograd.grad(got / 3, given), torch.autograd.grad(wanted / 3, given),
                    strict=True):
        assert torch.allclose(a, c, atol=1e-12)


@pytest.mark.scope("1.17.2")
def test_smoothing_leaves_the_right_class_a_little_more_than_nine_tenths():
    logits = torch.tensor([[[3.0, -1.0, 0.5, 0, 0, 0, 0, 0, 0, 0]]], dtype=torch.float64)
    target = torch.full((10,), 0.1 / 10, dtype=torch.float64)
    target[2] += 0.9  # 0.91, not 0.9
    wanted = -(target * logits.log_softmax(-1)).sum()
    assert float(token_loss(logits, torch.tensor([[2]]), 0.1)) == pytest.approx(float(wanted))
    assert float(token_loss(logits, torch.tensor([[2]]))) == pytest.approx(
        float(-logits.log_softmax(-1)[0, 0, 2]))


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama", "gemma2", "t5"])
def test_of_a_whole_model(family, stretches):
    """Tied and not, with a transform, a bias, a scale, and (gemma2) a cap, which takes logits."""
    model = mirada.build(f"{family}:tiny", dtype=torch.float64, architecture={
        "bert": "BertForMaskedLM"}.get(family))
    ids = torch.randint(5, 90, (3, 9), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(ids % 3 == 0, IGNORED)
    given = {"input_ids": ids}
    if family == "t5":
        given["decoder_input_ids"] = ids.flip(0)
    got = told_loss(model, given, labels, 0.1)
    wanted = token_loss(model(**given).logits, labels, 0.1)
    assert float((got - wanted).detach()) == pytest.approx(0, abs=1e-9)
    names = [n for n, _ in model.named_parameters()]
    for n, a, c in zip(names, *(torch.autograd.grad(x, list(model.parameters()),
                                                    allow_unused=True) for x in (got, wanted)),
                       strict=True):
        assert (a is None) == (c is None) and (a is None or torch.allclose(a, c, atol=1e-11)), n


def test_it_holds_no_logits_of_the_batch(monkeypatch):
    """Of 4,096 places x 8,192 tokens, 128 MiB, it has no more than its stretch at a time."""
    largest = []
    real = loss._gradients
    monkeypatch.setattr(loss, "STRETCH", 1 << 22)
    monkeypatch.setattr(loss, "_gradients", lambda z, *more: (largest.append(z.nbytes),
                                                              real(z, *more))[1])
    x, w = torch.randn(4096, 4, requires_grad=True), torch.randn(8192, 4, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.nbytes), t)[1],
                                                  lambda t: t):
        linear_loss(x, w, None, torch.zeros(4096, dtype=torch.long)).backward()
    assert max(largest) <= 1 << 22 and len(largest) == 32
    assert sum(kept) == x.nbytes + w.nbytes


def test_frozen_weights_and_no_labels():
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4)
    linear_loss(x, w, None, torch.arange(5)).backward()
    assert x.grad is not None and w.grad is None
    none = linear_loss(x[:0], w.requires_grad_(), None, torch.zeros(0, dtype=torch.long))
    assert float(none.detach()) == 0.0
    with torch.no_grad():
        assert not linear_loss(x, w, None, torch.arange(5)).requires_grad


def test_bfloat16_learns_as_much():
    """Autocast over float32 weights: the losses of a run stay beside those of float32."""
    text = Corpus.of([[(5 + n * k) % 31 for n in range(24)] for k in (1, 2, 3)] * 8)
    lost = {}
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = mirada.build("gpt2:tiny", layers=1, d=32, heads=2, vocab=32, context=24)
        result = fit(model, NextToken(text, 24), Plan(steps=80, batch=8, dtype=dtype),
                     Recipe(rate=1e-2, warmup=10))
        assert all(p.dtype == torch.float32 for p in model.parameters())
        lost[dtype] = [line["loss"] for line in result.history]
    assert lost["float32"] != lost["bfloat16"] and lost["float32"][-1] < 0.3 * lost["float32"][0]
    for a, b in zip(*lost.values(), strict=True):
        assert b == pytest.approx(a, abs=0.03)


def test_bfloat16_is_taken_where_it_pays(monkeypatch):
    def kind(d, dtype="auto", fast=True, given=torch.float32, adapted=False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
        model = mirada.build("llama:tiny", d=d, heads=2, kv_heads=2, layers=1).to(given)
        if adapted:
            model = edit.lora(edit.quantize(model, "int4", tables="Q8_0"), rank=2)
        return loop.precision(replace(PLAN, dtype=dtype), model)

    assert kind(128) == torch.bfloat16 and kind(64) == torch.float32
    assert kind(128, fast=False) == torch.float32
    assert kind(64, "bfloat16") == torch.bfloat16 and kind(128, "float32") == torch.float32
    assert kind(128, given=torch.float64) == torch.float64
    assert kind(128, adapted=True) == torch.bfloat16  # by the products, not the narrow adapters
    assert kind(64, adapted=True) == torch.float32


def test_freed_memory_stays_and_changes_no_number():
    first = fit(small(), Words(), PLAN, RECIPE).loss
    assert isinstance(allocator.keep_freed(), bool)
    assert fit(small(), Words(), PLAN, RECIPE).loss == first

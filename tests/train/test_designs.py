"""What the papers say of their designs, in models trained here: where norms stand in deep stacks,
distances by ALiBi beyond the trained length, and PaLM's blocks."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mirada
from mirada.core.init import normal
from mirada.train.corpus import Corpus
from mirada.train.language import NextToken
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe

LETTERS = 16


def written(count, seed):
    """A text in which the two letters before tell the next: one of two, four times in five."""
    draw, rule = random.Random(seed), random.Random(5)
    table = {(a, b): (rule.randrange(LETTERS), rule.randrange(LETTERS))
             for a in range(LETTERS) for b in range(LETTERS)}
    text = [0, 1]
    while len(text) < count:
        text.append(table[text[-2], text[-1]][draw.random() < 0.2])
    return text


@pytest.fixture(scope="module")
def corpus():
    return Corpus.of([written(19200, 0)])


def post(model):
    """Each norm behind its sublayer and the sum, and none at the end."""
    for block in model.body.blocks:
        for residual in (block.attn, block.mlp):
            residual.out, residual.pre = residual.pre, nn.Identity()
    model.body.norm = nn.Identity()
    return model


@pytest.mark.slow
@pytest.mark.scope("1.3.6")
def test_24_layers_learn_without_warmup_where_norms_stand_before(corpus):
    """2002.04745, section 3: behind the sum, the last layers' gradients are large at first."""
    last = {}
    for name, where in (("pre", lambda model: model), ("post", post)):
        model = where(mirada.build("gpt2:tiny", seed=0, vocab=LETTERS, d=32, heads=4, layers=24,
                                   context=32))
        torch.manual_seed(0)
        normal(model, 0.1)
        result = fit(model, NextToken(corpus, 16), Plan(steps=100, batch=16, dtype="float32"),
                     Recipe(rate=6e-3, warmup=0, schedule="constant"))
        last[name] = sum(line["loss"] for line in result.history[-10:]) / 10
    guess = math.log(LETTERS)
    assert last["pre"] < guess - 0.6  # it learns
    assert last["post"] > guess - 0.15  # it still knows no more than which letters there are


def loss(model, text, length):
    """Of the last quarter of rows of `length`, each letter with the same text before it."""
    ids = torch.tensor(text).view(-1, length)
    with torch.no_grad():
        logits = model(ids).logits[:, -length // 4 - 1 : -1]
    return float(F.cross_entropy(logits.flatten(0, 1), ids[:, -length // 4 :].flatten()))


@pytest.mark.slow
@pytest.mark.scope("1.2.5")
def test_alibi_reads_eight_times_the_length_it_learned(corpus):
    """2108.12409, figure 1: the loss of longer rows does not rise; rotation's does."""
    found, text = {}, written(8192, 9)
    for name in ("bloom", "llama"):
        small = {} if name == "bloom" else {"hidden": 64, "context": 512}
        model = mirada.build(f"{name}:tiny", seed=0, vocab=LETTERS, d=32, heads=4, layers=2,
                             **small)
        torch.manual_seed(0)
        normal(model, 0.15)
        fit(model, NextToken(corpus, 32), Plan(steps=250, batch=16, dtype="float32"),
            Recipe(rate=5e-3, warmup=20))
        found[name] = {length: loss(model.eval(), text, length) for length in (32, 64, 256)}
    assert max(found[name][32] for name in found) < 1.4  # both learned, from 2.77
    assert max(found["bloom"].values()) < found["bloom"][32] + 0.05
    assert found["llama"][64] > found["llama"][32] + 0.3
    assert found["llama"][256] > found["llama"][32] + 1.0


@pytest.mark.scope("1.6.8")
def test_palms_blocks_learn(corpus):
    """One key and value for all heads, beside a SwiGLU of the same norm; and the size it had."""
    model = mirada.build("palm:tiny", seed=0, vocab=LETTERS, d=32, heads=4, head_dim=8, layers=2,
                         hidden=64)
    block = model.body.blocks[0]
    assert block.attn.f.k.out_features == 8 and block.attn.f.q.out_features == 32
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    result = fit(model, NextToken(corpus, 32), Plan(steps=200, batch=16, dtype="float32"),
                 Recipe(rate=5e-3, warmup=20))
    first, last = result.history[0]["loss"], result.history[-1]["loss"]
    assert last < 0.55 * first and last < 1.4
    whole = mirada.build("palm", size="540b", device="meta")
    assert sum(p.numel() for p in whole.parameters()) == pytest.approx(540.35e9, rel=1e-3)

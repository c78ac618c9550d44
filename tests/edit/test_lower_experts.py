"""Experts on the native runtime: a token takes the modules' ones, with the modules' numbers."""

import pytest
import torch

import mirada
from mirada.core.mlp import MLP, MoE
from mirada.edit import lower
from mirada.generate.engine import Engine
from mirada.generate.rows import Rows
from mirada.kernels import native
from tests.edit.test_lower import built, by_torch, distance, exactly, ids_for, in_blocks

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing() or "")

WIDE = dict(d=256, hidden=256, heads=4, kv_heads=2, head_dim=64, layers=2)


def given(model, ids, threads: int = 1) -> torch.Tensor:
    """Logits of all tokens by a new program."""
    rows = Rows(lower.lower(model, cache="float32"))
    rows.native.threads = threads
    return rows(ids.tolist(), ids.shape[1])


@pytest.mark.parametrize("experts, top", [(4, 1), (3, 3), (8, 2), (19, 5)])
def test_each_token_takes_its_experts(experts, top):
    """Experts of every number of tokens, none too; another number of them shows."""
    model = built("mixtral", experts=experts, top=top)
    ids = ids_for(model, 3, 33)
    found, wanted = given(model, ids), by_torch(model, ids)
    assert distance(found, wanted) < 1e-5
    for block in model.body.blocks:
        block.mlp.f.top = max(1, top - 1) if top > 1 else 2
    assert distance(found, by_torch(model, ids)) > 1e-2


@pytest.mark.parametrize("gated", [False, True])
def test_experts_of_other_makes(gated):
    """Biases, no gate, widths that fill no tile of rows; a mixture in one of two layers."""
    model = built("mixtral", layers=2)
    torch.manual_seed(7)
    experts = [MLP(64, 41, "gelu", gated=gated) for _ in range(5)]
    model.body.blocks[0].mlp.f = MoE(64, experts, 2)
    model.body.blocks[1].mlp.f = MLP(64, 50, "silu", gated=True)
    ids = ids_for(model)
    found = given(model, ids)
    assert distance(found, by_torch(model, ids)) < 1e-5
    experts[3].up.bias.data[7] += 0.5
    assert distance(found, by_torch(model, ids)) > 1e-4


def test_the_first_of_equals_is_taken():
    """torch says of no tie who wins; here it is the first, on every number of threads."""
    model = built("mixtral", experts=6, top=2)
    for block in model.body.blocks:
        block.mlp.f.router.weight.data.zero_()
    ids = ids_for(model)
    found = given(model, ids)
    assert torch.equal(found, given(model, ids, threads=3))
    for block in model.body.blocks:
        moe = block.mlp.f
        moe.experts = moe.experts[:2]
        moe.router = torch.nn.Linear(64, 2, bias=False)
        moe.router.weight.data.zero_()
    assert distance(found, by_torch(model, ids)) < 1e-5


@pytest.mark.parametrize("type", ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K", "I8", "NF4", "BF16"])
def test_experts_in_blocks(type):
    model = in_blocks(built("mixtral", **WIDE), type)
    ids = ids_for(model)
    found = given(model, ids)
    assert distance(found, exactly(model, ids)) < 5e-4
    one, other = model.body.blocks[0].mlp.f.experts[1:3]
    one.down.blocks, other.down.blocks = other.down.blocks, one.down.blocks
    assert distance(found, exactly(model, ids)) > 1e-2
    assert distance(given(model, ids), exactly(model, ids)) < 5e-4


def test_neighbours_change_no_bit():
    """Alone, in a batch, in pieces, on other threads: who shares an expert does not matter."""
    model = in_blocks(built("mixtral", **WIDE), "Q4_0")
    program = lower.attach(model)
    texts = [torch.randint(0, 1024, (n,)).tolist() for n in (200, 1, 37, 90)]
    alone = [Rows(program)([text])[0, -1] for text in texts]
    for threads in (1, 2, 5):
        rows = Rows(program)
        rows.native.threads = threads
        together = rows(texts)[:, -1]
        assert all(map(torch.equal, together, alone)), threads
    rows = Rows(program)
    steps = [rows([texts[2][:9]])[0, -1], *(rows([[token]])[0, -1] for token in texts[2][9:])]
    assert torch.equal(steps[-1], alone[2])


def test_a_mixture_is_generated_natively():
    model = in_blocks(built("mixtral", **WIDE), "Q8_0")
    ids = ids_for(model, 2, 30)
    asked = dict(max_new_tokens=8, eos_token_id=())
    fast = model.generate(ids, **asked)
    assert model.path().startswith("native runtime, ")
    engine = Engine(model, tokens=512).generate(ids.tolist(), **asked)
    assert engine == fast[:, 30:].tolist()
    model.native = "switched off"
    assert torch.equal(model.generate(ids, **asked), fast)


@pytest.mark.parametrize("what, says", [
    ("act", "blocks.1.mlp: MoE whose experts differ has no"),
    ("width", "blocks.1.mlp: Linear among experts of other kinds has no"),
    ("module", "blocks.1.mlp: Linear has no native operator")])
def test_experts_that_differ_are_named(what, says):
    model = mirada.build("mixtral", "tiny")
    experts = model.body.blocks[1].mlp.f.experts
    experts[2] = {"act": MLP(64, 96, "gelu", gated=True, bias=False),
                  "width": MLP(64, 80, "silu", gated=True, bias=False),
                  "module": torch.nn.Linear(64, 64)}[what]
    with pytest.raises(lower.Unlowered, match=says):
        lower.lower(model)

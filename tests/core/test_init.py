"""Initialisers: the spread each part gets, and that nothing keeps what memory happened to hold."""

import copy
import math

import pytest
import torch
from torch import nn

from mirada.core import init
from mirada.core.attention import Attention
from mirada.core.bias import Buckets
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import LMHead
from mirada.core.mlp import MLP
from mirada.core.norm import LayerNorm, LayerScale, RMSNorm
from mirada.core.position import Learned

D = 128


def model(**attention) -> Stack:
    block = Block(attn=Residual(Attention(D, 4, bias="qkvo", sinks=True, **attention),
                                pre=LayerNorm(D), post=LayerScale(D, 0.3)),
                  mlp=Residual(MLP(D, 4 * D, "gelu", gated=True), pre=RMSNorm(D, offset=1.0)))
    return Stack(Tokens(500, D, positions=Learned(64, D)), [block], RMSNorm(D))


def filled(stack: nn.Module) -> nn.Module:
    """Every number seven, as unlucky memory."""
    with torch.no_grad():
        for p in stack.parameters():
            p.fill_(7.0)
    return stack


def spread(tensor: torch.Tensor) -> float:
    """Standard deviation, after checking that the mean is near zero."""
    assert abs(tensor.mean().item()) < 5 * tensor.std().item() / tensor.numel() ** 0.5
    return tensor.std().item()


@pytest.mark.parametrize("residual, embed", [(0, None), (12, None), (0, 0.5)])
def test_normal(residual, embed):
    stack = filled(model())
    init.reset(stack)
    init.normal(stack, 0.1, residual=residual, embed=embed)
    block = stack.blocks[0]
    narrow = 0.1 / math.sqrt(residual) if residual else 0.1
    for linear in (block.attn.f.q, block.attn.f.k, block.attn.f.v, block.mlp.f.up,
                   block.mlp.f.gate):
        assert spread(linear.weight) == pytest.approx(0.1, rel=0.05)
        assert (linear.bias == 0).all()
    for linear in (block.attn.f.o, block.mlp.f.down):
        assert spread(linear.weight) == pytest.approx(narrow, rel=0.05) and (linear.bias == 0).all()
    for table in (stack.embed.token, stack.embed.position):
        assert spread(table.weight) == pytest.approx(embed or 0.1, rel=0.05)
    _norms_as_built(stack)
    assert (block.attn.f.sinks == 0).all()


def _norms_as_built(stack: Stack) -> None:
    block = stack.blocks[0]
    assert (block.attn.pre.weight == 1).all() and (block.attn.pre.bias == 0).all()
    assert (block.attn.post.weight == 0.3).all()
    assert (block.mlp.pre.weight == 0).all(), "an offset norm stores weight - 1"
    assert (stack.norm.weight == 1).all()


@pytest.mark.parametrize("scale", [1.0, None])
def test_scaled_by_fan_in(scale):
    stack = filled(model(scale=scale, score_bias=Buckets(4, 32)))
    tied = LMHead(D, 500, tied=stack.embed.token.weight)
    both = nn.ModuleList([stack, tied])
    init.reset(both)
    init.scaled(both, 2.0)
    block = stack.blocks[0]
    q = 2 * D**-0.5 * (D // 4) ** (-0.5 if scale else 0)
    assert spread(block.attn.f.q.weight) == pytest.approx(q, rel=0.05)
    for linear, fan in ((block.attn.f.k, D), (block.attn.f.o, D), (block.mlp.f.up, D),
                        (block.mlp.f.down, 4 * D)):
        assert spread(linear.weight) == pytest.approx(2 * fan**-0.5, rel=0.05)
        assert (linear.bias == 0).all()
    assert spread(stack.embed.token.weight) == pytest.approx(2.0, rel=0.05), "tied or not"
    table = block.attn.f.score_bias.table.weight
    assert table.std().item() == pytest.approx(2 * D**-0.5, rel=0.25)
    _norms_as_built(stack)


def test_reset_gives_what_the_constructors_give():
    for act in ("gelu", "prelu", "xielu"):
        made = nn.ModuleList([MLP(4, 8, act), LayerNorm(4), RMSNorm(4), RMSNorm(4, offset=1.0),
                              LayerScale(4, 0.2)])
        empty = copy.deepcopy(made).to("meta").to_empty(device="cpu")
        for t in (*empty.parameters(), *empty.buffers()):
            t.data.fill_(float("nan"))
        init.reset(empty)
        state = empty.state_dict()
        assert state.keys() == made.state_dict().keys()
        for name, wanted in made.state_dict().items():
            if "up" in name or "down" in name:  # projections wait, at zero, for their initialiser
                assert (state[name] == 0).all(), name
            else:
                assert torch.equal(state[name], wanted), name


def test_initialisers_leave_no_graph_behind():
    stack = model()
    for fill in (init.reset, init.normal, init.scaled):
        fill(stack)
        assert all(p.grad_fn is None and p.requires_grad for p in stack.parameters())

"""One model on many processes: each product shared by some of them (tensor parallel, Megatron-LM,
1909.08053, section 3), each weight kept in pieces by the others (FSDP; ZeRO 3, 1910.02054).

torch does the work (`parallelize_module`, `fully_shard`); this edit reads the built tree and says
which module is cut where. No forward knows of it. What cannot be cut is computed whole by every
process, to the same end.
"""

from __future__ import annotations

import warnings
from collections import Counter
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.func import functional_call

from mirada.core.attention import Absent, Attention, CrossAttention, NoBias, NoGate
from mirada.core.bias import Alibi, Bias, Buckets, ScoreBias
from mirada.core.block import Stack
from mirada.core.embed import Tokens
from mirada.core.heads import LMHead
from mirada.core.mlp import MLP
from mirada.core.norm import QKNorm


def parallel(model, mesh: DeviceMesh) -> list[str]:
    """Put a model on a mesh with the dimensions "data" and "tensor", in place.

    Its weights become DTensors. The paths of what every process of a tensor group has whole and
    that holds most of the work elsewhere: attentions and networks that could not be cut.
    """
    whole = []
    if mesh["tensor"].size() > 1:
        whole = _cut(model, mesh["tensor"])
    if mesh["data"].size() > 1:
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # none of
        _keep_in_pieces(model, mesh["data"])  # our forwards changes it in place
    return whole


def _keep_in_pieces(model, mesh: DeviceMesh) -> None:
    blocks = [b for m in model.modules() if isinstance(m, Stack) for b in m.blocks
              if len(m.order) == len(m.blocks)]  # one that runs twice is gathered with the rest
    uses = Counter(id(p) for b in blocks for p in b.parameters())
    shared = {p for b in blocks for p in b.parameters() if uses[id(p)] > 1}
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=shared)
    fully_shard(model, mesh=mesh, ignored_params=shared)

    def mean(p: nn.Parameter) -> None:
        dist.all_reduce(p.grad, group=mesh.get_group())
        p.grad.div_(mesh.size())  # type: ignore[union-attr]

    for p in shared:  # a table of relative positions: small, and every process has it whole
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(mean)


def _cut(model, mesh: DeviceMesh) -> list[str]:
    whole: list[str] = []
    biases: set[int] = set()
    for path, m in model.named_modules():
        if isinstance(m, Attention):
            why = _uncut(m, mesh.size())
            if why is None:
                _cut_attention(m, mesh, biases)
            else:
                whole.append(f"{path}: {why}")
        elif isinstance(m, MLP) and _plain(m.up, m.down):
            plan: dict[str, Any] = {"up": ColwiseParallel(), "down": RowwiseParallel()}
            if m.gate is not None:
                plan["gate"] = ColwiseParallel()
            parallelize_module(m, mesh, plan)
    _cut_tables(model, mesh)
    return whole


def _cut_tables(model, mesh: DeviceMesh) -> None:
    """Token tables and heads by rows of the vocabulary; what was one tensor stays one."""
    tables = [m.token for m in model.modules() if isinstance(m, Tokens)]
    heads = [m.out for m in model.modules() if isinstance(m, LMHead)]
    owners: dict[int, Tensor] = {}
    for m in [*tables, *heads]:
        before = id(m.weight)
        how = RowwiseParallel(input_layouts=Replicate()) if isinstance(m, nn.Embedding) else (
            ColwiseParallel(output_layouts=Replicate()))
        parallelize_module(m, mesh, how)
        m.weight = owners.setdefault(before, m.weight)


def _plain(*projections: nn.Module) -> bool:
    return all(type(p) is nn.Linear for p in projections)


def _uncut(m: Attention, size: int) -> str | None:
    """Why this attention is computed whole, or None."""
    if type(m).look not in (Attention.look, CrossAttention.look) or type(m).forward is not (
            Attention.forward):
        return f"{type(m).__name__} computes in its own way"
    if not _plain(m.q, m.k, m.v, m.o):
        return "its projections are quantized or carry adapters"
    if m.heads % size or m.kv_heads % size:
        return f"{m.heads} heads on {m.kv_heads} keys cannot be shared by {size}"
    if m.sinks is not None or not isinstance(m.gate, NoGate):
        return "it has sinks or a gate"
    if not isinstance(m.score_bias, NoBias | Alibi | Buckets):
        return f"{type(m.score_bias).__name__} reads all heads"
    K = m.q.out_features // m.heads
    if not isinstance(m.qk_norm, Absent) and not (
            isinstance(m.qk_norm, QKNorm)
            and all(p.shape == (K,) for p in m.qk_norm.parameters())):
        return f"{type(m.qk_norm).__name__} reads all heads"
    return None


def _cut_attention(m: Attention, mesh: DeviceMesh, biases: set[int]) -> None:
    """biases: those that are cut already; layers share them."""
    first = mesh.get_local_rank() * m.heads // mesh.size()
    m.heads, m.kv_heads = m.heads // mesh.size(), m.kv_heads // mesh.size()
    heads, group = slice(first, first + m.heads), mesh.get_group()
    parallelize_module(m, mesh, {"q": ColwiseParallel(), "k": ColwiseParallel(),
                                 "v": ColwiseParallel(), "o": RowwiseParallel()})
    if isinstance(m.qk_norm, QKNorm):
        _gather_gradients(m.qk_norm.q, group)
        _gather_gradients(m.qk_norm.k, group)
    if isinstance(m.score_bias, ScoreBias) and id(m.score_bias) not in biases:
        biases.add(id(m.score_bias))
        m.score_bias.register_forward_hook(lambda _, args, bias: _Part(bias, heads))
        if isinstance(m.score_bias, Buckets):
            _gather_gradients(m.score_bias.table, group)


@dataclass(frozen=True, eq=False)
class _Part:
    """A score bias of which only this process's heads are wanted."""

    of: Bias
    heads: slice

    def rows(self, q, k, r0, r1) -> Tensor:
        return self.of.rows(q, k, r0, r1)[:, self.heads]

    def dense(self, q, k) -> Tensor:
        return self.of.dense(q, k)[:, self.heads]


def _gather_gradients(module: nn.Module, group) -> None:
    """Every process has these weights whole and uses them on its own heads: their gradient is the
    sum over the group."""
    plain = copy(module)  # shares the weights, and has the forward of its class

    def forward(*args):
        weights = {n: _Gathered.apply(p, group) for n, p in plain.named_parameters()}
        return functional_call(plain, weights, args)

    module.forward = forward  # type: ignore[method-assign]


class _Gathered(torch.autograd.Function):
    """The same forward; backward, the sum over a group (f of 1909.08053, figure 3)."""

    @staticmethod
    def forward(ctx, weight: Tensor, group) -> Tensor:
        ctx.group = group
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None

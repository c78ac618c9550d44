"""What a model needs of many machines: memory by part, whether it fits, and how long a step takes.

Nothing is allocated: the model is built on the meta device and run there once, while what autograd
keeps is counted. Model FLOPs as Korthikanti et al. count them (2205.05198, appendix A): attention
in full, recomputation not. Goodput: Young's interval between checkpoints (1974), Daly (2006).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mirada.core.attend import Attend
from mirada.core.embed import Patches
from mirada.core.mlp import MoE
from mirada.errors import MiradaError
from mirada.look.describe import count_words, describe, flops_of, is_built, reach, stacks

GiB = 1 << 30
RECOMPUTE = ("none", "selective", "full")
SPARE = 0.05  # of what is used: torch's allocator holds some memory in pieces nobody can use
MASTER, GRADIENT, ADAM, LOGITS = 4, 4, 8, 12  # bytes a number; logits: three float32 copies


@dataclass(frozen=True)
class Machine:
    """An accelerator by its data sheet: dense bfloat16 FLOP/s, GiB, bytes a second."""

    flops: float
    memory: float
    bandwidth: float


KINDS = {
    "a100": Machine(312e12, 80, 2.04e12), "a100-40": Machine(312e12, 40, 1.56e12),
    "b200": Machine(2250e12, 180, 7.7e12), "h100": Machine(989e12, 80, 3.35e12),
    "h100-96": Machine(989e12, 96, 3.35e12), "h200": Machine(989e12, 141, 4.8e12),
    "l4": Machine(121e12, 24, 0.3e12), "l40s": Machine(362e12, 48, 0.864e12),
    "mi300x": Machine(1307e12, 192, 5.3e12), "rtx3090": Machine(71e12, 24, 0.936e12),
    "rtx4090": Machine(165e12, 24, 1.008e12), "v100": Machine(125e12, 32, 0.9e12),
}


@dataclass(frozen=True)
class Kept:
    """Bytes that one row keeps for its backward pass, and how many logits it makes."""

    all: int  # by all blocks, nothing recomputed
    chosen: int  # block inputs, what attention puts out, and every other product
    inputs: int  # block inputs alone
    largest: int  # by the block that keeps most
    around: int  # by what is outside the blocks
    logits: int  # numbers

    def under(self, recompute: str) -> tuple[int, int]:
        """(bytes kept, bytes of the one block that is computed again)."""
        return {"none": (self.all, 0), "selective": (self.chosen, self.largest),
                "full": (self.inputs, self.largest)}[recompute]


@dataclass(frozen=True)
class Plan:
    """parts: what -> bytes on each machine. step: seconds at the assumed efficiency, None without.

    flops: model FLOPs of a step on one machine. at_least: seconds of a step at the data sheet's
    speed. mfu: share of it that the given tokens a second are. advice: what would make it fit.
    """

    title: str
    parts: dict[str, float]
    room: float
    flops: float
    tokens: float  # of a step, on one machine
    at_least: float
    step: float | None
    mfu: float | None
    goodput: tuple[float, float] | None  # share of time that counts; seconds between checkpoints
    assumed: list[str]
    advice: list[str]

    @property
    def used(self) -> float:
        """Bytes on each machine."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether each machine holds its part."""
        return self.used <= self.room

    def data(self) -> dict:
        """For programs."""
        return {**vars(self), "used": self.used, "fits": self.fits}

    def __str__(self) -> str:
        verdict = "fits" if self.fits else "does not fit"
        rows = [(name, f"{n / GiB:9.3f} GiB") for name, n in self.parts.items()]
        rows += [("together", f"{self.used / GiB:9.3f} GiB of {self.room / GiB:.0f}: {verdict}"),
                 ("work", f"{count_words(self.flops)}FLOP for {self.tokens:,.0f} tokens a machine"),
                 ("at least", f"{_seconds(self.at_least)}, at the data sheet's speed")]
        if self.step is not None:
            rows.append(("a step", f"{_seconds(self.step)}, "
                         f"{self.tokens / self.step:,.0f} tokens a second a machine"))
        if self.mfu is not None:
            rows.append(("MFU", f"{self.mfu:.1%}"))
        if self.goodput is not None:
            rows.append(("goodput", f"{self.goodput[0]:.1%}, with a checkpoint every "
                         f"{_seconds(self.goodput[1])}"))
        width = max(len(name) for name, _ in rows)
        lines = [self.title, "", *(f"{name:{width}}  {words}" for name, words in rows), ""]
        lines += [f"assumed: {words}" for words in self.assumed]
        return "\n".join([*lines, *(f"to fit: {words}" for words in self.advice)])


def plan(model, *, gpus: int = 1, kind: str = "h100", batch: int = 1, length: int | None = None,
         recompute: str = "none", shard: bool = True, tensor: int = 1, context: int = 1,
         serve: bool = False, efficiency: float | None = None, rate: float | None = None,
         memory: float | None = None, failures: float | None = None,
         save: float = 60.0) -> Plan:
    """A Plan for a model, or for "family:size", which is built without memory.

    batch: rows of `length` tokens in a step on each group of tensor * context machines. tensor:
    machines that share each product and each row's tokens (tensor and sequence parallel). context:
    machines that share a row. shard: weights and optimizer lie in pieces on all machines (FSDP,
    ZeRO 3), else each has all (DDP). recompute: one of RECOMPUTE. serve: no training, weights in
    bfloat16 over the tensor machines and a cache of `batch` rows. efficiency: the share of the data
    sheet's FLOP/s that is reached; without it no step time is claimed. rate: tokens a second and
    machine that somebody measured: gives the MFU. memory: GiB of a machine, where not the kind's.
    failures: hours between failures of one machine; save: seconds that a checkpoint costs.
    Raises MiradaError for numbers that cannot be.
    """
    machine = _machine(kind, memory)
    for name, value in (("gpus", gpus), ("batch", batch), ("tensor", tensor), ("context", context)):
        if value < 1:
            raise MiradaError(f"{name} is {value}; it must be 1 or more")
    if gpus % (tensor * context):
        raise MiradaError(f"{gpus} machines cannot stand in groups of {tensor} x {context}")
    if recompute not in RECOMPUTE:
        raise MiradaError(f"recompute is {recompute!r}; it can be {', '.join(RECOMPUTE)}")
    if efficiency is not None and not 0 < efficiency <= 1:
        raise MiradaError(f"efficiency is {efficiency}; it is a share, above 0 and at most 1")
    model = _planned(model)
    told, length = describe(model), _length(model, length)
    if length % context:
        raise MiradaError(f"{length} tokens cannot be shared by {context} machines")
    tokens = batch * length / (tensor * context)
    flops = batch * _forward(model, told, length) / (tensor * context) * (1 if serve else 3)
    if serve:
        parts, assumed = _serving(model, told, batch, length, tensor * context)
        at_least = max(flops / machine.flops, sum(parts.values()) / machine.bandwidth)
    else:
        kept = count(model, length // context)
        parts, assumed = _training(model, told, kept, batch, recompute, gpus if shard else tensor,
                                   tensor, shard and gpus > 1)
        at_least = flops / machine.flops
    step = None if efficiency is None else flops / (machine.flops * efficiency)
    if efficiency is not None:
        assumed.append(f"{efficiency:.0%} of the data sheet's {machine.flops / 1e12:,.0f} TFLOP/s "
                       "is reached")
    found = Plan(
        f"{told.name}, {told.parameters:,} parameters: {'serving' if serve else 'training'} on "
        f"{gpus} x {kind}, {batch} rows of {length:,} tokens", parts, machine.memory * GiB, flops,
        tokens, at_least, step, None if rate is None else rate * flops / tokens / machine.flops,
        None if failures is None else _goodput(failures * 3600 / gpus, save), assumed, [])
    return found if found.fits else replace(found, advice=_advice(found, gpus, batch, recompute,
                                                                  serve))


def _machine(kind: str, memory: float | None) -> Machine:
    if kind not in KINDS:
        raise MiradaError(f"no machine is called {kind!r}; there are {', '.join(sorted(KINDS))}. "
                          "Give the nearest one and its memory")
    return KINDS[kind] if memory is None else replace(KINDS[kind], memory=memory)


def _planned(model) -> nn.Module:
    """The model on the meta device in bfloat16, whatever was given."""
    from mirada import registry
    if not isinstance(model, nn.Module):
        if not is_built(model):
            model = registry.load(model)
        else:
            return registry.build(str(model), device="meta", dtype=torch.bfloat16)
    fresh = registry.assemble(registry.family(model.family), model.config, model.architecture)
    return fresh.to(torch.bfloat16)


def _forward(model, told, length: int) -> float:
    """FLOPs of a row; two towers read rows of their own lengths."""
    seen = reach(model) or length
    if model.kind != "dual-encoder":
        return length * (told.flops + told.flops_attention * seen)
    total = 0.0
    for name, stack in stacks(model).items():
        own, looked = flops_of([stack], getattr(model.head, name, model.head))
        L = math.prod(stack.embed.grid) if isinstance(stack.embed, Patches) else length
        total += L * (own + looked * L)
    return total


def _length(model, length: int | None) -> int:
    if isinstance(_embed(model), Patches):
        return math.prod(_embed(model).grid)
    if length is None:
        length = min(getattr(model.config, "context", None) or 2048, 2048)
    if length < 1:
        raise MiradaError(f"length is {length}; it must be 1 or more")
    return length


def _embed(model) -> nn.Module:
    return next(iter(stacks(model).values())).embed


def _training(model, told, kept: Kept, batch: int, recompute: str, shards: int, tensor: int,
              gathered: bool) -> tuple[dict, list]:
    n, (held, again) = told.parameters, kept.under(recompute)
    blocks = [sum(p.numel() for p in b.parameters()) for s in stacks(model).values()
              for b in s.blocks]
    whole = n - sum(blocks) + 2 * max(blocks, default=0) if gathered else n
    loss, block = kept.logits * LOGITS, again
    parts = {"weights": n * MASTER / shards, "gradients": n * GRADIENT / shards,
             "optimizer": n * ADAM / shards, "weights at work": whole * 2 / tensor,
             "activations": batch * (held + kept.around) / tensor,
             "loss" if loss >= block else "a block again": batch * max(loss, block) / tensor}
    parts["allocator"] = SPARE * sum(parts.values())
    work = "two blocks and what is outside the blocks" if gathered else "all weights"
    return parts, [
        "float32 weights, gradients and AdamW's two moments; products in bfloat16",
        f"at work in bfloat16: {work}", f"recomputed: {recompute}; attention keeps no n x n",
        "the loss holds three float32 copies of the logits", f"{SPARE:.0%} lost to the allocator"]


def _serving(model, told, batch: int, length: int, share: int) -> tuple[dict, list]:
    parts = {"weights": told.parameters * 2 / share,
             "cache": told.cache_bytes * batch * length / share}
    parts["allocator"] = SPARE * sum(parts.values())
    return parts, ["weights and cache in bfloat16, shared evenly",
                   "work: the whole prompt read once; each later token reads all weights"]


def _goodput(between: float, save: float) -> tuple[float, float]:
    interval = math.sqrt(2 * save * between)
    return max(0.0, 1 - save / interval - interval / (2 * between)), interval


def _advice(found: Plan, gpus: int, batch: int, recompute: str, serve: bool) -> list[str]:
    over = found.used / found.room
    ways = ["more machines with the weights in pieces, or larger ones "
            f"(this needs {over:.1f} times the memory)"]
    if not serve and recompute != "full":
        ways.insert(0, "recompute more: full keeps only what enters each block")
    if batch > 1:
        ways.insert(0, "fewer rows at once, with accumulation for the same batch")
    if serve:
        ways.append("a quantized model (int8 halves the weights, int4 quarters them)")
    return ways


def _seconds(s: float) -> str:
    if s < 1:
        return f"{s * 1000:.3g} ms"
    return f"{s:.3g} s" if s < 120 else f"{s / 60:.3g} min" if s < 7200 else f"{s / 3600:.3g} h"


def count(model, length: int) -> Kept:
    """What one row of `length` tokens keeps for the backward pass. The model lies on the meta
    device and is changed: its attention and its experts become stand-ins."""
    for m in model.modules():
        if isinstance(m, Attend):
            m.forward = _fused  # type: ignore[method-assign]
        elif isinstance(m, MoE):
            m.forward = partial(_experts, m)  # type: ignore[method-assign]
    ledger = _Ledger({p.untyped_storage()._cdata for p in model.parameters()})
    with ledger.watching(model):
        out = model.train()(**_inputs(model, length))
    return ledger.kept(out["logits"].numel() if "logits" in out else 0)


def _inputs(model, length: int) -> dict[str, Tensor]:
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    given = {"decoder_input_ids": ids} if model.encoder_decoder else {}
    for embed in (stack.embed for stack in stacks(model).values()):
        if isinstance(embed, Patches):
            high, wide = (g * p for g, p in zip(embed.grid, embed.patch, strict=True))
            given["pixel_values"] = torch.empty(1, model.config.channels, high, wide,
                                                device="meta", dtype=torch.bfloat16)
        else:
            given["input_ids"] = ids
    return given


class _Ledger:
    """Which storages autograd keeps, by the block that ran when they were first kept."""

    def __init__(self, weights: set[int]):
        self.weights, self.now = weights, -1
        self.held: dict[int, tuple[int, int, Tensor]] = {}  # id -> block, bytes; kept alive
        self.inputs: list[int] = []
        self.products: list[int] = []
        self.calls = 0

    @contextmanager
    def watching(self, model) -> Iterator[None]:
        blocks = [b for s in stacks(model).values() for b in s.blocks]
        with ExitStack() as hooks:
            for block in blocks:
                hooks.callback(block.register_forward_pre_hook(self.enter).remove)
                hooks.callback(block.register_forward_hook(self.leave).remove)
                for m in block.modules():
                    if isinstance(m, nn.Linear):
                        hooks.callback(m.register_forward_hook(self.product).remove)
                    elif isinstance(m, Attend):
                        hooks.callback(m.register_forward_hook(self.attended).remove)
            hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(self.keep, lambda x: x))
            yield

    def enter(self, block, args) -> None:
        self.now, self.calls = len(self.inputs), 0
        self.inputs.append(args[0].nbytes)

    def leave(self, block, args, out) -> None:
        self.now = -1

    def product(self, linear, args, out) -> None:
        self.calls += 1
        if self.calls % 2:
            self.products.append(out.nbytes)

    def attended(self, attend, args, out) -> None:
        self.products.append(out.nbytes)

    def keep(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self.weights:
            self.held.setdefault(storage._cdata, (self.now, storage.nbytes(), x))
        return x

    def kept(self, logits: int) -> Kept:
        by = [0] * (len(self.inputs) + 1)  # the last: outside the blocks
        for block, nbytes, _ in self.held.values():
            by[block] += nbytes
        inputs = sum(self.inputs)
        return Kept(sum(by[:-1]), inputs + sum(self.products), inputs, max(by[:-1], default=0),
                    by[-1], logits)


class _Fused(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: q, k, v, its output and a number a row. A plan
    goes forward only: there is no backward."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def _fused(q, kv, **how) -> Tensor:
    return _Fused.apply(q, *kv.dense())


def _experts(moe, x, ctx=None, cache=None) -> Tensor:
    """As many tokens as the router sends out, through as many experts: on meta nothing chooses."""
    rows = x.flatten(0, -2)
    weight = moe.router(rows).softmax(-1, dtype=torch.float32)[:, : moe.top].to(x.dtype)
    parts = [e(rows) * weight[:, n, None] for n, e in enumerate(moe.experts[: moe.top])]
    return sum(parts).view_as(x)

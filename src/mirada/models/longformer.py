"""Longformer: RoBERTa for long texts, whose layers look through a window, and chosen tokens at
everything (Beltagy et al., 2004.05150)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mirada.core.attention import Attention, CrossAttention
from mirada.core.block import Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.mask import Mask
from mirada.errors import MiradaError
from mirada.models import bert, roberta
from mirada.weights.config import ANY, key
from mirada.weights.rows import Weights

KIND = "encoder"


@dataclass(frozen=True)
class Config(roberta.Config):
    window: int | tuple[int, ...] = key("attention_window", 512, low=2)  # of all layers, or each
    sep: int | None = key("sep_token_id", 2, low=0)

    def __post_init__(self):
        if len(self.windows()) != self.layers or any(w % 2 for w in self.windows()):
            raise MiradaError(f"attention_window: {self.layers} layers need as many even numbers, "
                              f"and these are {self.window}")

    def windows(self) -> tuple[int, ...]:
        return (self.window,) * self.layers if isinstance(self.window, int) else self.window


class NearAndFar(Attention):
    """Tokens see what is near and the chosen ones; these see everything, through projections of
    their own (section 3.1). ctx.mask.everywhere (B, T): the chosen."""

    def __init__(self, c: Config, window: int):
        super().__init__(c.d, c.heads, bias="qkvo", mask=Mask(window=window // 2 + 1))
        self.far = CrossAttention(c.d, c.heads, bias="qkvo")
        self.far.o = self.o

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        near, chosen = super().forward(x, ctx), ctx.mask.everywhere
        if chosen is None:
            return near
        at = chosen.any(0).nonzero()[:, 0]  # (G,), tokens chosen in any row
        whole = replace(ctx, memory=x, memory_mask=Mask(padding=ctx.mask.padding))
        far = self.far(x[:, at], whole)  # (B, G, D)
        return near.index_copy(1, at, torch.where(chosen[:, at, None], far, near[:, at]))


class Chosen(Stack):
    """A stack that is told, or chooses itself, which tokens see everything."""

    reads = {"global_attention_mask"}

    def __init__(self, c: Config, choose: Callable | None = None):
        blocks = [bert.block(c, NearAndFar(c, window)) for window in c.windows()]
        super().__init__(roberta.build(replace(c, layers=0, window=())).embed, blocks)
        self.choose, self.sep = choose, c.sep

    def forward(self, inputs: Inputs, ctx: Ctx, cache=None) -> Tensor:
        chosen = inputs.global_attention_mask
        if chosen is None and self.choose is not None and inputs.input_ids is not None:
            chosen = self.choose(inputs.input_ids, self.sep)
        if chosen is not None:
            ctx = replace(ctx, mask=replace(ctx.mask, everywhere=chosen.bool()))
        return super().forward(inputs, ctx)


def first(ids: Tensor, sep: int | None) -> Tensor:
    """(B, T): the first token, which a classifier reads."""
    return (torch.arange(ids.shape[1], device=ids.device) == 0).expand_as(ids)


def question(ids: Tensor, sep: int | None) -> Tensor:
    """(B, T): the tokens before the first separator. differs: there need not be three of them."""
    seps = ids == sep
    if ids.device.type == "cpu" and not bool(seps.any(1).all()):
        raise MiradaError(f"a question ends at the token {sep}, and a row of input_ids has none: "
                          "separate it from the text, or give a global_attention_mask")
    return seps.cumsum(1) == 0


def build(c: Config) -> Chosen:
    return Chosen(c)


HEADS = {"Longformer" + task: head for task, head in roberta.TASKS.items()}
BODIES = {"LongformerForSequenceClassification": lambda c: Chosen(c, first),
          "LongformerForQuestionAnswering": lambda c: Chosen(c, question)}


def weights(c: Config, pool: str = "longformer.pooler.dense.{p}") -> Weights:
    far = ("longformer.encoder.layer.{i}.attention.self.(query|key|value)_global.{p}",
           "blocks.{i}.attn.f.far.(q|k|v).{p}")
    roots = roberta.weights(c, pool)

    def ours(name: str) -> str:
        return name.replace("roberta.", "longformer.")

    return replace(
        roots, rows=[far, *((ours(file), *rest) for file, *rest in roots.rows)],
        prefix="longformer.", carried=tuple(map(ours, roots.carried)),
        derived={ours(name): make for name, make in roots.derived.items()})


MAPS = {"LongformerForSequenceClassification": lambda c: weights(c, "classifier.dense.{p}")}
init, INERT = bert.init, bert.INERT | {
    "onnx_export": ANY, "attention_mode": "longformer", "attention_dilation": ANY,
    "autoregressive": False, "ignore_attention_mask": False}  # of the first files; read by nobody
BASE = Config(types=1, eps=1e-5, context=4096)
SIZES = {
    "base": BASE, "large": replace(BASE, d=1024, layers=24, heads=16, hidden=4096),
    "tiny": replace(BASE, vocab=1024, context=128, d=64, layers=2, heads=4, hidden=128, window=16),
}

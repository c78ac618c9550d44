"""BigBird: BERT for long texts, whose blocks of tokens look at their neighbours, at the first and
the last, and at some drawn by lot (Zaheer et al., 2007.14062)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.bias import Bias, ScoreBias
from mirada.core.block import Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Pooled, Pooler, Span, TokenClassifier
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, MLP, activation
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.models import bert
from mirada.weights.config import key, size
from mirada.weights.rows import Weights

KIND, MODEL_TYPE = "encoder", "big_bird"
OWN_PLAN = (1024, 3072, 4096)  # lengths for which the published models draw in another way


@dataclass(frozen=True)
class Config(bert.Config):
    vocab: int = size("vocab_size", 50358)
    context: int = size("max_position_embeddings", 4096)
    act: str = key("hidden_act", "gelu_new", choices=ACTIVATIONS)
    kind: str = key("attention_type", "block_sparse", choices={"block_sparse", "original_full"})
    block: int = key("block_size", 64, low=1)  # tokens
    drawn: int = key("num_random_blocks", 3, low=0)
    bias: bool = key("use_bias", True)  # of q, k and v
    scaled: bool = key("rescale_embeddings", False)  # by sqrt(d)
    sep: int | None = key("sep_token_id", 66, low=0)


class Blocks(ScoreBias):
    """Adds the logarithm of how often a query's block looks at a key's: never, once, or more.

    Each head of a layer draws its blocks once for all, and in training only: as published,
    evaluation looks at the first block in place of each. Texts of at most 5 + 2 * drawn blocks look
    at everything. differs: the reference does so ever after one such."""

    fixed = False  # kept for the pass they would add up: heads * T * T numbers a layer

    def __init__(self, c: Config, layer: int):
        super().__init__()
        self.heads, self.block, self.drawn = c.heads, c.block, c.drawn
        self.longest, self.seed = c.context // c.block, layer

    def forward(self, ctx: Ctx, mask: Mask) -> Bias | None:
        short = ctx.positions.shape[-1] <= (5 + 2 * self.drawn) * self.block
        return None if short else super().forward(ctx, mask)

    def rows(self, q: Tensor, k: Tensor, qi: Tensor, ki: Tensor) -> Tensor:
        log = self.times(-(-ki.shape[-1] // self.block)).log().to(q)
        return log[:, qi // self.block][:, :, ki // self.block].expand(self.heads, -1, -1)[None]

    def times(self, n: int) -> Tensor:
        """How often each of n blocks looks at each, (1 or H, n, n)."""
        i = torch.arange(n)
        near = (i[:, None] - i).abs() <= 1
        ends = (i == 0) | (i == n - 1)
        times = (near | ends | ends[:, None]).double()
        times = times.repeat(self.heads if self.training else 1, 1, 1)
        if not self.training:
            times[:, 1:-1, 0] += self.drawn
            return times
        rng = np.random.RandomState(self.seed)
        for head, row, blocks in (self.own_plan(rng) if n * self.block in OWN_PLAN
                                  else self.plan(rng, n)):
            if 0 < row < n - 1:
                times[head, row, torch.tensor(blocks, dtype=torch.long)] += 1
        return times

    def plan(self, rng, n: int) -> Iterator[tuple]:
        """(head, row, blocks drawn): of the first 5 + 2 * drawn, neither near nor at an end."""
        end = 5 + 2 * self.drawn
        for row in range(1, n):
            shut = {row - 1, row, row + 1, 0, end - 1}
            shut |= {end - 2} if row == 1 else {1} if row == end - 2 else set()
            for head in range(self.heads):
                yield head, row, [b for b in rng.permutation(end) if b not in shut][: self.drawn]

    def own_plan(self, rng) -> Iterator[tuple]:
        """(head, row, blocks drawn) of the longest text: of its first 1,024 tokens."""
        last = 1024 // self.block - 1 if 1024 > 2 * self.block else self.longest - 1
        middle = np.arange(1, self.longest - 1)
        for head in range(self.heads):
            for row in range(1, self.longest - 1):
                before = last if row >= self.longest - 3 else min(max(row - 2, 0), last)
                legal = np.concatenate([middle[:before], middle[row + 1 : last]])
                yield head, row, rng.permutation(legal)[: self.drawn]


def build(c: Config, kind=Stack) -> Stack:
    def attention(layer: int) -> Attention:
        return Attention(c.d, c.heads, bias="qkvo" if c.bias else "o",
                         score_bias=Blocks(c, layer) if c.kind == "block_sparse" else None)

    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d), types=c.types,
                   norm=LayerNorm(c.d, c.eps), scale=c.d**0.5 if c.scaled else 1.0)
    return kind(embed, [bert.block(c, attention(n)) for n in range(c.layers)])


def question(inputs: Inputs, ctx: Ctx, sep: int | None) -> tuple[Tensor, Tensor]:
    """Tokens up to the first separator or, without one, the first; and the first: (B, T) each."""
    # differs: on the left the reference takes pads for tokens
    ids, real = inputs.input_ids, ctx.mask.padding
    first = torch.zeros_like(ids[:, :1]) if real is None else real.int().argmax(1, keepdim=True)
    ends = (ids == sep).int().argmax(1, keepdim=True)  # 0 where there is none
    steps = torch.arange(ids.shape[1], device=ids.device)
    return steps <= torch.maximum(first, ends), steps == first


class Asked(Stack):
    """A stack to which a question is of one kind and the text behind it of another."""

    def __init__(self, sep: int | None, embed: Tokens, blocks: list):
        super().__init__(embed, blocks)
        self.sep = sep

    def forward(self, inputs: Inputs, ctx: Ctx, cache=None) -> Tensor:
        if inputs.token_type_ids is None and inputs.input_ids is not None:
            asked, _ = question(inputs, ctx, self.sep)
            inputs = replace(inputs, token_type_ids=(~asked).long())
        return super().forward(inputs, ctx)


class Answer(Span):
    """A span of the text, not of the question; one more network stands before it."""

    def __init__(self, c: Config):
        super().__init__(c.d)
        self.block = Residual(MLP(c.d, c.hidden, c.act), out=LayerNorm(c.d, c.eps))
        self.sep = c.sep

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        found = super().forward(self.block(x, ctx), inputs, ctx)
        if inputs.input_ids is None:
            return found
        asked, first = question(inputs, ctx, self.sep)
        out = (asked & ~first) * 1e6  # the first stays in: it says that there is no answer
        return {name: logits - out.to(logits) for name, logits in found.items()}


HEADS = {
    "BigBirdForPreTraining": lambda c, body: bert.masked(c, body, bert.PreTraining),
    "BigBirdForMaskedLM": bert.masked,
    "BigBirdModel": lambda c, body: Pooled(Pooler(c.d, nn.Tanh())),
    "BigBirdForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, activation(c.act))),
    "BigBirdForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "BigBirdForQuestionAnswering": lambda c, body: Answer(c),
}
BODIES = {"BigBirdForQuestionAnswering": lambda c: build(c, partial(Asked, c.sep))}


def weights(c: Config, pool="bert.pooler.{p}", score="cls.seq_relationship.{p}") -> Weights:
    return Weights([
        *bert.trunk("bert."), *bert.words(c.tied),
        (pool, "head.pool.dense.{p}"), (score, "head.score.{p}"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_classifier.(intermediate|output).dense.{p}", "head.block.f.(up|down).{p}"),
        ("qa_classifier.output.LayerNorm.{p}", "head.block.out.{p}"),
        ("qa_classifier.qa_outputs.{p}", "head.span.{p}"),
    ], prefix="bert.", renames=bert.TWICE * c.tied,
        derived={"bert.embeddings.position_ids": lambda name: torch.arange(c.context)[None]},
        carried=("bert.pooler.{p}", "cls.seq_relationship.{p}", *bert.UNREAD))


MAPS = {"BigBirdForSequenceClassification": lambda c: weights(
    c, "classifier.dense.{p}", "classifier.out_proj.{p}")}
init, INERT = bert.init, bert.INERT
SIZES = {
    "base": Config(), "large": Config(d=1024, layers=24, heads=16, hidden=4096),
    "tiny": Config(vocab=1024, context=128, d=64, layers=2, heads=4, hidden=128, block=4, drawn=1),
}

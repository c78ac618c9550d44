"""DeBERTa v2 and v3: attention to content and to position apart (He et al., 2006.03654)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.bias import Disentangled, Places
from mirada.core.block import Block, Stack
from mirada.core.context import Ctx
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Pooled, Pooler, Span, TokenClassifier
from mirada.core.mlp import ACTIVATIONS, activation
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.errors import MiradaError
from mirada.models import bert
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND, MODEL_TYPE = "encoder", "deberta-v2"


@dataclass(frozen=True)
class Config(bert.Config):
    vocab: int = size("vocab_size", 128100)
    types: int = key("type_vocab_size", 0, low=0)
    eps: float = key("layer_norm_eps", 1e-7, low=0)
    embedding: int | None = key("embedding_size", None, low=1)  # d when None
    absolute: bool = key("position_biased_input", True)
    relative: bool = key("relative_attention", False)
    terms: tuple[str, ...] = key("pos_att_type", ())  # of c2p, p2c
    farthest: int = key("max_relative_positions", -1, low=-1)  # the context when below 1
    buckets: int = key("position_buckets", -1, low=-1)  # none when below 1
    shared: bool = key("share_att_key", False)  # places go through q and k themselves
    normed: str = key("norm_rel_ebd", "none", choices={"none", "layer_norm"})
    conv: int = key("conv_kernel_size", 0, low=0)
    conv_act: str = key("conv_act", "tanh", choices=ACTIVATIONS)
    conv_groups: int = key("conv_groups", 1, low=1)
    pooler_act: str = key("pooler_hidden_act", "gelu", choices=ACTIVATIONS)
    legacy: bool = key("legacy", True)  # which of the two heads that name hidden words

    @staticmethod
    def prepare(raw: dict) -> dict:
        terms = raw.get("pos_att_type") or []
        terms = [t.strip() for t in terms.lower().split("|")] if isinstance(terms, str) else terms
        return raw | {"pos_att_type": terms}

    def restore(self, ours: dict) -> dict:
        return {name: value for name, value in ours.items() if value is not None}

    def settle(self, names: Iterable[str]) -> Config:
        """v3's own files hold the newer head, and their config does not say so."""
        heads = {name.split(".")[0] for name in names} & {"cls", "lm_predictions"}
        return replace(self, legacy=False) if heads == {"lm_predictions"} else self


class BesideConv(Block):
    """norm(block(x) + act(conv(x))): a block beside a convolution over its input's real tokens."""

    def __init__(self, c: Config, **sublayers: nn.Module):
        super().__init__(**sublayers)
        if c.conv % 2 == 0 or c.d % c.conv_groups:
            raise MiradaError(f"a convolution over {c.conv} tokens in {c.conv_groups} groups: "
                              f"conv_kernel_size must be odd and conv_groups divide {c.d}")
        self.conv = nn.Conv1d(c.d, c.d, c.conv, padding=c.conv // 2, groups=c.conv_groups)
        self.act, self.norm = activation(c.conv_act), LayerNorm(c.d, c.eps)

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        real = x if ctx.mask.padding is None else x * ctx.mask.padding[..., None]  # (B, T, D)
        beside = self.act(self.conv(real.transpose(1, 2)).transpose(1, 2))
        return self.norm(self.mlp(self.attn(x, ctx), ctx) + beside)


def attention(c: Config, table: Places, farthest: int) -> Attention:
    scale = (c.d // c.heads * (1 + ("c2p" in c.terms) + ("p2c" in c.terms))) ** -0.5
    attn = Attention(c.d, c.heads, bias="qkvo", scale=scale)
    through = {term: own if c.shared else nn.Linear(c.d, c.d)
               for term, own in (("c2p", attn.k), ("p2c", attn.q)) if term in c.terms}
    if c.relative and through:
        attn.score_bias = Disentangled(
            table, c.heads, scale, key=through.get("c2p"), query=through.get("p2c"),
            buckets=max(c.buckets, 0), farthest=farthest)
    return attn


def embed(c: Config) -> Tokens:
    width, norm = c.embedding or c.d, LayerNorm(c.d, c.eps)
    if width != c.d:
        norm = nn.Sequential(OrderedDict(project=nn.Linear(width, c.d, bias=False), norm=norm))
    return Tokens(c.vocab, width, positions=Learned(c.context, width) if c.absolute else None,
                  types=c.types, norm=norm)


def build(c: Config) -> Stack:
    farthest = c.farthest if c.farthest > 0 else c.context
    table = Places(2 * (c.buckets if c.buckets > 0 else farthest), c.d,
                   LayerNorm(c.d, c.eps) if c.normed == "layer_norm" else None)
    kinds = [partial(BesideConv, c) if c.conv else Block] + [Block] * (c.layers - 1)
    return Stack(embed(c), [bert.block(c, attention(c, table, farthest), kind) for kind in kinds])


HEADS = {
    "DebertaV2ForMaskedLM": lambda c, body: bert.masked(c, body, width=c.embedding)
        if c.legacy else bert.masked(replace(c, tied=True), body),
    "DebertaV2Model": lambda c, body: Pooled(),
    "DebertaV2ForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, activation(c.pooler_act))),
    "DebertaV2ForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "DebertaV2ForQuestionAnswering": lambda c, body: Span(c.d),
}


def weights(c: Config) -> Weights:
    body, new, bias = "deberta.encoder.", "lm_predictions.lm_head.", "attn.f.score_bias."
    attn = body + "layer.{i}.attention.self."
    head = bert.words(c.tied) if c.legacy else [
        (new + "dense.{p}", "head.transform.dense.{p}"), (new + "bias", "head.out.bias"),
        (new + "LayerNorm.{p}", "head.transform.norm.{p}")]
    return Weights([
        *bert.trunk("deberta.", "(query_proj|key_proj|value_proj)"), *head,
        ("deberta.embeddings.embed_proj.weight", "embed.norm.project.weight"),
        ("deberta.embeddings.LayerNorm.{p}", "embed.norm.norm.{p}"),
        (body + "rel_embeddings.weight", "blocks.0." + bias + "table.weight"),
        (body + "LayerNorm.{p}", "blocks.0." + bias + "table.norm.{p}"),
        (attn + "pos_key_proj.{p}", "blocks.{i}." + bias + "key.{p}"),
        (attn + "pos_query_proj.{p}", "blocks.{i}." + bias + "query.{p}"),
        (body + "conv.(conv|LayerNorm).{p}", "blocks.0.(conv|norm).{p}"),
        ("pooler.dense.{p}", "head.pool.dense.{p}"), ("qa_outputs.{p}", "head.span.{p}"),
        ("classifier.{p}", "head.score.{p}"), ("classifier.{p}", "head.tag.{p}"),
    ], prefix="deberta.", renames=bert.OLD + bert.TWICE * c.tied, carried=(
        "deberta.embeddings.position_embeddings.weight", body + "rel_embeddings.weight",
        body + "LayerNorm.{p}", "mask_predictions.{a}.{p}", new + "{p}", new + "{a}.{p}",
        *bert.UNREAD),
        derived={"deberta.embeddings.position_ids": lambda name: torch.arange(c.context)[None]})


init = bert.init
INERT = {"hidden_dropout_prob": ANY, "attention_probs_dropout_prob": ANY, "pooler_dropout": ANY,
         "cls_dropout": ANY, "z_steps": 0,
         "pooler_hidden_size": ANY, "attention_head_size": ANY}  # what the width says, or no model
V3 = Config(absolute=False, relative=True, terms=("p2c", "c2p"), buckets=256, shared=True,
            normed="layer_norm")
SIZES = {
    "v3-base": V3, "v3-small": replace(V3, layers=6),
    "v3-large": replace(V3, d=1024, layers=24, heads=16, hidden=4096),
    "tiny": replace(V3, vocab=1024, context=128, d=64, layers=2, heads=4, hidden=256, buckets=16),
}

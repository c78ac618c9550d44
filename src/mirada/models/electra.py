"""ELECTRA: a generator fills masks, a discriminator finds what it wrote (Clark et al., 2003.10555).
Each is a BERT; they share a table, which is therefore wider or narrower than one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Pooled, Pooler, Span, TokenClassifier
from mirada.core.mlp import activation
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.models import bert
from mirada.weights.config import ANY, key
from mirada.weights.rows import Weights

KIND = "encoder"


@dataclass(frozen=True)
class Config(bert.Config):
    embedding: int = key("embedding_size", 128, low=1)


def build(c: Config) -> Stack:
    embed = Tokens(c.vocab, c.embedding, positions=Learned(c.context, c.embedding), types=c.types,
                   norm=LayerNorm(c.embedding, c.eps),
                   project=c.d if c.embedding != c.d else None)
    blocks = [bert.block(c, Attention(c.d, c.heads, bias="qkvo")) for _ in range(c.layers)]
    return Stack(embed, blocks)


class Discriminator(nn.Module):
    """logits (B, T): above zero where a token seems to be the generator's."""

    def __init__(self, c: Config):
        super().__init__()
        self.dense, self.act = nn.Linear(c.d, c.d), activation(c.act)
        self.found, self.loss = nn.Linear(c.d, 1), replaced

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        return {"logits": self.found(self.act(self.dense(x))).squeeze(-1)}


def replaced(outputs: dict, labels: Tensor, real: Tensor | None) -> Tensor:
    """Mean binary cross-entropy of labels (B, T), 1 where a token was replaced, at real tokens."""
    seen = torch.ones_like(labels, dtype=torch.bool) if real is None else real
    logits = outputs["logits"]
    return F.binary_cross_entropy_with_logits(logits[seen], labels[seen].to(logits.dtype))


HEADS = {
    "ElectraForPreTraining": lambda c, body: Discriminator(c),
    "ElectraForMaskedLM": lambda c, body: bert.masked(
        replace(c, act="gelu"), body, width=c.embedding),
    "ElectraModel": lambda c, body: Pooled(),
    "ElectraForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, nn.GELU())),
    "ElectraForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "ElectraForQuestionAnswering": lambda c, body: Span(c.d),
}


def weights(c: Config) -> Weights:
    return Weights([
        *bert.trunk("electra."),
        ("electra.embeddings_project.{p}", "embed.project.{p}"),
        ("discriminator_predictions.dense.{p}", "head.dense.{p}"),
        ("discriminator_predictions.activation.{p}", "head.act.{p}"),
        ("discriminator_predictions.dense_prediction.{p}", "head.found.{p}"),
        ("generator_predictions.(dense|LayerNorm).{p}", "head.transform.(dense|norm).{p}"),
        ("generator_lm_head.{p}", "head.out.{p}"),
        ("classifier.dense.{p}", "head.pool.dense.{p}"),
        ("classifier.out_proj.{p}", "head.score.{p}"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="electra.", renames=bert.OLD,
        derived={"electra.embeddings.position_ids": lambda name: torch.arange(c.context)[None]},
        carried=("discriminator_predictions.{a}.{p}", "generator_predictions.{a}.{p}",
                 "generator_lm_head.{p}"))


init = bert.init
INERT = bert.INERT | dict.fromkeys((  # these only a head for several choices would read
    "summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout"), ANY)
SMALL = Config(d=256, heads=4, hidden=1024)
SIZES = {
    "small": SMALL, "base": Config(embedding=768),
    "large": Config(embedding=1024, d=1024, layers=24, heads=16, hidden=4096),
    "base-generator": replace(SMALL, embedding=768),
    "large-generator": replace(SMALL, embedding=1024, layers=24),
    "tiny": Config(vocab=1024, context=128, embedding=32, d=64, layers=2, heads=4, hidden=256),
}

"""RoBERTa: BERT without segments, its positions behind the pad's (Liu et al., 1907.11692);
XLM-R (1911.02116) and CamemBERT (1911.03894) are the same model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from mirada.core.attention import Attention
from mirada.core.block import Stack
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Pooled, Pooler, Span, TokenClassifier
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.models import bert
from mirada.weights.config import key, size
from mirada.weights.rows import Weights

KIND = "encoder"
ROWS = "max_position_embeddings"  # rows of the table, those that no token reads among them


@dataclass(frozen=True)
class Config(bert.Config):
    vocab: int = size("vocab_size", 50265)
    pad: int = key("pad_token_id", 1, low=0)

    @staticmethod
    def prepare(raw: dict) -> dict:
        rows, pad = raw.get(ROWS), raw.get("pad_token_id", 1)
        counted = type(rows) is int and type(pad) is int
        return raw | {ROWS: rows - pad - 1} if counted else raw

    def restore(self, ours: dict) -> dict:
        return ours | {ROWS: self.context + self.pad + 1}


def build(c: Config) -> Stack:
    # differs: position_ids count from 0, and real tokens are those of the mask, where the
    # reference counts from pad + 1 the ids that are not the pad's
    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d, offset=c.pad + 1),
                   types=c.types, norm=LayerNorm(c.d, c.eps))
    blocks = [bert.block(c, Attention(c.d, c.heads, bias="qkvo")) for _ in range(c.layers)]
    return Stack(embed, blocks)


TASKS = {
    "ForMaskedLM": lambda c, body: bert.masked(replace(c, act="gelu"), body),
    "Model": lambda c, body: Pooled(Pooler(c.d, nn.Tanh())),
    "ForSequenceClassification": lambda c, body: Classifier(c.d, c.labels, Pooler(c.d, nn.Tanh())),
    "ForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "ForQuestionAnswering": lambda c, body: Span(c.d),
}
NAMES = {"Roberta": "roberta", "XLMRoberta": "xlm-roberta", "Camembert": "camembert"}
HEADS = {name + task: head for name in NAMES for task, head in TASKS.items()}
MODEL_TYPES = {name + task: kind for name, kind in NAMES.items() for task in TASKS}


def words(tied: bool) -> list[tuple]:
    """The rows of the head that names hidden words; see bert.words for its two biases."""
    return [
        ("lm_head.dense.{p}", "head.transform.dense.{p}"),
        ("lm_head.layer_norm.{p}", "head.transform.norm.{p}"),
        ("lm_head.decoder.weight", "head.out.weight"),
        ("lm_head.bias" if tied else "lm_head.decoder.bias", "head.out.bias"),
    ]


def weights(c: Config, pool: str = "roberta.pooler.dense.{p}") -> Weights:
    return Weights([
        *bert.trunk("roberta."), *words(c.tied),
        (pool, "head.pool.dense.{p}"),
        ("classifier.out_proj.{p}", "head.score.{p}"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="roberta.", renames=bert.OLD + (("lm_head.decoder.bias", "lm_head.bias"),) * c.tied,
        derived={"roberta.embeddings.position_ids":
                 lambda name: torch.arange(c.context + c.pad + 1)[None]},
        carried=("roberta.pooler.dense.{p}", "lm_head.{p}", "lm_head.{a}.{p}"))


MAPS = {name + "ForSequenceClassification": lambda c: weights(c, "classifier.dense.{p}")
        for name in NAMES}
init, INERT = bert.init, bert.INERT
BASE = Config(types=1, eps=1e-5)
LARGE = replace(BASE, d=1024, layers=24, heads=16, hidden=4096)
SIZES = {
    "base": BASE, "large": LARGE,
    "xlm-base": replace(BASE, vocab=250002), "xlm-large": replace(LARGE, vocab=250002),
    "camembert-base": replace(BASE, vocab=32005),
    "tiny": replace(BASE, vocab=1024, context=128, d=64, layers=2, heads=4, hidden=256),
}

"""ALBERT: BERT with one block for all layers and a narrow table (Lan et al., 1909.11942)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, LMHead, Pooled, Pooler, Span, TokenClassifier
from mirada.core.mlp import ACTIVATIONS, LEARNED
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.errors import MiradaError
from mirada.models import bert
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "encoder"


@dataclass(frozen=True)
class Config(bert.Config):
    vocab: int = size("vocab_size", 30000)
    embedding: int = key("embedding_size", 128, low=1)
    groups: int = key("num_hidden_groups", 1, low=1, high=64)  # of layers that share their weights
    inner: int = key("inner_group_num", 1, low=1, high=16)  # blocks that make one layer
    act: str = key("hidden_act", "gelu_new", choices={*ACTIVATIONS, *LEARNED})


def build(c: Config) -> Stack:
    if c.groups > c.layers:
        raise MiradaError(f"{c.layers} layers cannot be {c.groups} groups that share their weights")
    embed = Tokens(c.vocab, c.embedding, positions=Learned(c.context, c.embedding), types=c.types,
                   norm=LayerNorm(c.embedding, c.eps), project=c.d)
    blocks = [bert.block(c, Attention(c.d, c.heads, bias="qkvo"))
              for _ in range(c.groups * c.inner)]
    order = [int(layer / (c.layers / c.groups)) * c.inner + n  # as others round it: 18 / 14 counts
             for layer in range(c.layers) for n in range(c.inner)]
    return Stack(embed, blocks, order=order)


class PreTraining(LMHead):
    """Both of ALBERT's objectives: prediction_logits (B, T, V) and sop_logits (B, labels), whether
    two sentences stand in their order."""

    def __init__(self, c: Config, width: int, vocab: int, **options):
        super().__init__(width, vocab, **options)
        self.pool, self.score, self.loss = Pooler(c.d, nn.Tanh()), nn.Linear(c.d, c.labels), both

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        return {"prediction_logits": super().forward(x, inputs, ctx)["logits"],
                "sop_logits": self.score(self.pool(x, inputs, ctx))}


def both(outputs: dict, labels: Tensor, sentence_order_label: Tensor) -> Tensor:
    """The masked words' loss, labels (B, T), and the order's, sentence_order_label (B,), added."""
    words, order = outputs["prediction_logits"], outputs["sop_logits"]
    return (F.cross_entropy(words.flatten(0, 1), labels.flatten())
            + F.cross_entropy(order, sentence_order_label.flatten()))


HEADS = {
    "AlbertForMaskedLM": lambda c, body: bert.masked(c, body, width=c.embedding),
    "AlbertForPreTraining": lambda c, body: bert.masked(
        c, body, partial(PreTraining, c), c.embedding),
    "AlbertModel": lambda c, body: Pooled(Pooler(c.d, nn.Tanh())),
    "AlbertForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, nn.Tanh())),
    "AlbertForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "AlbertForQuestionAnswering": lambda c, body: Span(c.d),
}


def layer(n: int, inner: int) -> list[tuple]:
    """The rows of block n."""
    file = f"albert.encoder.albert_layer_groups.{n // inner}.albert_layers.{n % inner}."
    return [
        (file + "attention.(query|key|value|dense).{p}", f"blocks.{n}.attn.f.(q|k|v|o).{{p}}"),
        (file + "attention.LayerNorm.{p}", f"blocks.{n}.attn.out.{{p}}"),
        (file + "(ffn|ffn_output).{p}", f"blocks.{n}.mlp.f.(up|down).{{p}}"),
        (file + "activation.{p}", f"blocks.{n}.mlp.f.act.{{p}}"),
        (file + "full_layer_layer_norm.{p}", f"blocks.{n}.mlp.out.{{p}}"),
    ]


def weights(c: Config, score: str = "classifier.{p}") -> Weights:
    table = "albert.embeddings."
    return Weights([
        (table + "(word|position|token_type)_embeddings.weight",
         "embed.(token|position|segment).weight"),
        (table + "LayerNorm.{p}", "embed.norm.{p}"),
        ("albert.encoder.embedding_hidden_mapping_in.{p}", "embed.project.{p}"),
        *(row for n in range(c.groups * c.inner) for row in layer(n, c.inner)),
        ("predictions.dense.{p}", "head.transform.dense.{p}"),
        ("predictions.activation.{p}", "head.transform.act.{p}"),
        ("predictions.LayerNorm.{p}", "head.transform.norm.{p}"),
        ("predictions.decoder.weight", "head.out.weight"),
        ("predictions.bias" if c.tied else "predictions.decoder.bias", "head.out.bias"),
        ("albert.pooler.{p}", "head.pool.dense.{p}"),
        (score, "head.score.{p}"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="albert.", renames=bert.TWICE * c.tied,
        derived={table + "position_ids": lambda name: torch.arange(c.context)[None]},
        carried=("albert.pooler.{p}", "predictions.{p}", "predictions.{a}.{p}",
                 "sop_classifier.classifier.{p}"))


MAPS = {"AlbertForPreTraining": lambda c: weights(c, "sop_classifier.classifier.{p}")}
init = bert.init
INERT = {"hidden_dropout_prob": ANY, "attention_probs_dropout_prob": ANY,
         "classifier_dropout_prob": ANY, "position_embedding_type": "absolute", "is_decoder": False,
         **dict.fromkeys((  # these no program reads
             "down_scale_factor", "eos_token_ids", "gap_size", "net_structure_type",
             "num_memory_blocks", "output_past"), ANY)}
BASE = Config()
SIZES = {
    "base": BASE, "large": replace(BASE, d=1024, layers=24, heads=16, hidden=4096),
    "xlarge": replace(BASE, d=2048, layers=24, heads=16, hidden=8192),
    "xxlarge": replace(BASE, d=4096, heads=64, hidden=16384),
    "tiny": replace(BASE, vocab=1024, context=128, embedding=32, d=64, layers=2, heads=4,
                    hidden=256),
}

"""DistilBERT: BERT with half the layers and no segments, taught by it (Sanh et al., 1910.01108)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Pooled, Pooler, Span, TokenClassifier
from mirada.core.init import normal
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned, sinusoid
from mirada.models import bert
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "encoder"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 30522)
    context: int = size("max_position_embeddings", 512)
    sinusoids: bool = key("sinusoidal_pos_embds", False)  # how the table of positions begins
    d: int = size("dim", 768)
    layers: int = size("n_layers", 6, high=2048)
    heads: int = size("n_heads", 12)
    hidden: int = size("hidden_dim", 3072)
    act: str = key("activation", "gelu", choices={*ACTIVATIONS, *LEARNED})
    tied: bool = key("tie_word_embeddings", True)
    labels: int = 2
    eps = 1e-12  # no file says another


def build(c: Config) -> Stack:
    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d), norm=LayerNorm(c.d, c.eps))
    blocks = [Block(attn=Residual(Attention(c.d, c.heads, bias="qkvo"), out=LayerNorm(c.d, c.eps)),
                    mlp=Residual(MLP(c.d, c.hidden, c.act), out=LayerNorm(c.d, c.eps)))
              for _ in range(c.layers)]
    return Stack(embed, blocks)


HEADS = {
    "DistilBertForMaskedLM": bert.masked,
    "DistilBertModel": lambda c, body: Pooled(),
    "DistilBertForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, nn.ReLU())),
    "DistilBertForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "DistilBertForQuestionAnswering": lambda c, body: Span(c.d),
}


def weights(c: Config) -> Weights:
    table, layer = "distilbert.embeddings.", "distilbert.transformer.layer.{i}."
    return Weights([
        (table + "(word|position)_embeddings.weight", "embed.(token|position).weight"),
        (table + "LayerNorm.{p}", "embed.norm.{p}"),
        (layer + "attention.(q_lin|k_lin|v_lin|out_lin).{p}", "blocks.{i}.attn.f.(q|k|v|o).{p}"),
        (layer + "(sa|output)_layer_norm.{p}", "blocks.{i}.(attn|mlp).out.{p}"),
        (layer + "ffn.(lin1|lin2).{p}", "blocks.{i}.mlp.f.(up|down).{p}"),
        (layer + "ffn.activation.{p}", "blocks.{i}.mlp.f.act.{p}"),
        ("vocab_transform.{p}", "head.transform.dense.{p}"),
        ("activation.{p}", "head.transform.act.{p}"),
        ("vocab_layer_norm.{p}", "head.transform.norm.{p}"),
        ("vocab_projector.{p}", "head.out.{p}"),
        ("pre_classifier.{p}", "head.pool.dense.{p}"),
        ("classifier.{p}", "head.score.{p}"), ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="distilbert.",
        derived={table + "position_ids": lambda name: torch.arange(c.context)[None]},
        carried=("vocab_transform.{p}", "vocab_layer_norm.{p}", "vocab_projector.{p}"))


@torch.no_grad()
def init(model, c: Config) -> None:
    normal(model, 0.02)
    if c.sinusoids:
        table = model.body.embed.position.weight
        table.copy_(sinusoid(torch.arange(c.context), c.d, dtype=table.dtype))


INERT = {"dropout": ANY, "attention_dropout": ANY, "qa_dropout": ANY, "seq_classif_dropout": ANY,
         "tie_weights_": ANY, "output_past": ANY}
SIZES = {
    "base": Config(), "tiny": Config(vocab=1024, context=128, d=64, layers=2, heads=4, hidden=256),
}

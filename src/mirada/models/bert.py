"""BERT: a post-norm encoder that reads both ways (Devlin et al., 1810.04805)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, LMHead, Pooled, Pooler, Span, TokenClassifier, Transform
from mirada.core.init import normal
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "encoder"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 30522)
    context: int = size("max_position_embeddings", 512)
    types: int = key("type_vocab_size", 2, low=1)
    d: int = size("hidden_size", 768)
    layers: int = size("num_hidden_layers", 12, high=2048)
    heads: int = size("num_attention_heads", 12)
    hidden: int = size("intermediate_size", 3072)
    act: str = key("hidden_act", "gelu", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("layer_norm_eps", 1e-12, low=0)
    tied: bool = key("tie_word_embeddings", True)
    labels: int = 2
    pooled: bool = True  # BertModel has its pooler

    def settle(self, names: list[str]) -> Config:
        """Sentence encoders are often published without the pooler (GGUF calls it `cls`)."""
        return replace(self, pooled=any(n.endswith(("pooler.dense.weight", "cls.weight"))
                                        for n in names))


def block(c: Config, attention: Attention, kind=Block) -> Block:
    return kind(attn=Residual(attention, out=LayerNorm(c.d, c.eps)),
                mlp=Residual(MLP(c.d, c.hidden, c.act), out=LayerNorm(c.d, c.eps)))


def build(c: Config) -> Stack:
    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d), types=c.types,
                   norm=LayerNorm(c.d, c.eps))
    return Stack(embed, [block(c, Attention(c.d, c.heads, bias="qkvo")) for _ in range(c.layers)])


class PreTraining(LMHead):
    """Both of BERT's objectives: prediction_logits (B, T, V), seq_relationship_logits (B, 2)."""

    def __init__(self, d: int, vocab: int, **options):
        super().__init__(d, vocab, **options)
        self.pool, self.score, self.loss = Pooler(d, nn.Tanh()), nn.Linear(d, 2), both

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        return {"prediction_logits": super().forward(x, inputs, ctx)["logits"],
                "seq_relationship_logits": self.score(self.pool(x, inputs, ctx))}


def both(outputs: dict, labels: Tensor, next_sentence_label: Tensor) -> Tensor:
    """The masked words' loss, labels (B, T), and the pair's, next_sentence_label (B,), added."""
    words, pair = outputs["prediction_logits"], outputs["seq_relationship_logits"]
    return (F.cross_entropy(words.flatten(0, 1), labels.flatten())
            + F.cross_entropy(pair, next_sentence_label.flatten()))


def masked(c: Config, body: Stack, head=LMHead, width: int | None = None) -> LMHead:
    """A head that names the hidden words. width: of the token table where it is not d."""
    return head(width or c.d, c.vocab, tied=body.embed.token.weight if c.tied else None, bias=True,
                transform=Transform(c.d, c.act, c.eps, width), shift=False)


HEADS = {
    "BertForMaskedLM": masked,
    "BertForPreTraining": lambda c, body: masked(c, body, PreTraining),
    "BertForNextSentencePrediction": lambda c, body: Classifier(c.d, 2, Pooler(c.d, nn.Tanh())),
    "BertModel": lambda c, body: Pooled(Pooler(c.d, nn.Tanh()) if c.pooled else None),
    "BertForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, nn.Tanh())),
    "BertForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "BertForQuestionAnswering": lambda c, body: Span(c.d),
}


def trunk(prefix: str, qkv: str = "(query|key|value)") -> list[tuple]:
    """The rows of the embedding and the blocks."""
    layer = prefix + "encoder.layer.{i}."
    return [
        (prefix + "embeddings.word_embeddings.weight", "embed.token.weight"),
        (prefix + "embeddings.position_embeddings.weight", "embed.position.weight"),
        (prefix + "embeddings.token_type_embeddings.weight", "embed.segment.weight"),
        (prefix + "embeddings.LayerNorm.{p}", "embed.norm.{p}"),
        (layer + "attention.self." + qkv + ".{p}", "blocks.{i}.attn.f.(q|k|v).{p}"),
        (layer + "intermediate.intermediate_act_fn.{p}", "blocks.{i}.mlp.f.act.{p}"),
        (layer + "(attention.output|intermediate|output).dense.{p}",
         "blocks.{i}.(attn.f.o|mlp.f.up|mlp.f.down).{p}"),
        (layer + "(attention.output|output).LayerNorm.{p}", "blocks.{i}.(attn|mlp).out.{p}"),
    ]


def words(tied: bool) -> list[tuple]:
    """The rows of the head that names hidden words. Tied, `decoder.bias` repeats `bias`; else it
    is the one that counts, and `bias` is only carried."""
    return [
        ("cls.predictions.transform.dense.{p}", "head.transform.dense.{p}"),
        ("cls.predictions.transform.transform_act_fn.{p}", "head.transform.act.{p}"),
        ("cls.predictions.transform.LayerNorm.{p}", "head.transform.norm.{p}"),
        ("cls.predictions.decoder.weight", "head.out.weight"),
        ("cls.predictions.bias" if tied else "cls.predictions.decoder.bias", "head.out.bias"),
    ]


UNREAD = ("cls.predictions.{p}", "cls.predictions.{a}.{p}", "cls.predictions.{a}.{b}.{p}",
          *(f"cls.{head}.{{p}}" for head in ("species", "chain", "graft")))  # of antibodies
OLD = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"))
TWICE = (("predictions.decoder.bias", "predictions.bias"),)


def weights(c: Config, score: str = "classifier") -> Weights:
    return Weights([
        *trunk("bert."), *words(c.tied),
        ("bert.pooler.dense.{p}", "head.pool.dense.{p}"),
        (score + ".{p}", "head.score.{p}"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="bert.", renames=OLD + TWICE * c.tied,
        derived={"bert.embeddings.position_ids": lambda name: torch.arange(c.context)[None]},
        carried=("bert.pooler.dense.{p}", "cls.seq_relationship.{p}", *UNREAD))


MAPS = dict.fromkeys(("BertForPreTraining", "BertForNextSentencePrediction"),
                     lambda c: weights(c, "cls.seq_relationship"))


def init(model, c: Config) -> None:
    normal(model, 0.02)


INERT = {"hidden_dropout_prob": ANY, "attention_probs_dropout_prob": ANY, "classifier_dropout": ANY,
         "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
         "is_encoder_decoder": False, **dict.fromkeys((  # these no program reads, but GGUF's first
             "pooling_type", "directionality", "pooler_fc_size", "pooler_num_attention_heads",
             "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"), ANY)}
SIZES = {
    "base": Config(), "large": Config(d=1024, layers=24, heads=16, hidden=4096),
    "tiny": Config(vocab=1024, context=128, d=64, layers=2, heads=4, hidden=256),
}

"""BERT: a post-norm encoder that reads both ways (Devlin et al., 1810.04805)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, LMHead, Pooled, Pooler, Span, TokenClassifier, label, token
from mirada.core.init import normal
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP, activation
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


def build(c: Config) -> Stack:
    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d), types=c.types,
                   norm=LayerNorm(c.d, c.eps))
    blocks = [Block(attn=Residual(Attention(c.d, c.heads, bias="qkvo"), out=LayerNorm(c.d, c.eps)),
                    mlp=Residual(MLP(c.d, c.hidden, c.act), out=LayerNorm(c.d, c.eps)))
              for _ in range(c.layers)]
    return Stack(embed, blocks)


class Transform(nn.Module):
    """norm(act(dense(x))), before the vocabulary. out: another width than d."""

    def __init__(self, d: int, act: str, eps: float, out: int | None = None):
        super().__init__()
        self.dense, self.act = nn.Linear(d, out or d), activation(act)
        self.norm = LayerNorm(out or d, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))


class NextSentence(nn.Module):
    """Whether the second segment follows the first: logits (B, 2), label 0 when it does."""

    loss = staticmethod(label)

    def __init__(self, d: int):
        super().__init__()
        self.pool, self.follows = Pooler(d, torch.nn.Tanh()), nn.Linear(d, 2)

    def forward(self, x: Tensor, inputs, ctx) -> dict[str, Tensor]:
        return {"logits": self.follows(self.pool(x, inputs, ctx))}

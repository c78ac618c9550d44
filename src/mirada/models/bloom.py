"""BLOOM: a pre-norm causal decoder that knows distances by ALiBi (Le Scao et al., 2211.05100)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.bias import Alibi
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import LayerNorm
from mirada.models.llama import TASKS
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Interleaved, Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 250880)
    d: int = size("hidden_size", 1024)
    layers: int = size("n_layer", 24, high=2048)
    heads: int = size("n_head", 16)
    eps: float = key("layer_norm_epsilon", 1e-5, low=0)
    normed: bool = key("apply_residual_connection_post_layernorm", False)
    tied: bool = key("tie_word_embeddings", True)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2

    @staticmethod
    def prepare(raw: dict) -> dict:
        older = {"n_embed": "hidden_size", "num_attention_heads": "n_head",
                 "num_hidden_layers": "n_layer"}
        return raw | {older[name]: value for name, value in raw.items() if name in older}


class NormedResidual(Residual):
    """h + f(h) with h = pre(x): the norm stands in the stream itself."""

    def forward(self, x: Tensor, ctx, cache=None) -> Tensor:
        h = self.pre(x)
        return h + F.dropout(self.f(h, ctx, cache), self.dropout, self.training)


class Gelu(nn.Module):
    """The tanh form, its constant cut at eight digits as it was trained."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.79788456 * x * (1.0 + 0.044715 * x * x)))


def build(c: Config) -> Stack:
    residual = NormedResidual if c.normed else Residual
    distances = Alibi(c.heads)

    def norm() -> LayerNorm:
        return LayerNorm(c.d, c.eps)

    def block() -> Block:
        attn = Attention(c.d, c.heads, bias="qkvo", score_bias=distances, mask=Mask(causal=True))
        mlp = MLP(c.d, 4 * c.d, "gelu_fast")
        mlp.act = Gelu()
        return Block(attn=residual(attn, pre=norm()), mlp=residual(mlp, pre=norm()))

    return Stack(Tokens(c.vocab, c.d, norm=norm()), [block() for _ in range(c.layers)], norm())


HEADS = {"Bloom" + task: head for task, head in TASKS.items()}


def weights(c: Config) -> Weights:
    layer = "transformer.h.{i}."
    return Weights([
        ("transformer.word_embeddings.weight", "embed.token.weight"),
        ("transformer.word_embeddings_layernorm.{p}", "embed.norm.{p}"),
        (layer + "input_layernorm.{p}", "blocks.{i}.attn.pre.{p}"),
        (layer + "self_attention.query_key_value.{p}", "blocks.{i}.attn.f.(q|k|v).{p}",
         Interleaved(c.heads)),
        (layer + "self_attention.dense.{p}", "blocks.{i}.attn.f.o.{p}"),
        (layer + "post_attention_layernorm.{p}", "blocks.{i}.mlp.pre.{p}"),
        (layer + "mlp.dense_h_to_4h.{p}", "blocks.{i}.mlp.f.up.{p}"),
        (layer + "mlp.dense_4h_to_h.{p}", "blocks.{i}.mlp.f.down.{p}"),
        ("transformer.ln_f.{p}", "norm.{p}"),
        ("lm_head.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="transformer.")


def init(model, c: Config) -> None:
    normal(model, 0.02)


# slow_but_exact would leave out the biases of o and down
INERT = {"hidden_dropout": ANY, "attention_dropout": ANY, "pretraining_tp": ANY, "n_embed": ANY,
         "num_attention_heads": ANY, "num_hidden_layers": ANY, "slow_but_exact": False,
         "seq_length": ANY, "n_inner": None, "attention_softmax_in_fp32": ANY,
         "bias_dropout_fusion": ANY, "masked_softmax_fusion": ANY, "offset_alibi": ANY,
         "skip_bias_add": ANY, "skip_bias_add_qkv": ANY}
SIZES = {
    "560m": Config(), "1b1": Config(d=1536), "1b7": Config(d=2048),
    "3b": Config(d=2560, layers=30, heads=32), "7b1": Config(d=4096, layers=30, heads=32),
    "176b": Config(d=14336, layers=70, heads=112),
    "tiny": Config(vocab=1024, d=64, layers=2, heads=4),
}

"""PaLM: attention whose heads share one key and value, beside a SwiGLU MLP (2204.02311, section 2).

Its weights were never published. Assumed where the paper is silent: rotary pairs are neighbouring
channels with base 10,000 as in 2104.09864, a norm stands before the logits, eps is 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirada.core.attention import Attention
from mirada.core.block import Branch, ParallelBlock, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import LMHead, Pooled
from mirada.core.init import scaled
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Rotary
from mirada.weights.config import key, size
from mirada.weights.rows import Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 256000)
    context: int = size("max_position_embeddings", 2048)
    d: int = size("hidden_size", 4096)
    layers: int = size("num_hidden_layers", 32, high=2048)
    heads: int = size("num_attention_heads", 16)
    head_dim: int = size("head_dim", 256)
    hidden: int = size("intermediate_size", 16384)
    act: str = key("hidden_act", "silu", choices=set(ACTIVATIONS))
    eps: float = key("layer_norm_eps", 1e-6, low=0)
    pad: int | None = key("pad_token_id", None, low=0)


def build(c: Config) -> Stack:
    rotary = Rotary(c.head_dim, interleaved=True)

    def norm() -> LayerNorm:
        return LayerNorm(c.d, c.eps, bias=False)

    def block() -> ParallelBlock:
        attn = Attention(c.d, c.heads, kv_heads=1, head_dim=c.head_dim, rotary=rotary,
                         mask=Mask(causal=True))
        mlp = MLP(c.d, c.hidden, c.act, gated=True, bias=False)
        return ParallelBlock(norm(), attn=Branch(attn), mlp=Branch(mlp))

    return Stack(Tokens(c.vocab, c.d), [block() for _ in range(c.layers)], norm())


HEADS = {
    "PaLMForCausalLM": lambda c, body: LMHead(
        c.d, c.vocab, tied=body.embed.token.weight, scale=c.d**-0.5),
    "PaLMModel": lambda c, body: Pooled(),
}


def weights(c: Config) -> Weights:
    layer = "layers.{i}."
    return Weights([
        ("embed_tokens.weight", "embed.token.weight"),
        (layer + "norm.weight", "blocks.{i}.norm.weight"),
        (layer + "attention.(q|k|v|o)_proj.weight", "blocks.{i}.attn.f.(q|k|v|o).weight"),
        (layer + "mlp.(gate|up|down)_proj.weight", "blocks.{i}.mlp.f.(gate|up|down).weight"),
        ("norm.weight", "norm.weight"),
        ("lm_head.weight", "head.out.weight"),
    ])


def init(model, c: Config) -> None:
    scaled(model)  # by fan-in, the embeddings N(0, 1)


SIZES = {
    "8b": Config(), "62b": Config(d=8192, layers=64, heads=32, hidden=32768),
    "540b": Config(d=18432, layers=118, heads=48, hidden=73728),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4, head_dim=16, hidden=256),
}

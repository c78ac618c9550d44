"""GPT: the first, a post-norm causal decoder with learned positions (Radford et al., 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.models import gpt2
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import TRANSPOSED, Split, Weights

KIND = "decoder"
MODEL_TYPE = "openai-gpt"
ACTS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}  # its "gelu" is tanh's


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 40478)
    context: int = size("n_positions", 512)
    d: int = size("n_embd", 768)
    layers: int = size("n_layer", 12, high=2048)
    heads: int = size("n_head", 12)
    act: str = key("afn", "gelu", choices=set(ACTS))
    eps: float = key("layer_norm_epsilon", 1e-5, low=0)
    tied: bool = key("tie_word_embeddings", True)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2


def build(c: Config) -> Stack:
    def block() -> Block:
        attn = Attention(c.d, c.heads, bias="qkvo", mask=Mask(causal=True))
        mlp = MLP(c.d, 4 * c.d, ACTS[c.act])
        return Block(attn=Residual(attn, out=LayerNorm(c.d, c.eps)),
                     mlp=Residual(mlp, out=LayerNorm(c.d, c.eps)))

    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d))
    return Stack(embed, [block() for _ in range(c.layers)])


HEADS = {"OpenAIGPT" + task: gpt2.HEADS["GPT2" + task]
         for task in ("LMHeadModel", "Model", "ForSequenceClassification")}


def weights(c: Config) -> Weights:
    return Weights([
        ("transformer.tokens_embed.weight", "embed.token.weight"),
        ("transformer.positions_embed.weight", "embed.position.weight"),
        ("transformer.h.{i}.attn.c_attn.{p}", "blocks.{i}.attn.f.(q|k|v).{p}",
         Split(3, transposed=True)),
        ("transformer.h.{i}.attn.c_proj.{p}", "blocks.{i}.attn.f.o.{p}", TRANSPOSED),
        ("transformer.h.{i}.ln_1.{p}", "blocks.{i}.attn.out.{p}"),
        ("transformer.h.{i}.mlp.c_fc.{p}", "blocks.{i}.mlp.f.up.{p}", TRANSPOSED),
        ("transformer.h.{i}.mlp.c_proj.{p}", "blocks.{i}.mlp.f.down.{p}", TRANSPOSED),
        ("transformer.h.{i}.ln_2.{p}", "blocks.{i}.mlp.out.{p}"),
        ("lm_head.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
    ], prefix="transformer.", carried=("transformer.h.{i}.attn.bias",))


def init(model, c: Config) -> None:
    normal(model, 0.02)


INERT = gpt2.INERT | {"n_special": 0, "predict_special_tokens": ANY}
SIZES = {"117m": Config(), "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4)}

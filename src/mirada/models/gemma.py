"""Gemma: LLaMA with a gated GELU, norms that keep weight - 1, and wider embeddings (2403.08295)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import RMSNorm
from mirada.core.position import Rotary
from mirada.errors import MiradaError
from mirada.models import llama, rope
from mirada.weights.config import ANY

KIND = "decoder"


@dataclass(frozen=True)
class Config(llama.Config):
    def __post_init__(self):
        super().__post_init__()
        if self.mlp_bias:
            raise MiradaError("mlp_bias: the MLP of this family has no biases")

    @staticmethod
    def prepare(raw: dict) -> dict:
        raw = {"num_key_value_heads": 16, "head_dim": 256, "tie_word_embeddings": True,
               "pad_token_id": 0} | raw
        act = raw.pop("hidden_activation", None) or raw.get("hidden_act") or "gelu"
        return rope.flat(raw | {"hidden_act": "gelu_pytorch_tanh" if act == "gelu" else act})

    def restore(self, ours: dict) -> dict:
        return rope.nested(ours | {"num_key_value_heads": self.kv_heads or self.heads})


class Widened(nn.Embedding):
    """Times the root of its width, rounded as the weights are: so it was trained."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.weight.new_tensor(self.embedding_dim**0.5)


def embed(c: Config) -> Tokens:
    tokens = Tokens(c.vocab, c.d)
    tokens.token = Widened(c.vocab, c.d)
    return tokens


def build(c: Config) -> Stack:
    if c.window:
        raise MiradaError("sliding_window: this family looks at everything; gemma2 does not")
    rotary = Rotary(c.head_dim, c.rope_base, scaling=rope.scaling(c, c.head_dim, c.context))

    def norm() -> RMSNorm:
        return RMSNorm(c.d, c.eps, offset=1.0)

    def block() -> Block:
        attn = Attention(c.d, c.heads, kv_heads=c.kv_heads, head_dim=c.head_dim, rotary=rotary,
                         bias="qkvo" if c.attention_bias else "", mask=Mask(causal=True))
        mlp = MLP(c.d, c.hidden, c.act, gated=True, bias=False)
        return Block(attn=Residual(attn, pre=norm()), mlp=Residual(mlp, pre=norm()))

    return Stack(embed(c), [block() for _ in range(c.layers)], norm())


HEADS = {"Gemma" + task: llama.TASKS[task] for task in (
    "ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification")}
weights, init = llama.weights, llama.init
INERT = {"attention_dropout": ANY, "use_bidirectional_attention": False}
_7 = Config(vocab=256000, context=8192, d=3072, layers=28, heads=16, head_dim=256, hidden=24576,
            act="gelu_pytorch_tanh", tied=True)
SIZES = {
    "7b": _7, "2b": replace(_7, d=2048, layers=18, heads=8, kv_heads=1, hidden=16384),
    "tiny": replace(_7, vocab=1024, context=256, d=64, layers=2, heads=4, head_dim=16, hidden=128),
}

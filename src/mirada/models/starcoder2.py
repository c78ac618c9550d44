"""StarCoder2: a pre-norm causal decoder that rotates, with grouped heads, LayerNorms and biases
(Lozhkov et al., 2402.19173)."""

from __future__ import annotations

from dataclasses import dataclass

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Rotary
from mirada.errors import MiradaError
from mirada.models import rope
from mirada.models.llama import TASKS
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config(rope.Rope):
    vocab: int = size("vocab_size", 49152)
    context: int = size("max_position_embeddings", 16384)
    d: int = size("hidden_size", 3072)
    layers: int = size("num_hidden_layers", 30, high=2048)
    heads: int = size("num_attention_heads", 24)
    kv_heads: int = key("num_key_value_heads", 2, low=1)
    hidden: int = size("intermediate_size", 12288)
    act: str = key("hidden_act", "gelu_pytorch_tanh", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("norm_epsilon", 1e-5, low=0)
    bias: bool = key("use_bias", True)
    window: int | None = key("sliding_window", None, low=1)
    tied: bool = key("tie_word_embeddings", True)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise MiradaError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads")
        if self.rope_part != 1:
            raise MiradaError("partial_rotary_factor: heads of this family turn as a whole")
        rope.scaling(self, self.d // self.heads, self.context)

    prepare, restore = staticmethod(rope.flat), staticmethod(rope.nested)


def build(c: Config) -> Stack:
    K = c.d // c.heads
    rotary = Rotary(K, c.rope_base, scaling=rope.scaling(c, K, c.context))

    def block() -> Block:
        attn = Attention(c.d, c.heads, kv_heads=c.kv_heads, bias="qkvo" if c.bias else "",
                         rotary=rotary, mask=Mask(causal=True, window=c.window))
        mlp = MLP(c.d, c.hidden, c.act, bias=c.bias)
        return Block(attn=Residual(attn, pre=LayerNorm(c.d, c.eps)),
                     mlp=Residual(mlp, pre=LayerNorm(c.d, c.eps)))

    return Stack(Tokens(c.vocab, c.d), [block() for _ in range(c.layers)], LayerNorm(c.d, c.eps))


HEADS = {"Starcoder2" + task: TASKS[task] for task in
         ("ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification")}


def weights(c: Config) -> Weights:
    layer = "model.layers.{i}."
    return Weights([
        ("model.embed_tokens.weight", "embed.token.weight"),
        (layer + "input_layernorm.{p}", "blocks.{i}.attn.pre.{p}"),
        (layer + "self_attn.(q|k|v|o)_proj.{p}", "blocks.{i}.attn.f.(q|k|v|o).{p}"),
        (layer + "post_attention_layernorm.{p}", "blocks.{i}.mlp.pre.{p}"),
        (layer + "mlp.c_fc.{p}", "blocks.{i}.mlp.f.up.{p}"),
        (layer + "mlp.act.{p}", "blocks.{i}.mlp.f.act.{p}"),
        (layer + "mlp.c_proj.{p}", "blocks.{i}.mlp.f.down.{p}"),
        ("model.norm.{p}", "norm.{p}"),
        ("lm_head.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
        ("score.{p}", "head.tag.{p}"),
    ], prefix="model.")


def init(model, c: Config) -> None:
    normal(model, 0.018042)


INERT = {"attention_dropout": ANY, "residual_dropout": ANY, "embedding_dropout": ANY,
         "activation_function": ANY, "layer_norm_epsilon": ANY,  # hidden_act, norm_epsilon count
         "attention_softmax_in_fp32": ANY, "scale_attention_softmax_in_fp32": ANY,
         "scale_attn_weights": True, "mlp_type": "default", "norm_type": "layer_norm"}
SIZES = {
    "3b": Config(rope_base=999999.4420358813, window=4096),
    "7b": Config(d=4608, layers=32, heads=36, kv_heads=4, hidden=18432, rope_base=1e6, window=4096),
    "15b": Config(d=6144, layers=40, heads=48, kv_heads=4, hidden=24576, rope_base=1e5, window=4096,
                  tied=False),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4, hidden=256),
}

"""StarCoder (GPTBigCode): GPT-2 whose heads share one key and value (Li et al., 2305.06161)."""

from __future__ import annotations

from dataclasses import dataclass

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.models import gpt2
from mirada.models.llama import TASKS
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Interleaved, Split, Weights

KIND = "decoder"
MODEL_TYPE = "gpt_bigcode"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 49152)
    context: int = size("n_positions", 8192)
    d: int = size("n_embd", 2048)
    layers: int = size("n_layer", 24, high=2048)
    heads: int = size("n_head", 16)
    hidden: int | None = key("n_inner", None, low=1)  # 4 d when None
    shared: bool = key("multi_query", True)  # one key and value for all heads
    act: str = key("activation_function", "gelu_pytorch_tanh", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("layer_norm_epsilon", 1e-5, low=0)
    scaled: bool = key("scale_attn_weights", True)
    tied: bool = key("tie_word_embeddings", True)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2


def build(c: Config) -> Stack:
    def block() -> Block:
        attn = Attention(c.d, c.heads, kv_heads=1 if c.shared else None, bias="qkvo",
                         scale=None if c.scaled else 1.0, mask=Mask(causal=True))
        mlp = MLP(c.d, c.hidden or 4 * c.d, c.act)
        return Block(attn=Residual(attn, pre=LayerNorm(c.d, c.eps)),
                     mlp=Residual(mlp, pre=LayerNorm(c.d, c.eps)))

    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d))
    return Stack(embed, [block() for _ in range(c.layers)], LayerNorm(c.d, c.eps))


HEADS = {"GPTBigCode" + task: TASKS[task] for task in
         ("ForCausalLM", "Model", "ForSequenceClassification", "ForTokenClassification")}


def weights(c: Config) -> Weights:
    layer, K = "transformer.h.{i}.", c.d // c.heads
    return Weights([
        ("transformer.(wte|wpe).weight", "embed.(token|position).weight"),
        (layer + "ln_1.{p}", "blocks.{i}.attn.pre.{p}"),
        (layer + "attn.c_attn.{p}", "blocks.{i}.attn.f.(q|k|v).{p}",
         Split(3, (c.d, K, K)) if c.shared else Interleaved(c.heads)),
        (layer + "attn.c_proj.{p}", "blocks.{i}.attn.f.o.{p}"),
        (layer + "ln_2.{p}", "blocks.{i}.mlp.pre.{p}"),
        (layer + "mlp.c_fc.{p}", "blocks.{i}.mlp.f.up.{p}"),
        (layer + "mlp.act.{p}", "blocks.{i}.mlp.f.act.{p}"),
        (layer + "mlp.c_proj.{p}", "blocks.{i}.mlp.f.down.{p}"),
        ("transformer.ln_f.{p}", "norm.{p}"),
        ("lm_head.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
        ("classifier.{p}", "head.tag.{p}"),
    ], prefix="transformer.", carried=(layer + "attn.bias", layer + "attn.masked_bias"))


def init(model, c: Config) -> None:
    normal(model, 0.02, residual=2 * c.layers)


INERT = gpt2.INERT | {
    "attention_softmax_in_fp32": ANY, "scale_attention_softmax_in_fp32": ANY,
    "num_key_value_heads": ANY, "inference_runner": ANY, "max_batch_size": ANY,
    "max_sequence_length": ANY, "pad_key_length": ANY, "pre_allocate_kv_cache": ANY,
    "validate_runner_input": ANY}
SIZES = {
    "1b": Config(), "15b": Config(d=6144, layers=40, heads=48),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4),
}

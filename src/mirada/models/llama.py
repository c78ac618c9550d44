"""LLaMA 1 to 3 and Mistral: pre-norm causal decoders that rotate (2302.13971, 2310.06825)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Last, LMHead, Pooled, Span, TokenClassifier
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import RMSNorm
from mirada.core.position import Rotary
from mirada.errors import MiradaError
from mirada.models import rope
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config(rope.Rope):
    vocab: int = size("vocab_size", 32000)
    context: int = size("max_position_embeddings", 4096)
    d: int = size("hidden_size", 4096)
    layers: int = size("num_hidden_layers", 32, high=2048)
    heads: int = size("num_attention_heads", 32)
    kv_heads: int | None = key("num_key_value_heads", None, low=1)  # heads when None
    head_dim: int | None = key("head_dim", None, low=1)  # d / heads when None
    hidden: int = size("intermediate_size", 11008)
    act: str = key("hidden_act", "silu", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("rms_norm_eps", 1e-6, low=0)
    attention_bias: bool = key("attention_bias", False)
    mlp_bias: bool = key("mlp_bias", False)
    window: int | None = key("sliding_window", None, low=1)  # Mistral's
    tied: bool = key("tie_word_embeddings", False)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2

    def __post_init__(self):
        if self.heads % (self.kv_heads or self.heads):
            raise MiradaError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads")
        if self.rope_part != 1:  # readers of such files disagree: some ignore it, some cannot run
            raise MiradaError("partial_rotary_factor: heads of this family turn as a whole")
        rope.scaling(self, self.head_dim or self.d // self.heads, self.context)

    @staticmethod
    def prepare(raw: dict) -> dict:
        unsaid = {"num_key_value_heads": 8, "sliding_window": 4096}
        return rope.flat(unsaid | raw if raw.get("model_type") == "mistral" else raw)

    def restore(self, ours: dict) -> dict:
        return rope.nested(ours)


def stack(c: Config) -> Stack:
    K = c.head_dim or c.d // c.heads
    rotary = Rotary(K, c.rope_base, scaling=rope.scaling(c, K, c.context))

    def attention() -> Attention:
        return Attention(c.d, c.heads, kv_heads=c.kv_heads, head_dim=K, rotary=rotary,
                         bias="qkvo" if c.attention_bias else "",
                         mask=Mask(causal=True, window=c.window))

    def mlp() -> MLP:
        return MLP(c.d, c.hidden, c.act, gated=True, bias=c.mlp_bias)

    def norm() -> RMSNorm:
        return RMSNorm(c.d, c.eps)

    blocks = [Block(attn=Residual(attention(), pre=norm()), mlp=Residual(mlp(), pre=norm()))
              for _ in range(c.layers)]
    return Stack(Tokens(c.vocab, c.d), blocks, norm())


def build(c: Config) -> Stack:
    if c.window:  # LLaMA's files have no such key: other readers would look at everything
        raise MiradaError("sliding_window: only Mistral's heads look through one; name such a head "
                          "with architecture='MistralForCausalLM'")
    return stack(c)


def mistral(c: Config) -> Stack:
    if c.attention_bias or c.mlp_bias:
        raise MiradaError("attention_bias, mlp_bias: Mistral's projections have no biases")
    return stack(c)


TASKS = {
    "ForCausalLM": lambda c, body: LMHead(
        c.d, c.vocab, tied=body.embed.token.weight if c.tied else None),
    "Model": lambda c, body: Pooled(),
    "ForSequenceClassification": lambda c, body: Classifier(c.d, c.labels, Last(c.pad), bias=False),
    "ForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "ForQuestionAnswering": lambda c, body: Span(c.d),
}
HEADS = {name + task: head for name in ("Llama", "Mistral") for task, head in TASKS.items()}
BODIES = {"Mistral" + task: mistral for task in TASKS}
MODEL_TYPES = {"Mistral" + task: "mistral" for task in TASKS}


def weights(c: Config, body="model.") -> Weights:
    return Weights([
        (body + "embed_tokens.weight", "embed.token.weight"),
        (body + "layers.{i}.input_layernorm.weight", "blocks.{i}.attn.pre.weight"),
        (body + "layers.{i}.self_attn.(q|k|v)_proj.{p}", "blocks.{i}.attn.f.(q|k|v).{p}"),
        (body + "layers.{i}.self_attn.o_proj.{p}", "blocks.{i}.attn.f.o.{p}"),
        (body + "layers.{i}.post_attention_layernorm.weight", "blocks.{i}.mlp.pre.weight"),
        (body + "layers.{i}.mlp.(gate|up|down)_proj.{p}", "blocks.{i}.mlp.f.(gate|up|down).{p}"),
        (body + "layers.{i}.mlp.act_fn.{p}", "blocks.{i}.mlp.f.act.{p}"),
        (body + "norm.weight", "norm.weight"),
        ("lm_head.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
        ("score.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix=body, carried=(body + "layers.{i}.self_attn.rotary_emb.inv_freq",))


MAPS = {"LlamaForQuestionAnswering": lambda c: weights(c, "transformer.")}


def init(model, c: Config) -> None:
    normal(model, 0.02)


INERT = {"attention_dropout": ANY, "pretraining_tp": 1}
_2 = Config(eps=1e-5)
_3 = replace(_2, vocab=128256, hidden=14336, kv_heads=8, context=8192, rope_base=5e5)
SIZES = {
    "smollm2-135m": replace(_2, vocab=49152, d=576, layers=30, heads=9, kv_heads=3, hidden=1536,
                            context=8192, rope_base=1e5, tied=True),
    "7b": _2, "13b": replace(_2, d=5120, layers=40, heads=40, hidden=13824),
    "70b": replace(_2, d=8192, layers=80, heads=64, kv_heads=8, hidden=28672),
    "llama3-8b": _3, "llama3-70b": replace(_3, d=8192, layers=80, heads=64, hidden=28672),
    "llama3-405b": replace(_3, d=16384, layers=126, heads=128, hidden=53248, context=131072,  # 3.1
                           rope="llama3", rope_factor=8.0, rope_low=1.0, rope_high=4.0,
                           rope_original=8192),
    "codellama-7b": replace(_2, vocab=32016, context=16384, rope_base=1e6),  # 2308.12950
    "codellama-13b": replace(_2, vocab=32016, context=16384, rope_base=1e6, d=5120, layers=40,
                             heads=40, hidden=13824),
    "codellama-34b": replace(_2, context=16384, rope_base=1e6, d=8192, layers=48, heads=64,
                             kv_heads=8, hidden=22016),
    "mistral-7b": replace(_2, hidden=14336, kv_heads=8, context=32768, rope_base=1e6),  # v0.2
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4, kv_heads=2, hidden=128),
}

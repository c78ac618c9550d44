"""Gemma 2: Gemma with norms on both sides of each sublayer, soft caps on scores and logits, and a
window in every other layer (2408.00118)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.heads import LMHead
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import QKNorm, RMSNorm
from mirada.core.position import Rotary
from mirada.models import gemma, llama, rope, windows
from mirada.weights.config import ANY, key
from mirada.weights.rows import Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config(gemma.Config):
    window: int | None = key("sliding_window", 4096, low=1)
    per: int = key("query_pre_attn_scalar", 256, low=1)  # scores are divided by its root
    cap: float | None = key("attn_logit_softcapping", 50.0, low=1e-3)
    logit_cap: float | None = key("final_logit_softcapping", 30.0, low=1e-3)
    period: int = key("sliding_window_pattern", 2, low=1)  # its last layer looks at everything
    kinds: tuple[str, ...] | None = key("layer_types", None)  # what `period` says when None

    def __post_init__(self):
        super().__post_init__()
        self.sights()

    def sights(self) -> list[int | None]:
        """The window of each layer, None where it looks at everything."""
        turns = tuple(windows.KINDS[(n + 1) % self.period > 0] for n in range(self.layers))
        return windows.each(self.kinds or turns, self.layers, self.window)

    @staticmethod
    def prepare(raw: dict) -> dict:
        act = raw.get("hidden_activation", "gelu_pytorch_tanh")
        unsaid = {"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True,
                  "pad_token_id": 0}
        raw = {name: value for name, value in raw.items() if name != "hidden_activation"}
        return rope.flat(unsaid | raw | {"hidden_act": act})

    def restore(self, ours: dict) -> dict:
        kinds = [windows.KINDS[window is not None] for window in self.sights()]
        return super().restore(ours) | {"hidden_activation": self.act, "layer_types": kinds}


def stack(c: Config, near: Rotary | None = None, normed=False) -> Stack:
    """near: the rotation of layers with a window, where it is another; normed: q and k are."""
    K = c.head_dim
    far = Rotary(K, c.rope_base, scaling=rope.scaling(c, K, c.context))

    def norm(d=c.d) -> RMSNorm:
        return RMSNorm(d, c.eps, offset=1.0)

    def block(window: int | None) -> Block:
        attn = Attention(
            c.d, c.heads, kv_heads=c.kv_heads, head_dim=K, bias="qkvo" if c.attention_bias else "",
            scale=c.per**-0.5, cap=c.cap, qk_norm=QKNorm(norm(K), norm(K)) if normed else None,
            rotary=near if near and window else far, mask=Mask(causal=True, window=window))
        mlp = MLP(c.d, c.hidden, c.act, gated=True, bias=False)
        return Block(attn=Residual(attn, pre=norm(), post=norm()),
                     mlp=Residual(mlp, pre=norm(), post=norm()))

    return Stack(gemma.embed(c), [block(w) for w in c.sights()], norm())


def build(c: Config) -> Stack:
    return stack(c)


def language(c: Config, body: Stack) -> LMHead:
    tied = body.embed.token.weight if c.tied else None
    return LMHead(c.d, c.vocab, tied=tied, cap=c.logit_cap)


HEADS = {"Gemma2ForCausalLM": language} | {"Gemma2" + task: llama.TASKS[task] for task in (
    "Model", "ForSequenceClassification", "ForTokenClassification")}


def weights(c: Config) -> Weights:
    layer = "model.layers.{i}."
    after = layer + "post_attention_layernorm.weight"  # LLaMA's stands before the MLP
    return Weights([
        (after, "blocks.{i}.attn.post.weight"),
        (layer + "(pre|post)_feedforward_layernorm.weight", "blocks.{i}.mlp.(pre|post).weight"),
        *(row for row in llama.weights(c).rows if row[0] != after)], prefix="model.")


init = llama.init
INERT = gemma.INERT | {"cache_implementation": ANY}
_2 = Config(vocab=256000, context=8192, d=2304, layers=26, heads=8, kv_heads=4, head_dim=256,
            hidden=9216, act="gelu_pytorch_tanh", tied=True)
SIZES = {
    "2b": _2, "9b": replace(_2, d=3584, layers=42, heads=16, kv_heads=8, hidden=14336),
    "27b": replace(_2, d=4608, layers=46, heads=32, kv_heads=16, head_dim=128, hidden=36864,
                   per=144),
    "tiny": replace(_2, vocab=1024, context=256, d=64, layers=2, heads=4, kv_heads=2, head_dim=16,
                    hidden=128, per=16, window=16),
}

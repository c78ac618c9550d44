"""Qwen2 and Qwen2.5: LLaMA with biases on q, k and v (2407.10671)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import QKNorm, RMSNorm
from mirada.core.position import Rotary
from mirada.errors import MiradaError
from mirada.models import llama, rope, windows
from mirada.weights.config import ANY, key

KIND = "decoder"


@dataclass(frozen=True)
class Config(llama.Config):
    window: int | None = key("sliding_window", 4096, low=1)
    sliding: bool = key("use_sliding_window", False)
    whole: int = key("max_window_layers", 28, low=0)  # the first layers, which look at everything
    kinds: tuple[str, ...] | None = key("layer_types", None)  # what `whole` says when None

    def __post_init__(self):
        super().__post_init__()
        if self.mlp_bias:
            raise MiradaError("mlp_bias: the MLP of this family has no biases")
        self.sights()

    def sights(self) -> list[int | None]:
        """The window of each layer, None where it looks at everything."""
        narrow = self.window if self.sliding else None
        if self.kinds is None:
            return [narrow if n >= self.whole else None for n in range(self.layers)]
        return windows.each(self.kinds, self.layers, narrow)

    @staticmethod
    def prepare(raw: dict) -> dict:
        return rope.flat({"num_key_value_heads": 32} | raw)

    def restore(self, ours: dict) -> dict:
        return rope.nested(ours | {"head_dim": self.head_dim or self.d // self.heads})


def stack(c: Config, bias: str, normed=False) -> Stack:
    """bias: which projections have one; normed: q and k go through norms."""
    K = c.head_dim or c.d // c.heads
    rotary = Rotary(K, c.rope_base, scaling=rope.scaling(c, K, c.context))

    def block(window: int | None) -> Block:
        norms = QKNorm(RMSNorm(K, c.eps), RMSNorm(K, c.eps)) if normed else None
        attn = Attention(c.d, c.heads, kv_heads=c.kv_heads, head_dim=K, bias=bias, qk_norm=norms,
                         rotary=rotary, mask=Mask(causal=True, window=window))
        mlp = MLP(c.d, c.hidden, c.act, gated=True, bias=False)
        return Block(attn=Residual(attn, pre=RMSNorm(c.d, c.eps)),
                     mlp=Residual(mlp, pre=RMSNorm(c.d, c.eps)))

    return Stack(Tokens(c.vocab, c.d), [block(w) for w in c.sights()], RMSNorm(c.d, c.eps))


def build(c: Config) -> Stack:
    return stack(c, "qkv")


HEADS = {"Qwen2" + task: head for task, head in llama.TASKS.items()}
weights, init = llama.weights, llama.init
MAPS = {"Qwen2ForQuestionAnswering": lambda c: llama.weights(c, "transformer.")}
INERT = {"attention_dropout": ANY}
_2 = Config(vocab=151936, context=32768, rope_base=1e6)
SIZES = {
    "0.5b": replace(_2, d=896, layers=24, heads=14, kv_heads=2, hidden=4864, tied=True),
    "1.5b": replace(_2, d=1536, layers=28, heads=12, kv_heads=2, hidden=8960, tied=True),
    "7b": replace(_2, vocab=152064, d=3584, layers=28, heads=28, kv_heads=4, hidden=18944),
    "72b": replace(_2, vocab=152064, d=8192, layers=80, heads=64, kv_heads=8, hidden=29568),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4, kv_heads=2, hidden=128),
}

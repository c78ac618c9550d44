"""GPT-J: attention and MLP side by side behind one norm, rotary on pairs of neighbouring channels
(Wang & Komatsuzaki, 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from mirada.core.attention import Attention
from mirada.core.block import Branch, ParallelBlock, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import LMHead
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Rotary
from mirada.errors import MiradaError
from mirada.models import gpt2
from mirada.models.llama import TASKS
from mirada.weights.config import key, size
from mirada.weights.rows import Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 50400)
    context: int = size("n_positions", 2048)
    d: int = size("n_embd", 4096)
    layers: int = size("n_layer", 28, high=2048)
    heads: int = size("n_head", 16)
    turning: int = key("rotary_dim", 64, low=2)  # channels of each head that turn
    hidden: int | None = key("n_inner", None, low=1)  # 4 d when None
    act: str = key("activation_function", "gelu_new", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("layer_norm_epsilon", 1e-5, low=0)
    tied: bool = key("tie_word_embeddings", False)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2

    def __post_init__(self):
        if self.turning % 2 or self.turning > self.d // self.heads:
            raise MiradaError(f"rotary_dim: {self.turning} of a head's {self.d // self.heads} "
                              "channels cannot turn in pairs")


def build(c: Config) -> Stack:
    rotary = Rotary(c.turning, interleaved=True)

    def block() -> ParallelBlock:
        attn = Attention(c.d, c.heads, rotary=rotary, mask=Mask(causal=True))
        mlp = MLP(c.d, c.hidden or 4 * c.d, c.act)
        return ParallelBlock(LayerNorm(c.d, c.eps), attn=Branch(attn), mlp=Branch(mlp))

    return Stack(Tokens(c.vocab, c.d), [block() for _ in range(c.layers)], LayerNorm(c.d, c.eps))


HEADS = {
    "GPTJForCausalLM": lambda c, body: LMHead(
        c.d, c.vocab, tied=body.embed.token.weight if c.tied else None, bias=True),
    "GPTJModel": TASKS["Model"],
    "GPTJForSequenceClassification": TASKS["ForSequenceClassification"],
    "GPTJForQuestionAnswering": TASKS["ForQuestionAnswering"],
}


def weights(c: Config) -> Weights:
    layer = "transformer.h.{i}."
    return Weights([
        ("transformer.wte.weight", "embed.token.weight"),
        (layer + "ln_1.{p}", "blocks.{i}.norm.{p}"),
        (layer + "attn.(q|k|v|out)_proj.weight", "blocks.{i}.attn.f.(q|k|v|o).weight"),
        (layer + "mlp.fc_in.{p}", "blocks.{i}.mlp.f.up.{p}"),
        (layer + "mlp.act.{p}", "blocks.{i}.mlp.f.act.{p}"),
        (layer + "mlp.fc_out.{p}", "blocks.{i}.mlp.f.down.{p}"),
        ("transformer.ln_f.{p}", "norm.{p}"),
        ("lm_head.{p}", "head.out.{p}"),
        ("score.weight", "head.score.weight"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="transformer.", carried=(layer + "attn.bias", layer + "attn.masked_bias"))


def init(model, c: Config) -> None:
    normal(model, 0.02)


INERT = gpt2.INERT | {"rotary": True, "scale_attn_weights": True}
SIZES = {"6b": Config(),
         "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4, turning=8)}

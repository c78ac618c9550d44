"""GPT-Neo: GPT-2 whose layers look at everything and through a window by turns (Black et al.,
2021, doi:10.5281/zenodo.5297715); the scores are not scaled."""

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
from mirada.errors import MiradaError
from mirada.models import gpt2
from mirada.models.llama import TASKS
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "decoder"
MODEL_TYPE = "gpt_neo"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 50257)
    context: int = size("max_position_embeddings", 2048)
    d: int = size("hidden_size", 2048)
    layers: int = size("num_layers", 24, high=2048)
    heads: int = size("num_heads", 16)
    hidden: int | None = key("intermediate_size", None, low=1)  # 4 d when None
    kinds: tuple[str, ...] | None = key("attention_layers", None)  # global, local ... when None
    window: int = key("window_size", 256, low=1)  # of a local layer
    act: str = key("activation_function", "gelu_new", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("layer_norm_epsilon", 1e-5, low=0)
    tied: bool = key("tie_word_embeddings", True)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2

    def __post_init__(self):
        kinds = self.each()
        if len(kinds) != self.layers or set(kinds) - {"global", "local"}:
            raise MiradaError(f"attention_layers: {self.layers} layers need as many of 'global' "
                              f"and 'local', and these are {kinds}")

    def each(self) -> tuple[str, ...]:
        """The kind of each layer."""
        turns = ("global", "local")
        return self.kinds or tuple(turns[n % 2] for n in range(self.layers))

    @staticmethod
    def prepare(raw: dict) -> dict:
        raw, kinds = dict(raw), []
        for run in raw.pop("attention_types", None) or []:  # [[["global", "local"], 12]]
            match run:
                case [[*names], int(times)] if 0 < times <= 2048:
                    kinds += names * times
                case _:
                    raise MiradaError(f"attention_types: {run!r} is not [kinds, times]")
        return {"attention_layers": kinds or None} | raw

    def restore(self, ours: dict) -> dict:
        kinds = list(self.each())
        return ours | {"attention_layers": kinds, "attention_types": [[kinds, 1]]}


def build(c: Config) -> Stack:
    def block(kind: str) -> Block:
        mask = Mask(causal=True, window=c.window if kind == "local" else None)
        attn = Attention(c.d, c.heads, bias="o", scale=1.0, mask=mask)
        mlp = MLP(c.d, c.hidden or 4 * c.d, c.act)
        return Block(attn=Residual(attn, pre=LayerNorm(c.d, c.eps)),
                     mlp=Residual(mlp, pre=LayerNorm(c.d, c.eps)))

    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d))
    return Stack(embed, [block(kind) for kind in c.each()], LayerNorm(c.d, c.eps))


HEADS = {"GPTNeo" + task: head for task, head in TASKS.items()}


def weights(c: Config) -> Weights:
    layer = "transformer.h.{i}."
    return Weights([
        ("transformer.(wte|wpe).weight", "embed.(token|position).weight"),
        (layer + "ln_1.{p}", "blocks.{i}.attn.pre.{p}"),
        (layer + "attn.attention.(q|k|v)_proj.weight", "blocks.{i}.attn.f.(q|k|v).weight"),
        (layer + "attn.attention.out_proj.{p}", "blocks.{i}.attn.f.o.{p}"),
        (layer + "ln_2.{p}", "blocks.{i}.mlp.pre.{p}"),
        (layer + "mlp.c_fc.{p}", "blocks.{i}.mlp.f.up.{p}"),
        (layer + "mlp.act.{p}", "blocks.{i}.mlp.f.act.{p}"),
        (layer + "mlp.c_proj.{p}", "blocks.{i}.mlp.f.down.{p}"),
        ("transformer.ln_f.{p}", "norm.{p}"),
        ("lm_head.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="transformer.", carried=(
        layer + "attn.attention.bias", layer + "attn.attention.masked_bias"))


def init(model, c: Config) -> None:
    normal(model, 0.02)


INERT = gpt2.INERT | {"embed_dropout": ANY, "resid_dropout": ANY, "attention_dropout": ANY}
SIZES = {
    "125m": Config(d=768, layers=12, heads=12), "1.3b": Config(),
    "2.7b": Config(d=2560, layers=32, heads=20),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4, window=16),
}

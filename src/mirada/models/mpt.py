"""MPT: a pre-norm causal decoder without biases that knows distances by ALiBi (MosaicML, 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.bias import Alibi
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import LayerNorm
from mirada.models.llama import TASKS
from mirada.weights import config
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Split, Weights

KIND = "decoder"
AT = "attn_config."


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 50432)
    context: int = size("max_seq_len", 2048)
    d: int = size("d_model", 4096)
    layers: int = size("n_layers", 32, high=2048)
    heads: int = size("n_heads", 32)
    eps: float = key("layer_norm_epsilon", 1e-5, low=0)
    scale: float | None = key(AT + "softmax_scale", None)  # K ** -0.5 when None
    clip: float | None = key(AT + "clip_qkv", None, low=0)  # of q, k and v
    steepest: int = key(AT + "alibi_bias_max", 8, low=1)  # differs: transformers takes 8 always
    tied: bool = key("tie_word_embeddings", True)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2

    @staticmethod
    def prepare(raw: dict) -> dict:
        inner = raw.get("attn_config")
        if not isinstance(inner, dict):
            return raw
        kept = {AT + name: value for name, value in inner.items()
                if name not in config.INERT and name[0] != "_"}
        return {name: value for name, value in raw.items() if name != "attn_config"} | kept

    @staticmethod
    def restore(ours: dict) -> dict:
        inner = {name.removeprefix(AT): ours[name] for name in ours if name.startswith(AT)}
        outer = {name: ours[name] for name in ours if not name.startswith(AT)}
        return outer | {"attn_config": inner}


class Clipped(nn.Linear):
    """A projection whose outputs lie within `limit` of zero."""

    def __init__(self, d: int, limit: float):
        super().__init__(d, d, bias=False)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-self.limit, self.limit)


def build(c: Config) -> Stack:
    distances = Alibi(c.heads, c.steepest)

    def norm() -> LayerNorm:
        return LayerNorm(c.d, c.eps, bias=False)

    def attention() -> Attention:
        attn = Attention(c.d, c.heads, scale=c.scale, score_bias=distances, mask=Mask(causal=True))
        if c.clip:
            attn.q, attn.k, attn.v = (Clipped(c.d, c.clip) for _ in "qkv")
        return attn

    def block() -> Block:
        return Block(attn=Residual(attention(), pre=norm()),
                     mlp=Residual(MLP(c.d, 4 * c.d, "gelu", bias=False), pre=norm()))

    return Stack(Tokens(c.vocab, c.d), [block() for _ in range(c.layers)], norm())


HEADS = {"Mpt" + task: head for task, head in TASKS.items()}


def weights(c: Config) -> Weights:
    layer = "transformer.blocks.{i}."
    return Weights([
        ("transformer.wte.weight", "embed.token.weight"),
        (layer + "norm_1.weight", "blocks.{i}.attn.pre.weight"),
        (layer + "attn.Wqkv.weight", "blocks.{i}.attn.f.(q|k|v).weight", Split(3)),
        (layer + "attn.out_proj.weight", "blocks.{i}.attn.f.o.weight"),
        (layer + "norm_2.weight", "blocks.{i}.mlp.pre.weight"),
        (layer + "ffn.(up|down)_proj.weight", "blocks.{i}.mlp.f.(up|down).weight"),
        ("transformer.norm_f.weight", "norm.weight"),
        ("lm_head.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="transformer.")


def init(model, c: Config) -> None:
    normal(model, 0.02)


INERT = {  # what has one value here has it in every published file
    "expansion_ratio": 4, "no_bias": True, "logit_scale": None, "learned_pos_emb": ANY,
    "norm_type": "low_precision_layernorm", "embedding_fraction": ANY, "init_device": ANY,
    "emb_pdrop": ANY, "resid_pdrop": ANY, "classifier_dropout": ANY, "is_encoder_decoder": False,
    "init_config": ANY, "tokenizer_name": ANY, "verbose": ANY, AT + "alibi": True,
    AT + "attn_type": "multihead_attention", AT + "prefix_lm": False, AT + "qk_ln": False,
    AT + "attn_uses_sequence_id": False, AT + "attn_impl": ANY, AT + "attn_pdrop": ANY,
    AT + "is_encoder_decoder": False}
SIZES = {
    "7b": Config(), "30b": Config(context=8192, d=7168, layers=48, heads=64),
    "7b-storywriter": Config(context=65536, clip=6.0, steepest=16),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4),
}

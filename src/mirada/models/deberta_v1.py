"""DeBERTa, the first: every distance has a vector of its own (He et al., 2006.03654)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from mirada.core.attention import Attention
from mirada.core.bias import Disentangled, Places
from mirada.core.block import Stack
from mirada.core.mlp import ACTIVATIONS
from mirada.errors import MiradaError
from mirada.models import bert, deberta
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Interleaved, Weights

KIND, MODEL_TYPE = "encoder", "deberta"


@dataclass(frozen=True)
class Config(bert.Config):
    vocab: int = size("vocab_size", 50265)
    types: int = key("type_vocab_size", 0, low=0)
    eps: float = key("layer_norm_eps", 1e-7, low=0)
    embedding: int | None = key("embedding_size", None, low=1)  # d when None
    absolute: bool = key("position_biased_input", True)
    relative: bool = key("relative_attention", False)
    terms: tuple[str, ...] = key("pos_att_type", ())  # of c2p, p2c
    farthest: int = key("max_relative_positions", -1, low=-1)  # the context when below 1
    pooler_act: str = key("pooler_hidden_act", "gelu", choices=ACTIVATIONS)
    legacy: bool = key("legacy", True)  # which of the two heads that name hidden words

    prepare = staticmethod(deberta.Config.prepare)
    restore, settle = deberta.Config.restore, deberta.Config.settle


def later(c: Config) -> deberta.Config:
    """The second version's config, of the same fields."""
    return deberta.Config(**vars(c))


def attention(c: Config, table: Places) -> Attention:
    scale = (c.d // c.heads * (1 + len(c.terms))) ** -0.5
    bias = Disentangled(
        table, c.heads, scale, key=nn.Linear(c.d, c.d, bias=False) if "c2p" in c.terms else None,
        query=nn.Linear(c.d, c.d) if "p2c" in c.terms else None)
    return Attention(c.d, c.heads, bias="qvo", scale=scale,
                     score_bias=bias if c.relative and c.terms else None)


def build(c: Config) -> Stack:
    if set(c.terms) - {"c2p", "p2c"}:
        raise MiradaError(f"pos_att_type {'|'.join(c.terms)}: its terms can be c2p and p2c")
    table = Places(2 * (c.farthest if c.farthest > 0 else c.context), c.d)
    blocks = [bert.block(c, attention(c, table)) for _ in range(c.layers)]
    return Stack(deberta.embed(later(c)), blocks)


HEADS = {name.replace("V2", ""): head for name, head in deberta.HEADS.items()}


def weights(c: Config) -> Weights:
    second, attn = deberta.weights(later(c)), "deberta.encoder.layer.{i}.attention.self."
    return replace(second, rows=[
        *(row for row in second.rows if ".attention.self." not in row[0]),
        (attn + "in_proj.weight", "blocks.{i}.attn.f.(q|k|v).weight", Interleaved(c.heads)),
        (attn + "(q|v)_bias", "blocks.{i}.attn.f.(q|v).bias"),
        (attn + "pos_proj.weight", "blocks.{i}.attn.f.score_bias.key.weight"),
        (attn + "pos_q_proj.{p}", "blocks.{i}.attn.f.score_bias.query.{p}"),
    ])


init = bert.init
INERT = {name: deberta.INERT[name] for name in (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout",
    "pooler_hidden_size", "attention_head_size")} | {"padding_idx": ANY, "talking_head": False}
BASE = Config(absolute=False, relative=True, terms=("c2p", "p2c"))
SIZES = {
    "base": BASE, "large": replace(BASE, d=1024, layers=24, heads=16, hidden=4096),
    "tiny": replace(BASE, vocab=1024, context=128, d=64, layers=2, heads=4, hidden=256),
}

"""GPT-NeoX: attention and MLP side by side, rotary on part of each head (Black et al., 2204.06745);
Pythia (2304.01373) is the same model."""

from __future__ import annotations

from dataclasses import dataclass

from mirada.core.attention import Attention
from mirada.core.block import Block, Branch, ParallelBlock, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Last, LMHead, Pooled, Span, TokenClassifier
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Rotary
from mirada.models.rope import AT, Rope, flat, nested, scaling
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Interleaved, Weights

KIND = "decoder"
MODEL_TYPE = "gpt_neox"


@dataclass(frozen=True)
class Config(Rope):
    vocab: int = size("vocab_size", 50432)
    context: int = size("max_position_embeddings", 2048)
    d: int = size("hidden_size", 6144)
    layers: int = size("num_hidden_layers", 44, high=2048)
    heads: int = size("num_attention_heads", 64)
    hidden: int = size("intermediate_size", 24576)
    act: str = key("hidden_act", "gelu", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("layer_norm_eps", 1e-5, low=0)
    bias: bool = key("attention_bias", True)
    parallel: bool = key("use_parallel_residual", True)
    tied: bool = key("tie_word_embeddings", False)
    pad: int | None = key("pad_token_id", None, low=0)
    rope_part: float = key(AT + "partial_rotary_factor", 0.25, low=0, high=1)
    labels: int = 2

    @staticmethod
    def prepare(raw: dict) -> dict:
        return flat(raw, "rotary_emb_base", "rotary_pct")

    def restore(self, ours: dict) -> dict:
        return nested(ours, "rotary_emb_base") | {"rotary_pct": self.rope_part}


def build(c: Config) -> Stack:
    turning = int(c.d // c.heads * c.rope_part)  # channels of each head
    rotary = Rotary(turning, c.rope_base, scaling=scaling(c, turning, c.context))

    def block():
        attn = Attention(c.d, c.heads, bias="qkvo" if c.bias else "", rotary=rotary,
                         mask=Mask(causal=True))
        mlp = MLP(c.d, c.hidden, c.act)
        norms = LayerNorm(c.d, c.eps), LayerNorm(c.d, c.eps)
        if c.parallel:
            return ParallelBlock(attn=Branch(attn, norms[0]), mlp=Branch(mlp, norms[1]))
        return Block(attn=Residual(attn, pre=norms[0]), mlp=Residual(mlp, pre=norms[1]))

    return Stack(Tokens(c.vocab, c.d), [block() for _ in range(c.layers)], LayerNorm(c.d, c.eps))


HEADS = {
    "GPTNeoXForCausalLM": lambda c, body: LMHead(
        c.d, c.vocab, tied=body.embed.token.weight if c.tied else None),
    "GPTNeoXModel": lambda c, body: Pooled(),
    "GPTNeoXForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Last(c.pad), bias=False),
    "GPTNeoXForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "GPTNeoXForQuestionAnswering": lambda c, body: Span(c.d),
}


def weights(c: Config) -> Weights:
    layer = "gpt_neox.layers.{i}."
    return Weights([
        ("gpt_neox.embed_in.weight", "embed.token.weight"),
        (layer + "input_layernorm.{p}", "blocks.{i}.attn.pre.{p}"),
        (layer + "attention.query_key_value.{p}", "blocks.{i}.attn.f.(q|k|v).{p}",
         Interleaved(c.heads)),
        (layer + "attention.dense.{p}", "blocks.{i}.attn.f.o.{p}"),
        (layer + "post_attention_layernorm.{p}", "blocks.{i}.mlp.pre.{p}"),
        (layer + "mlp.dense_h_to_4h.{p}", "blocks.{i}.mlp.f.up.{p}"),
        (layer + "mlp.act.{p}", "blocks.{i}.mlp.f.act.{p}"),
        (layer + "mlp.dense_4h_to_h.{p}", "blocks.{i}.mlp.f.down.{p}"),
        ("gpt_neox.final_layer_norm.{p}", "norm.{p}"),
        ("embed_out.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="gpt_neox.", carried=(  # buffers that older files carry
        layer + "attention.bias", layer + "attention.masked_bias",
        layer + "attention.rotary_emb.inv_freq"))


def init(model, c: Config) -> None:
    normal(model, 0.02)


def _pythia(d: int, layers: int, heads: int, vocab: int = 50304) -> Config:
    return Config(vocab=vocab, d=d, layers=layers, heads=heads, hidden=4 * d)


INERT = {"attention_dropout": ANY, "hidden_dropout": ANY, "classifier_dropout": ANY,
         "attention_probs_dropout_prob": ANY, "hidden_dropout_prob": ANY, "is_decoder": ANY}
SIZES = {
    "pythia-70m": _pythia(512, 6, 8), "pythia-160m": _pythia(768, 12, 12),
    "pythia-410m": _pythia(1024, 24, 16), "pythia-1b": _pythia(2048, 16, 8),
    "pythia-1.4b": _pythia(2048, 24, 16), "pythia-2.8b": _pythia(2560, 32, 32),
    "pythia-6.9b": _pythia(4096, 32, 32, 50432), "pythia-12b": _pythia(5120, 36, 40, 50688),
    "20b": Config(act="gelu_fast"),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=2, hidden=256),
}

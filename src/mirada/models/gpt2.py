"""GPT-2: a pre-norm causal decoder with learned positions (Radford et al., 2019)."""

from __future__ import annotations

from dataclasses import dataclass

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Last, LMHead, Pooled, Span, TokenClassifier
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import TRANSPOSED, Split, Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 50257)
    context: int = size("n_positions", 1024)
    d: int = size("n_embd", 768)
    layers: int = size("n_layer", 12, high=2048)
    heads: int = size("n_head", 12)
    hidden: int | None = key("n_inner", None, low=1)  # 4 d when None
    act: str = key("activation_function", "gelu_new", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("layer_norm_epsilon", 1e-5, low=0)
    scaled: bool = key("scale_attn_weights", True)
    scaled_by_layer: bool = key("scale_attn_by_inverse_layer_idx", False)
    tied: bool = key("tie_word_embeddings", True)
    pad: int | None = key("pad_token_id", None, low=0)
    labels: int = 2


def build(c: Config) -> Stack:
    def attention(layer: int) -> Attention:
        scale = (c.d // c.heads) ** -0.5 if c.scaled else 1.0
        scale /= layer + 1 if c.scaled_by_layer else 1
        return Attention(c.d, c.heads, bias="qkvo", scale=scale, mask=Mask(causal=True))

    def norm() -> LayerNorm:
        return LayerNorm(c.d, c.eps)

    blocks = [Block(attn=Residual(attention(n), pre=norm()),
                    mlp=Residual(MLP(c.d, c.hidden or 4 * c.d, c.act), pre=norm()))
              for n in range(c.layers)]
    return Stack(Tokens(c.vocab, c.d, positions=Learned(c.context, c.d)), blocks, norm())


HEADS = {
    "GPT2LMHeadModel": lambda c, body: LMHead(
        c.d, c.vocab, tied=body.embed.token.weight if c.tied else None),
    "GPT2Model": lambda c, body: Pooled(),
    "GPT2ForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Last(c.pad), bias=False),
    "GPT2ForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
    "GPT2ForQuestionAnswering": lambda c, body: Span(c.d),
}


def weights(c: Config) -> Weights:
    return Weights([
        ("transformer.wte.weight", "embed.token.weight"),
        ("transformer.wpe.weight", "embed.position.weight"),
        ("transformer.h.{i}.ln_1.{p}", "blocks.{i}.attn.pre.{p}"),
        ("transformer.h.{i}.attn.c_attn.{p}", "blocks.{i}.attn.f.(q|k|v).{p}",
         Split(3, transposed=True)),
        ("transformer.h.{i}.attn.c_proj.{p}", "blocks.{i}.attn.f.o.{p}", TRANSPOSED),
        ("transformer.h.{i}.ln_2.{p}", "blocks.{i}.mlp.pre.{p}"),
        ("transformer.h.{i}.mlp.c_fc.{p}", "blocks.{i}.mlp.f.up.{p}", TRANSPOSED),
        ("transformer.h.{i}.mlp.act.{p}", "blocks.{i}.mlp.f.act.{p}"),
        ("transformer.h.{i}.mlp.c_proj.{p}", "blocks.{i}.mlp.f.down.{p}", TRANSPOSED),
        ("transformer.ln_f.{p}", "norm.{p}"),
        ("lm_head.weight", "head.out.weight"),
        ("score.weight", "head.score.weight"),
        ("classifier.{p}", "head.tag.{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="transformer.", carried=(  # older files carry the causal triangle as a buffer
        "transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"))


def init(model, c: Config) -> None:
    normal(model, 0.02, residual=2 * c.layers)


INERT = {"attn_pdrop": ANY, "embd_pdrop": ANY, "resid_pdrop": ANY, "classifier_dropout": ANY,
         "n_ctx": ANY, "summary_type": ANY, "summary_use_proj": ANY, "summary_activation": ANY,
         "summary_proj_to_labels": ANY, "summary_first_dropout": ANY, "hidden_dropout": ANY,
         "add_cross_attention": False, "is_decoder": ANY, "is_encoder_decoder": False,
         "reorder_and_upcast_attn": ANY}  # the reference upcasts on its eager path only
SIZES = {
    "small": Config(), "medium": Config(d=1024, layers=24, heads=16),
    "large": Config(d=1280, layers=36, heads=20), "xl": Config(d=1600, layers=48, heads=25),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4),
}

"""BART: an encoder-decoder, post-norm, that mends broken texts (Lewis et al., 1910.13461)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention, CrossAttention
from mirada.core.block import Block, EncoderDecoder, Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, LastOf, LMHead, Pooled, Pooler, Span
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.errors import MiradaError
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "encoder-decoder"
NAMES = {*ACTIVATIONS, *LEARNED}


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 50265)
    context: int = size("max_position_embeddings", 1024)
    d: int = size("d_model", 1024)
    layers: int = size("encoder_layers", 12, high=2048)
    decoder_layers: int = size("decoder_layers", 12, high=2048)
    heads: int = size("encoder_attention_heads", 16)
    decoder_heads: int = size("decoder_attention_heads", 16)
    hidden: int = size("encoder_ffn_dim", 4096)
    decoder_hidden: int = size("decoder_ffn_dim", 4096)
    act: str = key("activation_function", "gelu", choices=NAMES)
    scaled: bool = key("scale_embedding", False)  # tokens by sqrt(d)
    tied: bool = key("tie_word_embeddings", True)
    start: int | None = key("decoder_start_token_id", 2, low=0)
    pad: int | None = key("pad_token_id", 1, low=0)
    eos: int | None = key("eos_token_id", 2, low=0)
    labels: int = 3

    def __post_init__(self):
        if self.d % self.decoder_heads:
            raise MiradaError(f"decoder_attention_heads: a width of {self.d} cannot be cut into "
                              f"{self.decoder_heads} heads")


def stack(c: Config, embed: Tokens, *, pre: bool, decodes: bool) -> Stack:
    """pre: norms stand before each sublayer and at the end, else behind each."""
    layers, heads, hidden = ((c.decoder_layers, c.decoder_heads, c.decoder_hidden) if decodes
                             else (c.layers, c.heads, c.hidden))

    def residual(f: nn.Module) -> Residual:
        return Residual(f, **{"pre" if pre else "out": LayerNorm(c.d)})

    def block() -> Block:
        attn = Attention(c.d, heads, bias="qkvo", mask=Mask(causal=decodes))
        cross = {"cross": residual(CrossAttention(c.d, heads, bias="qkvo"))} if decodes else {}
        return Block(attn=residual(attn), **cross, mlp=residual(MLP(c.d, hidden, c.act)))

    return Stack(embed, [block() for _ in range(layers)], LayerNorm(c.d) if pre else None)


def two(c: Config, positions: Callable[[], nn.Module], *, pre=False, norm=False, shared=None,
        target: int | None = None) -> EncoderDecoder:
    """Both stacks. shared: of one token table, as when tied; target: words of the decoder's own."""
    def tokens(vocab: int) -> Tokens:
        return Tokens(vocab, c.d, positions=positions(), scale=c.d**0.5 if c.scaled else 1.0,
                      norm=LayerNorm(c.d) if norm else None)

    source, answer = tokens(c.vocab), tokens(target or c.vocab)
    if c.tied if shared is None else shared:
        answer.token = source.token
    return EncoderDecoder(stack(c, source, pre=pre, decodes=False),
                          stack(c, answer, pre=pre, decodes=True))


def build(c: Config) -> EncoderDecoder:
    # differs: pads take no position, where the reference counts those on the left
    return two(c, lambda: Learned(c.context, c.d, offset=2), norm=True)


class Words(LMHead):
    """The decoder's vocabulary, with a bias (1, V) that files carry and training leaves alone."""

    def __init__(self, c: Config, body: EncoderDecoder):
        table = body.decoder.embed.token
        super().__init__(c.d, table.num_embeddings, tied=table.weight if c.tied else None,
                         shift=False)
        self.register_buffer("bias", torch.zeros(1, table.num_embeddings))

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        return {"logits": super().forward(x, inputs, ctx)["logits"] + self.bias}


TASKS = {
    "ForConditionalGeneration": Words,
    "Model": lambda c, body: Pooled(),
    "ForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, nn.Tanh(), pick=LastOf(c.eos))),
    "ForQuestionAnswering": lambda c, body: Span(c.d),
}
HEADS = {"Bart" + task: head for task, head in TASKS.items()}


def trunk(slot: str) -> list[tuple]:
    """The rows of the positions and the blocks. slot: of the norms, "out" or "pre"."""
    file, ours = "model.{side}.layers.{i}.", "{side}.blocks.{i}."
    return [
        ("model.{side}.embed_positions.weight", "{side}.embed.position.weight"),
        ("model.{side}.layernorm_embedding.{p}", "{side}.embed.norm.{p}"),
        (file + "self_attn.(q|k|v|out)_proj.{p}", ours + "attn.f.(q|k|v|o).{p}"),
        (file + "encoder_attn.(q|k|v|out)_proj.{p}", ours + "cross.f.(q|k|v|o).{p}"),
        (file + "self_attn_layer_norm.{p}", ours + f"attn.{slot}.{{p}}"),
        (file + "encoder_attn_layer_norm.{p}", ours + f"cross.{slot}.{{p}}"),
        (file + "final_layer_norm.{p}", ours + f"mlp.{slot}.{{p}}"),
        (file + "(fc1|fc2).{p}", ours + "mlp.f.(up|down).{p}"),
        (file + "activation_fn.{p}", ours + "mlp.f.act.{p}"),
        ("model.{side}.layer_norm.{p}", "{side}.norm.{p}"),
    ]


def weights(c: Config, slot: str = "out", shared: bool | None = None) -> Weights:
    one = c.tied if shared is None else shared
    return Weights([
        *trunk(slot),
        ("model.shared.weight", "encoder.embed.token.weight") if one else
        ("model.{side}.embed_tokens.weight", "{side}.embed.token.weight"),
        ("lm_head.weight", "head.out.weight"), ("final_logits_bias", "head.bias"),
        ("classification_head.(dense|out_proj).{p}", "head.(pool.dense|score).{p}"),
        ("qa_outputs.{p}", "head.span.{p}"),
    ], prefix="model.", renames=(("encoder.embed_tokens.weight", "shared.weight"),
                                 ("decoder.embed_tokens.weight", "shared.weight")) * one,
        carried=("model.shared.weight", "model.{side}.version"))


def init(model, c: Config) -> None:
    normal(model, 0.02)
    for bias in model.head.buffers():
        bias.zero_()


INERT = {"dropout": ANY, "attention_dropout": ANY, "activation_dropout": ANY,
         "encoder_layerdrop": ANY, "decoder_layerdrop": ANY, "classifier_dropout": ANY,
         "init_std": ANY, "is_encoder_decoder": ANY, "is_decoder": False, **dict.fromkeys((
             "classif_dropout", "num_hidden_layers", "add_bias_logits", "add_final_layer_norm",
             "normalize_before", "normalize_embedding", "static_position_embeddings",
             "extra_pos_embeddings", "output_past", "save_step", "gradient_checkpointing",
             "force_bos_token_to_be_generated"), ANY)}  # of the first files; read by nobody today
SIZES = {
    "base": Config(d=768, layers=6, decoder_layers=6, heads=12, decoder_heads=12, hidden=3072,
                   decoder_hidden=3072),
    "large": Config(),
    "tiny": Config(vocab=1024, context=128, d=64, layers=2, decoder_layers=2, heads=4,
                   decoder_heads=4, hidden=128, decoder_hidden=128),
}

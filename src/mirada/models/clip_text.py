"""CLIP's text tower: a causal stack whose end-of-text vector stands for the text (2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.heads import Pooled, Pooler
from mirada.core.init import normal
from mirada.core.mask import Mask
from mirada.core.mlp import ACTIVATIONS, LEARNED, MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned
from mirada.errors import MiradaError
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND, MODEL_TYPE = "encoder", "clip_text_model"
OLD_END = 2  # what the first files call the end of text, whatever their tokenizer's is


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 49408)
    context: int = size("max_position_embeddings", 77)
    d: int = size("hidden_size", 512)
    layers: int = size("num_hidden_layers", 12, high=2048)
    heads: int = size("num_attention_heads", 8)
    hidden: int = size("intermediate_size", 2048)
    act: str = key("hidden_act", "quick_gelu", choices={*ACTIVATIONS, *LEARNED})
    eps: float = key("layer_norm_eps", 1e-5, low=0)
    projection: int = key("projection_dim", 512, low=1)  # of the space that pictures share
    pad: int | None = key("pad_token_id", 1, low=0)
    eos: int = key("eos_token_id", 49407, low=0)


def blocks(c, mask: Mask | None = None) -> list[Block]:
    """Pre-norm blocks, as both towers have them. c: either one's config."""
    return [Block(attn=Residual(Attention(c.d, c.heads, bias="qkvo", mask=mask),
                                pre=LayerNorm(c.d, c.eps)),
                  mlp=Residual(MLP(c.d, c.hidden, c.act), pre=LayerNorm(c.d, c.eps)))
            for _ in range(c.layers)]


def build(c: Config) -> Stack:
    # differs: pads take no position, where the reference counts those on the left
    embed = Tokens(c.vocab, c.d, positions=Learned(c.context, c.d))
    return Stack(embed, blocks(c, Mask(causal=True)), LayerNorm(c.d, c.eps))


class EndOfText(nn.Module):
    """x of the first end-of-text token, behind which pads may be more of them."""

    def __init__(self, eos: int):
        super().__init__()
        self.eos = eos

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        if inputs.input_ids is None:
            raise MiradaError("CLIP reads a text at its end-of-text token: give input_ids")
        marks = inputs.input_ids  # (B, T); of the first files the end is the highest id in a text
        if self.eos != OLD_END:
            marks = (marks == self.eos).long()
            if x.device.type == "cpu" and not bool(marks.any(1).all()):
                raise MiradaError(f"a row of input_ids lacks the end-of-text token {self.eos}: "
                                  "end each text with it")
        return x[torch.arange(len(x), device=x.device), marks.argmax(-1)]  # (B, D)


class Projected(nn.Module):
    """One vector a row, (B, out), in the space that texts and pictures share.

    name: of this output, beside last_hidden_state. pick: which token's vector is projected.
    """

    def __init__(self, name: str, d: int, out: int, pick: nn.Module):
        super().__init__()
        self.name = name
        self.pool = Pooler(d, nn.Identity(), out, pick, bias=False)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        return {self.name: self.pool(x, inputs, ctx), "last_hidden_state": x}


def projected(c: Config, out: int) -> Projected:
    return Projected("text_embeds", c.d, out, EndOfText(c.eos))


HEADS = {
    "CLIPTextModel": lambda c, body: Pooled(EndOfText(c.eos)),
    "CLIPTextModelWithProjection": lambda c, body: projected(c, c.projection),
}


def tower(file: str, ours: str) -> list[tuple]:
    """The rows of the blocks. file, ours: what their names begin with."""
    file, ours = file + "encoder.layers.{i}.", ours + "blocks.{i}."
    return [
        (file + "layer_norm1.{p}", ours + "attn.pre.{p}"),
        (file + "self_attn.(q|k|v|out)_proj.{p}", ours + "attn.f.(q|k|v|o).{p}"),
        (file + "layer_norm2.{p}", ours + "mlp.pre.{p}"),
        (file + "mlp.(fc1|fc2).{p}", ours + "mlp.f.(up|down).{p}"),
        (file + "mlp.activation_fn.{p}", ours + "mlp.f.act.{p}"),
    ]


def rows(ours: str = "", head: str = "head.") -> list[tuple]:
    return [
        ("text_model.embeddings.(token|position)_embedding.weight",
         ours + "embed.(token|position).weight"),
        *tower("text_model.", ours),
        ("text_model.final_layer_norm.{p}", ours + "norm.{p}"),
        ("text_projection.weight", head + "pool.dense.weight"),
    ]


def derived(c: Config) -> dict:
    """Older files hold the positions' numbers."""
    return {"text_model.embeddings.position_ids": lambda name: torch.arange(c.context)[None]}


def weights(c: Config) -> Weights:
    return Weights(rows(), prefix="text_model.", derived=derived(c))


@torch.no_grad()
def narrowed(stack: Stack) -> None:
    """Widths by the tower's own, and its depth for what reads the stream and is squared in it."""
    d, depth = stack.blocks[0].attn.f.o.out_features, (2 * len(stack.blocks)) ** -0.5
    for block in stack.blocks:
        attn, mlp = block.attn.f, block.mlp.f
        for linear in (attn.q, attn.k, attn.v, mlp.down):
            linear.weight.normal_(0, d**-0.5 * depth)
        attn.o.weight.normal_(0, d**-0.5)
        mlp.up.weight.normal_(0, (2 * d) ** -0.5)


@torch.no_grad()
def init(model, c: Config) -> None:
    normal(model, 0.02)
    narrowed(model.body)
    if isinstance(model.head, Projected):
        model.head.pool.dense.weight.normal_(0, c.d**-0.5)


INERT = dict.fromkeys(("attention_dropout", "dropout", "initializer_factor"), ANY)
SIZES = {
    "base": Config(),
    "large": Config(d=768, heads=12, hidden=3072, projection=768),
    "tiny": Config(vocab=1024, context=32, d=64, layers=2, heads=4, hidden=128, projection=32,
                   eos=3),
}

"""ESM-2: BERT's objective on proteins, pre-norm and rotary (Lin et al., 2023, Science 379);
ESM-1b (Rives et al., 2021, PNAS 118) is the same model with learned positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.heads import Classifier, Pooled, Pooler, TokenClassifier
from mirada.core.init import normal
from mirada.core.mlp import MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned, Rotary, frequencies
from mirada.errors import MiradaError
from mirada.models import bert, roberta
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "encoder"
EOS = 2  # of the alphabet that every release has
HIDDEN = 0.15 * 0.8  # of a sequence's residues, in training
STEPS = "encoder.layer.{i}.attention.self.rotary_embeddings.inv_freq"  # one writer says * for {i}


@dataclass(frozen=True)
class Config:
    vocab: int = size("vocab_size", 33)
    context: int = size(roberta.ROWS, 1024)
    positions: str = key("position_embedding_type", "absolute", choices={"absolute", "rotary"})
    base: float = key("rope_theta", 10000.0, low=2, high=1e15)
    d: int = size("hidden_size", 1280)
    layers: int = size("num_hidden_layers", 33, high=2048)
    heads: int = size("num_attention_heads", 20)
    hidden: int = size("intermediate_size", 5120)
    eps: float = key("layer_norm_eps", 1e-12, low=0)
    normed: bool | None = key("emb_layer_norm_before", None)
    dropped: bool | None = key("token_dropout", False)
    mask: int | None = key("mask_token_id", None, low=0)
    pad: int = key("pad_token_id", 1, low=0)
    tied: bool = key("tie_word_embeddings", True)
    stored: bool = False  # the file holds its own angles, rounded as in training
    labels: int = 2
    act = "gelu"  # no file says another

    prepare = staticmethod(roberta.Config.prepare)
    restore = roberta.Config.restore

    def settle(self, names: Iterable[str]) -> Config:
        return replace(self, stored=any(name.endswith(".inv_freq") for name in names))


class Residues(Tokens):
    """Tokens of which the hidden ones are zero, and the others as large as if training's share
    were hidden. differs: the reference adds no positions to embeddings that it is given."""

    mask: int | None = None

    def forward(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        ids = inputs.input_ids
        if self.mask is None or ids is None:
            return super().forward(inputs, ctx)
        hidden, real = ids == self.mask, ctx.mask.padding  # (B, T)
        count = ids.shape[1] if real is None else real.sum(1)
        x = self.token(ids).masked_fill(hidden[..., None], 0.0)
        wide = torch.promote_types(x.dtype, torch.float32)
        share = (count - hidden.sum(1)).clamp(min=1).to(wide) / count  # (B,), what is seen
        x = (x * ((1 - HIDDEN) / share)[:, None, None]).to(x.dtype)
        return super().forward(replace(inputs, inputs_embeds=x), ctx)


class Stored(nn.Module):
    """The angular steps that a file brings, in place of the computed ones."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("steps", torch.zeros(dim // 2))

    def forward(self, freqs: Tensor, rotary: Rotary, length) -> tuple[Tensor, float]:
        return self.steps.to(freqs.dtype), 1.0


def build(c: Config) -> Stack:
    dim, rotary = c.d // c.heads, None
    if c.positions == "rotary":
        rotary = Rotary(dim, c.base, scaling=Stored(dim) if c.stored else None)
    if dim % 2 and rotary is not None:
        raise MiradaError(f"rotation turns channels in pairs, and a head has {dim}")
    if c.dropped and c.mask is None:
        raise MiradaError("token_dropout needs the id of the mask, mask_token_id")

    def norm() -> LayerNorm:
        return LayerNorm(c.d, c.eps)

    table = None if rotary else Learned(c.context, c.d, offset=c.pad + 1)
    embed = Residues(c.vocab, c.d, positions=table, norm=norm() if c.normed else None)
    embed.mask = c.mask if c.dropped else None
    blocks = [Block(attn=Residual(Attention(c.d, c.heads, bias="qkvo", rotary=rotary), pre=norm()),
                    mlp=Residual(MLP(c.d, c.hidden, c.act), pre=norm()))
              for _ in range(c.layers)]
    stack = Stack(embed, blocks, norm())
    stack.contacts = Contacts(c.layers * c.heads)  # beside the pass: see contacts below
    return stack


class Contacts(nn.Module):
    """Which residues touch, from the patterns of every head (Rao et al., 2021, ICLR)."""

    def __init__(self, maps: int):
        super().__init__()
        self.regression = nn.Linear(maps, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, L * H, N, N) -> probabilities, (B, N, N)."""
        maps = maps + maps.mT
        rows = maps.sum(-1, keepdim=True)
        maps = maps - rows * rows.mT / rows.sum(-2, keepdim=True)  # average product correction
        return self.regression(maps.permute(0, 2, 3, 1)).squeeze(-1).sigmoid()


def contacts(model, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Probability that residues i and j touch, (B, T - 2, T - 2), the ends left out; what it says
    of pads means nothing. Each layer's pattern is taken, (B, L * H, T, T) numbers in all."""
    with model.record() as tape:
        model(input_ids, attention_mask)
    maps = torch.cat([tape.pattern(layer) for layer in range(model.config.layers)], 1)
    real = input_ids != EOS if attention_mask is None else (input_ids != EOS) & (attention_mask > 0)
    maps = maps * (real[:, None, :, None] & real[:, None, None, :])  # (B, L * H, T, T)
    return model.body.contacts(maps[..., 1:-1, 1:-1])


HEADS = {
    "EsmForMaskedLM": bert.masked,
    "EsmModel": lambda c, body: Pooled(Pooler(c.d, nn.Tanh())),
    "EsmForSequenceClassification": lambda c, body: Classifier(
        c.d, c.labels, Pooler(c.d, nn.Tanh())),
    "EsmForTokenClassification": lambda c, body: TokenClassifier(c.d, c.labels),
}


def weights(c: Config, pool: str = "esm.pooler.dense.{p}") -> Weights:
    table, layer = "esm.embeddings.", "esm.encoder.layer.{i}."
    return Weights([
        (table + "word_embeddings.weight", "embed.token.weight"),
        (table + "position_embeddings.weight", "embed.position.weight"),
        (table + "layer_norm.{p}", "embed.norm.{p}"),
        (layer + "attention.self.(query|key|value).{p}", "blocks.{i}.attn.f.(q|k|v).{p}"),
        ("esm." + STEPS, "blocks.{i}.attn.f.rotary.scaling.steps"),
        (layer + "(attention.LayerNorm|LayerNorm).{p}", "blocks.{i}.(attn|mlp).pre.{p}"),
        (layer + "(attention.output|intermediate|output).dense.{p}",
         "blocks.{i}.(attn.f.o|mlp.f.up|mlp.f.down).{p}"),
        ("esm.encoder.emb_layer_norm_after.{p}", "norm.{p}"),
        *roberta.words(True),
        ("esm.contact_head.regression.{p}", "contacts.regression.{p}"),
        (pool, "head.pool.dense.{p}"),
        ("classifier.out_proj.{p}", "head.score.{p}"), ("classifier.{p}", "head.tag.{p}"),
    ], prefix="esm.", renames=bert.OLD + ((STEPS.format(i="*"), STEPS.format(i=0)),),
        derived={table + "position_ids": lambda name: torch.arange(c.context + c.pad + 1)[None]},
        carried=(table + "position_embeddings.weight", "esm.pooler.dense.{p}", "lm_head.{p}",
                 "lm_head.{a}.{p}"))


MAPS = {"EsmForSequenceClassification": lambda c: weights(c, "classifier.dense.{p}")}


@torch.no_grad()
def init(model, c: Config) -> None:
    normal(model, 0.02)
    for stored in (m for m in model.modules() if isinstance(m, Stored)):
        stored.steps.copy_(frequencies(2 * len(stored.steps), c.base, stored.steps))


INERT = bert.INERT | {"hidden_act": "gelu", "vocab_list": ANY, "esmfold_config": None,
                      "is_folding_model": False}


def _esm2(d: int, layers: int, heads: int = 20) -> Config:
    return Config(positions="rotary", d=d, layers=layers, heads=heads, hidden=4 * d, eps=1e-5,
                  dropped=True, mask=32)


SIZES = {
    "8m": _esm2(320, 6), "35m": _esm2(480, 12), "150m": _esm2(640, 30), "650m": _esm2(1280, 33),
    "3b": _esm2(2560, 36, 40), "15b": _esm2(5120, 48, 40), "tiny": _esm2(64, 2, 4),
}

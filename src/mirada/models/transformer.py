"""The Transformer: an encoder-decoder, post-norm, with sinusoids (Vaswani et al., 1706.03762).
Its files are Marian's (1804.00344)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from mirada.core.block import EncoderDecoder
from mirada.core.position import Learned, Sinusoid, sinusoid
from mirada.models import bart
from mirada.weights.config import key
from mirada.weights.rows import Weights

KIND, MODEL_TYPE = "encoder-decoder", "marian"


@dataclass(frozen=True)
class Config(bart.Config):
    target: int | None = key("decoder_vocab_size", None, low=1)  # of its own table
    shared: bool = key("share_encoder_decoder_embeddings", True)
    start: int | None = key("decoder_start_token_id", 58100, low=0)
    pad: int | None = key("pad_token_id", 58100, low=0)
    eos: int | None = key("eos_token_id", 0, low=0)
    table: bool = False
    labels: int = 2

    def settle(self, names: Iterable[str]) -> Config:
        """Some files hold the sinusoids, rounded as they were in training; then those are used."""
        return replace(self, table=any(n.endswith("embed_positions.weight") for n in names))

    def restore(self, ours: dict) -> dict:
        return ours | {"decoder_vocab_size": self.target or self.vocab}


class Table(Learned):
    """Sinusoids that a file holds: read, written back, and never trained."""

    def __init__(self, context: int, d: int, offset: int, base: float):
        super().__init__(context, d, offset)
        self.base = base
        self.requires_grad_(False)

    @torch.no_grad()
    def fill(self) -> None:
        rows = torch.arange(self.num_embeddings, device=self.weight.device)
        self.weight.copy_(sinusoid(rows, self.embedding_dim, base=self.base, halves=True))


def positions(d: int, context: int, table: bool, offset: int = 0, base: float = 1e4) -> nn.Module:
    # differs: all sines before all cosines, where the paper has them by turns
    if table:
        return Table(context, d, offset, base)
    return Sinusoid(d, base=base, halves=True, offset=offset)


def build(c: Config) -> EncoderDecoder:
    one = c.tied and c.shared
    return bart.two(c, partial(positions, c.d, c.context, c.table), shared=one,
                    target=None if c.shared else c.target)


HEADS = {"MarianMTModel": bart.Words, "MarianModel": bart.TASKS["Model"]}
BARE = ["MarianModel"]


def weights(c: Config) -> Weights:
    return bart.weights(c, shared=c.tied and c.shared)


def init(model, c: Config) -> None:
    bart.init(model, c)
    for module in model.modules():
        if isinstance(module, Table):
            module.fill()


def _paper(d: int, heads: int, hidden: int, layers: int = 6, vocab: int = 37000) -> Config:
    """Of the paper's table 3; its 37,000 byte pairs, shared by both languages and the output."""
    return Config(vocab=vocab, context=512, d=d, layers=layers, decoder_layers=layers, heads=heads,
                  decoder_heads=heads, hidden=hidden, decoder_hidden=hidden, act="relu",
                  scaled=True, start=vocab - 1, pad=vocab - 1)


INERT = bart.INERT
SIZES = {
    "base": _paper(512, 8, 2048), "big": _paper(1024, 16, 4096),
    "opus-mt": replace(_paper(512, 8, 2048, vocab=58101), act="swish"),  # English to German
    "tiny": _paper(64, 4, 128, layers=2, vocab=1024),
}

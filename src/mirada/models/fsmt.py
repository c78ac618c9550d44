"""FSMT: the Transformer with a vocabulary for each language (Ng et al., 1907.06616)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from mirada.core.block import EncoderDecoder
from mirada.core.heads import LMHead
from mirada.errors import MiradaError
from mirada.models import bart, transformer
from mirada.weights.config import ANY, key, size
from mirada.weights.rows import Weights

KIND = "encoder-decoder"


@dataclass(frozen=True)
class Config(bart.Config):
    vocab: int = size("src_vocab_size", 42024)
    target: int = size("tgt_vocab_size", 42024)
    act: str = key("activation_function", "relu", choices=bart.NAMES)
    scaled: bool = key("scale_embedding", True)
    tied: bool = key("tie_word_embeddings", False)
    pad: int = key("pad_token_id", 1, low=0)
    table: bool = False
    labels: int = 2

    settle = transformer.Config.settle

    def __post_init__(self):
        super().__post_init__()
        if self.d % 2 or self.d < 4:
            raise MiradaError(f"d_model: sinusoids fill an even width of 4 or more, not {self.d}")


def build(c: Config) -> EncoderDecoder:
    # differs: positions count the real tokens of the mask, the reference the ids not the pad's
    half = c.d // 2  # its slowest wave is a step slower than the paper's
    places = partial(transformer.positions, c.d, c.context, c.table, c.pad + 1,
                     1e4 ** (half / (half - 1)))
    return bart.two(c, places, target=c.target)


HEADS = {"FSMTForConditionalGeneration": lambda c, body: LMHead(
    c.d, c.target, tied=body.decoder.embed.token.weight if c.tied else None, shift=False)}


def weights(c: Config) -> Weights:
    own, one = "model.{side}.embed_tokens.weight", "model.decoder.embed_tokens.weight"
    table = (one, "encoder.embed.token.weight") if c.tied else (own, "{side}.embed.token.weight")
    return Weights([
        *bart.trunk("out"), table, ("model.decoder.output_projection.weight", "head.out.weight"),
    ], prefix="model.", renames=(("encoder.embed_tokens.weight", one),) * c.tied)


init = transformer.init
INERT = bart.INERT | {"langs": ANY, "decoder": ANY}
SIZES = {
    "wmt19": Config(layers=6, decoder_layers=6, hidden=8192),
    "tiny": Config(vocab=1024, target=1024, context=128, d=64, layers=2, decoder_layers=2, heads=4,
                   decoder_heads=4, hidden=128, decoder_hidden=128),
}

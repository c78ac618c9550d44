"""M2M-100: one encoder-decoder, pre-norm, between a hundred languages (Fan et al., 2010.11125);
NLLB's dense files are of this kind, too (2207.04672)."""

from __future__ import annotations

from dataclasses import dataclass

from mirada.core.block import EncoderDecoder
from mirada.core.heads import LMHead
from mirada.core.position import Sinusoid
from mirada.errors import MiradaError
from mirada.models import bart
from mirada.weights.config import key, size

KIND, MODEL_TYPE = "encoder-decoder", "m2m_100"


@dataclass(frozen=True)
class Config(bart.Config):
    vocab: int = size("vocab_size", 128112)
    act: str = key("activation_function", "relu", choices=bart.NAMES)
    scaled: bool = key("scale_embedding", True)
    pad: int = key("pad_token_id", 1, low=0)
    labels: int = 2

    def __post_init__(self):
        super().__post_init__()
        if self.d % 2 or self.d < 4:
            raise MiradaError(f"d_model: sinusoids fill an even width of 4 or more, not {self.d}")


def build(c: Config) -> EncoderDecoder:
    # differs: positions count the real tokens of the mask, the reference the ids not the pad's
    half = c.d // 2  # its slowest wave is a step slower than the paper's
    return bart.two(c, lambda: Sinusoid(c.d, base=1e4 ** (half / (half - 1)), halves=True,
                                        offset=c.pad + 1), pre=True)


HEADS = {
    "M2M100ForConditionalGeneration": lambda c, body: LMHead(
        c.d, c.vocab, tied=body.decoder.embed.token.weight if c.tied else None, shift=False),
    "M2M100Model": bart.TASKS["Model"],
}


def weights(c: Config):
    return bart.weights(c, "pre")


init, INERT = bart.init, bart.INERT
SIZES = {
    "418m": Config(), "nllb-600m": Config(vocab=256206),
    "tiny": Config(vocab=1024, context=128, d=64, layers=2, decoder_layers=2, heads=4,
                   decoder_heads=4, hidden=128, decoder_hidden=128),
}

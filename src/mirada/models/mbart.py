"""mBART: BART in many languages, pre-norm (Liu et al., 2001.08210)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.block import EncoderDecoder
from mirada.core.position import Learned
from mirada.models import bart
from mirada.weights.config import key
from mirada.weights.rows import Weights

KIND = "encoder-decoder"


@dataclass(frozen=True)
class Config(bart.Config):
    start: int | None = key("decoder_start_token_id", None, low=0)  # the language's, when None
    labels: int = 2


def build(c: Config) -> EncoderDecoder:
    return bart.two(c, lambda: Learned(c.context, c.d, offset=2), norm=True, pre=True)


HEADS = {"MBart" + task: head for task, head in bart.TASKS.items()}


def weights(c: Config) -> Weights:
    return bart.weights(c, "pre")


init, INERT = bart.init, bart.INERT
LARGE = Config(vocab=250027, scaled=True)
SIZES = {
    "large-cc25": LARGE, "large-50": replace(LARGE, vocab=250054),
    "tiny": Config(vocab=1024, context=128, d=64, layers=2, decoder_layers=2, heads=4,
                   decoder_heads=4, hidden=128, decoder_hidden=128),
}

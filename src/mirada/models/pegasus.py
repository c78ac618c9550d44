"""PEGASUS: an encoder-decoder, pre-norm, that fills in whole sentences (Zhang et al.,
1912.08777)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from mirada.core.block import EncoderDecoder
from mirada.models import bart, transformer
from mirada.weights.config import key
from mirada.weights.rows import Weights

KIND = "encoder-decoder"


@dataclass(frozen=True)
class Config(bart.Config):
    start: int | None = key("decoder_start_token_id", 0, low=0)
    pad: int | None = key("pad_token_id", 0, low=0)
    eos: int | None = key("eos_token_id", 1, low=0)
    table: bool = False
    labels: int = 2

    settle = transformer.Config.settle


def build(c: Config) -> EncoderDecoder:
    return bart.two(c, partial(transformer.positions, c.d, c.context, c.table), pre=True)


HEADS = {"Pegasus" + task: bart.TASKS[task] for task in ("ForConditionalGeneration", "Model")}


def weights(c: Config) -> Weights:
    return bart.weights(c, "pre")


init, INERT = transformer.init, bart.INERT
LARGE = Config(vocab=96103, layers=16, decoder_layers=16, act="relu", scaled=True)
SIZES = {
    "large": LARGE, "xsum": replace(LARGE, context=512),
    "tiny": Config(vocab=1024, context=128, d=64, layers=2, decoder_layers=2, heads=4,
                   decoder_heads=4, hidden=128, decoder_hidden=128, scaled=True),
}

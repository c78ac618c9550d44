"""GPT-3: GPT-2 with alternating dense and locally banded sparse layers (2005.14165, section 2.1).

Its weights were never published, and of the sparse layers only those words. Assumed: the first
layer is dense, and a banded one sees the 256 nearest tokens before it, as in GPT-Neo.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.block import Stack
from mirada.core.mask import Mask
from mirada.models import gpt2
from mirada.weights.config import key

KIND = "decoder"


@dataclass(frozen=True)
class Config(gpt2.Config):
    window: int = key("window_size", 256, low=1)  # of a banded layer


def build(c: Config) -> Stack:
    body = gpt2.build(c)
    for block in body.blocks[1::2]:
        block.attn.f.mask = Mask(causal=True, window=c.window)
    return body


HEADS = {name.replace("GPT2", "GPT3"): head for name, head in gpt2.HEADS.items()}
weights, init, INERT = gpt2.weights, gpt2.init, gpt2.INERT
_175 = Config(context=2048, d=12288, layers=96, heads=96)
SIZES = {  # table 2.1; its XL and 13B rows are left out: their heads do not make up their widths
    "175b": _175, "6.7b": replace(_175, d=4096, layers=32, heads=32),
    "2.7b": replace(_175, d=2560, layers=32, heads=32),
    "large": replace(_175, d=1536, layers=24, heads=16),
    "medium": replace(_175, d=1024, layers=24, heads=16),
    "small": replace(_175, d=768, layers=12, heads=12),
    "tiny": Config(vocab=1024, context=256, d=64, layers=4, heads=4, window=16),
}

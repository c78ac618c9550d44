"""Qwen3: Qwen2 with norms on q and k in place of their biases (2505.09388)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.block import Stack
from mirada.models import llama, qwen2
from mirada.weights.rows import Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config(qwen2.Config):
    @staticmethod
    def prepare(raw: dict) -> dict:
        return qwen2.Config.prepare({"head_dim": 128} | raw)


def build(c: Config) -> Stack:
    return qwen2.stack(c, "qkvo" if c.attention_bias else "", normed=True)


HEADS = {"Qwen3" + task: head for task, head in llama.TASKS.items()}


def weights(c: Config, body="model.") -> Weights:
    norms = (body + "layers.{i}.self_attn.(q|k)_norm.weight",
             "blocks.{i}.attn.f.qk_norm.(q|k).weight")
    return Weights([norms, *llama.weights(c, body).rows], prefix=body)


MAPS = {"Qwen3ForQuestionAnswering": lambda c: weights(c, "transformer.")}
init, INERT = llama.init, qwen2.INERT
_8 = Config(vocab=151936, context=40960, d=4096, layers=36, heads=32, kv_heads=8, head_dim=128,
            hidden=12288, rope_base=1e6)
SIZES = {
    "8b": _8, "0.6b": replace(_8, d=1024, layers=28, heads=16, hidden=3072, tied=True),
    "4b": replace(_8, d=2560, hidden=9728, tied=True),
    "tiny": replace(_8, vocab=1024, context=256, d=64, layers=2, heads=4, kv_heads=2, head_dim=16,
                    hidden=128),
}

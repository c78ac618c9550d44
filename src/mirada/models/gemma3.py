"""Gemma 3, text: Gemma 2 with norms on q and k in place of caps, a full layer after each five with
a window, and a rotary base for either kind (2503.19786)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.block import Stack
from mirada.core.position import Rotary
from mirada.errors import MiradaError
from mirada.models import gemma2, llama, rope
from mirada.weights.config import key
from mirada.weights.rows import Weights

KIND = "decoder"
MODEL_TYPE = "gemma3_text"
NEAR = rope.AT + "sliding_attention."


@dataclass(frozen=True)
class Config(gemma2.Config):
    cap: float | None = key("attn_logit_softcapping", None)
    logit_cap: float | None = key("final_logit_softcapping", None, low=1e-3)
    period: int = key("sliding_window_pattern", 6, low=1)
    near_base: float = key(NEAR + "rope_theta", 1e4, low=2, high=1e15)  # of layers with a window

    def __post_init__(self):
        super().__post_init__()
        if self.cap:  # the reference reads the key and leaves the scores as they are
            raise MiradaError("attn_logit_softcapping: the scores of this family have no cap")

    @staticmethod
    def prepare(raw: dict) -> dict:
        raw = {"rope_theta": 1e6, "rope_local_base_freq": 1e4} | raw
        raw[NEAR + "rope_theta"] = raw.pop("rope_local_base_freq")
        match raw.get("rope_parameters"):
            case {"full_attention": far, "sliding_attention": {**near}}:
                raw |= {f"{NEAR}{name}": value for name, value in near.items()}
                raw["rope_parameters"] = far
        return gemma2.Config.prepare(raw)

    def restore(self, ours: dict) -> dict:
        near = {"rope_type": "default", "rope_theta": ours.pop(NEAR + "rope_theta")}
        ours = super().restore(ours)
        both = {"full_attention": ours["rope_parameters"], "sliding_attention": near}
        return ours | {"rope_local_base_freq": self.near_base, "rope_parameters": both}


def build(c: Config) -> Stack:
    return gemma2.stack(c, near=Rotary(c.head_dim, c.near_base), normed=True)


HEADS = {"Gemma3ForCausalLM": gemma2.language, "Gemma3TextModel": llama.TASKS["Model"],
         "Gemma3TextForSequenceClassification": llama.TASKS["ForSequenceClassification"]}


def weights(c: Config) -> Weights:
    norms = ("model.layers.{i}.self_attn.(q|k)_norm.weight",
             "blocks.{i}.attn.f.qk_norm.(q|k).weight")
    return Weights([norms, *gemma2.weights(c).rows], prefix="model.")


init = llama.init
INERT = gemma2.INERT | {NEAR + "rope_type": "default"}
_1 = Config(vocab=262144, context=32768, d=1152, layers=26, heads=4, kv_heads=1, head_dim=256,
            hidden=6912, act="gelu_pytorch_tanh", window=512, rope_base=1e6, tied=True)
SIZES = {
    "1b": _1, "270m": replace(_1, d=640, layers=18, hidden=2048),
    "tiny": replace(_1, vocab=1024, context=256, d=64, layers=3, head_dim=16, hidden=128, per=16,
                    window=16, period=3),
}

"""Mixtral: Mistral whose MLPs are eight, of which each token takes two (2401.04088)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mirada.core.block import Stack
from mirada.core.mlp import LEARNED, MLP, MoE
from mirada.errors import MiradaError
from mirada.models import llama, rope
from mirada.weights.config import ANY, key
from mirada.weights.rows import Weights

KIND = "decoder"


@dataclass(frozen=True)
class Config(llama.Config):
    experts: int = key("num_local_experts", 8, low=1)
    top: int = key("num_experts_per_tok", 2, low=1)  # of them, each token's

    def __post_init__(self):
        super().__post_init__()
        if self.top > self.experts or self.act in LEARNED:
            raise MiradaError(f"{self.experts} experts of which a token takes {self.top}, with the "
                              f"activation {self.act!r}: a token takes at most all of them, and "
                              "they share no activation that has weights")

    @staticmethod
    def prepare(raw: dict) -> dict:
        unsaid = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, rope.AT + "rope_theta": 1e6}
        return unsaid | rope.flat(raw)


def build(c: Config) -> Stack:
    body = llama.mistral(c)
    for block in body.blocks:
        experts = [MLP(c.d, c.hidden, c.act, gated=True, bias=False) for _ in range(c.experts)]
        block.mlp.f = MoE(c.d, experts, c.top)
    return body


HEADS = {"Mixtral" + task: head for task, head in llama.TASKS.items()}


def weights(c: Config) -> Weights:
    moe = "model.layers.{i}.block_sparse_moe."
    return Weights([
        *llama.weights(c).rows,
        (moe + "gate.weight", "blocks.{i}.mlp.f.router.weight"),
        (moe + "experts.{e}.(w1|w2|w3).weight",
         "blocks.{i}.mlp.f.experts.{e}.(gate|down|up).weight"),
    ], prefix="model.")


init = llama.init
INERT = {"attention_dropout": ANY, "router_aux_loss_coef": ANY, "router_jitter_noise": ANY,
         "output_router_logits": False}  # it would add to the loss
_7 = Config(hidden=14336, kv_heads=8, context=32768, rope_base=1e6, eps=1e-5)
SIZES = {
    "8x7b": _7, "8x22b": replace(_7, d=6144, layers=56, heads=48, hidden=16384, context=65536),
    "tiny": Config(vocab=1024, context=256, d=64, layers=2, heads=4, kv_heads=2, hidden=96,
                   experts=4),
}

"""What travels cannot be changed on its way, and a pass makes nothing on another device.

A tensor made on the CPU while the model lies on the meta device cannot meet the model's own: the
same mistake would stop a pass on any accelerator.
"""

import dataclasses

import pytest
import torch

from mirada.core.attend import KERNELS, Attend, Call, kernel
from mirada.core.attention import Attention, CrossAttention
from mirada.core.bias import Alibi, Buckets, Shaw, ShawAttend, Window2D
from mirada.core.block import Block, Residual, Stack
from mirada.core.cache import KV, Fixed, Growing, Rolling, Static
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Patches, Tokens
from mirada.core.heads import Classifier, First, Last, LMHead
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned, Linear, Rotary, Sinusoid, Yarn

B, T, D = 2, 5, 8
META = torch.device("meta")


def meta(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


def ctx(**more) -> Ctx:
    padding = meta(B, T, dtype=torch.bool)
    positions = meta(1, T, dtype=torch.long)
    segments = meta(B, T, dtype=torch.long)
    return Ctx(positions, Mask(padding=padding, segments=((segments, segments),)), **more)


@pytest.mark.parametrize("value", [
    Mask(), KV(torch.zeros(1), torch.zeros(1)), Ctx(), Inputs(), KERNELS["exact"], Linear(2.0),
    Call(torch.zeros(1), KV(torch.zeros(1), torch.zeros(1)), 1.0, Mask()),
    Alibi(2)(Ctx(), Mask())], ids=lambda value: type(value).__name__)
def test_values_cannot_be_changed(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, None)


# sparse knows no window, rows no other device
@pytest.mark.parametrize("name", [n for n in KERNELS if n not in ("sparse", "rows")])
@pytest.mark.parametrize("more", [
    {}, {"rotary": Rotary(4)}, {"rotary": Rotary(4, scaling=Yarn(2.0, 16))},
    {"score_bias": Alibi(2)}, {"score_bias": Buckets(2)}, {"score_bias": Window2D((2, 3), 2)},
    {"score_bias": Shaw(4, 2, 0.5)}], ids=lambda more: str(*more.values())[:12] or "plain")
def test_attention_stays_where_its_model_lies(name, more):
    attention = Attention(D, 2, mask=Mask(causal=True, window=3), **more).to(META)
    with kernel(name):
        out = attention(meta(B, T, D), ctx())
    assert out.device == META and out.shape == (B, T, D)


def test_weights_shaws_values_and_cross_attention_stay_too():
    q = meta(B, 2, T, 4)
    call = Call(q, KV(q, q), 0.5, Mask(causal=True), sinks=meta(2), cap=2.0)
    assert Attend.weights(call, (1, 3)).device == META
    z = ShawAttend(4, 2).to(META)(q, KV(q, q), scale=0.5, mask=Mask(causal=True))
    assert z.device == META
    cross = CrossAttention(D, 2).to(META)
    memory = meta(B, 7, D)
    seen = Mask(padding=meta(B, 7, dtype=torch.bool))
    assert cross(meta(B, T, D), ctx(memory=memory, memory_mask=seen), Fixed()).device == META


@pytest.mark.parametrize("cache", [Growing, lambda: Rolling(3), lambda: Static(16)],
                         ids=["growing", "rolling", "static"])
def test_caches_keep_keys_where_they_came_from(cache):
    attention, held = Attention(D, 2, mask=Mask(causal=True, window=3)).to(META), cache()
    for _ in range(3):
        assert attention(meta(B, 2, D), Ctx(), held).device == META
    assert held.k.device == held.v.device == META


def test_masks_are_built_where_they_are_asked_for():
    for mask in (Mask(causal=True), Mask(window=2), Mask(causal=True, start=3, prefix=2)):
        assert mask.dense(4, 6, META).device == mask.rows(1, 3, 4, 6, META).device == META
        assert mask.queries(4, META).device == mask.keys(6, META).device == META


def test_a_whole_model_is_walked_without_memory():
    block = Block(attn=Residual(Attention(D, 2, mask=Mask(causal=True)), pre=LayerNorm(D)),
                  mlp=Residual(MLP(D, 12, "gelu"), pre=LayerNorm(D)))
    for positions in (Learned(16, D), Sinusoid(D)):
        stack = Stack(Tokens(11, D, positions=positions, types=2), [block], LayerNorm(D)).to(META)
        inputs = Inputs(meta(B, T, dtype=torch.long))
        x = stack(inputs, ctx())
        assert x.device == META and x.shape == (B, T, D)
        for head in (LMHead(D, 11), Classifier(D, 3, Last(0)), Classifier(D, 3, Last(None)),
                     Classifier(D, 3, First())):
            assert head.to(META)(x, inputs, ctx())["logits"].device == META
    picture = Patches((8, 8), (4, 4), 1, D).to(META)
    for stretch in (True, False):
        x = picture(Inputs(pixel_values=meta(B, 1, 8, 8), interpolate_pos_encoding=stretch), Ctx())
        assert x.device == META and x.shape == (B, 5, D)

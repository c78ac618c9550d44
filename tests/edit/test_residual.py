"""Residual connections off: the same sublayers, and the stream is what each one gives."""

import pytest
import torch

import mirada
from mirada.edit import without_residual
from mirada.errors import MiradaError

IDS = torch.arange(3, 15)[None]


def build(family, **changes):
    return mirada.build(f"{family}:tiny", seed=1, dtype=torch.float64, **changes)


def embedded(m, x):
    """x as it enters each block, of one pass."""
    seen = []
    hooks = [block.register_forward_pre_hook(lambda module, args: seen.append(args))
             for block in m.body.blocks]
    with torch.no_grad():
        m(input_ids=x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", ["gpt2", "bert", "gptj", "bloom", "gemma2"])
def test_only_the_sublayers_are_left(family):
    """Pre-norm, post-norm, parallel, BLOOM's own and the sandwich."""
    m, changed = build(family), without_residual(build(family))
    for block, (x, ctx, *_), (y, *_) in zip(
            m.body.blocks, embedded(changed, IDS), embedded(changed, IDS)[1:], strict=False):
        for name, part in block.named_children():
            if name in ("attn", "mlp") and not hasattr(block, "names"):
                x = part.out(part.post(part.f(part.pre(x), ctx, None)))
        if hasattr(block, "names"):
            h = block.norm(x)
            x = sum(getattr(block, name)(h, ctx) for name in block.names)
        assert (x - y).abs().max() < 1e-12
    out = [each(input_ids=IDS) for each in (m, changed)]
    assert not torch.allclose(next(iter(out[0].values())), next(iter(out[1].values())), atol=1e-2)


def test_the_model_given_stays_and_chosen_layers_change():
    m = build("gpt2", layers=3)
    before = m(input_ids=IDS).logits
    one = without_residual(m, layers=[1])
    kinds = [type(b.attn).__name__ for b in one.body.blocks]
    assert kinds == ["Residual", "NoResidual", "Residual"]
    assert torch.equal(m(input_ids=IDS).logits, before)
    assert all(a is b for a, b in zip(m.parameters(), one.parameters(), strict=True))
    assert "NoResidual" in str(mirada.describe(one))
    assert "NoResidual" not in str(mirada.describe(m))


def test_it_writes_with_a_cache_and_is_not_saved(tmp_path):
    changed = without_residual(build("gpt2"))
    whole, cache = changed(input_ids=IDS).logits, changed.new_cache()
    parts = [changed(input_ids=IDS[:, a:b], cache=cache).logits for a, b in ((0, 5), (5, 12))]
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-10
    with pytest.raises(MiradaError, match="residual connections were switched off: no file"):
        mirada.save(changed, tmp_path / "m")

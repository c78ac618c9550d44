"""The tape: exact patterns from any pass, cached or not, and not a bit changed by taking them."""

import pytest
import torch

import mirada
from mirada.core.attend import Attend
from mirada.errors import MiradaError


@pytest.fixture(scope="module")
def gpt():
    return mirada.build("gpt2", size="tiny", seed=3, dtype=torch.float64, layers=3)


def ids(rows=2, length=11):
    return torch.randint(0, 1024, (rows, length), generator=torch.Generator().manual_seed(1))


def eager(m, batch, layer):
    """The weights of a layer, caught inside the exact kernel as it runs."""
    caught, plain = [], Attend.weights
    Attend.weights = staticmethod(lambda call, rows=None: caught.append(plain(call)) or caught[-1])
    try:
        with mirada.kernel("exact"):
            m(**batch)
    finally:
        Attend.weights = staticmethod(plain)
    return caught[layer]


@pytest.mark.scope("1.1.4")
def test_patterns_are_the_kernels_own_weights(gpt):
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[0, :4] = 0
    batch = dict(input_ids=ids(), attention_mask=mask)
    with gpt.record() as tape:
        gpt(**batch)
    for layer in range(3):
        pattern = tape.pattern(layer)
        assert (pattern - eager(gpt, batch, layer)).abs().max() < 1e-14
        sums = pattern.sum(-1)
        assert torch.allclose(sums[:, :, 4:], torch.ones_like(sums[:, :, 4:]), atol=1e-12)
        assert (sums[0, :, :4] == 0).all()  # pads look at nothing
    assert tape.stacks == ["decoder"] and tape.layers() == [0, 1, 2] and tape.heads() == 4
    assert 0 < tape.selfcheck < 1e-13


def test_only_what_is_asked_for(gpt):
    with gpt.record() as tape:
        gpt(input_ids=ids())
    whole = tape.pattern(1)
    assert torch.equal(tape.pattern(1, heads=[2, 0])[:, 0], whole[:, 2])
    some = tape.pattern(1, heads=3, rows=[0, 5, 6, 10])
    assert some.shape == (2, 1, 4, 11)
    assert (some[:, 0] - whole[:, 3][:, [0, 5, 6, 10]]).abs().max() < 1e-15
    assert (tape.pattern(-2, rows=slice(4, 6)) - whole[:, :, 4:6]).abs().max() < 1e-15
    with gpt.record(layers=[2]) as tape:
        gpt(input_ids=ids())
    assert tape.layers() == [2]


@pytest.mark.parametrize("kind", ["growing", "static", "rolling"])
def test_a_cached_generation_is_one_aligned_matrix(gpt, kind):
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, :2] = 0
    with gpt.record() as tape:
        gpt(input_ids=ids(), attention_mask=mask)
    whole = tape.pattern(2)
    with gpt.record() as tape:
        cache = gpt.new_cache(kind, size=13)
        for a, b in ((0, 4), (4, 5), (5, 9), (9, 11)):
            gpt(input_ids=ids()[:, a:b], attention_mask=mask[:, :b], cache=cache)
    assert tape.pattern(2).shape == whole.shape
    assert (tape.pattern(2) - whole).abs().max() < 1e-12
    assert (tape.pattern(2, rows=[3, 4, 10]) - whole[:, :, [3, 4, 10]]).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["growing", "rolling"])
def test_windows_and_groups(kind):
    m = mirada.build("llama", size="tiny", seed=1, dtype=torch.float64, window=4,
                     architecture="MistralForCausalLM")
    tokens = torch.randint(3, m.config.vocab, (1, 10))
    with m.record() as tape:
        m(input_ids=tokens)
    whole = tape.pattern(0)
    assert whole[0, :, 9, :6].abs().max() == 0 and (whole[0, :, 9, 6:] > 0).all()
    with m.record() as tape:
        cache = m.new_cache(kind)
        for a, b in ((0, 5), (5, 6), (6, 7), (7, 10)):
            m(input_ids=tokens[:, a:b], cache=cache)
    assert (tape.pattern(0) - whole).abs().max() < 1e-12


@pytest.mark.parametrize("stack", ["encoder", "decoder", "cross"])
def test_an_encoder_decoder_has_three_stacks(stack):
    m = mirada.build("t5", size="tiny", seed=2, dtype=torch.float64)
    source, target = ids(2, 9), ids(2, 6)
    with m.record() as tape:
        m(input_ids=source, decoder_input_ids=target)
    whole = tape.pattern(1, stack=stack)
    assert tape.stacks == ["encoder", "decoder", "cross"]
    assert whole.shape == (2, 4, *dict(encoder=(9, 9), decoder=(6, 6), cross=(6, 9))[stack])
    with m.record() as tape:
        memory, cache = m.encode(source), m.new_cache()
        for a, b in ((0, 1), (1, 4), (4, 5), (5, 6)):
            m(encoder_outputs=memory, decoder_input_ids=target[:, a:b], cache=cache)
    assert (tape.pattern(1, stack=stack) - whole).abs().max() < 1e-12


def test_each_pass_is_a_run(gpt):
    with gpt.record() as tape:
        gpt(input_ids=ids())
        gpt(input_ids=ids(1, 5))
    assert tape.pattern(0, run=0).shape == (2, 4, 11, 11)
    assert tape.pattern(0).shape == (1, 4, 5, 5)


def test_a_tape_outlives_a_static_buffer(gpt):
    """Keys are kept as they came, not as a view of a buffer that the next prompt overwrites."""
    cache = gpt.new_cache("static", size=20)
    with gpt.record() as tape:
        gpt(input_ids=ids(), cache=cache)
    before = tape.pattern(0)
    cache.crop(0)
    gpt(input_ids=ids().flip(1), cache=cache)
    assert torch.equal(before, tape.pattern(0))


def test_recording_keeps_queries_and_keys_only(gpt):
    with gpt.record() as tape:
        gpt(input_ids=ids())
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for runs in tape.runs.values() for run in runs for c in run for t in (c.q, c.k)}
    B, T, d, layers = 2, 11, gpt.config.d, 3
    assert sum(kept.values()) <= 2 * B * T * d * 8 * layers


def test_hooks_are_gone_afterwards(gpt):
    with pytest.raises(RuntimeError), gpt.record():
        raise RuntimeError("inside")
    assert gpt.tape is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in gpt.modules())


def test_what_was_not_recorded_is_named(gpt):
    with gpt.record() as tape:
        pass
    with pytest.raises(MiradaError, match="nothing was recorded"):
        tape.pattern(0)
    with gpt.record() as tape:
        gpt(input_ids=ids())
    with pytest.raises(MiradaError, match="layer 7"):
        tape.pattern(7)
    with pytest.raises(MiradaError, match="head 9"):
        tape.pattern(0, heads=9)
    with pytest.raises(MiradaError, match="cross"):
        tape.pattern(0, stack="cross")

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


def prompt(rows=1, length=6):
    return torch.randint(3, 900, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 3}, {"cache": "static"},
                                     {"keep": "resid"}])
def test_a_generated_text_is_one_aligned_matrix(gpt, options):
    """Steps, guesses that were taken back and buffers written in place: as if read at once."""
    options = dict(options)
    keep = options.pop("keep", "qk")
    start = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    with gpt.record(keep=keep, v=True, z=True, resid="sublayers", mlp=True) as tape:
        out = gpt.generate(start, max_new_tokens=9, do_sample=False, eos_token_id=None, **options)
    with torch.no_grad(), gpt.record(v=True, z=True, resid="sublayers", mlp=True) as whole:
        gpt(input_ids=out[:, :-1])
    T = tape.ids().shape[1]
    assert torch.equal(tape.ids(), out[:, :T]) and T >= 16
    for layer in range(3):
        assert (tape.pattern(layer) - whole.pattern(layer)[:, :, :T, :T]).abs().max() < 1e-12
        for name in ("z", "mlp", "resid"):
            ours, theirs = (getattr(t, name)(layer) for t in (tape, whole))
            assert (ours - theirs[:, :T]).abs().max() < 1e-11
        assert (tape.values(layer) - whole.values(layer)[:, :, :T]).abs().max() < 1e-12
        assert (tape.added(layer, "mlp") - whole.added(layer, "mlp")[:, :T]).abs().max() < 1e-11


@pytest.mark.parametrize("keep", ["qk", "resid"])
def test_tokens_that_a_cache_takes_back_leave_the_tape(gpt, keep):
    """Two passes' ends are cropped, one of them in the middle of a pass; what stays is one text."""
    asked = dict(keep=keep, v=True, z=True, resid=True)
    cache, read = gpt.new_cache(), ids(2, 9)
    with torch.no_grad(), gpt.record(**asked) as tape:
        gpt(input_ids=ids(2, 4), cache=cache)
        gpt(input_ids=ids(2, 3).flip(1), cache=cache)
        cache.crop(2)
        gpt(input_ids=read[:, 2:7], cache=cache)
        gpt(input_ids=ids(2, 4), cache=cache)
        cache.crop(7)
        gpt(input_ids=read[:, 7:], cache=cache)
    read = torch.cat([ids(2, 4)[:, :2], read[:, 2:]], 1)
    with torch.no_grad(), gpt.record(**asked) as whole:
        gpt(input_ids=read)
    assert torch.equal(tape.ids(), read) and tape.shape(1) == (2, 4, 9, 9)
    assert (tape.pattern(2) - whole.pattern(2)).abs().max() < 1e-12
    assert (tape.values(2) - whole.values(2)).abs().max() < 1e-12
    assert (tape.z(2) - whole.z(2)).abs().max() < 1e-12
    assert (tape.lens() - whole.lens()).abs().max() < 1e-11


def test_what_cannot_be_aligned_is_said(gpt):
    with gpt.record() as tape:
        gpt.generate(prompt(), max_new_tokens=3, num_beams=2)
    with pytest.raises(MiradaError, match="num_beams"):
        tape.pattern(0)
    cache = gpt.new_cache()
    gpt(input_ids=prompt(), cache=cache)
    with gpt.record() as tape:
        gpt(input_ids=prompt(1, 2), cache=cache)
    with pytest.raises(MiradaError, match="6 tokens were already in the cache"):
        tape.pattern(0)
    with pytest.raises(MiradaError, match="v=True"):
        tape.values_norm(0)
    with pytest.raises(MiradaError, match="keep='kq'"), gpt.record(keep="kq"):
        pass


def held(tape):
    kept = [t for runs in tape.runs.values() for run in runs for c in run
            for t in (c.q, c.k, c.x, c.v) if t is not None]
    kept += [t for runs in tape.kept.values() for run in runs for t in run]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                for t in kept}.values())


def test_memory_is_queries_and_keys_or_half_of_it(gpt):
    one = 2 * 40 * gpt.config.d * 8  # bytes of (B, T, D)
    tokens = torch.randint(3, 900, (2, 40))
    with gpt.record() as tape, torch.no_grad():
        gpt(input_ids=tokens)
    assert held(tape) <= 1.05 * 2 * 3 * one
    with gpt.record(keep="resid") as tape, torch.no_grad():
        gpt(input_ids=tokens)
    assert held(tape) <= 1.05 * 3 * one
    with gpt.record() as tape, torch.no_grad():
        gpt.generate(tokens[:, :5], max_new_tokens=35, cache="static")
    assert held(tape) <= 1.05 * 2 * 3 * one
    slots = [c.mask.slots for runs in tape.runs.values() for run in runs for c in run]
    assert slots.count(None) == len(slots)  # a buffer's slots would weigh as much as the queries
    grouped = mirada.build("llama", size="tiny", seed=1)
    with grouped.record() as tape, torch.no_grad():
        grouped(input_ids=tokens % 200)
    a = grouped.body.blocks[0].attn.f
    assert held(tape) <= 1.05 * 2 * 40 * 4 * 16 * len(grouped.body.blocks) * (
        a.heads + a.kv_heads) + 2 * 40 * 9  # and the ids


def test_half_precision_is_shown_in_float32():
    m = mirada.build("gpt2", size="tiny", seed=3, dtype=torch.bfloat16)
    plain = m(input_ids=ids()).logits
    with m.record() as tape:
        assert torch.equal(m(input_ids=ids()).logits, plain)
    pattern = tape.pattern(1)
    assert pattern.dtype == torch.float32 and (pattern.sum(-1) - 1).abs().max() < 1e-6
    assert tape.selfcheck < 2e-2
    q, k = tape.runs["decoder", 1][0][0].q.float(), tape.runs["decoder", 1][0][0].k.float()
    scores = (q @ k.mT / 4).masked_fill(torch.ones(11, 11).triu(1).bool(), -torch.inf)
    assert (pattern - scores.softmax(-1)).abs().max() < 1e-6


def test_a_kernel_that_lies_is_found_out(gpt):
    """The selfcheck is what says so."""
    handle = gpt.body.blocks[1].attn.f.attend.register_forward_hook(lambda m, a, out: out * 1.01)
    with gpt.record() as tape:
        gpt(input_ids=ids())
    handle.remove()
    assert tape.error(0) < 1e-13 and tape.error(1) > 1e-5 and tape.selfcheck == tape.error(1)


def test_a_score_taken_apart_makes_the_weight(gpt):
    for m in (gpt, *(mirada.build(f, size="tiny", seed=2, dtype=torch.float64)
                     for f in ("bloom", "t5", "gemma2", "deberta", "llama"))):
        batch = {"input_ids": ids()[:, :9] % 200}
        if m.encoder_decoder:
            batch["decoder_input_ids"] = ids()[:, :9] % 200
        with m.record() as tape, torch.no_grad():
            m(**batch)
        for stack in tape.stacks:
            terms = [tape.qk_terms(1, 2, 5, j, stack=stack, row=1) for j in range(9)]
            scores = torch.tensor([t.score for t in terms], dtype=torch.float64)
            assert (scores.softmax(0) - tape.row(1, 2, 5, stack)[1]).abs().max() < 1e-12
            if m.config.__class__.__module__.endswith(("bloom", "deberta")):
                assert any(t.bias for t in terms)
            assert terms[3].data()["score"] == terms[3].score


def test_what_a_key_brings_is_its_weight_times_its_projected_value():
    m = mirada.build("llama", size="tiny", seed=2, dtype=torch.float64)
    with m.record(v=True) as tape, torch.no_grad():
        m(input_ids=ids()[:, :7] % 200)
    a = m.body.blocks[1].attn.f
    K, group = a.o.in_features // a.heads, a.heads // a.kv_heads
    for head in range(a.heads):
        w_o = a.o.weight[:, head * K : (head + 1) * K]
        brought = tape.values(1)[:, head // group] @ w_o.T  # (B, S, D)
        terms = tape.pattern(1, head)[:, 0, :, :, None] * brought[:, None]
        assert (tape.values_norm(1, head)[:, 0] - terms.norm(dim=-1)).abs().max() < 1e-12


def linear(x):
    return torch.nn.functional.elu(x) + 1


class LinearAttend(Attend):
    """Linear attention (2006.16236): no matrix is formed."""

    def forward(self, q, kv, *, scale, mask, bias=None, cap=None, sinks=None):
        q, k = linear(q), linear(kv.k)
        total = torch.einsum("bhsk,bhsv->bhksv", k, kv.v).cumsum(3)
        z = torch.einsum("bhtk,bhktv->bhtv", q, total)
        return z / (q * k.cumsum(2)).sum(-1, keepdim=True)


def test_where_no_matrix_exists_the_implied_one_is_shown():
    """The factor with which a value enters an output, which is here known in closed form."""
    m = mirada.build("gpt2", size="tiny", seed=3, dtype=torch.float64)
    m.body.blocks[1].attn.f.attend = LinearAttend()
    with m.record(v=True, z=True) as tape, torch.no_grad():
        m(input_ids=ids())
    t = tape.runs["decoder", 1][0][0]
    weights = (linear(t.q) @ linear(t.k).mT).tril()
    weights = weights / weights.sum(-1, keepdim=True)
    assert (tape.pattern(1) - weights).abs().max() < 1e-13
    assert (tape.pattern(1, [2, 1], rows=[4]) - weights[:, [2, 1], 4:5]).abs().max() < 1e-13
    assert ((tape.pattern(1) @ tape.values(1)).transpose(1, 2) - tape.z(1)).abs().max() < 1e-13
    assert tape.error(0) < 1e-13 and tape.error(1) != tape.error(1)  # not checked, and it says so


def test_a_compiled_model_runs_eagerly_where_it_is_looked_at():
    """Its graphs would pass every boundary by; they stay, and run again afterwards."""
    from torch._dynamo.utils import counters
    m, ids = mirada.build("gpt2", size="tiny", seed=1), torch.arange(5, 15)[None]
    compiled = torch.compile(m, backend="eager")
    change = {"site": "head_out", "layer": 0, "heads": [1], "op": "zero"}
    with torch.no_grad():
        before, graphs = compiled(input_ids=ids)["logits"], counters["stats"]["unique_graphs"]
        with m.record() as tape:
            recorded = compiled(input_ids=ids)["logits"]
        with m.record() as own:
            assert torch.equal(recorded, m(input_ids=ids)["logits"])
        assert torch.equal(tape.pattern(1), own.pattern(1))
        with m.intervene(change):
            changed = compiled(input_ids=ids)["logits"]
            assert torch.equal(changed, m(input_ids=ids)["logits"])
        assert not torch.equal(changed, recorded)
        assert torch.equal(compiled(input_ids=ids)["logits"], before)
    assert counters["stats"]["unique_graphs"] == graphs > 0

"""Interventions: none changes nothing, each changes what it names and that alone."""

import pytest
import torch

import mirada
from mirada.errors import MiradaError
from mirada.tasks import features


@pytest.fixture(scope="module")
def gpt():
    return mirada.build("gpt2", size="tiny", seed=3, dtype=torch.float64, layers=3)


@pytest.fixture(scope="module")
def grouped():
    m = mirada.build("llama", size="tiny", seed=1, dtype=torch.float64, layers=3)
    assert m.body.blocks[0].attn.f.kv_heads < m.body.blocks[0].attn.f.heads
    return m


def ids(rows=2, length=9, seed=1):
    return torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(seed))


def run(m, *changes, tokens=None, **more):
    with torch.no_grad(), m.intervene(*changes):
        return m(input_ids=ids() if tokens is None else tokens, **more).logits


def taped(m, tokens, **more):
    with torch.no_grad(), m.record(z=True, v=True, resid="sublayers", mlp=True) as tape:
        logits = m(input_ids=tokens, **more).logits
    return tape, logits


@pytest.mark.parametrize("model", ["gpt", "grouped"])
def test_no_change_changes_no_bit_and_leaves_no_hook(model, request):
    m = request.getfixturevalue(model)
    assert torch.equal(run(m), run(m, [])) and torch.equal(run(m), m(input_ids=ids()).logits)
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in m.modules())
    with pytest.raises(RuntimeError), m.intervene(
            {"site": "mlp", "layer": 0, "op": "zero"}, {"site": "value", "layer": 1, "op": "zero"}):
        raise RuntimeError("inside")
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in m.modules())


@pytest.mark.parametrize("model", ["gpt", "grouped"])
def test_all_heads_gone_is_the_attention_gone(model, request):
    """What remains is the output projection's bias, which is no head's."""
    m = request.getfixturevalue(model)
    o = m.body.blocks[1].attn.f.o
    bias = torch.zeros(m.config.d, dtype=torch.float64) if o.bias is None else o.bias.detach()
    heads = run(m, {"site": "head_out", "layer": 1, "op": "zero"})
    attn = run(m, {"site": "attn", "layer": 1, "op": "patch", "source": bias})
    assert (heads - attn).abs().max() < 1e-12
    one_by_one = [{"site": "head_out", "layer": 1, "heads": [h], "op": "zero"} for h in range(4)]
    assert torch.equal(heads, run(m, one_by_one))
    assert (heads - run(m)).abs().max() > 1e-3


@pytest.mark.parametrize("model", ["gpt", "grouped"])
@pytest.mark.parametrize("site", ["head_out", "attn", "mlp", "neuron", "resid", "pattern"])
def test_a_patch_with_itself_is_no_patch(model, site, request):
    m = request.getfixturevalue(model)
    tape, plain = taped(m, ids())
    op = "freeze" if site == "pattern" else "patch"
    for layer in range(3):
        again = run(m, {"site": site, "layer": layer, "op": op, "source": tape})
        if site == "pattern":  # weights made anew: equal to rounding
            assert (again - plain).abs().max() < 1e-12
        else:
            assert torch.equal(again, plain)


@pytest.mark.parametrize("model", ["gpt", "grouped"])
def test_the_whole_stream_patched_at_the_last_place_is_the_donor(model, request):
    m = request.getfixturevalue(model)
    other = ids(seed=2)
    tape, donor = taped(m, other)
    for layer, op in ((-1, "patch"), (3, "patch")):
        patched = run(m, {"site": "resid", "layer": layer, "pos": [-1], "op": op, "source": tape})
        assert torch.equal(patched[:, -1], donor[:, -1])
        assert torch.equal(patched[:, :-1], run(m)[:, :-1])
    assert (run(m)[:, -1] - donor[:, -1]).abs().max() > 1e-3


def test_both_ways_a_patch_takes_the_donors_part(gpt):
    """Denoising and noising: everything into layer 1 patched is the donor from there on."""
    clean, corrupt = ids(), ids(seed=2)
    for a, b in ((clean, corrupt), (corrupt, clean)):
        tape, donor = taped(gpt, a)
        whole = run(gpt, {"site": "resid", "layer": 1, "op": "patch", "source": tape}, tokens=b)
        assert torch.equal(whole, donor)


def test_heads_under_groups_and_positions_change_what_they_name(grouped):
    tape, _ = taped(grouped, ids())
    change = {"site": "head_out", "layer": 1, "heads": [2], "pos": [4, -1], "rows": [1],
              "op": "scale", "factor": 3.0}
    with torch.no_grad(), grouped.intervene(change), grouped.record(z=True) as after:
        grouped(input_ids=ids())
    # the recording's hook runs behind the change's
    expected = tape.z(1).clone()
    expected[1, [4, 8], 2] *= 3
    assert torch.allclose(after.z(1), expected, atol=1e-14)
    assert not torch.equal(after.z(2)[1], tape.z(2)[1])
    assert torch.equal(after.z(2)[0], tape.z(2)[0]) and torch.equal(after.z(2)[1, :4],
                                                                    tape.z(2)[1, :4])


@pytest.mark.parametrize("model", ["gpt", "grouped"])
def test_an_edge_knocked_out_gives_its_weight_to_the_others(model, request):
    m = request.getfixturevalue(model)
    tape, _ = taped(m, ids())
    change = {"site": "edge", "layer": 1, "heads": [3], "pos": [6], "keys": [2, 5],
              "op": "knockout"}
    with torch.no_grad(), m.intervene(change), m.record(z=True) as after:
        m(input_ids=ids())
    weights = tape.pattern(1, 3)[:, 0, 6].clone()
    weights[:, [2, 5]] = 0
    weights /= weights.sum(-1, keepdim=True)
    attention = m.body.blocks[1].attn.f
    v = tape.values(1)[:, 3 // (attention.heads // attention.kv_heads)]
    expected = tape.z(1).clone()
    expected[:, 6, 3] = (weights[:, None] @ v)[:, 0]
    assert (after.z(1) - expected).abs().max() < 1e-13
    others = torch.arange(9) != 6
    assert torch.equal(after.z(1)[:, others], tape.z(1)[:, others])


def test_a_query_without_a_key_left_brings_nothing(gpt):
    change = {"site": "edge", "layer": 0, "pos": [0], "keys": [0], "op": "knockout"}
    with torch.no_grad(), gpt.intervene(change), gpt.record(z=True) as tape:
        gpt(input_ids=ids())
    assert (tape.z(0)[:, 0] == 0).all() and (tape.z(0)[:, 1] != 0).all()


def test_zeroed_values_are_looked_at_and_bring_nothing(grouped):
    tape, _ = taped(grouped, ids())
    change = {"site": "value", "layer": 1, "heads": [1], "keys": [0, 3], "op": "zero"}
    with torch.no_grad(), grouped.intervene(change), grouped.record(z=True) as after:
        grouped(input_ids=ids())
    weights = tape.pattern(1, 1)[:, 0].clone()
    weights[:, :, [0, 3]] = 0
    expected = tape.z(1).clone()
    expected[:, :, 1] = weights @ tape.values(1)[:, 0]
    assert (after.z(1) - expected).abs().max() < 1e-13
    assert (after.pattern(1) - tape.pattern(1)).abs().max() < 1e-13


@pytest.mark.parametrize("site", ["edge", "value"])
def test_knocked_out_everywhere_is_as_if_values_were_none_less_the_weight(gpt, site):
    """In every layer, keys 2 hidden from the queries behind it: the last token's logits no longer
    depend on token 2; zeroed values alone leave its weight's share missing, which tells of it."""
    op = {"edge": "knockout", "value": "zero"}[site]
    changes = [{"site": site, "layer": n, "keys": [2], "op": op} | (
        {"pos": [3, 4, 5, 6, 7, 8]} if site == "edge" else {}) for n in range(3)]
    other = ids()
    other[:, 2] = (other[:, 2] + 7) % 200
    moved = (run(gpt, changes) - run(gpt, changes, tokens=other))[:, 3:].abs().max()
    assert moved < 1e-14 if site == "edge" else moved > 1e-6
    assert (run(gpt) - run(gpt, tokens=other))[:, 3:].abs().max() > 1e-4


@pytest.mark.parametrize("site", ["head_out", "mlp", "neuron", "resid"])
def test_means_are_of_tokens_of_the_kind(gpt, site):
    """First tokens' at the first place, the others' elsewhere, and no pad's."""
    reference, mask = ids(3, 9, seed=5), torch.ones(3, 9, dtype=torch.long)
    mask[0, :3] = 0
    tape, _ = taped(gpt, reference, attention_mask=mask)
    change = {"site": site, "layer": 1, "op": "mean", "source": tape}
    with torch.no_grad(), gpt.intervene(change), gpt.record(z=True, mlp=True,
                                                            resid="sublayers") as after:
        gpt(input_ids=ids())
    read = {"head_out": lambda t: t.z(1), "mlp": lambda t: t.added(1, "mlp"),
            "neuron": lambda t: t.mlp(1), "resid": lambda t: t.resid(1)}[site]
    kept = read(tape)
    first = torch.stack([kept[0, 3], kept[1, 0], kept[2, 0]]).mean(0)
    others = torch.cat([kept[0, 4:], kept[1, 1:], kept[2, 1:]]).mean(0)
    assert torch.allclose(read(after)[:, 0], first.expand_as(read(after)[:, 0]), atol=1e-13)
    assert torch.allclose(read(after)[:, 1:], others.expand_as(read(after)[:, 1:]), atol=1e-13)


@pytest.mark.parametrize("site, op", [("head_out", "zero"), ("value", "zero"), ("neuron", "zero"),
                                      ("edge", "knockout")])
def test_nothing_chosen_is_nothing_changed(gpt, site, op):
    """An empty list is not the same as no list, which means all."""
    for name in ("rows", "pos", "neurons" if site == "neuron" else "heads"):
        change = {"site": site, "layer": 1, "op": op, name: []}
        change |= {"keys": [] if name == "pos" else [1]} if site in ("value", "edge") else {}
        assert torch.equal(run(gpt, change), run(gpt)), name
    change = {"site": site, "layer": 1, "op": op} | ({"keys": [1]} if site == "edge" else {})
    assert not torch.equal(run(gpt, change), run(gpt))


def test_a_mean_where_there_is_none_or_of_places_that_were_chosen(gpt):
    """One token's own mean is itself; Longformer's chosen tokens are not the text's places."""
    change = {"site": "mlp", "layer": 1, "op": "mean"}
    cache = gpt.new_cache()
    with torch.no_grad(), gpt.intervene(change):
        gpt(input_ids=ids(), cache=cache)
        with pytest.raises(MiradaError, match="whose mean is itself"):
            gpt(input_ids=ids(2, 1), cache=cache)
    m = mirada.build("longformer", size="tiny", seed=1, dtype=torch.float64)
    far = torch.zeros(2, 9, dtype=torch.long)
    far[:, [0, 4, 5]] = 1
    batch = dict(input_ids=ids(), global_attention_mask=far)
    tape, _ = taped(m, **{"tokens" if k == "input_ids" else k: v for k, v in batch.items()})
    own = {"site": "head_out", "stack": "cross", "layer": 0, "op": "mean"}
    for source in (None, tape):
        with torch.no_grad(), m.intervene(own | {"source": source}), m.record(z=True) as after:
            m(**batch)
        z = after.z(0, "cross")  # (2, 3, H, Kv): all but the first of each row
        assert torch.allclose(z[:, 1:], tape.z(0, "cross")[:, 1:].mean((0, 1)).expand(2, 2, -1, -1))


def test_resampling_takes_another_row(gpt):
    change = {"site": "mlp", "layer": 1, "op": "resample"}
    tape, _ = taped(gpt, ids())
    with torch.no_grad(), gpt.intervene(change), gpt.record(resid="sublayers") as after:
        gpt(input_ids=ids())
    assert torch.equal(after.added(1, "mlp"), tape.added(1, "mlp").flip(0))
    with pytest.raises(MiradaError, match="one row"):
        run(gpt, change, tokens=ids(1))


@pytest.mark.parametrize("kind", ["growing", "static", "rolling"])
def test_changes_hold_through_a_cached_pass(gpt, kind):
    """Positions are the whole text's, wherever a cache keeps the keys."""
    changes = [{"site": "head_out", "layer": 1, "heads": [0], "pos": [2, 5], "op": "zero"},
               {"site": "edge", "layer": 2, "pos": [6, 7], "keys": [1, 4], "op": "knockout"},
               {"site": "value", "layer": 0, "heads": [2], "keys": [3], "op": "zero"}]
    whole, parts, cache = run(gpt, changes), [], gpt.new_cache(kind, size=12)
    with torch.no_grad(), gpt.intervene(changes):
        for a, b in ((0, 4), (4, 5), (5, 6), (6, 9)):
            parts.append(gpt(input_ids=ids()[:, a:b], cache=cache).logits)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-12


def test_generation_runs_changed(gpt):
    greedy = dict(max_new_tokens=5, do_sample=False, eos_token_id=None)
    plain = gpt.generate(ids(), **greedy)
    everything = [{"site": "resid", "layer": -1, "op": "zero"}]
    with gpt.intervene(everything):
        changed = gpt.generate(ids(), **greedy)
    assert not torch.equal(plain, changed)
    assert torch.equal(gpt.generate(ids(), **greedy), plain)


def test_sentence_vectors_are_made_by_the_changed_model():
    """The packed twin that embeds faster is left aside while somebody listens."""
    m = mirada.build("bert", size="tiny", seed=1)
    with m.intervene({"site": "mlp", "layer": 0, "op": "zero"}):
        assert features.swift(m).body.blocks[0] is m.body.blocks[0]
    assert features.swift(m).body.blocks[0] is not m.body.blocks[0]


@pytest.mark.parametrize("stack", ["encoder", "decoder", "cross"])
def test_each_stack_of_an_encoder_decoder(stack):
    m = mirada.build("t5", size="tiny", seed=2, dtype=torch.float64)
    batch = dict(input_ids=ids(), decoder_input_ids=ids(2, 6))
    with torch.no_grad(), m.record(z=True) as tape:
        plain = m(**batch).logits
    with torch.no_grad(), m.intervene({"site": "head_out", "stack": stack, "layer": 1,
                                       "heads": [1], "op": "zero"}), m.record(z=True) as after:
        changed = m(**batch).logits
    assert (after.z(1, stack)[:, :, 1] == 0).all()
    assert torch.equal(after.z(1, stack)[:, :, 0], tape.z(1, stack)[:, :, 0])
    assert not torch.equal(plain, changed)


@pytest.mark.parametrize("change, says", [
    ({"site": "head_out", "op": "zero"}, "does not say its layer"),
    ({"site": "haed_out", "op": "zero", "layer": 0}, "no site is called"),
    ({"site": "edge", "op": "zero", "layer": 0}, "takes knockout"),
    ({"site": "head_out", "op": "zero", "layer": 7}, "layer 7 does not exist"),
    ({"site": "head_out", "op": "zero", "layer": 0, "heads": [9]}, "head 9 does not exist"),
    ({"site": "mlp", "op": "zero", "layer": 0, "heads": [1]}, "has no heads"),
    ({"site": "mlp", "op": "zero", "layer": 0, "head": [1]}, "did you mean 'heads'"),
    ({"site": "mlp", "op": "patch", "layer": 0}, "needs a source"),
    ({"site": "cross", "op": "zero", "layer": 0}, "has no cross"),
    ({"site": "mlp", "op": "zero", "layer": 0, "stack": "encoder"}, "no stack is called"),
    ({"site": "mlp", "op": "zero", "layer": 0, "pos": "last"}, "a list of places"),
])
def test_what_cannot_be_is_said_before_anything_runs(gpt, change, says):
    with pytest.raises(MiradaError, match=says), gpt.intervene(change):
        raise AssertionError("it began")


def test_a_source_that_does_not_fit_is_refused_with_the_difference(gpt):
    short = ids()[:, [0, 1, 2, 4, 5, 6, 7, 8]]
    tape, _ = taped(gpt, short)
    change = {"site": "resid", "layer": 1, "op": "patch", "source": tape}
    gone = ids()[0, 3].item()
    with pytest.raises(MiradaError, match=rf"8 tokens and this pass 9.*\{{\+{gone} \+\}}"):
        run(gpt, change)
    run(gpt, change | {"pos": [3], "source_pos": [2]})
    plain, _ = taped(gpt, ids())
    del plain.kept["resid", "decoder", 1]
    with pytest.raises(MiradaError, match="resid=True"):
        run(gpt, change | {"source": plain})

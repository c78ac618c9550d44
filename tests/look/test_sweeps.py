"""Sweeps: the prefix is run once, and the numbers are those of the plain way."""

import copy
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mirada
from look import planted
from mirada.errors import MiradaError
from mirada.look import sweeps


def ids(rows=3, length=8, seed=1, vocab=250):
    return torch.randint(3, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def gpt():
    return mirada.build("gpt2", size="tiny", seed=3, dtype=torch.float64, layers=3)


METRIC = sweeps.logit_difference([5, 6, 7], 9)


def naive(m, batch, metric, **change):
    """Every head by a whole pass of its own."""
    heads = m.decoder.blocks[0].attn.f.heads
    layers = len(m.decoder.order)
    with torch.no_grad():
        base, found = metric(m(**batch)), []
        for layer in range(layers):
            for head in range(heads):
                with m.intervene(dict(site="head_out", layer=layer, heads=[head], **change)):
                    found.append(metric(m(**batch)) - base)
    return torch.stack(found).unflatten(0, (layers, heads))


@pytest.mark.parametrize("family, stack", [
    ("gpt2", None), ("llama", None), ("gemma2", None), ("bloom", None), ("gptj", None),
    ("t5", "decoder"), ("bart", "decoder"), ("palm", None)])
@pytest.mark.parametrize("op", ["zero", "mean"])
def test_the_stored_prefix_gives_the_numbers_of_whole_passes(family, stack, op):
    m = mirada.build(family, size="tiny", seed=2, dtype=torch.float64)
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[1, :3] = 0
    batch = dict(input_ids=ids(), attention_mask=mask)
    if m.encoder_decoder:
        batch["decoder_input_ids"] = ids(3, 5, seed=2)
    found = sweeps.sweep(m, batch, METRIC, op=op, stack=stack)
    assert (found.effects - naive(m, batch, METRIC, op=op)).abs().max() < 1e-9
    assert found.mean.abs().max() > 1e-6
    L, H = found.mean.shape
    own = len(m.decoder.order)
    assert found.executed - found.whole == 3 * H * own * (own + 1) // 2
    assert not any(x._forward_hooks or x._forward_pre_hooks for x in m.modules())


@pytest.mark.parametrize("family", ["bert", "albert", "deberta", "longformer", "bigbird", "esm",
                                    "modernbert"])
def test_encoders_too(family):
    m = mirada.build(family, size="tiny", seed=2, dtype=torch.float64)
    metric = sweeps.log_probability(5, at=2)
    batch, own = dict(input_ids=ids(vocab=30)), ("encoder",)
    found = sweeps.sweep(m, batch, metric, op="zero")
    assert (found.effects - naive(m, batch, metric, op="zero", stack=own[0])).abs().max() < 1e-9
    assert found.mean.abs().max() > 1e-9


def test_the_encoder_of_two_stacks():
    m = mirada.build("bart", size="tiny", seed=2, dtype=torch.float64)
    batch = dict(input_ids=ids(), decoder_input_ids=ids(3, 5, seed=2))
    found = sweeps.sweep(m, batch, METRIC, op="zero", stack="encoder")
    assert (found.effects - naive(m, batch, METRIC, op="zero", stack="encoder")
            ).abs().max() < 1e-9
    cross = sweeps.sweep(m, batch, METRIC, op="zero", stack="cross")
    assert (cross.effects - naive(m, batch, METRIC, op="zero", stack="cross")).abs().max() < 1e-9


def test_a_picture_model():
    m = mirada.build("vit", size="tiny", seed=2, dtype=torch.float64)
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(MiradaError, match="one number a row"):
        sweeps.sweep(m, {"pixel_values": pixels}, lambda out: out.logits)
    found = sweeps.sweep(m, {"pixel_values": pixels}, lambda out: out.logits[:, 3], op="mean")
    assert found.mean.shape == (2, 4) and found.mean.abs().min() > 0


def test_the_smallest_gpt2_is_swept_for_sixty_passes():
    """P11: 144 heads, 64 tokens, counted in floating-point operations on a model without numbers;
    the head scores the last token only, which is where the metric looks."""
    m = mirada.build("gpt2", size="small", device="meta")
    batch = dict(input_ids=torch.zeros(1, 64, dtype=torch.long, device="meta"))
    with FlopCounterMode(display=False) as one, torch.no_grad():
        m(**batch)
    with FlopCounterMode(display=False) as all_heads:
        found = sweeps.sweep(m, batch | {"logits_to_keep": 1}, lambda out: out.logits[:, 0, 0],
                             op="zero")
    assert found.effects.shape == (12, 12, 1)
    assert found.executed == 12 + 12 * 78 and found.forwards == 79
    assert all_heads.get_total_flops() <= 60 * one.get_total_flops()


def test_patching_both_ways_goes_over_places(gpt):
    """Every place of the stream before layer 0 that differs, patched, restores its part; the last
    place of the last layer restores all of the answer there."""
    clean, corrupt = ids(), ids()
    corrupt[:, 3] = (corrupt[:, 3] + 11) % 250
    for here, donor in ((corrupt, clean), (clean, corrupt)):
        found = sweeps.sweep(gpt, here, METRIC, op="patch", site="resid", source=donor)
        assert found.mean.shape == (3, 8)
        gap = (METRIC(gpt(input_ids=donor)) - METRIC(gpt(input_ids=here))).detach()
        assert (found.effects[0, 3] - gap).abs().max() < 1e-12  # all of the difference enters here
        assert (found.effects[0, [0, 1, 2, 4, 5, 6, 7]] == 0).all()
        assert (found.effects[:, [0, 1, 2]].abs() < 1e-12).all()
    for site in ("attn", "mlp"):
        found = sweeps.sweep(gpt, corrupt, METRIC, op="patch", site=site, source=clean)
        assert found.mean.shape == (3, 1) and found.mean.abs().max() > 0
    with pytest.raises(MiradaError, match="7 tokens and this pass 8"):
        sweeps.sweep(gpt, corrupt, METRIC, op="patch", source=clean[:, :7])


def test_the_null_is_of_other_heads_nearby(gpt):
    found = sweeps.sweep(gpt, ids(), METRIC)
    assert len(found.null(1, 2)) == 11  # all others, for there are fewer than 32
    near = found.null(1, 2, band=0, most=3)  # the layer's other heads, in some order
    assert sorted(near.tolist()) == sorted(found.mean[1, [0, 1, 3]].tolist())
    drawn = found.null(1, 2, band=1, most=5)
    assert len(drawn) == 5 and set(drawn.tolist()) < set(found.mean.flatten().tolist())
    assert drawn.tolist() != found.null(1, 2, band=1, most=5, seed=1).tolist()
    layer, head = found.largest(1)[0]
    assert found.percentile(layer, head) == 1.0
    low, high = found.interval(layer, head)
    assert low <= found.mean[layer, head] <= high
    assert "passes' worth" in str(found) and found.data()["reference"].startswith("the mean")


def test_a_dead_head_is_told_from_a_live_one(gpt):
    """A head whose part of W_o is zero does nothing, and every figure says so."""
    m = copy.deepcopy(gpt)
    with torch.no_grad():
        m.body.blocks[1].attn.f.o.weight[:, 16:32] = 0
    found = sweeps.sweep(m, ids(), METRIC)
    assert (found.effects[1, 1].abs() < 1e-14).all() and found.percentile(1, 1) == 0
    dead = sweeps.effect(m, ids(), METRIC, {"site": "head_out", "layer": 1, "heads": [1],
                                            "op": "mean"}, null=8)
    assert abs(dead.mean) < 1e-14 and dead.percentile == 0 and len(dead.null) == 8
    layer, head = found.largest(1)[0]
    live = sweeps.effect(m, ids(), METRIC, {"site": "head_out", "layer": layer, "heads": [head],
                                            "op": "mean"}, null=8)
    assert abs(live.mean - found.mean[layer, head]) < 1e-12 and live.percentile == 1
    assert "8 draws" in str(live) and json.dumps(live.data())


def test_backup_is_what_the_sum_of_singles_misses(gpt):
    """Two heads of the last layer whose parts of the answer only add up, in a model without norms
    behind them, have none; a pair over layers has."""
    m = copy.deepcopy(gpt)
    m.body.norm = torch.nn.Identity()
    with torch.no_grad():
        m.body.blocks[2].mlp.f.down.weight.zero_()
    last = sweeps.backup(m, ids(), METRIC, [(2, 0), (2, 3)])
    assert abs(last.backup) < 1e-12 and last.joint != 0
    over = sweeps.backup(m, ids(), METRIC, [(0, 0), (1, 3)])
    assert abs(over.backup) > 1e-6 and "backup" in str(over)


def test_a_path_from_one_head_through_another():
    """The planted previous-token head reaches the answer through the induction head that it feeds,
    and through no other; a sender's word that nobody passes on is no path."""
    m = planted.build(0)
    clean = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 8]])
    corrupt = torch.tensor([[5, 6, 7, 6, 9, 5, 6, 7, 8]])  # another token before the last answer
    metric = sweeps.log_probability(9)
    with torch.no_grad(), m.record(z=True) as tape:
        m(input_ids=corrupt)
    whole = sweeps.effect(m, clean, metric, dict(site="head_out", layer=0, heads=[0], op="patch",
                                                 source=tape))
    heard = sweeps.path(m, clean, corrupt, metric, (0, 0), (1, 0))
    assert whole.mean < -3 and abs(heard.mean - whole.mean) < 0.1 * abs(whole.mean)
    assert abs(sweeps.path(m, clean, corrupt, metric, (0, 0), (1, 2)).mean) < 1e-4
    assert abs(sweeps.path(m, clean, clean, metric, (0, 0), (1, 0)).mean) < 1e-6
    assert "head 0.0 of the other text, heard by 1.0 alone" in str(heard)
    with pytest.raises(MiradaError, match="cannot hear"):
        sweeps.path(m, clean, corrupt, metric, (1, 0), (1, 1))


def test_the_heads_between_keep_what_they_brought(gpt):
    """Three layers: what would go round by layer 1 does not count; by hand."""
    clean, other = ids(), ids(seed=9)
    found = sweeps.path(gpt, clean, other, METRIC, (0, 1), (2, 3))
    tapes = []
    for text in (clean, other):
        with torch.no_grad(), gpt.record(z=True) as tape:
            gpt(input_ids=text)
        tapes.append(tape)
    changes = [dict(site="head_out", layer=0, heads=[1], op="patch", source=tapes[1]),
               dict(site="head_out", layer=1, op="patch", source=tapes[0])]
    with torch.no_grad(), gpt.intervene(changes), gpt.record(z=True) as tape:
        gpt(input_ids=clean)
    with torch.no_grad(), gpt.intervene(dict(site="head_out", layer=2, heads=[3], op="patch",
                                             source=tape)):
        after = METRIC(gpt(input_ids=clean))
    assert torch.equal(found.after, after) and (found.after != found.before).all()


def test_who_hears_of_a_change(gpt):
    heard = sweeps.downstream(gpt, ids(), [{"site": "head_out", "layer": 1, "heads": [2],
                                            "op": "zero"}])
    assert heard.shape == (3, 4)
    assert (heard[0] == 0).all() and (heard[2] > 0).all()
    assert heard[1, 2] == 1 and (heard[1, [0, 1, 3]] == 0).all()


def test_the_bootstrap_covers_a_known_mean():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(200, 40, generator=generator) + 3
    inside = [low <= 3 <= high for low, high in (sweeps.bootstrap(x, draws=400) for x in drawn)]
    assert 0.88 <= sum(inside) / len(inside) <= 0.98
    low, high = sweeps.bootstrap(torch.tensor([2.0]))
    assert low != low and high != high  # one text has no interval


def test_divergence_is_zero_of_itself(gpt):
    base = gpt(input_ids=ids()).logits.detach()
    metric = sweeps.divergence(base)
    found = sweeps.sweep(gpt, ids(), metric, op="zero")
    assert (found.base == 0).all() and (found.effects > 0).all()


def test_saved_as_figures_and_as_a_picture(gpt, tmp_path):
    found = sweeps.sweep(gpt, ids(), METRIC, layers=[0, 2])
    found.save(tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["layers"] == [0, 2]
    found.save(tmp_path / "s.svg")
    assert (tmp_path / "s.svg").read_text().count("<image") == 2  # the grid and its scale
    with pytest.raises(MiradaError, match="leave labels"):
        sweeps.sweep(gpt, {"input_ids": ids(), "labels": ids()}, METRIC)
    with pytest.raises(MiradaError, match="goes over"):
        sweeps.sweep(gpt, ids(), METRIC, site="edge")

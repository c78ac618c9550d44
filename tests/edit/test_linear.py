"""Linformer and Performer: what they compute, how near they come, and that models learn with them.
"""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

import mirada
from mirada.core.attend import Attend
from mirada.core.cache import KV
from mirada.core.mask import Mask
from mirada.edit import attention_pattern, linformer, performer
from mirada.edit.linear import SHARING, Linformer, Performer
from mirada.errors import MiradaError
from mirada.kernels.linear import FEATURES, before, draw, linear, positive

K = 16


def seeded(n=0):
    return torch.Generator().manual_seed(n)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def ids(rows=2, length=14, seed=1, low=3, high=500):
    return torch.randint(low, high, (rows, length), generator=seeded(seed))


def bert(**changes):
    return mirada.build("bert:tiny", architecture="BertForMaskedLM", seed=3, dtype=torch.float64,
                        **changes)


def gpt(**changes):
    return mirada.build("gpt2:tiny", seed=3, dtype=torch.float64, **changes)


def first(m):
    """The module that attends in the first layer."""
    return next(x for x in m.modules() if isinstance(x, Attend))


def states(m, **given):
    with torch.no_grad():
        return m(**given).logits


# Linformer


@pytest.mark.scope("1.16.4")
@pytest.mark.parametrize("sharing", SHARING)
def test_linformer_is_full_attention_where_nothing_is_mixed(sharing):
    """To the last bit; of shorter texts and beside pads, whose sums have another order, nearly."""
    m = bert(context=14)
    edited = linformer(m, 14, sharing=sharing)
    assert torch.equal(first(edited).e[0], torch.eye(14).double())
    assert torch.equal(states(edited, input_ids=ids()), states(m, input_ids=ids()))
    real = torch.ones(2, 14).bool()
    real[0, 9:] = False
    for given in ({"input_ids": ids(length=9)}, {"input_ids": ids(length=1)},
                  {"input_ids": ids(), "attention_mask": real},
                  {"input_ids": ids(), "attention_mask": real.flip(1)}):
        off = states(edited, **given) - states(m, **given)
        assert off[given.get("attention_mask", off[..., 0] == off[..., 0])].abs().max() < 1e-13


@pytest.mark.scope("1.16.4")
@pytest.mark.parametrize("heads", [1, 2])
def test_linformer_by_its_definition(heads):
    q, k, v = normal(2, 4, 7, K), normal(2, 2, 7, K, seed=1), normal(2, 2, 7, 5, seed=2)
    e, f = (torch.nn.Parameter(normal(heads, 3, 9, seed=n)) for n in (3, 4))
    got = Linformer(e, f)(q, KV(k, v), scale=0.25, mask=Mask())
    for b, h, t in itertools.product(range(2), range(4), range(7)):
        p = min(h // 2, heads - 1)  # two heads read each key
        keys, values = e[p, :, :7] @ k[b, h // 2], f[p, :, :7] @ v[b, h // 2]
        weights = (0.25 * keys @ q[b, h, t]).softmax(0)
        assert (got[b, h, t] - weights @ values).abs().max() < 1e-13


def test_pads_on_either_side_change_nothing_for_linformer():
    m = linformer(bert(), 4, length=20, start="normal", seed=1)
    text = ids(1, 9)
    alone, rows, real = states(m, input_ids=text)[0], [], []
    for left in (0, 2, 5):
        rows.append(F.pad(text, (left, 5 - left), value=7)[0])
        real.append(F.pad(torch.ones(9).long(), (left, 5 - left)))
    batch = states(m, input_ids=torch.stack(rows), attention_mask=torch.stack(real))
    for left, row in zip((0, 2, 5), batch, strict=True):
        assert (row[left : left + 9] - alone).abs().max() < 1e-12
    assert (states(bert(), input_ids=text)[0] - alone).abs().max() > 1e-3, "it is another model"
    nothing = first(m)(normal(1, 4, 2, K), KV(*[normal(1, 4, 2, K)] * 2), scale=1.0,
                       mask=Mask(padding=torch.zeros(1, 2).bool()))
    assert torch.equal(nothing, torch.zeros(1, 4, 2, K).double())


def test_what_linformer_shares():
    m = bert(layers=3)
    tokens, counts = m.context, {}
    for sharing in SHARING:
        edited = linformer(m, 4, sharing=sharing)
        new = set(edited.parameters()) - set(m.parameters())
        counts[sharing] = sum(p.numel() for p in new) / (4 * tokens)
        assert all(p.requires_grad for p in new)
        assert len(edited.state()) == len(m.state()) + len(new)
    assert counts == {"none": 3 * 2 * m.config.heads, "headwise": 6, "key-value": 3, "layerwise": 1}
    some = linformer(m, 4, layers=[-1])
    assert [type(b.attn.f.attend) for b in some.body.blocks] == [Attend, Attend, Linformer]
    drawn = [first(linformer(m, 64, start="normal", seed=n)).e for n in (0, 0, 1)]
    assert torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:])
    assert abs(drawn[0].var() * 64 - 1) < 0.1


def peak(attend: Attend, length: int, mask: Mask) -> int:
    """Most bytes that a call allocates at once, by the allocator's own record."""
    x = torch.zeros(1, 2, length, K)
    with torch.inference_mode(), profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        attend(x, KV(x, x), scale=1.0, mask=mask)
    steps = sorted((e.start_ns(), e.nbytes()) for e in found.profiler.kineto_results.events()
                   if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in steps))


@pytest.mark.scope("1.16.4")
def test_memory_grows_with_the_length_alone():
    both = {"exact": Attend(), "linformer": Linformer(*[torch.nn.Parameter(
        torch.zeros(1, 32, 2048))] * 2), "performer": Performer(torch.zeros(32, K), "positive")}
    with mirada.kernel("exact"):
        used = {name: [peak(a, n, Mask()) for n in (1024, 2048)] for name, a in both.items()}
    causal = [peak(both["performer"], n, Mask(causal=True)) for n in (1024, 2048)]
    assert 3.9 < used["exact"][1] / used["exact"][0] < 4.1
    for small, large in (used["linformer"], used["performer"], causal):
        assert large < 2.1 * small and large < used["exact"][1] / 4


# Performer


@pytest.mark.scope("1.16.5")
@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("kind", FEATURES)
def test_the_mean_of_many_draws_is_the_kernel(kind, orthogonal):
    q, k = normal(5, K, seed=1) * 0.25, normal(6, K, seed=2) * 0.25
    made = []
    for seed in range(400):
        w = draw(24, K, seeded(seed), orthogonal)
        made.append(FEATURES[kind](q, w) @ FEATURES[kind](k, w).T / 24)
    made = torch.stack(made)
    off = (made.mean(0) - (q @ k.T).exp()).abs() / (made.std(0) / 400**0.5)
    assert off.max() < 4 and made.std(0).min() > 1e-3


@pytest.mark.scope("1.16.5")
def test_features_are_orthogonal_within_blocks_and_as_long_as_others():
    w = draw(40, K, seeded(), True)
    for block in w.split(K):
        gram = block @ block.T
        assert (gram - gram.diag().diag()).abs().max() < 1e-12
    assert (w[:K] @ w[K : 2 * K].T).abs().max() > 1, "blocks are drawn apart"
    many = draw(4000, K, seeded(1), True)
    assert abs(many.square().sum(1).mean() - K) < 0.4 and many.mean(0).abs().max() < 0.06


def error(count: int, orthogonal: bool, kind="positive", size=0.4, seeds=12) -> float:
    """Mean difference of estimated attention from exact, over draws."""
    q, k, v = (normal(1, 2, 48, K, seed=n) * by for n, by in enumerate((size, size, 1)))
    exact = (q @ k.mT / 4).softmax(-1) @ v
    off = []
    for seed in range(seeds):
        attend = Performer(draw(count, K, seeded(seed), orthogonal), kind)
        off.append((attend(q, KV(k, v), scale=0.25, mask=Mask()) - exact).abs().mean())
    return torch.stack(off).mean().item()


@pytest.mark.scope("1.16.5")
def test_the_error_falls_with_the_features_and_further_where_they_are_orthogonal():
    counts = (16, 64, 256, 1024)
    for orthogonal in (True, False):
        found = [error(m, orthogonal) for m in counts]
        falls = [a / b for a, b in itertools.pairwise(found)]  # 2, as the root of the features
        assert all(1.6 < fall < 2.5 for fall in falls), found
    assert all(error(m, True) < 0.98 * error(m, False) for m in counts[:3])
    long = [error(64, True, kind, size=1.5) for kind in ("positive", "trigonometric")]
    assert long[0] < long[1] / 2, "where scores are large, sines of both signs are no estimate"


@pytest.mark.scope("1.16.5")
@pytest.mark.parametrize("T, past, chunk", [(1, 0, 4), (1, 7, 4), (3, 2, 4), (4, 0, 4), (13, 0, 4),
                                            (13, 5, 4), (8, 3, 128), (300, 0, 128)])
def test_chunked_sums_are_the_naive_ones(T, past, chunk):
    q, k = normal(2, 3, T, 6).exp(), normal(2, 3, past + T, 6, seed=1).exp()
    v = normal(2, 3, past + T, 5, seed=2)
    seen = torch.ones(T, past + T).tril(past).bool()
    naive = (q @ k.mT).masked_fill(~seen, 0) @ v
    assert ((before(q, k, v, chunk) - naive) / naive.abs().max()).abs().max() < 1e-14


@pytest.mark.scope("1.16.5")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_linear_attention_by_its_definition_with_gradients(causal, groups):
    real = torch.ones(2, 9).bool()
    real[0, 6:], real[1, :2] = False, False
    leaves = [normal(2, 4, 9, 6).exp(), normal(2, groups, 9, 6, seed=1).exp(),
              normal(2, groups, 9, 5, seed=2)]
    leaves = [x.requires_grad_() for x in leaves]
    q, k, v = (x.repeat_interleave(4 // x.shape[1], 1) for x in leaves)
    seen = real[:, None, None] & (torch.ones(9, 9).tril().bool() if causal else True)
    weights = (q @ k.mT).masked_fill(~seen, 0)
    wanted = weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    made = linear(*leaves, causal, real)
    assert (made - wanted).abs().max() < 1e-13
    grads = [torch.autograd.grad(x.square().sum(), leaves, retain_graph=True)
             for x in (made, wanted)]
    for mine, theirs in zip(*grads, strict=True):
        assert (mine - theirs).abs().max() < 1e-12
    assert not causal or (made[1, :, :2] == 0).all(), "who sees nothing gets zeros"


def test_no_later_key_changes_a_bit():
    attend = Performer(draw(32, K, seeded()).float(), "positive")
    q, k, v = (normal(1, 2, 200, K, seed=n).float() for n in range(3))
    outs = []
    for factor in (1.0, 30.0):
        k, v = k.clone(), v.clone()
        k[:, :, 150:], v[:, :, 150:] = k[:, :, 150:] * factor, v[:, :, 150:] - factor
        outs.append(attend(q, KV(k, v), scale=0.25, mask=Mask(causal=True)))
    assert torch.equal(outs[0][:, :, :150], outs[1][:, :, :150])
    assert (outs[0] - outs[1])[:, :, 150:].abs().max() > 0.1


@pytest.mark.parametrize("size", [0.0, 1.0, 20.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_keys_of_any_length_leave_a_mean_of_the_values(dtype, size):
    q, k, v = (normal(1, 2, 30, K, seed=n).to(dtype) for n in range(3))
    for kind in FEATURES if size <= 1 else ["positive"]:
        attend = Performer(draw(64, K, seeded()).to(dtype), kind)
        for causal in (False, True):
            out = attend(q * size, KV(k * size, v), scale=0.25, mask=Mask(causal=causal))
            assert torch.isfinite(out).all() and out.dtype == dtype
            assert kind != "positive" or out.abs().max() <= v.abs().max() * 1.01


def test_autocast_rounds_no_exponent():
    x, attend = normal(1, 2, 9, K).float() * 4, Performer(draw(64, K, seeded()).float(), "positive")
    call = dict(scale=0.25, mask=Mask(causal=True))
    with torch.autocast("cpu", torch.bfloat16):
        inside = attend(x, KV(x, x), **call)
    assert torch.equal(inside, attend(x, KV(x, x), **call))


def test_features_of_keys_are_apart_from_the_others_and_those_of_queries_scaled():
    x, w = normal(7, K), draw(20, K, seeded())
    keys, queries = positive(x, w), positive(x, w, query=True)
    assert (positive(x[2:3], w) - keys[2:3]).abs().max() < 1e-13
    assert (keys.log() - (x @ w.T - x.square().sum(1, keepdim=True) / 2)).abs().max() < 1e-12
    assert (queries.amax(1) == 1).all()
    assert (queries / keys / (queries / keys)[:, :1] - 1).abs().max() < 1e-12


@pytest.mark.parametrize("build", [bert, gpt])
def test_a_model_with_many_features_is_the_model(build):
    m, off = build(), []
    with torch.no_grad():
        wanted = m(input_ids=ids()).logits
        for count in (8, 128, 2048):
            found = [performer(m, count, seed=n)(input_ids=ids()).logits for n in range(3)]
            off.append(sum((x - wanted).abs().mean().item() for x in found))
    assert off[0] > 2 * off[1] > 4 * off[2] > 0


def test_performer_writes_with_a_cache_and_beside_pads():
    m = performer(gpt(), 32)
    whole, cache, parts = m(input_ids=ids()).logits, m.new_cache(), []
    for a, b in ((0, 4), (4, 5), (5, 14)):
        parts.append(m(input_ids=ids()[:, a:b], cache=cache).logits)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-10
    padded = dict(input_ids=F.pad(ids(), (3, 0)), attention_mask=F.pad(torch.ones(2, 14), (3, 0)))
    assert (m(**padded).logits[:, 3:] - whole).abs().max() < 1e-10
    written = m.generate(ids(length=5), max_new_tokens=6)
    for n in range(5, 11):
        with torch.no_grad():
            assert torch.equal(m(input_ids=written[:, :n]).logits[:, -1].argmax(-1), written[:, n])
    with pytest.raises(MiradaError, match="cannot have a cache with gaps"):
        m(input_ids=ids(), cache=m.new_cache("static", size=20))
    assert "Performer has no native operator" in m.float().path()


def test_another_seed_draws_anew_and_the_weights_go_on():
    m = gpt()
    a, same, b = (performer(m, 32, seed=n) for n in (1, 1, 2))
    again = performer(a, 32, seed=2)
    outs = [x(input_ids=ids()).logits for x in (a, same, b, again)]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[2], outs[3])
    assert not torch.equal(outs[0], outs[2])
    assert {id(p) for p in again.parameters()} == {id(p) for p in m.parameters()}
    layers = [x.w for x in a.modules() if isinstance(x, Performer)]
    assert len(layers) == 2 and not torch.equal(*layers), "each layer draws its own"
    assert len(first(performer(m)).w) == 44, "16 ln 16"


# Both, as edits


def edits():
    return {"linformer": lambda m, **more: linformer(m, 6, length=20, start="normal", **more),
            "performer": lambda m, **more: performer(m, 24, **more)}


@pytest.mark.parametrize("which", edits())
def test_what_is_shown_is_what_ran(which):
    """Neither has a matrix: entry (i, j) is the factor with which value j entered output i."""
    m = edits()[which](bert())
    real = torch.ones(2, 14).long()
    real[1, 10:] = 0
    with m.record(v=True, z=True) as tape, torch.no_grad():
        m(input_ids=ids(), attention_mask=real)
    pattern = tape.pattern(1)
    assert (pattern @ tape.values(1) - tape.z(1).transpose(1, 2)).abs().max() < 1e-12
    assert (pattern[1, :, :, 10:] == 0).all() and (pattern[0] != 0).all()
    call = dict(scale=0.25, mask=Mask())
    x = normal(1, 4, 5, K)
    assert torch.equal(m.body.blocks[0].attn.f.attend(x, KV(x, x), **call),
                       m.body.blocks[0].attn.f.attend(x, KV(x, x), **call))


@pytest.mark.parametrize("which", edits())
def test_an_edit_leaves_the_model_as_it_was_and_is_not_saved(which, tmp_path):
    m = bert()
    before_ = states(m, input_ids=ids())
    edited = edits()[which](m)
    assert torch.equal(states(m, input_ids=ids()), before_)
    ours = dict(edited.named_parameters())
    assert all(ours[n] is p for n, p in m.named_parameters())
    assert not torch.equal(states(edited, input_ids=ids()), before_)
    with pytest.raises(MiradaError, match="its attention was made .*former's.*no file can say so"):
        mirada.save(edited, tmp_path / "m")
    assert not any(tmp_path.iterdir())
    assert f"edited: its attention was made {which.title()}'s: " in str(mirada.describe(edited))
    meta = edits()[which](mirada.build("bert:tiny", device="meta"))
    assert {t.device.type for t in meta.state().values()} == {"meta"}


@pytest.mark.parametrize("which", edits())
def test_adapters_stand_on_either(which):
    edited, batch = edits()[which](bert()), ids()
    adapted = mirada.edit.lora(edited, rank=2)
    assert adapted.adapters.names == ["default"]
    assert torch.equal(states(adapted, input_ids=batch), states(edited, input_ids=batch))


@pytest.mark.parametrize("family", ["albert", "bart", "distilbert", "esm", "pegasus", "vit"])
def test_families_that_look_both_ways_take_either(family):
    m = mirada.build(family, "tiny", seed=0)
    given = {"input_ids": ids(1, high=30)}
    if m.encoder_decoder:
        given["decoder_input_ids"] = ids(1, 9, high=30)
    elif m.kind == "vision":
        given = {"pixel_values": torch.randn(1, 3, *m.body.embed.image)}
    for which, edit in edits().items():
        edited = edit(m)
        kinds = [type(a) for a in edited.modules() if isinstance(a, Attend)]
        kept = {("linformer", True): 4, ("performer", True): 2}.get((which, m.encoder_decoder), 0)
        assert kinds.count(Attend) == kept, "decoders look back only; cross-attention stays"
        with torch.no_grad():
            outs = [next(iter(x(**given).values())) for x in (m, edited)]
        assert torch.isfinite(outs[1]).all() and not torch.equal(*outs)


def test_a_swapped_model_writes_as_it_did_where_it_is_a_llama():
    m = mirada.build("llama:tiny", seed=0, dtype=torch.float64)
    with torch.no_grad():
        a, b = (x(input_ids=ids()).logits for x in (m, performer(m, 4096)))
    assert 0 < (a - b).abs().mean() < 0.1 * a.std(), "grouped heads and rotation"


@pytest.mark.parametrize("make, says", [
    (lambda: linformer(gpt(), 4), "it cannot look back only: its attention must go both ways"),
    (lambda: linformer(mirada.build("t5:tiny"), 4, length=9), "cannot have a bias of each pair"),
    (lambda: performer(mirada.build("bloom:tiny"), 4), "cannot have a bias of each pair"),
    (lambda: performer(mirada.build("gemma2:tiny"), 4), "Performer's.* cannot have a soft cap"),
    (lambda: performer(mirada.build("gptneo:tiny"), 4), "cannot have a window"),
    (lambda: linformer(attention_pattern(bert(), "strided", stride=3), 4), "have a pattern"),
    (lambda: linformer(mirada.build("vit:tiny"), 4), "no longest context: give length="),
    (lambda: linformer(bert(), 0), "k is 0 and length 128: whole numbers, k from 1 to length"),
    (lambda: linformer(bert(), 9, length=8), "k is 9 and length 8"),
    (lambda: linformer(bert(), 4, sharing="all"), "sharing is 'all'; it is none, headwise"),
    (lambda: linformer(bert(), 4, start="zero"), "start is 'zero'; it is mean, normal"),
    (lambda: performer(gpt(), 0), "features is 0: it must be a whole number from 1"),
    (lambda: performer(gpt(), 4, kind="relu"), "kind is 'relu'; it is positive, trigonometric"),
    (lambda: performer(gpt(), 4, layers=[2]), "layer 2 does not exist"),
    (lambda: states(linformer(bert(), 4, length=9), input_ids=ids()),
     "for 9 tokens, and there are 14: edit.linformer takes length=14"),
    (lambda: performer(gpt(), 4)(input_ids=ids(), segment_ids=ids()), "cannot have packed texts"),
    (lambda: first(linformer(bert(), 4))(normal(1, 4, 3, K), KV(*[normal(1, 4, 3, K)] * 2),
                                         scale=1.0, mask=Mask(causal=True)), "look back only"),
])
def test_what_cannot_be_is_said(make, says):
    with pytest.raises(MiradaError, match=says):
        make()


# Learning


def repeated(rows: int, generator) -> dict:
    """Six tokens, and the same again with holes, to be filled from the first six."""
    half = torch.randint(4, 14, (rows, 6), generator=generator)
    text = torch.cat([half, half], 1)
    holes = torch.rand(rows, 12, generator=generator) < 0.5
    holes[:, :6] = False
    return {"input_ids": text.masked_fill(holes, 3), "labels": text.masked_fill(~holes, -100)}


def right(m, batch: dict) -> float:
    """The share of holes filled as they should be."""
    asked = batch["labels"] >= 0
    found = states(m.eval(), input_ids=batch["input_ids"]).argmax(-1)
    return (found == batch["labels"])[asked].float().mean().item()


def learn(m, steps: int, generator) -> None:
    optimizer = torch.optim.AdamW(m.train().parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        loss = m(**repeated(32, generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.scope("1.16.4", "1.16.5")
def test_a_model_that_learned_with_full_attention_recovers_with_either():
    generator, held = seeded(0), repeated(64, seeded(99))
    m = mirada.build("bert:tiny", architecture="BertForMaskedLM", seed=0, vocab=14, layers=1,
                     context=12, d=32, heads=2, hidden=32)
    learn(m, 120, generator)
    assert right(m, held) > 0.95
    for edit in (lambda m: linformer(m, 6), lambda m: performer(m, 16)):
        edited = edit(copy.deepcopy(m))
        assert right(edited, held) < 0.5, "what full attention had learned is not yet there"
        e = [p.clone() for n, p in edited.named_parameters() if ".attend." in n]
        learn(edited, 120, generator)
        assert right(edited, held) > 0.7
        moved = [p for n, p in edited.named_parameters() if ".attend." in n]
        assert not any(torch.equal(*both) for both in zip(e, moved, strict=True))

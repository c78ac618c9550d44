"""Attention patterns: what each allows, in every family's real passes, and what is said of it."""


import itertools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import mirada
from core.plain import visible
from mirada.core.attend import KERNELS, Call
from mirada.core.cache import KV
from mirada.core.mask import Mask
from mirada.edit import attention_pattern, pattern
from mirada.errors import MiradaError
from mirada.look import sites

KINDS = {"dense": {}, "local": {"window": 3}, "strided": {"stride": 4},
         "fixed": {"stride": 4, "summary": 2}, "random": {"share": 0.3, "seed": 5}}


def gpt(**changes):
    return mirada.build("gpt2:tiny", seed=3, dtype=torch.float64, **changes)


def ids(length=14, rows=2, vocab=500):
    return torch.randint(3, vocab, (rows, length), generator=torch.Generator().manual_seed(1))


def inputs(m, length=14):
    given = {}
    for e in (stack.embed for stack in sites.stacks(m).values() if hasattr(stack.embed, "image")):
        given["pixel_values"] = torch.randn(1, e.project.in_channels, *e.image)
    if m.kind == "vision":
        return given
    vocab = min(m.config.vocab, 500)
    given["input_ids"] = ids(length, 1, vocab)
    if m.family.startswith("clip"):
        given["input_ids"][:, 5] = m.config.eos
    return given | ({"decoder_input_ids": ids(9, 1, vocab)} if m.encoder_decoder else {})


@pytest.mark.scope("1.1.10")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_by_its_definition(kind):
    mask = pattern(kind, causal=True, **KINDS[kind])
    assert torch.equal(mask.rows(0, 12, 12, 12), visible(mask, 1, 12, 12))
    grid = mask.rows(0, 12, 12, 12)[0, 0]
    by_hand = {"dense": lambda q, k: True, "local": lambda q, k: q - k < 3,
               "strided": lambda q, k: q - k < 4 or (q - k) % 4 == 0,
               "fixed": lambda q, k: q // 4 == k // 4 or k % 4 in (2, 3)}
    for q in range(12):
        assert grid[q, q] and not grid[q, q + 1 :].any()
        for k in range(q + 1 if kind in by_hand else 0):
            assert grid[q, k] == by_hand[kind](q, k)


@pytest.mark.scope("1.1.10")
@pytest.mark.parametrize("family", mirada.families())
def test_every_family_takes_a_pattern(family):
    """Self-attention of every stack weighs the pairs of the pattern and no other."""
    size = "tiny" if "tiny" in mirada.sizes(family) else mirada.sizes(family)[0]
    m = mirada.build(family, size, seed=0)
    mask = pattern("strided", stride=4)
    edited = attention_pattern(m, "strided", stride=4)
    with edited.record() as tape, torch.no_grad():
        edited(**inputs(m))
    stacks = [stack for stack in tape.stacks if stack != "cross"]
    assert stacks
    for stack in stacks:
        weights = tape.pattern(0, stack=stack)[0]  # (H, T, T)
        T = weights.shape[1]
        seen = mask.rows(0, T, T, T)[0, 0]
        causal = weights[:, torch.triu(torch.ones(T, T), 1).bool()].abs().max() == 0
        seen = seen.tril() if causal else seen
        assert (weights[:, ~seen] == 0).all() and (weights[:, seen] > 0).all()
    assert "Strided(stride=4)" in str(mirada.describe(edited))
    assert "Strided" not in str(mirada.describe(m))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_is_the_same_with_a_cache(kind):
    m = attention_pattern(gpt(), kind, **KINDS[kind])
    whole, cache, parts = m(input_ids=ids()).logits, m.new_cache(), []
    for a, b in ((0, 4), (4, 5), (5, 14)):
        parts.append(m(input_ids=ids()[:, a:b], cache=cache).logits)
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-10
    assert (whole - gpt()(input_ids=ids()).logits).abs().max() > 1e-3 or kind == "dense"


def test_what_a_pattern_hides_cannot_be_known():
    m = attention_pattern(gpt(layers=1), "local", window=3)
    a, b = ids(), ids()
    b[:, 2] += 1
    change = (m(input_ids=a).logits - m(input_ids=b).logits).abs().amax((0, 2))
    assert (change[[0, 1, *range(5, 14)]] == 0).all() and (change[2:5] > 1e-6).all()


def test_chosen_layers_and_directions():
    m = gpt(layers=3)
    some = attention_pattern(m, "strided", layers=[0, -1], stride=4)
    assert [len(b.attn.f.mask.patterns) for b in some.body.blocks] == [1, 0, 1]
    assert all(b.attn.f.mask.causal for b in some.body.blocks)
    both = attention_pattern(m, "dense", causal=False)
    changed = ids()
    changed[:, -1] += 1
    first = [x(input_ids=i).logits[:, 0] for x in (m, both) for i in (ids(), changed)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[2], first[3])
    again = attention_pattern(attention_pattern(m, "local", window=2), "dense")
    assert torch.equal(again(input_ids=ids()).logits, m(input_ids=ids()).logits)
    windowed = attention_pattern(mirada.build("gptneo:tiny", seed=0, window=2), "dense")
    assert {b.attn.f.mask.window for b in windowed.body.blocks} == {None}


def test_an_edit_leaves_the_model_as_it_was_and_shares_its_tensors(tmp_path):
    m = gpt()
    before = m(input_ids=ids()).logits
    edited = attention_pattern(m, "random", share=0.5)
    assert torch.equal(m(input_ids=ids()).logits, before)
    ours, theirs = dict(m.named_parameters()), dict(edited.named_parameters())
    assert ours.keys() == theirs.keys() and all(ours[n] is theirs[n] for n in ours)
    assert edited.head.out.weight is edited.body.embed.token.weight
    with pytest.raises(MiradaError, match="pattern was made random share=0.5: no file can say so"):
        mirada.save(edited, tmp_path / "m")
    assert not any(tmp_path.iterdir())
    mirada.save(m, tmp_path / "m")
    assert "edited: its attention pattern was made random share=0.5" in str(mirada.describe(edited))
    assert not mirada.verify(edited).ok, "it is no longer what its config says"


@pytest.mark.parametrize("kind, sizes, says", [
    ("ring", {}, "no attention pattern is called 'ring'; there are dense, local"),
    ("local", {}, "a local pattern takes window=, and was given none"),
    ("strided", {"window": 3}, "takes stride=, and was given window"),
    ("dense", {"stride": 3}, "takes no size"),
    ("strided", {"stride": 0}, "stride is 0: it must be a whole number from 1"),
    ("strided", {"stride": 2.5}, "must be a whole number"),
    ("random", {"share": 1.5}, "share is 1.5: it must be above 0"),
    ("random", {"share": "half"}, "must be above 0"),
    ("random", {"share": 0.5, "seed": -1}, "seed is -1"),
    ("fixed", {"stride": 2, "summary": 3}, "a block of 2 keys has no 3 last ones"),
])
def test_what_cannot_be_is_said(kind, sizes, says):
    with pytest.raises(MiradaError, match=says):
        attention_pattern(gpt(), kind, **sizes)


def test_layers_must_exist():
    with pytest.raises(MiradaError, match="layer 2 does not exist: there are 2"):
        attention_pattern(gpt(), "dense", layers=[2])


@pytest.mark.scope("1.1.10")
def test_masks_are_shown(tmp_path):
    found = mirada.look.sees({"local": pattern("local", window=2, causal=True), "all": Mask()}, 3)
    assert str(found).splitlines() == ["local: 56% of all pairs", "■ · ·", "■ ■ ·", "· ■ ■", "",
                                       "all: 100% of all pairs", *["■ ■ ■"] * 3]
    assert found.data()["local"] == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert (tmp_path / "m.png").samefile(found.save(tmp_path / "m.png"))


def peak(kernel: str, call: Call) -> int:
    """Most bytes held at once of what the kernel allocates, by the allocator's own record."""
    with torch.inference_mode(), profile(
            activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        KERNELS[kernel].run(call)
    steps = sorted((e.start_ns(), e.nbytes()) for e in found.profiler.kineto_results.events()
                   if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in steps))


@pytest.mark.scope("1.16.1")
@pytest.mark.parametrize("kind, sizes", [("strided", {"stride": 64}), ("fixed", {"stride": 64})])
def test_measured_memory_is_lower(kind, sizes):
    q = torch.randn(1, 4, 4096, 32)
    mask = pattern(kind, causal=True, **sizes)
    used = {name: peak(name, Call(q, KV(q, q), 32**-0.5, mask)) for name in ("sparse", "sdpa")}
    assert used["sdpa"] > 4096 * 4096, "dense attention holds the mask at the least"
    assert used["sparse"] < 0.5 * used["sdpa"], used

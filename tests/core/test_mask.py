"""Masks: each field against its definition, in every form in which a kernel may read it."""

import dataclasses

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.masking_utils import create_causal_mask

from core.plain import visible
from mirada.core.mask import Blocked, Mask, Random, Strided

T, S, B = 5, 5, 2
PADDING = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]).bool()
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
OTHER = torch.tensor([[0, 1, 1, 1, 1], [0, 0, 0, 2, 2]])

MASKS = {
    "all": Mask(),
    "causal": Mask(causal=True),
    "window back": Mask(causal=True, window=2),
    "window both ways": Mask(window=3),
    "window but for some": Mask(window=2, everywhere=DOCUMENTS == 2),
    "prefix": Mask(causal=True, prefix=3),
    "prefix a row": Mask(causal=True, prefix=torch.tensor([1, 4])),
    "prefix alone": Mask(prefix=2),
    "padding": Mask(padding=PADDING),
    "causal padding": Mask(causal=True, padding=PADDING),
    "segments": Mask(segments=((DOCUMENTS, DOCUMENTS),)),
    "two segments": Mask(causal=True, segments=((DOCUMENTS, DOCUMENTS), (OTHER, DOCUMENTS))),
    "start": Mask(causal=True, start=2),
    "start a row": Mask(causal=True, window=3, start=torch.tensor([0, 3])),
    "slots": Mask(causal=True, start=6, slots=torch.tensor([4, 5, 6, 7, 8])),
    "slots a row": Mask(causal=True, start=torch.tensor([1, 2]),
                        slots=torch.tensor([[0, 1, 2, -1, -1], [3, 0, -1, 2, 1]])),
    "slots alone": Mask(slots=torch.tensor([0, -1, 1, 2, -1])),
    "strided": Mask(causal=True, patterns=(Strided(2),)),
    "strided both ways": Mask(patterns=(Strided(2),), start=1),
    "blocks": Mask(causal=True, patterns=(Blocked(2),)),
    "blocks both ways": Mask(patterns=(Blocked(3, 2),)),
    "random": Mask(causal=True, patterns=(Random(0.4),)),
    "random in slots": Mask(patterns=(Random(0.4, seed=5),), start=torch.tensor([1, 2]),
                            slots=torch.tensor([[0, 1, 2, -1, -1], [3, 0, -1, 2, 1]])),
}


@pytest.mark.parametrize("name", MASKS)
def test_each_field_by_its_definition(name):
    mask = MASKS[name]
    wanted = visible(mask, B, T, S)
    dense = mask.dense(T, S)
    got = torch.ones(B, 1, T, S).bool() if dense is None else dense.expand(B, 1, T, S)
    assert torch.equal(got, wanted)
    assert mask.rows(0, T, T, S).dtype == torch.bool
    for r0, r1 in [(0, 1), (1, 4), (4, 5), (0, 5)]:
        block = mask.rows(r0, r1, T, S)
        assert block.shape[1:] == (1, r1 - r0, S)
        assert torch.equal(block.expand(B, -1, -1, -1), wanted[:, :, r0:r1])


PLAIN = [name for name, mask in MASKS.items() if mask.prefix is None and mask.everywhere is None]


@pytest.mark.parametrize("other", PLAIN)
@pytest.mark.parametrize("name", PLAIN)
def test_and_allows_what_both_allow(name, other):
    left = MASKS[name]
    right = dataclasses.replace(MASKS[other], start=left.start, slots=left.slots)
    both = left & MASKS[other]  # the left's geometry goes for both
    wanted = visible(left, B, T, S) & visible(right, B, T, S)
    assert torch.equal(both.rows(0, T, T, S).expand(B, 1, T, S), wanted)
    assert both.memo is left.memo and both.start is left.start and both.slots is left.slots


def test_and_takes_the_prefix_and_the_padding_of_either_side():
    prefix = torch.tensor([1, 2])
    one = Mask(causal=True, prefix=prefix)
    for both in (one & Mask(), Mask() & one, one & Mask(prefix=prefix)):
        assert both.prefix is prefix and both.causal
    some = Mask(window=2, everywhere=PADDING)
    assert (some & Mask()).everywhere is (Mask() & some).everywhere is PADDING
    with pytest.raises(ValueError, match="both set prefix"):
        Mask(prefix=prefix) & Mask(prefix=prefix.clone())
    assert (Mask(padding=PADDING) & Mask()).padding is PADDING
    assert (Mask() & Mask(padding=PADDING)).padding is PADDING
    assert (Mask(window=4) & Mask(window=2)).window == 2
    assert (Mask(window=4) & Mask()).window == (Mask() & Mask(window=4)).window == 4


@st.composite
def masks(draw):
    """A mask of random fields, with B, T, S."""
    T, S, B = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 2))

    def rows(low, high, width):
        row = st.lists(st.integers(low, high), min_size=width, max_size=width)
        return torch.tensor(draw(st.lists(row, min_size=B, max_size=B)))

    start = draw(st.one_of(st.integers(0, 6), st.just("rows")))
    slots = draw(st.sampled_from([None, None, None, "one", "rows"]))
    if start == "rows":
        start = rows(0, 6, 1)[:, 0]
    if slots == "one":
        slots = rows(-1, 8, S)[0]
    elif slots == "rows":
        slots = rows(-1, 8, S)
    padding = rows(0, 1, S).bool() if draw(st.integers(0, 3)) == 0 else None
    everywhere = rows(0, 1, S).bool() if draw(st.integers(0, 3)) == 0 else None
    pair = ((rows(0, 1, T), rows(0, 1, S)),) if draw(st.integers(0, 3)) == 0 else ()
    mask = Mask(causal=draw(st.booleans()), window=draw(st.one_of(st.none(), st.integers(1, 7))),
                prefix=draw(st.one_of(st.none(), st.integers(0, 6))), everywhere=everywhere,
                padding=padding, segments=pair, start=start, slots=slots)
    return mask, B, T, S


@settings(max_examples=400)
@given(masks())
def test_what_is_said_of_a_mask_is_true(drawn):
    mask, B, T, S = drawn
    wanted = visible(mask, B, T, S)
    if mask.trivial(T, S):
        assert wanted.all() and mask.dense(T, S) is None
    else:
        assert torch.equal(mask.dense(T, S).expand(B, 1, T, S), wanted)
    triangle = torch.ones(T, S).tril().bool()
    if mask.only_causal(T, S):
        assert T == S and (wanted == triangle).all()


def test_the_short_cuts_are_taken_where_they_should_be():
    assert Mask().trivial(4, 9) and Mask(start=torch.tensor([0, 2])).trivial(4, 9)
    assert Mask(causal=True, start=8).trivial(1, 9)  # a decoding step sees its whole past
    assert Mask(causal=True, start=8, window=9).trivial(1, 9)
    assert Mask(window=9).trivial(9, 9)
    assert Mask(causal=True).only_causal(6, 6) and Mask(causal=True, window=6).only_causal(6, 6)
    for mask in (Mask(causal=True, start=8, window=8), Mask(causal=True, start=7),
                 Mask(causal=True), Mask(causal=True, start=torch.tensor([8])),
                 Mask(padding=torch.ones(1, 9).bool()), Mask(patterns=(Strided(9),))):
        assert not mask.trivial(1, 9)
    assert not Mask(causal=True, start=8).trivial(2, 9)
    for mask in (Mask(), Mask(causal=True, start=1), Mask(causal=True, window=5),
                 Mask(causal=True, start=torch.tensor([0])), Mask(causal=True, prefix=2),
                 Mask(causal=True, padding=torch.ones(1, 6).bool()),
                 Mask(causal=True, slots=torch.arange(6)),
                 Mask(causal=True, patterns=(Strided(9),)),
                 Mask(causal=True, segments=((torch.zeros(1, 6), torch.zeros(1, 6)),))):
        assert not mask.only_causal(6, 6)
    assert not Mask(causal=True).only_causal(5, 6)


def test_a_mask_is_made_dense_once_a_pass(monkeypatch):
    made = []
    rows = Mask.rows
    monkeypatch.setattr(Mask, "rows", lambda self, *a: made.append(self) or rows(self, *a))
    shared = Mask(padding=PADDING)
    own = [Mask(causal=True), Mask(causal=True, window=2)]
    first = [(shared & own[n % 2]).dense(T, S) for n in range(6)]
    assert len(made) == 2, "six layers of two kinds build two masks"
    assert first[0] is first[2] and first[1] is first[3] and not torch.equal(first[0], first[1])
    (Mask(padding=PADDING) & own[0]).dense(T, S)
    assert len(made) == 3, "another pass builds its own"
    changed = [dict(start=1), dict(slots=torch.arange(S)), dict(prefix=torch.tensor([1, 2])),
               dict(segments=((DOCUMENTS, DOCUMENTS),)), dict(padding=~PADDING), dict(causal=False),
               dict(window=3), dict(window=3, everywhere=PADDING),
               dict(patterns=(Strided(2),))]
    for n, change in enumerate(changed):
        mask = dataclasses.replace(shared & own[0], **change)
        assert torch.equal(mask.dense(T, S).expand(B, -1, -1, -1), visible(mask, B, T, S))
        assert len(made) == 4 + n, change
    assert (shared & own[0]).dense(T - 1, S).shape[2] == T - 1


def test_a_mask_reads_as_its_fields():
    assert "memo" not in repr(Mask(causal=True)) and "causal=True" in repr(Mask(causal=True))


def test_the_memo_outlives_no_identity():
    # ids of dead tensors are used again: what a key names must stay alive as long as the key
    mask = Mask(causal=True)
    for n in range(50):
        padding = torch.rand(2, 6) < 0.5
        one = mask & Mask(padding=padding)
        assert torch.equal(one.dense(6, 6).expand(2, -1, -1, -1), visible(one, 2, 6, 6)), n
        del padding, one


@pytest.mark.scope("1.1.5")
def test_the_guides_picture_and_the_reference_s():
    dense = Mask(causal=True).dense(3, 3)[0, 0]
    picture = torch.zeros(3, 3).masked_fill(~dense, float("-inf"))
    never = float("-inf")
    assert picture.tolist() == [[0, never, never], [0, 0, never], [0, 0, 0]]
    config = transformers.GPT2Config()
    config._attn_implementation = "eager"
    theirs = create_causal_mask(config, torch.zeros(B, T, 8), PADDING.long(), None)
    ours = Mask(causal=True, padding=PADDING).dense(T, T)
    real = torch.ones(B, 1, T, T).bool()
    real[1, :, 0] = False  # the reference lets a query that sees nothing see everything
    assert torch.equal((theirs == 0)[real], ours[real]) and not ours[~real].any()


def test_a_random_pattern_is_the_same_in_parts_and_as_dense_as_it_says():
    whole = Mask(patterns=(Random(0.2, seed=3),)).dense(256, 256)[0, 0]
    longer = Mask(patterns=(Random(0.2, seed=3),), start=7).rows(3, 5, 9, 300)[0, 0]
    assert torch.equal(longer[:, :256], whole[10:12])
    assert whole.diagonal().all() and not torch.equal(whole, whole.T)
    off = whole.float() - torch.eye(256)
    assert off.mean().item() == pytest.approx(0.2, abs=0.01)
    for lines in (off.sum(0), off.sum(1)):  # 51 of 256 each, give or take a binomial's 6.4
        assert 5.5 < lines.std() < 7.3
    other = Mask(patterns=(Random(0.2, seed=4),)).dense(256, 256)[0, 0].float() - torch.eye(256)
    assert (off * other).mean().item() == pytest.approx(0.04, abs=0.006), "seeds are independent"

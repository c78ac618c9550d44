"""The row language: every operation undone by its inverse, every name used exactly once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as s

from mirada.errors import MiradaError
from mirada.weights.rows import (
    SAME,
    TRANSPOSED,
    Behind,
    Interleaved,
    RotaryPairs,
    Split,
    Stacked,
    Weights,
)

SMALL = s.integers(1, 5)


def there_and_back(op, theirs: list[torch.Tensor]) -> list[torch.Tensor]:
    ours = op.load(theirs)
    back = op.save(ours)
    assert len(back) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(theirs, back, strict=True))
    return ours


@given(SMALL, SMALL, SMALL, SMALL, s.booleans())
def test_operations_are_inverses(heads, width, columns, parts, biases):
    rows = heads * 2 * width
    tail = () if biases else (columns,)

    def made(n):
        return torch.arange(n * (1 if biases else columns)).reshape(n, *tail).float()

    there_and_back(SAME, [made(rows), made(3)])
    assert there_and_back(TRANSPOSED, [made(rows)])[0].shape == (*tail, rows)
    assert len(there_and_back(Split(parts), [made(parts * width)])) == parts
    assert len(there_and_back(Stacked(), [made(parts)[:, None]])) == parts
    assert len(there_and_back(Behind(width), [made(rows)])[0]) == width + rows
    sizes = (width, heads, 1)
    cut = there_and_back(Split(3, sizes), [made(sum(sizes))])
    assert [len(t) for t in cut] == list(sizes)
    there_and_back(RotaryPairs(heads), [made(rows)])
    parts = there_and_back(Interleaved(heads, 3), [made(3 * rows)])
    assert torch.equal(parts[0][: 2 * width], made(3 * rows)[: 2 * width])
    assert torch.equal(parts[1][: 2 * width], made(3 * rows)[2 * width : 4 * width])


def test_a_split_of_a_transposed_matrix():
    whole = torch.arange(24.0).reshape(4, 6)  # [in, out]: q, k, v side by side
    q, k, v = there_and_back(Split(3, transposed=True), [whole])
    assert torch.equal(k, whole[:, 2:4].T) and q.shape == v.shape == (2, 4)
    there_and_back(Split(3, transposed=True), [torch.arange(6.0)])


def test_rotary_pairs_go_from_neighbours_to_halves():
    got = RotaryPairs(2).load([torch.arange(8)])[0]
    assert got.tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


ROWS = [
    ("net.table.weight", "embed.weight"),
    ("net.layer.{i}.qkv.{p}", "blocks.{i}.(q|k|v).{p}", Split(3)),
    ("net.layer.{i}.norm.{p}", "blocks.{i}.norm.{p}"),
    ("lm.weight", "head.out.weight"),
]
OURS = ["embed.weight", *(f"blocks.{n}.{x}.{p}" for n in range(2) for x in ("q", "k", "v", "norm")
                          for p in ("weight", "bias")), "head.out.weight"]
PATHS = {p: p for p in OURS}
FILES = ["net.table.weight", *(f"net.layer.{n}.{x}.{p}" for n in range(2) for x in ("qkv", "norm")
                               for p in ("weight", "bias")), "lm.weight"]


def weights(**more) -> Weights:
    return Weights(ROWS, prefix="net.", **more)


def test_each_name_once_on_both_sides():
    plan = weights().plan(PATHS, FILES)
    assert sorted(f for step in plan.steps for f in step.files) == sorted(FILES)
    assert sorted(o for step in plan.steps for o in step.ours) == sorted(OURS)
    assert not (plan.bare or plan.duplicates or plan.derived or plan.carried)
    bare = weights().plan(PATHS, [n.removeprefix("net.") for n in FILES])
    assert bare.bare and len(bare.steps) == len(plan.steps)


def test_all_missing_and_unused_names_are_said():
    present = [n for n in FILES if "layer.1" not in n] + ["net.layer.7.norm.bias", "other"]
    with pytest.raises(MiradaError) as caught:
        weights().plan(PATHS, present, where="the file")
    said = str(caught.value)
    assert said.startswith("the file lacks 4 tensors") and "has 2 tensors" in said
    assert all(repr(n) in said for n in FILES if "layer.1" in n)
    assert "'net.layer.7.norm.bias', 'other'" in said
    many = [f"x{n}" for n in range(50)]
    with pytest.raises(MiradaError, match="has 50 tensors.* and 42 more"):
        weights().plan(PATHS, FILES + many)
    weights().plan(PATHS, FILES + many, ignore=[r"^x\d+$"])


def test_carried_and_derived_are_told_apart():
    more = weights(carried=("net.old.{p}",), derived={"net.ids": lambda name: torch.arange(3)})
    plan = more.plan(PATHS, [*FILES, "net.old.a", "net.ids"])
    assert plan.carried == ["net.old.a"] and plan.derived == ["net.ids"]
    assert more.derive("net.ids", False).tolist() == [0, 1, 2]
    with pytest.raises(MiradaError, match="net.old.a.b"):  # {p} is one word
        more.plan(PATHS, [*FILES, "net.old.a.b"])


def test_older_spellings():
    spelled = weights(renames=(("norm.gamma", "norm.weight"), ("norm.beta", "norm.bias")))
    old = [n.replace("norm.weight", "norm.gamma").replace("norm.bias", "norm.beta") for n in FILES]
    plan = spelled.plan(PATHS, old)
    assert sorted(f for step in plan.steps for f in step.files) == sorted(old)
    both = spelled.plan(PATHS, [*FILES, "net.layer.0.norm.gamma"])
    assert [s.files for s in both.duplicates] == [("net.layer.0.norm.gamma",)]
    assert both.duplicates[0].ours == ("blocks.0.norm.weight",)


def test_a_shared_tensor_may_be_repeated_or_left_out():
    tied = PATHS | {"head.out.weight": "embed.weight"}
    without = weights().plan(tied, [n for n in FILES if n != "lm.weight"])
    assert not without.duplicates
    plan = weights().plan(tied, FILES)
    assert [s.files for s in plan.duplicates] == [("lm.weight",)]


def test_a_map_that_is_wrong_is_our_own_error():
    with pytest.raises(ValueError, match="no row names .*head.out.weight"):
        Weights(ROWS[:-1]).bind(PATHS, False)
    with pytest.raises(ValueError, match="claims .* wrongly"):
        Weights([*ROWS, ("again", "embed.weight")]).bind(PATHS, False)


def test_repeated_placeholders_must_agree():
    once = Weights([("f.{i}.{i}", "o.{i}.{i}")])
    assert once.bind({"o.3.3": "o.3.3"}, False)[0].files == ("f.3.3",)
    with pytest.raises(ValueError, match="no row names"):
        once.bind({"o.3.4": "o.3.4"}, False)

"""Pictures of attention: labelled as people draw them, readable at any size."""

import io

import pytest
import torch
from matplotlib.figure import Figure

import mirada
from mirada.errors import MiradaError
from mirada.look.figures import MOST_LABELS, attention_map, links


def weights(H: int, T: int, S: int) -> torch.Tensor:
    return torch.rand(H, T, S).mul(8).softmax(-1)


def drawn(H, T, S=None, **options) -> Figure:
    S = S or T
    figure = attention_map(weights(H, T, S), [f"q{n}" for n in range(T)],
                           [f"k{n}" for n in range(S)], **options)
    out = io.BytesIO()
    figure.savefig(out, dpi=40)
    assert out.getvalue().startswith(b"\x89PNG")
    return figure


@pytest.mark.parametrize("H, T, S", [(1, 1, 1), (1, 9, 9), (25, 9, 9), (12, 5, 17), (4, 200, 200),
                                     (9, 61, 61)])
def test_any_size(H, T, S):
    figure = drawn(H, T, S)
    large, *small, bar = figure.get_axes()
    assert (large.get_xlabel(), large.get_ylabel()) == ("Key positions", "Query positions")
    assert bar.get_xlabel() == "Attention weight (a row sums to 1)"
    assert len([a for a in small if a.images]) == H
    for axis, count, letter in ((large.xaxis, S, "k"), (large.yaxis, T, "q")):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        assert len(labels) <= MOST_LABELS and labels[0] == f"{letter}0"
        places = axis.get_ticklocs()
        assert labels == [f"{letter}{int(p)}" for p in places]
        assert count <= MOST_LABELS or len(labels) >= MOST_LABELS // 2
    width, height = figure.get_size_inches()
    assert 5 < width < 21 and 4 < height < 12


def test_queries_go_down_and_keys_across():
    given = torch.zeros(1, 2, 3)
    given[0, 0, 2] = given[0, 1, 0] = 1.0
    figure = attention_map(given, ["a", "b"], ["x", "y", "z"])
    large = figure.get_axes()[0]
    assert large.images[0].get_array().tolist() == given[0].tolist()
    assert large.get_ylim() == (1.5, -0.5), "the first query is on top"
    said = {t.get_text(): t.get_position() for t in large.texts}
    assert said == {"1": (0, 1)} or {t.get_position() for t in large.texts} == {(2, 0), (0, 1)}


def test_the_head_that_is_large_is_marked_and_titled():
    figure = drawn(4, 6, head=2, title="layer 3, head 2")
    large, *small, _ = figure.get_axes()
    assert large.get_title(loc="left") == "layer 3, head 2"
    bold = [a.get_title() for a in small if a.title.get_fontweight() == "bold"]
    assert bold == ["2"]


def test_labels_are_text_and_not_markup():
    figure = attention_map(weights(1, 2, 2), ["$x_1$", "a" * 40])
    figure.savefig(io.BytesIO(), dpi=40)
    labels = [t.get_text() for t in figure.get_axes()[0].get_yticklabels()]
    assert labels == [r"\$x_1\$", "a" * 13 + "…"]


def test_labels_must_fit():
    with pytest.raises(MiradaError, match=r"3 query and 2 key labels.*\(1, 2, 2\)"):
        attention_map(weights(1, 2, 2), ["a", "b", "c"], ["a", "b"])


@pytest.fixture(scope="module")
def tape():
    model = mirada.build("gpt2:tiny", seed=1)
    with model.record() as tape:
        model(torch.arange(5, 17)[None])
    return tape


def test_links_leave_rest_places_out_unless_asked(tape):
    found = links(tape, most=100)
    assert len(found) == 8 and len({(n.layer, n.head) for n in found}) == 8
    assert found == sorted(found, key=lambda n: -n.weight)
    assert all(n.key != 0 and n.key < n.query - 1 for n in found)
    for n in found:
        assert tape.pattern(n.layer)[0, n.head, n.query, n.key].item() == pytest.approx(n.weight)
    assert len(links(tape, most=3)) == 3
    rest = links(tape, near=True)
    assert all((n.query, n.key, n.weight) == (0, 0, 1.0) for n in rest)
    tape.pattern(0)  # and the tape's own weights were not touched
    assert tape.pattern(0)[0, :, 0, 0].tolist() == [1.0] * 4

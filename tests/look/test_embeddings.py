"""Neighbours, maps and senses: their arithmetic on made vectors, and what a real model shows."""

import json

import pytest
import torch
import torch.nn.functional as F

import mirada
from generate.words import speaker
from mirada.errors import MiradaError
from mirada.look.embeddings import clustered, plane

WORDS = {"animals": ["cat", "dog", "pet", "horse"], "food": ["pizza", "bread", "cheese", "wine"],
         "countries": ["france", "spain", "italy", "germany"]}
SENSES = {"money": ["He deposited the cheque at the bank.", "The bank raised its interest rates.",
                    "She works at a bank and approves loans.",
                    "The bank refused to lend him money."],
          "river": ["They sat on the bank of the river.", "The boat drifted to the muddy bank.",
                    "Trees grow along the bank of the stream.",
                    "The fisherman stood on the bank all day."]}
TOPICS = {"food": ["A recipe for baking bread.", "How to cook pasta with tomato sauce.",
                   "The soup needs more salt.", "Chocolate cake with cream."],
          "space": ["The telescope photographed a distant galaxy.",
                    "Astronauts landed on the moon.", "A rocket was launched into orbit.",
                    "Mars has two small moons."],
          "money": ["The stock market fell sharply.", "Interest rates were raised again.",
                    "The company reported higher profits.", "Investors are selling their shares."]}


@pytest.fixture(scope="module")
def minilm(real):
    return mirada.load(real("minilm"))


@pytest.mark.scope("1.4.3")
def test_neighbours_by_their_cosines():
    m = speaker()
    table = m.body.embed.token.weight.data
    table[ord("b")] = 3 * table[ord("a")]
    table[ord("c")] = table[ord("a")] + 0.1 * table[ord("z")]
    found = mirada.look.neighbors(m, "a", 5)
    assert found.ids == [ord("a")] and [n.token for n in found.found[:2]] == ["b", "c"]
    assert found.found[0].cosine == pytest.approx(1)
    cosines = F.cosine_similarity(table[ord("a")][None], table, dim=-1)
    assert [n.cosine for n in found.found] == pytest.approx(
        [cosines[n.id].item() for n in found.found])
    others = [i for i in range(256) if i not in {ord("a"), *(n.id for n in found.found)}]
    assert cosines[others].max() <= found.found[-1].cosine
    pair = mirada.look.neighbors(m, "ab", 2)  # two pieces: their mean
    assert pair.pieces == ["a", "b"] and pair.found[0].token == "c"
    assert len(mirada.look.neighbors(m, "a", 10**6).found) == 255, "all but itself and the special"


@pytest.mark.scope("1.4.3")
def test_a_real_table_knows_cats_and_countries(minilm, tmp_path):
    found = mirada.look.neighbors(minilm, "cat", 8)
    assert {"cats", "kitten", "dog", "pet"} <= {n.token for n in found.found}
    table = mirada.look.word_map(minilm, WORDS)
    assert table.agreement == 1.0, "each word's nearest is of its own kind"
    assert table.alike[0] > 0.3 > 0.1 > table.alike[1]
    for result in (found, table):
        json.dumps(result.data())
        assert str(result)
        assert (tmp_path / "x.png").samefile(result.save(tmp_path / "x.png"))


def test_the_plane_is_that_of_the_principal_axes():
    x = F.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(3)).double(), dim=-1)
    found = plane(7 * x, [str(n) for n in range(9)])
    centred = x - x.mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred)
    wanted = (values.flip(0) / values.sum()).tolist()
    assert found.explained == pytest.approx(tuple(wanted[:2]))
    for n in range(2):
        theirs = centred @ axes[:, -1 - n]
        assert torch.allclose(found.points[:, n].abs().double(), theirs.abs(), atol=1e-6)
        assert found.points[:, n][found.points[:, n].abs().argmax()] > 0
    assert torch.allclose(found.cosines.double(), x @ x.T, atol=1e-6)
    for n, m in enumerate(found.nearest):
        assert found.cosines[n, m] == max(found.cosines[n, k] for k in range(9) if k != n)
    line = plane(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), ["a", "b"])
    assert line.explained == pytest.approx((1.0, 0.0)) and line.agreement is line.alike is None


def test_groups_and_what_they_share():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    good, bad = plane(x, "abcd", "xxyy"), plane(x, "abcd", "xyxy")
    assert good.agreement == 1.0 and bad.agreement == 0.0
    assert good.alike == pytest.approx((0.995, 0.1 - 0.0003), abs=0.002) and bad.alike[0] < 0.15
    assert "nearest of its own group: 100%" in str(good)
    assert plane(x, "abcd", clusters=2).groups == ["0", "0", "1", "1"]
    assert clustered(x, 4) == [0, 1, 2, 3] and clustered(x, 1) == [0] * 4


@pytest.mark.parametrize("given, says", [
    (dict(vectors=torch.ones(1, 2), labels=["a"]), "a map is of two vectors or more"),
    (dict(vectors=torch.ones(2, 2), labels=["a"]), "and 1 labels"),
    (dict(vectors=torch.ones(2, 2), labels="ab", groups="a"), "1 groups for 2 vectors"),
    (dict(vectors=torch.ones(2, 2), labels="ab", clusters=3), "2 vectors cannot make 3 clusters"),
])
def test_a_map_that_cannot_be_is_said(given, says):
    with pytest.raises(MiradaError, match=says):
        plane(**given)


@pytest.mark.scope("1.4.4")
def test_one_word_in_many_sentences(minilm):
    found = mirada.look.senses(minilm, "bank", SENSES)
    others = ~torch.eye(8, dtype=torch.bool)
    assert found.cosines[others].max() < 0.97, "no two contexts give the same vector"
    assert found.agreement == 1.0 and found.alike[0] - found.alike[1] > 0.05
    pair = [SENSES["river"][0], SENSES["money"][0]]
    states = []
    for text in pair:  # by hand: the last state of the token that is the word
        row = minilm.tokenizer.encode(text)
        out = minilm(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
        states.append(F.normalize(out[row.tokens.index("bank")], dim=0))
    alone = mirada.look.senses(minilm, "bank", pair)
    assert alone.cosines[0, 1].item() == pytest.approx((states[0] @ states[1]).item(), abs=1e-5)


@pytest.mark.scope("1.4.4")
def test_sentences_cluster_by_topic(minilm):
    texts = [text for topic in TOPICS.values() for text in topic]
    topics = [name for name, topic in TOPICS.items() for _ in topic]
    vectors = mirada.embed(minilm, texts)
    assert plane(vectors, texts, topics).agreement == 1.0
    numbers = plane(vectors, texts, clusters=3).groups
    assert numbers == [n for n in "012" for _ in range(4)], "found without being told"


def test_what_is_not_there_is_said(minilm):
    with pytest.raises(MiradaError, match="'bank' does not stand in 'The banks fell.' as a word"):
        mirada.look.senses(minilm, "bank", ["The bank fell.", "The banks fell."])
    with pytest.raises(MiradaError, match="there is no word to look up"):
        mirada.look.neighbors(minilm, " ")
    with pytest.raises(MiradaError, match="no tokenizer beside its weights"):
        mirada.look.neighbors(mirada.build("gpt2:tiny", device="meta"), "cat")

"""Real heads: RXNMapper's, whose product is its attention, and those of a sentence encoder."""

import re

import pytest

import mirada
from mirada.look.heads import probes
from mirada.look.heads.templates import Sentence
from mirada.look.heads.verdicts import Trials

ACIDS = ("C", "CC", "CCC", "CC(C)", "CCCC", "CC(C)C", "FC", "ClCC", "OCC", "COC", "c1ccccc1",
         "C=C", "N#CC")
PARTNERS = ("OC", "OCC", "OCCC", "OC(C)C", "OCCCl", "NCC", "NCCC", "NC(C)C", "NCc1ccccc1", "NCCO")
TOKENS = re.compile(r"Br|Cl|>>|[A-Za-z]|.")


def reactions() -> list[Sentence]:
    """Acids with alcohols and amines, one atom of the product hidden; the relation is from it to
    the atom that it was. An acid loses its last O: what is left stands in the product as it did."""
    made = []
    for acid in ACIDS:
        for partner in PARTNERS:
            left = TOKENS.findall(acid + "C(=O)O")
            words = [*left, ".", *TOKENS.findall(partner), ">>"]
            kept = [n for n in range(len(words) - 1) if n not in (len(left) - 1, len(left))]
            product = [words[n] for n in kept]
            atoms = [n for n, w in enumerate(product) if w.isalpha()]
            hidden = atoms[len(made) % len(atoms)]
            product[hidden] = "[MASK]"
            relation = ("atom", kept[hidden], len(words) + hidden)
            text, spans = "", []
            for word in [*words, *product]:
                spans.append((len(text), len(text) + len(word)))
                text += word
            made.append(Sentence(text, spans, [relation]))
    return made


@pytest.fixture(scope="module")
def mapper(real):
    model = mirada.load(real("rxnmapper"))
    return model, mirada.look.roles(model, sentences=reactions(), only="syntactic", causal=False)


def theirs(report) -> list:
    """The heads from a product's atom to the reactant's, the best first."""
    toward = [s for s in report.scores if s.detail == "atom: head → dependent"]
    return sorted(toward, key=lambda s: -s.value)


def test_the_head_that_maps_atoms(mapper):
    """Its authors read their maps from layer 10, head 5 (their package says so). All layers share
    their weights: the best eight are head 5 of eight layers."""
    best = theirs(mapper[1])[:8]
    found = next(s for s in best if s.at == ("encoder", 10, 5))
    assert {s.head for s in best} == {5} and found.n == len(reactions()) == 130
    assert found.value > 0.9 and found.baseline < 0.25 and found.passes


@pytest.mark.slow
@pytest.mark.scope("1.1.11")
def test_it_is_verified_by_cutting(mapper):
    model, report = mapper
    claimed = [v.score for v in report.verdicts]
    trials = Trials(model, {"sentences": probes.sentences(model, reactions())}, claimed)
    found = next(s for s in theirs(report) if s.at == ("encoder", 10, 5))
    verdict = trials.judge(found)
    assert verdict.verdict == "verified" and verdict.interval[0] > 0
    assert verdict.controls == 32 and verdict.percentile == 1


@pytest.mark.scope("1.18.11")
def test_what_the_guide_says_of_the_thirsty_cat(real):
    """MiniLM: no head of it looks from "tenía" to "gato" in sentence after sentence."""
    model = mirada.load(real("minilm"))
    (cat,) = mirada.look.claim(model, "gato")
    assert (cat.query, cat.key, cat.rather, cat.of) == ("tenía", "gato", "leche", 72)
    assert not cat.holds and cat.share < 0.8 and "tenía → gato (subject): no" in str(cat)
    (eats,) = mirada.look.claim(model, "pizza")
    assert eats.holds and eats.share >= 0.8 and eats.weight > eats.others["horno"]

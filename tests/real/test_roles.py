"""Real heads: RXNMapper's, whose product is its attention, and those of a sentence encoder."""

import re

import pytest

import mirada
from mirada.look.heads.templates import Sentence

ACIDS = ("C", "CC", "CCC", "CC(C)", "CCCC", "CC(C)C", "FC", "ClCC", "OCC", "COC", "c1ccccc1",
         "C=C", "N#CC")
PARTNERS = ("OC", "OCC", "OCCC", "OC(C)C", "OCCCl", "NCC", "NCCC", "NC(C)C", "NCc1ccccc1", "NCCO")
TOKENS = re.compile(r"Br|Cl|>>|[A-Za-z]|.")


def reactions(step: int) -> list[Sentence]:
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
    return made[::step]


@pytest.fixture(scope="module")
def report(real):
    return mirada.look.roles(mirada.load(real("rxnmapper")), sentences=reactions(1),
                             only="syntactic")


def test_the_head_that_maps_atoms_is_verified(report):
    """Its authors read their atom maps from layer 10, head 5: no other layer's do it as well."""
    toward = [v for v in report.verdicts if v.score.detail == "atom: head → dependent"]
    best = max(toward, key=lambda v: v.score.value)
    assert best.score.at == ("encoder", 10, 5), str(report)
    assert best.verdict == "verified" and best.score.value > best.score.baseline + 0.3

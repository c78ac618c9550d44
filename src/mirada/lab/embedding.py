"""What does a well-trained embedding capture? Guide E, line 62; Harris 1954; analogies: Mikolov
et al., 1301.3781."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

import mirada
from mirada import shelf
from mirada.look.draw import EDGE, INKS
from mirada.look.embeddings import plane, word_map

from .learn import UNASKED, learn

ROW = "1.19.6"
ASKED = {"en": "What does a well-trained embedding capture?",
         "es": "¿Qué captura un embedding bien entrenado?"}
TOLD = {
    "en": "The company that a word keeps. A small model learns to go on sentences like \"many "
          "horses sleep here\"; of its {words} nouns it is told nothing but their ids. Before "
          "training {start:.0%} of them have one of their own kind (animals, people, vehicles) as "
          "their nearest (chance is {chance:.0%}); after it {nearest:.0%}. One direction means "
          "the plural: king + (cats - cat) leads to kings, right for {analogies:.0%} of all pairs "
          "({start_analogies:.0%} before). Train on the same words without their company, each "
          "drawn apart from the others, and it is {shuffled:.0%} and {shuffled_analogies:.0%}.",
    "es": "La compañía de una palabra. Un modelo pequeño aprende a continuar frases como \"muchos "
          "caballos duermen aquí\"; de sus {words} sustantivos solo recibe sus ids. Antes de "
          "entrenar, el {start:.0%} tiene como vecino más cercano uno de su clase (animales, "
          "personas, vehículos; el azar da {chance:.0%}); después, el {nearest:.0%}. Una "
          "dirección significa el plural: rey + (gatos - gato) lleva a reyes, y así en el "
          "{analogies:.0%} de los pares ({start_analogies:.0%} antes). Si se entrena con las "
          "mismas palabras sin su compañía, cada una sorteada aparte, son el {shuffled:.0%} y el "
          "{shuffled_analogies:.0%}.",
}
ALSO = {
    "en": "In a real model, MiniLM, {real:.0%} of {real_words} words lie nearest to one of their "
          "own kind.",
    "es": "En un modelo real, MiniLM, el {real:.0%} de {real_words} palabras tiene más cerca a "
          "una de su clase.",
}
WORDS = {"en": {"title": "Nouns after training", "across": "First principal axis",
                "down": "Second", "nouns": "cat dog horse cow king boy doctor painter car boat "
                "truck plane cats dogs horses cows kings boys doctors painters cars boats trucks "
                "planes"},
         "es": {"title": "Sustantivos tras entrenar", "across": "Primer eje principal",
                "down": "Segundo", "nouns": "gato perro caballo toro rey niño médico pintor coche "
                "barco camión avión gatos perros caballos toros reyes niños médicos pintores "
                "coches barcos camiones aviones"}}
EACH, NOUNS = 4, 12  # of each of three kinds; in all, the first ids, and then their plurals
KINDS = [str(noun // EACH) for noun in range(NOUNS)] * 2
VERBS, ARTICLES, ENDS = 24, 36, 40  # first ids of: verbs of each number and kind, articles, ends
REAL = {"animals": ["cat", "dog", "pet", "horse"], "food": ["pizza", "bread", "cheese", "wine"],
        "countries": ["france", "spain", "italy", "germany"]}


def run(seed: int = 0) -> dict[str, float | list]:
    """One block of GPT-2, whose table is asked before training, after it, and without company."""
    found: dict[str, float | list] = {"words": 2 * NOUNS,
                                             "chance": (2 * EACH - 1) / (2 * NOUNS - 1)}
    for name, texts in (("", sentences), ("shuffled", apart)):
        model = mirada.build("gpt2:tiny", seed=seed, vocab=ENDS + NOUNS, d=64, layers=1, heads=2,
                             hidden=64, context=4)
        if not name:
            found["start"], found["start_analogies"], _ = asked(model)
        nearest, analogies, points = asked(learn(model, texts, 150, seed))
        found |= {name or "nearest": nearest, f"{name}_analogies".strip("_"): analogies}
        found.setdefault("points", points)
    if shelf.installed("minilm"):
        table = word_map(mirada.load("minilm"), REAL)
        found |= {"real": table.agreement, "real_words": len(table.labels)}
    return found


def sentences(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """ids and labels (count, 4): an article of the noun's number, a noun, a verb of its number and
    kind, an end of its own; each place must tell the next."""
    noun, number, article, verb = (torch.randint(most, (count,), generator=chance)
                                   for most in (NOUNS, 2, 2, 2))
    return after(torch.stack([ARTICLES + 2 * number + article, noun + NOUNS * number,
                              VERBS + 6 * number + 2 * (noun // EACH) + verb, ENDS + noun], 1))


def apart(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """The same words at the same places, each place dealt out anew among the sentences."""
    ids, _ = sentences(count, chance)
    return after(torch.stack([column[torch.randperm(count, generator=chance)] for column in ids.T],
                             1))


def after(ids: Tensor) -> tuple[Tensor, Tensor]:
    """ids, and for each place the token after it."""
    return ids, F.pad(ids[:, 1:], (0, 1), value=UNASKED)


@torch.no_grad()
def asked(model) -> tuple[float, float, list]:
    """The share of nouns nearest to one of their kind, of plurals found by adding a difference of
    two others, and the nouns' places on a map."""
    table = model.body.embed.token.weight[: 2 * NOUNS]
    hits = [int(led(table, one, other) == other + NOUNS)
            for one in range(NOUNS) for other in range(NOUNS) if one != other]
    nouns = plane(table, KINDS, KINDS)
    return nouns.agreement, sum(hits) / len(hits), nouns.points.tolist()


def led(table: Tensor, one: int, other: int) -> int:
    """Where other + (plural of one - one) leads: the nearest row that is none of those three."""
    cosines = F.cosine_similarity((table[other] + table[one + NOUNS] - table[one])[None], table)
    cosines[[one, other, one + NOUNS]] = -2.0
    return int(cosines.argmax())


def draw(found: dict, axes, words: dict[str, str]) -> None:
    nouns, points = words["nouns"].split(), found["points"]
    for n, noun in enumerate(nouns[:NOUNS]):
        (x, y), (far, up) = points[n], points[n + NOUNS]
        axes.plot([x, far], [y, up], color=EDGE, linewidth=0.8, zorder=1)
        axes.scatter([x, far], [y, up], s=[18, 36], color=INKS[n // EACH], zorder=2)
        if n % EACH == 0:
            for (a, b), name in (((x, y), noun), ((far, up), nouns[n + NOUNS])):
                axes.annotate(name, (a, b), textcoords="offset points", xytext=(5, 5), fontsize=9,
                              color=INKS[n // EACH])
    axes.margins(0.15)

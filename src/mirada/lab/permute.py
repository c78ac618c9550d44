"""What would be lost if the tokens were permuted? Guide E, line 78; Lee et al., 1810.00825."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import mirada
from mirada.edit.positions import without_positions
from mirada.look.experiments import permute

from .bars import pairs
from .learn import UNASKED, learn, right

ROW = "1.19.7"
ASKED = {"en": "What would be lost if we permuted the tokens?",
         "es": "¿Qué se perdería si permutamos los tokens?"}
TOLD = {
    "en": "Who did what to whom; what was said is kept. Two models read sentences like \"dog bites "
          "man\" and are asked who did it, or what was done. With positions: {who:.0%} and "
          "{what:.0%} right. Without: {blind_who:.0%} and {blind_what:.0%}, since to attention "
          "alone \"dog bites man\" and \"man bites dog\" are one set of tokens, and of two names "
          "it can only guess one. Not that its outputs stay where they are: they move with their "
          "tokens. Place by place they changed by {by_place:.2f} standard deviations, token by "
          "token by {by_token:.0e}: attention is equivariant, not invariant as the guide says.",
    "es": "Quién hizo qué a quién; lo dicho se conserva. Dos modelos leen frases como \"perro "
          "muerde hombre\" y se les pregunta quién lo hizo, o qué se hizo. Con posiciones aciertan "
          "{who:.0%} y {what:.0%}. Sin ellas, {blind_who:.0%} y {blind_what:.0%}: para la pura "
          "atención, \"perro muerde hombre\" y \"hombre muerde perro\" son un mismo conjunto de "
          "tokens, y de dos nombres solo puede adivinar uno. Pero sus salidas no se quedan en su "
          "sitio: se mueven con sus tokens. Lugar por lugar cambiaron {by_place:.2f} desviaciones "
          "típicas; token por token, {by_token:.0e}: la atención es equivariante, no invariante "
          "como dice la guía.",
}
WORDS = {"en": {"title": "What a model without positions still knows", "across": "",
                "down": "Right answers", "who": "who did it?", "what": "what was done?",
                "placed": "with positions", "blind": "without"},
         "es": {"title": "Lo que aún sabe un modelo sin posiciones", "across": "",
                "down": "Aciertos", "who": "¿quién lo hizo?", "what": "¿qué se hizo?",
                "placed": "con posiciones", "blind": "sin ellas"}}
NAMES, VERBS = 6, 6  # the first ids
WHO, WHAT = NAMES + VERBS, NAMES + VERBS + 1  # the two questions


def run(seed: int = 0) -> dict[str, float | list]:
    """A small BERT learns both questions, with positions and without; then reads backwards."""
    placed = mirada.build("bert:tiny", seed=seed, vocab=WHAT + 1, d=32, layers=1, heads=4,
                          hidden=64, context=4)
    blind = without_positions(mirada.build("bert:tiny", seed=seed, **vars(placed.config)))
    found: dict[str, float | list] = {}
    for way, model in (("", placed), ("blind_", blind)):
        learn(model, sentences, 160, seed, rate=5e-3)
        for name, question in (("who", WHO), ("what", WHAT)):
            asked = sentences(512, Generator().manual_seed(seed), question)
            found[way + name] = right(model, *asked)
    backwards = permute(blind, sentences(1, Generator().manual_seed(seed))[0], [2, 1, 0, 3])
    first = backwards.variants[0]
    return found | {"by_place": first.by_place, "by_token": first.by_token}


def sentences(count: int, chance: Generator, question: int | None = None) -> tuple[Tensor, Tensor]:
    """ids and labels (count, 4): who, verb, whom, and a question that the last place answers."""
    names = torch.rand(count, NAMES, generator=chance).argsort(1)[:, :2]  # two that differ
    verb = torch.randint(NAMES, WHO, (count, 1), generator=chance)
    drawn = torch.randint(WHO, WHAT + 1, (count, 1), generator=chance)
    asked = drawn if question is None else torch.full_like(drawn, question)
    ids = torch.cat([names[:, :1], verb, names[:, 1:], asked], 1)
    labels = torch.full_like(ids, UNASKED)
    labels[:, 3:] = torch.where(asked == WHO, ids[:, :1], verb)
    return ids, labels


def draw(found: dict, axes, words: dict[str, str]) -> None:
    pairs(axes, [words["who"], words["what"]], {
        words["placed"]: [found["who"], found["what"]],
        words["blind"]: [found["blind_who"], found["blind_what"]]})

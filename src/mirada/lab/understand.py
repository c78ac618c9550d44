"""What is it to "understand" a sequence? Guide E, line 22; bracket languages as its measure:
Hahn, 1906.06755; Yao et al., 2105.11115."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

import mirada
from mirada.look.draw import INKS

from .learn import UNASKED, learn, right

ROW = "1.19.4"
ASKED = {"en": "What does it mean that a model \"understands\" a sequence?",
         "es": "¿Qué significa que un modelo \"entienda\" una secuencia?"}
TOLD = {
    "en": "At the least, that what it says depends on what matters, however far, and on nothing "
          "else; and that can be tested. A small Transformer learned rows of nested brackets of "
          "{kinds} kinds, and must say which kind closes. Where the open one does not stand right "
          "before, who sees only the neighbour can be right in {guess:.0%}; the model is in "
          "{far:.0%}. Change the bracket that is open, and its answer follows in {follows:.0%} of "
          "rows; change a pair that is closed already, and it stays in {stays:.0%}. Does it know "
          "the rule or only its rows? In rows twice as long as any that it learned it is right in "
          "{longer:.0%}, in rows nested {deeper} deep, where it learned {deep}, in "
          "{deeper_right:.0%}.",
    "es": "Por lo menos, que lo que dice depende de lo que importa, por lejos que esté, y de nada "
          "más; y eso se puede probar. Un pequeño Transformer aprendió filas de paréntesis "
          "anidados de {kinds} clases y debe decir de qué clase es el que cierra. Donde el abierto "
          "no está justo antes, quien solo ve al vecino puede acertar {guess:.0%}; el modelo "
          "acierta {far:.0%}. Si se cambia el paréntesis abierto, la respuesta lo sigue en "
          "{follows:.0%} de las filas; si se cambia un par ya cerrado, se queda en {stays:.0%}. ¿Y "
          "sabe la regla o solo sus filas? En filas el doble de largas que las aprendidas acierta "
          "{longer:.0%}; en filas anidadas hasta {deeper} niveles, cuando aprendió con {deep}, "
          "{deeper_right:.0%}.",
}
WORDS = {"en": {"title": "Which kind closes?", "across": "Distance to the bracket that is open",
                "down": "Right answers", "model": "the model", "guess": "from the neighbour alone"},
         "es": {"title": "¿De qué clase es el que cierra?", "across": "Distancia al que está "
                "abierto", "down": "Aciertos", "model": "el modelo",
                "guess": "solo por el vecino"}}
KINDS, T, DEEP = 3, 16, 3
BEGIN = 2 * KINDS  # kinds open as 0, 1, 2 and close as 3, 4, 5


def run(seed: int = 0) -> dict[str, float | list]:
    """A model learns which kind closes, and is then asked about rows with one thing changed."""
    model = mirada.build("llama:tiny", seed=seed, vocab=BEGIN + 1, context=2 * T + 1, d=32, heads=4,
                         kv_heads=4, hidden=128, layers=2)
    learn(model, lambda count, chance: batch(nested(count, chance)), 200, seed)
    chance = Generator().manual_seed(seed + 1)
    some = nested(512, chance)
    longer, deeper = nested(128, chance, 2 * T), nested(128, chance, T, 2 * DEEP)
    gaps, far = range(1, T, 2), range(3, 2 * T)  # 1: the neighbour tells it
    return {"gaps": list(gaps), "by": [right(model, *batch(some, [gap])) for gap in gaps],
            "kinds": KINDS, "guess": 1 / KINDS, "far": right(model, *batch(some, far)),
            "longer": right(model, *batch(longer, far)), "deep": DEEP, "deeper": 2 * DEEP,
            "deeper_right": right(model, *batch(deeper, far)), **changed(model, some)}


def nested(count: int, chance: Generator, length: int = T, deep: int = DEEP
           ) -> list[tuple[list[int], dict[int, int]]]:
    """Rows of brackets, and in each: place of a closing one -> place of what it closes."""
    draw, rows = random.Random(int(torch.randint(1 << 40, (), generator=chance))), []
    for _ in range(count):
        row, open_, opened = [BEGIN], [], {}
        while len(row) <= length:
            left = length + 1 - len(row)
            if open_ and (len(open_) in (left, deep) or draw.random() < 0.5):
                opened[len(row)] = open_.pop()
                row.append(row[opened[len(row)]] + KINDS)
            else:
                open_.append(len(row))
                row.append(draw.randrange(KINDS))
        rows.append((row, opened))
    return rows


def batch(rows: list[tuple[list[int], dict[int, int]]], spans: Sequence[int] | None = None
          ) -> tuple[Tensor, Tensor]:
    """ids (B, 1 + T), and before each closing bracket its kind; only of those that stand so far
    from what they close, if that is said."""
    labels = [[UNASKED] * len(row) for row, _ in rows]
    for told, (row, opened) in zip(labels, rows, strict=True):
        for close, open_ in opened.items():
            if spans is None or close - open_ in spans:
                told[close - 1] = row[close]
    return torch.tensor([row for row, _ in rows]), torch.tensor(labels)


def changed(model, rows: list[tuple[list[int], dict]]) -> dict[str, float]:
    """How often the last answer follows the bracket that it closes, and stays where the pair that
    stands right before it is of another kind."""
    cases: dict[str, list] = {"follows": [], "stays": []}
    for row, opened in rows:
        last = len(row) - 1
        if opened[last] == last - 1:
            continue  # the neighbour tells it
        between = next((a, b) for b, a in opened.items() if b == last - 1)
        turned = (row[opened[last]] + 1) % KINDS
        one, other = row[:last], row[:last]
        one[opened[last]] = turned
        for place in between:
            other[place] += 1 if other[place] % KINDS < KINDS - 1 else 1 - KINDS
        cases["follows"].append((one, turned + KINDS))
        cases["stays"].append((other, row[last]))
    found = {}
    for name, some in cases.items():
        ids, wanted = (torch.tensor(x) for x in zip(*some, strict=True))
        labels = torch.full_like(ids, UNASKED)
        labels[:, -1] = wanted
        found[name] = right(model, ids, labels)
    return found


def draw(found: dict, axes, words: dict[str, str]) -> None:
    axes.plot(found["gaps"], found["by"], "o-", color=INKS[2], label=words["model"])
    axes.plot(found["gaps"], [1.0 if gap == 1 else found["guess"] for gap in found["gaps"]], "o--",
              color=INKS[0], label=words["guess"])
    axes.set_xticks(found["gaps"])
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, fontsize=8)

"""Why residual connections? Guide D, line 77; degradation: He et al., 1512.03385, figure 1."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import mirada
from mirada.edit import without_residual
from mirada.look.draw import INKS

from .learn import UNASKED, learn, right

ROW = "1.19.3"
ASKED = {"en": "Why residual connections (degradation, weak gradients)?",
         "es": "¿Por qué conexiones residuales (degradación, gradientes débiles)?"}
TOLD = {
    "en": "Without them depth does harm, though a deeper model could do all that a shallow one "
          "does. The same Transformers learned for {steps} steps to say which letter stood two "
          "places back, of {letters}. Without residual connections {shallow} layer is right in "
          "{first:.0%}, {deep} layers in {last:.0%}: that is degradation, and no overfitting, as "
          "each row is new. With them it is {kept_first:.0%} and {kept_last:.0%}: a layer that "
          "adds to the stream need not learn to hand it on.",
    "es": "Sin ellas la profundidad daña, aunque un modelo más hondo podría hacer todo lo que hace "
          "uno llano. Los mismos Transformers aprendieron durante {steps} pasos a decir qué letra, "
          "de {letters}, estaba dos lugares atrás. Sin conexiones residuales {shallow} capa "
          "acierta {first:.0%}, {deep} capas {last:.0%}: eso es la degradación, y no sobreajuste, "
          "pues cada fila es nueva. Con ellas, {kept_first:.0%} y {kept_last:.0%}: una capa que "
          "suma a la corriente no tiene que aprender a dejarla pasar.",
}
WORDS = {"en": {"title": "After the same training", "across": "Layers", "down": "Right answers",
                "kept": "with residual connections", "plain": "without", "chance": "chance"},
         "es": {"title": "Tras el mismo entrenamiento", "across": "Capas", "down": "Aciertos",
                "kept": "con conexiones residuales", "plain": "sin ellas", "chance": "azar"}}
LETTERS, T, BACK = 6, 8, 2
DEPTHS = (1, 2, 6)
STEPS = 80


def run(seed: int = 0) -> dict[str, float | list]:
    """The share of right answers by the number of layers, with residual connections and without."""
    ids, labels = rows(256, Generator().manual_seed(seed + 1))
    kept, plain = [], []
    for layers in DEPTHS:
        usual = mirada.build("gpt2:tiny", seed=seed, vocab=LETTERS, context=T, d=24, heads=2,
                             layers=layers, tied=False)
        bare = without_residual(mirada.build("gpt2:tiny", seed=seed, vocab=LETTERS, context=T, d=24,
                                             heads=2, layers=layers, tied=False))
        for model, into in ((usual, kept), (bare, plain)):
            into.append(right(learn(model, rows, STEPS, seed), ids, labels))
    return {"layers": list(DEPTHS), "kept": kept, "plain": plain, "steps": STEPS,
            "letters": LETTERS, "shallow": DEPTHS[0], "deep": DEPTHS[-1], "first": plain[0],
            "last": plain[-1], "kept_first": kept[0], "kept_last": kept[-1]}


def rows(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """Letters (B, T), and at each place the letter two before it."""
    ids = torch.randint(LETTERS, (count, T), generator=chance)
    labels = ids.roll(BACK, 1)
    labels[:, :BACK] = UNASKED
    return ids, labels


def draw(found: dict, axes, words: dict[str, str]) -> None:
    for name, ink in (("kept", INKS[2]), ("plain", INKS[0])):
        axes.plot(found["layers"], found[name], "o-", color=ink, label=words[name])
    axes.axhline(1 / found["letters"], color=INKS[7], linestyle=":", label=words["chance"])
    axes.set_xticks(found["layers"])
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, fontsize=8)

"""Why does an MLP fail on a sequence? Guide E, line 43."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import mirada
from mirada.look.draw import INKS
from mirada.train import baselines

from .learn import UNASKED, learn, right

ROW = "1.19.5"
ASKED = {"en": "Why does an MLP fail here?", "es": "¿Por qué un MLP falla aquí?"}
TOLD = {
    "en": "Because it has weights for places, not for what stands there. In rows of {tokens} "
          "tokens one letter stands among noise, and at the end it must be told. Both models "
          "learned it with the letter at even places: there the MLP is right in {mlp_known:.0%} "
          "and attention in {known:.0%}. With the letter at odd places, which the MLP knows only "
          "from noise, it is right in {mlp_new:.0%} (chance: {chance:.0%}), attention in "
          "{new:.0%}: it asks every place with the same weights. Rows twice as long cost the MLP "
          "{growth:.1f} times the weights ({small} become {large}), attention {same:.1f} times, "
          "and a longer row than it was made for an MLP cannot read at all.",
    "es": "Porque tiene pesos para los lugares, no para lo que hay en ellos. En filas de {tokens} "
          "tokens hay una letra entre ruido y al final hay que decirla. Ambos modelos aprendieron "
          "con la letra en lugares pares: ahí el MLP acierta {mlp_known:.0%} y la atención "
          "{known:.0%}. Con la letra en lugares impares, que el MLP solo conoce por el ruido, "
          "acierta {mlp_new:.0%} (azar: {chance:.0%}); la atención, {new:.0%}: pregunta a cada "
          "lugar con los mismos pesos. Filas el doble de largas le cuestan al MLP {growth:.1f} "
          "veces los pesos (de {small} a {large}), a la atención {same:.1f} veces, y una fila más "
          "larga de lo previsto un MLP no la puede leer.",
}
WORDS = {"en": {"title": "Learned with the letter at even places", "across": "Place of the letter",
                "down": "Right answers", "mlp": "MLP", "attention": "attention"},
         "es": {"title": "Aprendido con la letra en lugares pares", "across": "Lugar de la letra",
                "down": "Aciertos", "mlp": "MLP", "attention": "atención"}}
LETTERS, NOISE, T = 6, 6, 13  # and a token that asks
ASK = LETTERS + NOISE


def run(seed: int = 0) -> dict[str, float | list]:
    """The share of right answers by the place of the letter, and how many weights there are."""
    found = {"mlp": learn(mlp(T, seed), even, 70, seed),
             "attention": learn(attention(T, seed), even, 70, seed)}
    told = {name: [right(model, *rows(128, Generator().manual_seed(seed + 1), place))
                   for place in range(T - 1)] for name, model in found.items()}
    weights = {name: [sum(p.numel() for p in make(tokens, seed).parameters())
                      for tokens in (T, 2 * T)]
               for name, make in (("mlp", mlp), ("attention", attention))}

    def mean(name: str, first: int) -> float:
        return sum(told[name][first::2]) / len(told[name][first::2])

    small, large = weights["mlp"]
    return {**told, "tokens": T, "chance": 1 / LETTERS, "small": small, "large": large,
            "growth": large / small, "same": weights["attention"][1] / weights["attention"][0],
            "mlp_known": mean("mlp", 0), "mlp_new": mean("mlp", 1),
            "known": mean("attention", 0), "new": mean("attention", 1)}


def mlp(tokens: int, seed: int):
    return baselines.build("mlp", seed, vocab=ASK + 1, d=16, context=tokens)


def attention(tokens: int, seed: int):
    """One layer with rotary positions."""
    return mirada.build("llama:tiny", seed=seed, vocab=ASK + 1, context=tokens, d=32, heads=4,
                        kv_heads=4, hidden=64, layers=1)


def even(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    return rows(count, chance, 2 * torch.randint(T // 2, (count,), generator=chance))


def rows(count: int, chance: Generator, place: int | Tensor) -> tuple[Tensor, Tensor]:
    """Noise (B, T) with a letter at a place, told at the end."""
    ids = LETTERS + torch.randint(NOISE, (count, T), generator=chance)
    letters = torch.randint(LETTERS, (count,), generator=chance)
    ids[torch.arange(count), place], ids[:, -1] = letters, ASK
    labels = torch.full_like(ids, UNASKED)
    labels[:, -1] = letters
    return ids, labels


def draw(found: dict, axes, words: dict[str, str]) -> None:
    for name, ink in (("attention", INKS[2]), ("mlp", INKS[0])):
        axes.plot(found[name], "o-", color=ink, label=words[name])
    axes.axhline(found["chance"], color=INKS[7], linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, fontsize=8)

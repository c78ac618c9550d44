"""What does dividing attention gain? Guide D, line 53; Vaswani et al., 1706.03762, section 3.2.2;
too narrow heads: Bhojanapalli et al., 2002.07028."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from mirada.core.attention import Attention
from mirada.core.context import Ctx
from mirada.core.mask import Mask
from mirada.core.position import sinusoid
from mirada.look.draw import INKS

ROW = "1.19.2"
ASKED = {"en": "What does dividing attention into heads gain?",
         "es": "¿Qué ventaja tiene dividir la atención?"}
TOLD = {
    "en": "Several looks at once, for the same {weights} weights. One softmax makes one average; "
          "here each token needs {wanted} of the tokens before it apart from each other, and "
          "whatever one head's weights are, it cannot give more than {bound:.0%} of that "
          "(variance explained). Trained on it, one head gives {one:.0%}, two {two:.0%}, four "
          "{four:.0%}. More is not better without end: a head is as narrow as the heads are many, "
          "and {many} heads of {narrow} number each can hardly tell places apart: {last:.0%}.",
    "es": "Varias miradas a la vez, con los mismos {weights} pesos. Un softmax hace un solo "
          "promedio; aquí cada token necesita, por separado, {wanted} de los tokens anteriores, y "
          "sean cuales sean sus pesos, una sola cabeza no puede dar más que {bound:.0%} de eso "
          "(varianza explicada). Tras entrenar, una cabeza da {one:.0%}, dos {two:.0%}, cuatro "
          "{four:.0%}. Más no siempre es mejor: cuantas más cabezas, más estrecha es cada una, y "
          "{many} cabezas de {narrow} número apenas distinguen lugares: {last:.0%}.",
}
WORDS = {"en": {"title": "The same weights, divided", "across": "Heads",
                "down": "Of what was wanted", "bound": "the most that one head can give"},
         "es": {"title": "Los mismos pesos, divididos", "across": "Cabezas",
                "down": "De lo pedido", "bound": "lo máximo que puede dar una cabeza"}}
D, T, PART = 32, 12, 8  # a token: 8 numbers that are asked for, 24 that tell its place
BACK = (1, 2, 3, 5)  # places back, each token's wishes
HEADS = (1, 2, 4, 8, 32)
CTX = Ctx(positions=torch.arange(T)[None])
PLACES = sinusoid(torch.arange(T), D - PART, base=100.0)


def run(seed: int = 0) -> dict[str, float | list]:
    """The share of the variance that attention of each number of heads explains once trained."""
    gains = [trained(heads, seed) for heads in HEADS]
    return {"gains": gains, "heads": list(HEADS), "weights": 4 * D * D, "wanted": len(BACK),
            "bound": 1 / len(BACK), "one": gains[0], "two": gains[1], "four": gains[2],
            "many": HEADS[-1], "narrow": D // HEADS[-1], "last": gains[-1]}


def trained(heads: int, seed: int, steps: int = 250) -> float:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        attention = Attention(D, heads, mask=Mask(causal=True))
    chance = Generator().manual_seed(seed)
    opt = torch.optim.Adam(attention.parameters(), lr=1e-2, fused=True)
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        opt.zero_grad()
        (1 - told(attention, *rows(32, chance))).backward()
        opt.step()
    with torch.no_grad():
        return told(attention, *rows(256, chance)).item()


def rows(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """Tokens (B, T, D), and of each what stands BACK of it, side by side: (B, T, D)."""
    what = torch.randn(count, T, PART, generator=chance)
    wanted = torch.cat([what.roll(back, 1) for back in BACK], -1)
    return torch.cat([what, PLACES.expand(count, -1, -1)], -1), wanted


def told(attention: Attention, x: Tensor, wanted: Tensor) -> Tensor:
    """The share of the variance that is explained, where there are so many tokens before."""
    missed = (attention(x, CTX) - wanted)[:, max(BACK):]
    return 1 - missed.square().mean() / wanted[:, max(BACK):].square().mean()


def draw(found: dict, axes, words: dict[str, str]) -> None:
    places = range(len(found["heads"]))
    axes.bar(places, found["gains"], color=INKS[0], width=0.6)
    axes.set_xticks(places, found["heads"])
    axes.axhline(found["bound"], color=INKS[1], linestyle="--", label=words["bound"])
    axes.set_ylim(0, 1.18)
    axes.legend(frameon=False, fontsize=8, loc="upper left")

"""What is it to look at another token? Guide E, line 113; Bahdanau et al., 1409.0473."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import mirada
from mirada.look.draw import HEAT, INKS

from .learn import UNASKED, learn, right

ROW = "1.19.9"
ASKED = {"en": "What does it mean to \"look at\" another token?",
         "es": "¿Qué significa \"mirar\" a otro token?"}
TOLD = {
    "en": "To take a share of what it hands over: an output is the sum of all values, each times "
          "its weight (what ran and that sum differ by {error:.0e}). A model learns to say a "
          "letter that stood somewhere in noise. Before training the last place looks at the "
          "letter with {before:.0%} of its weight, as at any of {tokens} tokens; after it with "
          "{after:.0%}, and it tells {told:.0%} of the letters. Forbid this one look, and "
          "{cut:.0%} are right (chance is {chance:.0%}); forbid one look at noise, and "
          "{other:.0%} are. Nothing comes from a token that is not looked at.",
    "es": "Tomar una parte de lo que entrega: una salida es la suma de todos los valores, cada "
          "uno por su peso (lo que corrió y esa suma difieren en {error:.0e}). Un modelo aprende "
          "a decir una letra que estaba en algún lugar entre ruido. Antes de entrenar, el último "
          "lugar mira la letra con el {before:.0%} de su peso, como a cualquiera de los {tokens} "
          "tokens; después, con el {after:.0%}, y acierta el {told:.0%} de las letras. Si se le "
          "prohíbe solo esa mirada, acierta el {cut:.0%} (el azar da {chance:.0%}); si se le "
          "prohíbe una mirada al ruido, el {other:.0%}. De un token que no se mira no llega nada.",
}
WORDS = {"en": {"title": "Where the last place looks", "across": "Token (framed: the letter)",
                "down": "Text"},
         "es": {"title": "Adónde mira el último lugar", "across": "Token (marcado: la letra)",
                "down": "Texto"}}
LETTERS, NOISE, T = 8, 8, 12
ASK = LETTERS + NOISE  # the last token: which letter was it?


def run(seed: int = 0) -> dict[str, float | list]:
    """One block and one head of GPT-2: its looks before and after, and with one look forbidden."""
    model = mirada.build("gpt2:tiny", seed=seed, vocab=ASK + 1, d=32, layers=1, heads=1, context=T,
                         hidden=64).eval()
    ids, labels = texts(256, Generator().manual_seed(seed))
    letter = ids.argmin(1, keepdim=True)  # (B, 1), its place
    before, _ = looks(model, ids)
    after, error = looks(learn(model, texts, 150, seed), ids)
    noise = (letter + 1) % (T - 1)  # the next place, of noise
    return {"before": before.gather(1, letter).mean().item(), "tokens": T, "chance": 1 / LETTERS,
            "after": after.gather(1, letter).mean().item(), "told": right(model, ids, labels),
            "error": error, "cut": without(model, ids, labels, letter),
            "other": without(model, ids, labels, noise),
            "weights": after[:6].tolist(), "letters": letter[:6, 0].tolist()}


def texts(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """ids and labels (count, T): noise with one letter in it, which the last place must tell."""
    ids = torch.randint(LETTERS, ASK, (count, T), generator=chance)
    letter = torch.randint(LETTERS, (count, 1), generator=chance)
    ids.scatter_(1, torch.randint(T - 1, (count, 1), generator=chance), letter)
    ids[:, -1] = ASK
    labels = torch.full_like(ids, UNASKED)
    labels[:, -1:] = letter
    return ids, labels


@torch.no_grad()
def looks(model, ids: Tensor) -> tuple[Tensor, float]:
    """(B, T) weights of the last place, and how far weights times values are from what ran."""
    with model.record() as tape:
        model(ids)
    return tape.pattern(0, 0, T - 1)[:, 0, 0], tape.selfcheck


def without(model, ids: Tensor, labels: Tensor, key: Tensor) -> float:
    """The share of letters told while the last place may not look at its row's key (B, 1)."""
    rows = [(key[:, 0] == k).nonzero()[:, 0].tolist() for k in range(T)]
    changes = [{"site": "edge", "op": "knockout", "layer": 0, "pos": [T - 1], "keys": [k],
                "rows": own} for k, own in enumerate(rows) if own]
    with model.intervene(changes):
        return right(model, ids, labels)


def draw(found: dict, axes, words: dict[str, str]) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle
    axes.imshow(found["weights"], vmin=0, vmax=1, aspect="auto",
                cmap=LinearSegmentedColormap.from_list("looks", HEAT))
    for n, place in enumerate(found["letters"]):
        axes.add_patch(Rectangle((place - 0.5, n - 0.5), 1, 1, fill=False, edgecolor=INKS[2],
                                 linewidth=2))
        share = found["weights"][n][place]
        axes.annotate(f"{share:.0%}", (place, n), ha="center", va="center", fontsize=8,
                      color=HEAT[0] if share > 0.5 else HEAT[-1])
    axes.set_xticks(range(T))
    axes.set_yticks(range(len(found["letters"])))

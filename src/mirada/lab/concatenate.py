"""Why is it not enough to concatenate the position? Guide E, line 97; Vaswani et al., 1706.03762,
section 3.5."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

import mirada
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.position import Sinusoid
from mirada.look.draw import EDGE, INKS

from .learn import UNASKED, learn, right

ROW = "1.19.8"
ASKED = {"en": "Why is it not enough to concatenate the position?",
         "es": "¿Por qué no basta con concatenar la posición?"}
TOLD = {
    "en": "It is enough, but it costs room; and what is concatenated must be a vector. Asked for "
          "the token {back} places ago, a model whose positions are added, {d} numbers to {d}, is "
          "right {added:.0%} of the time with {added_weights} weights. Concatenated, {d} beside "
          "{d}: {wide:.0%}, but every layer is twice as wide: {wide_weights} weights. At the old "
          "width {halves:.0%}, with {half} numbers left for the word. With the bare place number "
          "beside the word the same training comes to {number:.0%}: scores that grow with a "
          "number peak at the ends of a text, and waves peak anywhere. Adding loses nothing here: "
          "from the sums, linear maps tell {probe_token:.0%} of the tokens and {probe_place:.0%} "
          "of the places. And a dot product of sums also holds word times place, {mixed:.0%} of "
          "its variance; of vectors side by side, {mixed_halves:.0%} until a projection mixes "
          "them.",
    "es": "Sí basta, pero ocupa espacio; y lo que se concatena debe ser un vector. Al preguntarle "
          "por el token de {back} lugares atrás, un modelo cuyas posiciones se suman, {d} números "
          "a {d}, acierta el {added:.0%} con {added_weights} pesos. Si se concatenan, {d} junto a "
          "{d}, acierta el {wide:.0%}, pero cada capa es el doble de ancha: {wide_weights} pesos. "
          "Con el ancho de antes, el {halves:.0%}, y a la palabra le quedan {half} números. Con "
          "solo el número del lugar junto a la palabra, el mismo entrenamiento llega al "
          "{number:.0%}: un puntaje que crece con un número tiene su máximo en un extremo del "
          "texto; el de unas ondas cae donde haga falta. Aquí sumar no pierde nada: de las sumas, "
          "aplicaciones lineales sacan el {probe_token:.0%} de los tokens y el {probe_place:.0%} "
          "de los lugares. Y un producto punto de sumas contiene también palabra por lugar, el "
          "{mixed:.0%} de su varianza; el de vectores puestos lado a lado, el {mixed_halves:.0%} "
          "hasta que una proyección los mezcla.",
}
WORDS = {"en": {"title": "The token three places ago", "across": "Weights of the model",
                "down": "Right answers", "added": "added", "wide": "concatenated, twice as wide",
                "halves": "concatenated, same width", "number": "the bare number beside"},
         "es": {"title": "El token de tres lugares atrás", "across": "Pesos del modelo",
                "down": "Aciertos", "added": "sumada", "wide": "concatenada, doble ancho",
                "halves": "concatenada, mismo ancho", "number": "solo el número al lado"}}
VOCAB, T, BACK, D = 16, 12, 3, 32


class Number(nn.Module):
    """A place as one number, 0 to 1."""

    def forward(self, positions: Tensor, dtype=None) -> Tensor:
        return positions[..., None].to(dtype) / T


class Beside(nn.Module):
    """[token ; position], (B, T, D)."""

    def __init__(self, d: int, position: nn.Module):
        super().__init__()
        self.token, self.position = nn.Embedding(VOCAB, d), position

    def forward(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        x = self.token(inputs.input_ids)
        places = self.position(ctx.positions, dtype=x.dtype)
        return torch.cat([x, places.expand(len(x), -1, -1)], -1)


EMBEDS = {"added": lambda: Tokens(VOCAB, D, positions=Sinusoid(D)),
          "wide": lambda: Beside(D, Sinusoid(D)),
          "halves": lambda: Beside(D // 2, Sinusoid(D // 2)),
          "number": lambda: Beside(D - 1, Number())}


def run(seed: int = 0) -> dict[str, float | list]:
    """One block of GPT-2 on each embedding; then what sums and pairs hold."""
    found: dict[str, float | list] = {"back": BACK, "d": D, "half": D // 2}
    for name, embed in EMBEDS.items():
        width = 2 * D if name == "wide" else D
        model = mirada.build("gpt2:tiny", seed=seed, vocab=VOCAB, d=width, layers=1, heads=2,
                             hidden=2 * width, context=T, tied=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model.body.embed = embed()
        learn(model, texts, 220, seed, rate=5e-3, enough=0.01)
        found[name] = right(model, *texts(256, Generator().manual_seed(seed)))
        found[name + "_weights"] = sum(p.numel() for p in model.parameters())
        if name in ("added", "halves"):
            kept = parts(model)
            found["mixed" if name == "added" else "mixed_halves"] = mixed(*kept)
        if name == "added":
            found["probe_token"], found["probe_place"] = probes(kept[0] + kept[1])
    return found


def texts(count: int, chance: Generator) -> tuple[Tensor, Tensor]:
    """ids and labels (count, T): each place must tell the token BACK places before it."""
    ids = torch.randint(VOCAB, (count, T), generator=chance)
    labels = torch.full_like(ids, UNASKED)
    labels[:, BACK:] = ids[:, :-BACK]
    return ids, labels


@torch.no_grad()
def parts(model) -> tuple[Tensor, Tensor]:
    """Each token's vector (VOCAB, 1, D) and each place's (1, T, D) as the first block reads them:
    beside each other means zeros where the other stands."""
    embed = model.body.embed
    words, places = embed.token.weight[:, None], embed.position(torch.arange(T))[None]
    if isinstance(embed, Beside):
        width = words.shape[-1]
        words = nn.functional.pad(words, (0, places.shape[-1]))
        places = nn.functional.pad(places, (width, 0))
    return words, places


def mixed(words: Tensor, places: Tensor) -> float:
    """The share of word times place in the variance of (w + p)·(w' + p'), all pairs alike."""
    w, p = words[:, 0], places[0]
    alike, cross = (w @ w.T).var() + (p @ p.T).var(), 2 * (w @ p.T).var()
    return (cross / (alike + cross)).item()


def probes(sums: Tensor) -> tuple[float, float]:
    """What least squares read from the sums (VOCAB, T, D): the share of tokens, and of places."""
    flat = sums.flatten(0, 1)
    shares = []
    for kinds in (torch.arange(VOCAB).repeat_interleave(T), torch.arange(T).repeat(VOCAB)):
        told = flat @ torch.linalg.lstsq(flat, torch.eye(int(kinds.max()) + 1)[kinds]).solution
        shares.append((told.argmax(-1) == kinds).float().mean().item())
    return shares[0], shares[1]


def draw(found: dict, axes, words: dict[str, str]) -> None:
    for n, name in enumerate(EMBEDS):
        x, y = found[name + "_weights"], found[name]
        axes.scatter([x], [y], s=60, color=INKS[n], zorder=3, label=words[name])
    axes.set_xlim(0, 1.15 * found["wide_weights"])
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.grid(color=EDGE, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8, loc="lower right")

"""Why do residual connections help training? Guide E, line 179; gradients that turn to noise:
Balduzzi et al., 1702.08591."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import mirada
from mirada import look
from mirada.edit import without_residual
from mirada.look.draw import INKS

ROW = "1.19.13"
ASKED = {"en": "Why do residual connections help training?",
         "es": "¿Por qué las conexiones residuales ayudan al entrenamiento?"}
TOLD = {
    "en": "A residual connection hands the gradient on as it is, beside what goes through the "
          "layer. In a new Transformer of {deep} layers the largest gradient at any depth is "
          "{usual:.1f} times the smallest; without residual connections {bare:.0e} times. And what "
          "arrives can be used: a step along the gradient of the first block that should take "
          "{share:.0%} off the loss takes {kept:.0%} of what was promised; without them "
          "{broken:.0%} (below 0 the loss would rise). At {shallow} layer it is "
          "{kept_first:.0%} and {broken_first:.0%}.",
    "es": "Una conexión residual deja pasar el gradiente tal cual, junto a lo que atraviesa la "
          "capa. En un Transformer nuevo de {deep} capas el gradiente mayor de cualquier "
          "profundidad es {usual:.1f} veces el menor; sin conexiones residuales, {bare:.0e} veces. "
          "Y lo que llega sirve: un paso por el gradiente del primer bloque que debería quitar "
          "{share:.0%} a la pérdida cumple {kept:.0%} de lo prometido; sin ellas, {broken:.0%} "
          "(bajo 0, la pérdida subiría). Con {shallow} capa son {kept_first:.0%} y "
          "{broken_first:.0%}.",
}
WORDS = {"en": {"title": "Does a gradient step keep its promise?", "across": "Layers",
                "down": "Fall of the loss, of what was promised",
                "kept": "with residual connections", "plain": "without"},
         "es": {"title": "¿Cumple un paso del gradiente lo prometido?", "across": "Capas",
                "down": "Baja de la pérdida, de lo prometido",
                "kept": "con conexiones residuales", "plain": "sin ellas"}}
DEPTHS = (1, 2, 4, 8, 16)
SHARE = 0.01  # of the loss, which a step promises to take off


def run(seed: int = 0) -> dict[str, float | list]:
    """New models of each depth, one step each in the first block alone."""
    ids = torch.randint(32, (8, 16), generator=Generator().manual_seed(seed))
    kept, plain = [], []
    for layers in DEPTHS:
        model = mirada.build("gpt2:tiny", seed=seed, vocab=32, context=16, d=32, heads=4,
                             layers=layers, dtype=torch.float64)
        depths = look.gradients(model, ids[:1])  # of the last: the deepest
        plain.append(promised(without_residual(model), ids))
        kept.append(promised(model, ids))
    usual, bare = depths.usual.gradient, depths.without.gradient
    return {"layers": list(DEPTHS), "kept_all": kept, "plain_all": plain, "share": SHARE,
            "usual": max(usual) / min(usual), "bare": max(bare) / min(bare),
            "shallow": DEPTHS[0], "deep": DEPTHS[-1], "kept": kept[-1], "broken": plain[-1],
            "kept_first": kept[0], "broken_first": plain[0]}


def promised(model, ids: Tensor) -> float:
    """By how much the loss falls, of the SHARE of it that a straight line along the first block's
    gradient would take off. The weights stay as they were."""
    weights = list(model.body.blocks[0].parameters())
    loss = model(input_ids=ids, labels=ids).loss
    slopes = torch.autograd.grad(loss, weights)
    step = SHARE * loss.item() / sum(g.square().sum().item() for g in slopes)
    before = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p, g in zip(weights, slopes, strict=True):
            p.sub_(step * g)
        after = model(input_ids=ids, labels=ids).loss
        for p, old in zip(weights, before, strict=True):
            p.copy_(old)
    return ((loss - after) / (SHARE * loss)).item()


def draw(found: dict, axes, words: dict[str, str]) -> None:
    for name, ink in (("kept", INKS[2]), ("plain", INKS[0])):
        axes.plot(found["layers"], found[f"{name}_all"], "o-", color=ink, label=words[name])
    axes.axhline(0, color=INKS[7], linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(found["layers"], found["layers"])
    axes.legend(frameon=False, fontsize=8)

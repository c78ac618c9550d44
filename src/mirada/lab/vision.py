"""Can Transformers replace CNNs in vision? Guide A, line 567; Dosovitskiy et al., 2010.11929,
section 4.3. recipes/cnn_vit.py asks it of real digits."""

from __future__ import annotations

import torch
from torch import Generator

import mirada
from mirada.look.draw import INKS
from mirada.parts import conv
from mirada.train import pictures
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe

ROW = "1.19.15"
ASKED = {"en": "Can Transformers replace CNNs in vision?",
         "es": "¿Pueden los Transformers reemplazar a las CNN en visión?"}
TOLD = {
    "en": "Yes, where there is enough to learn from. A CNN begins with what a ViT must learn: that "
          "a thing is the same wherever it is. One of {kinds} small figures fills a patch of a "
          "noisy picture, and both learn its name for {steps} steps. From {few} pictures the "
          "CNN is right in {cnn_few:.0%} of new ones, the ViT in {vit_few:.0%} (chance: "
          "{chance:.0%}); from {many}, in {cnn_many:.0%} and {vit_many:.0%}. Figures that fill "
          "patches suit a ViT; recipes/cnn_vit.py asks both of handwritten digits. Pretraining on "
          "many pictures, or a CNN as teacher, gives a ViT what it lacks at first (2010.11929, "
          "2012.12877).",
    "es": "Sí, donde hay bastante de qué aprender. Una CNN empieza con lo que un ViT debe "
          "aprender: que una cosa es la misma esté donde esté. Una de {kinds} figuritas llena un "
          "parche de una imagen con ruido, y ambos aprenden su nombre durante "
          "{steps} pasos. Con {few} imágenes la CNN acierta {cnn_few:.0%} de las nuevas, el ViT "
          "{vit_few:.0%} (azar: {chance:.0%}); con {many}, {cnn_many:.0%} y {vit_many:.0%}. Las "
          "figuras que llenan parches favorecen a un ViT; recipes/cnn_vit.py les pregunta a ambos "
          "por dígitos manuscritos. El preentrenamiento con muchas imágenes, o una CNN como "
          "maestra, le da al ViT lo que al principio le falta (2010.11929, 2012.12877).",
}
WORDS = {"en": {"title": "Figures in new pictures", "across": "Pictures learned from",
                "down": "Right answers", "chance": "chance"},
         "es": {"title": "Figuras en imágenes nuevas", "across": "Imágenes aprendidas",
                "down": "Aciertos", "chance": "azar"}}
FIGURES = torch.tensor([[[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[1, 0, 1], [0, 1, 0], [1, 0, 1]],
                        [[1, 1, 1], [1, 0, 1], [1, 1, 1]], [[1, 0, 0], [1, 0, 0], [1, 1, 1]]])
SIDE, NOISE = 12, 0.3
COUNTS, STEPS, BATCH = (32, 2048), 120, 32
RATES = {"cnn": 2e-2, "vit": 5e-3}


def run(seed: int = 0) -> dict[str, float | list]:
    """The share of new pictures that each names right, by how many it learned from."""
    held = pictures.Pictures(some(256, Generator().manual_seed(seed + 1)))
    found: dict[str, list] = {"cnn": [], "vit": []}
    for name, told in found.items():
        for count in COUNTS:
            model = build(name, seed)
            learns = pictures.Pictures(some(count, Generator().manual_seed(seed)))
            fit(model, learns, Plan(steps=STEPS, batch=BATCH, seed=seed, dtype="float32"),
                Recipe(rate=RATES[name], warmup=STEPS // 10, decay=0.0))
            told.append(pictures.accuracy(model, held))
    (cnn_few, cnn_many), (vit_few, vit_many) = found.values()
    return {**found, "counts": list(COUNTS), "kinds": len(FIGURES), "chance": 1 / len(FIGURES),
            "steps": STEPS, "few": COUNTS[0], "many": COUNTS[1], "cnn_few": cnn_few,
            "cnn_many": cnn_many, "vit_few": vit_few, "vit_many": vit_many}


def build(name: str, seed: int):
    if name == "cnn":
        return conv.build("cnn", seed, widths=(32, 32), labels=len(FIGURES))
    return mirada.build("vit:tiny", seed=seed, image=SIDE, patch=3, channels=1, d=32, layers=2,
                        heads=4, hidden=64, labels=len(FIGURES))


def some(count: int, chance: Generator) -> pictures.Labelled:
    """Pictures (1, 12, 12) of noise with a figure that fills one of the ViT's 16 patches."""
    points = NOISE * torch.randn(count, 1, SIDE, SIDE, generator=chance)
    kinds = torch.randint(len(FIGURES), (count,), generator=chance).tolist()
    corners = (3 * torch.randint(SIDE // 3, (count, 2), generator=chance)).tolist()
    for picture, kind, (top, left) in zip(points[:, 0], kinds, corners, strict=True):
        picture[top : top + 3, left : left + 3] += FIGURES[kind]
    return pictures.of(points, kinds, list(map(str, range(len(FIGURES)))))


def draw(found: dict, axes, words: dict[str, str]) -> None:
    for name, shown, ink in (("cnn", "CNN", INKS[0]), ("vit", "ViT", INKS[2])):
        axes.plot(found["counts"], found[name], "o-", color=ink, label=shown)
    axes.axhline(found["chance"], color=INKS[7], linestyle=":", label=words["chance"])
    axes.set_xscale("log", base=2)
    axes.set_xticks(found["counts"], found["counts"])
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False, fontsize=8)

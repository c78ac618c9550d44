"""Can Transformers replace CNNs in vision? Right answers by how many pictures were learned from.

    python recipes/cnn_vit.py [--counts 100 1000 9000] [--out docs/pictures/cnn-vit.png]

A plain CNN, a small ResNet and a ViT (2010.11929, sec. 4.3) learn handwritten digits in the same
loop: the same pictures in the same order, no changes to them, as many steps. Up to 1,000 pictures a
DeiT stands beside them, alone and taught by the ResNet of as many (2012.12877, sec. 4). `data.py`
fetches the digits; 1,000 that none learned from are asked.
"""

import argparse
import time
from pathlib import Path

import torch

import mirada
from mirada.parts import conv
from mirada.train import pictures
from mirada.train.distill import Taught
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe

DATA = Path(__file__).parent / "data"
STEPS = {100: 300, 1000: 800}  # of 32 pictures; of more than 1,000 LONG
LONG, BATCH = 1500, 32
VIT = dict(image=28, patch=7, channels=1, d=64, layers=4, heads=4, hidden=128, labels=10)
RATES = {"CNN": 3e-3, "ResNet": 3e-3, "ViT": 2e-3, "DeiT alone": 2e-3, "DeiT taught": 2e-3}
LINES = {"CNN": "o-", "ResNet": "s-", "ViT": "^-", "DeiT alone": "v:", "DeiT taught": "D--"}


def build(name: str, seed: int):
    if name == "CNN":
        return conv.build("cnn", seed, widths=(16, 32, 64))
    if name == "ResNet":
        return conv.build("resnet:tiny", seed)
    return mirada.build("vit:tiny" if name == "ViT" else "deit:tiny", seed=seed, **VIT)


def digits(name: str) -> pictures.Labelled:
    """A file's pictures as all of these models read them: numbers from -1 to 1."""
    found = pictures.read([DATA / name])
    points = torch.stack([torch.from_numpy(one) for one in found.pictures])
    return pictures.of(points[:, None].float() / 127.5 - 1, found.labels, found.names)


def first(data: pictures.Labelled, count: int) -> pictures.Labelled:
    return pictures.of(data.pictures[:count], data.labels[:count], data.names)


def curve(data: pictures.Labelled, held: pictures.Labelled, count: int, seed: int = 0,
          steps: int | None = None, say=print) -> dict[str, float]:
    """Name -> the share of held-out pictures that it names right, having learned from `count`."""
    some, asked, found, teacher = first(data, count), pictures.Pictures(held), {}, None
    steps = steps or STEPS.get(count, LONG)
    for name in RATES if count <= 1000 else ("CNN", "ResNet", "ViT"):
        model, began = build(name, seed), time.process_time()
        learns = pictures.Pictures(some) if name != "DeiT taught" else Taught(some, teacher)
        fit(model, learns, Plan(steps=steps, batch=BATCH, seed=seed, dtype="float32"),
            Recipe(rate=RATES[name], warmup=steps // 10, decay=0.05))
        teacher = model if name == "ResNet" else teacher
        found[name] = pictures.accuracy(model, asked)
        weights = sum(p.numel() for p in model.parameters())
        say(f"{count:6,} pictures, {steps:5,} steps  {name:12} {weights:8,} weights  "
            f"{found[name]:7.1%}  {time.process_time() - began:5.0f} s", flush=True)
    return found


def draw(results: dict[int, dict[str, float]], out: str) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axis = pyplot.subplots(figsize=(6.4, 4.4))
    for name, line in LINES.items():
        known = {n: found[name] for n, found in results.items() if name in found}
        axis.plot(list(known), [100 * (1 - right) for right in known.values()], line, label=name)
    axis.set(xlabel="pictures learned from", ylabel="wrong answers, % of 1,000", xscale="log",
             yscale="log")
    axis.set_xticks(list(results), [f"{n:,}" for n in results], minor=False)
    axis.minorticks_off()
    ticks = [n for n in (1, 2, 5, 10, 20, 50, 100) if n >= 100 * min(
        1 - x for found in results.values() for x in found.values()) / 2]
    axis.set_yticks(ticks, [str(n) for n in ticks])
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 9000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a .png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, held = digits("digits.npz"), digits("digits-test.npz")
    results = {count: curve(data, held, count, args.seed) for count in sorted(args.counts)}
    if args.out:
        draw(results, args.out)


if __name__ == "__main__":
    main()

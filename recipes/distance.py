"""What was said long ago: RNN, LSTM, GRU, MLP, convolutions and a Transformer in the same loop.

    python recipes/distance.py [--steps 300] [--out docs/pictures/distance.png]

A row is noise with one of eight letters in it; at its end that letter is asked for. All models
learn it at distances 1, 2, 4 ... from the end, and are asked at those and at others between them.
Prints the share of right answers by distance, how much of the gradient arrives from there, and how
many letters of a word of some length each can say again: a state of fixed size holds only so many.
"""

import argparse
import random
import time

import torch
import torch.nn.functional as F

import mirada
from mirada.train import baselines
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe

LETTERS, NOISE = range(8), range(8, 16)
ASK, VOCAB = 16, 17
MODELS = ("rnn", "lstm", "gru", "mlp", "cnn", "transformer")
SPEAKERS = ("rnn", "lstm", "gru", "transformer")  # who are asked to repeat
WORDS = (2, 4, 6, 8, 12, 16)  # lengths, of which the last is the longest learned


class Recall:
    """Rows (T,) whose letter is `distance` places before the end; the last place must tell it."""

    count = 1 << 20

    def __init__(self, length: int, distances: list[int]):
        self.length, self.distances = length, distances

    def sample(self, index: int, draw, distance: int | None = None) -> list[int]:
        row = [draw.choice(NOISE) for _ in range(self.length - 1)] + [ASK]
        row[self.length - 1 - (distance or draw.choice(self.distances))] = draw.choice(LETTERS)
        return row

    def batch(self, samples: list) -> dict[str, torch.Tensor]:
        ids = torch.tensor(samples)
        return {"input_ids": ids, "letter": ids.min(1).values}

    def weight(self, batch: dict[str, torch.Tensor]) -> float:
        return float(len(batch["letter"]))

    def loss(self, model, batch: dict[str, torch.Tensor]):
        logits = model(batch["input_ids"]).logits[:, -1, :8]
        right = float((logits.argmax(-1) == batch["letter"]).float().mean())
        return F.cross_entropy(logits, batch["letter"], reduction="sum"), {"right": right}


class Repeat:
    """Rows of a word of letters, a sign, and the word again, which must be told."""

    count = 1 << 20

    def sample(self, index: int, draw, length: int | None = None) -> list[int]:
        word = [draw.choice(LETTERS) for _ in range(length or draw.randint(1, WORDS[-1]))]
        return [*word, ASK, *word]

    def batch(self, samples: list) -> dict[str, torch.Tensor]:
        width = max(map(len, samples))
        ids = torch.tensor([row + [ASK] * (width - len(row)) for row in samples])
        told = torch.tensor([[-100] * (len(row) // 2) + row[len(row) // 2 + 1 :]
                             + [-100] * (width - len(row) + 1) for row in samples])
        return {"input_ids": ids, "labels": told}

    def weight(self, batch: dict[str, torch.Tensor]) -> float:
        return float((batch["labels"] >= 0).sum())

    def loss(self, model, batch: dict[str, torch.Tensor]):
        logits, labels = model(batch["input_ids"]).logits, batch["labels"]
        asked = labels >= 0
        right = float((logits.argmax(-1) == labels)[asked].float().mean())
        return F.cross_entropy(logits[asked], labels[asked], reduction="sum"), {"right": right}


def repeated(kind: str, steps: int) -> dict[int, float]:
    """The share of letters that a model says again, by the word's length."""
    model, task, draw = build(kind, 2 * WORDS[-1] + 1), Repeat(), random.Random(3)
    fit(model, task, Plan(steps=steps, batch=64, dtype="float32"),
        Recipe(rate=3e-3, warmup=steps // 10, decay=0.0))
    model.eval()
    with torch.no_grad():
        return {n: task.loss(model, task.batch([task.sample(0, draw, n) for _ in range(256)]))[1][
            "right"] for n in WORDS}


def learned(longest: int) -> list[int]:
    """1, 2, 4 ... longest."""
    return [2**n for n in range(longest.bit_length()) if 2**n <= longest]


def asked(longest: int) -> list[int]:
    """Those, and what is half-way between them."""
    known = learned(longest)
    return sorted({*known, *((a + b) // 2 for a, b in zip(known, known[1:], strict=False))})


def build(kind: str, length: int):
    """A model of about the same width; the convolutions see 31 places."""
    if kind == "transformer":
        return mirada.build("gpt2:tiny", seed=0, vocab=VOCAB, context=length, d=32, layers=2,
                            heads=4)
    layers = 4 if kind == "cnn" else 1
    return baselines.build(kind, vocab=VOCAB, d=32, context=length, layers=layers)


def train(kind: str, longest: int, steps: int, rate: float = 3e-3):
    length = longest + 1
    model = build(kind, length)
    fit(model, Recall(length, learned(longest)), Plan(steps=steps, batch=64, dtype="float32"),
        Recipe(rate=rate, warmup=steps // 10, decay=0.0))
    return model.eval()


@torch.no_grad()
def accuracy(model, longest: int, rows: int = 256) -> dict[int, float]:
    """The share of right answers at each distance asked."""
    task, draw, found = Recall(longest + 1, []), random.Random(1), {}
    for distance in asked(longest):
        batch = task.batch([task.sample(0, draw, distance) for _ in range(rows)])
        found[distance] = task.loss(model, batch)[1]["right"]
    return found


def gradients(model, longest: int) -> dict[int, float]:
    """How much arrives from each distance, as a share of what arrives from distance 1."""
    task, draw = Recall(longest + 1, learned(longest)), random.Random(2)
    ids = torch.tensor([task.sample(0, draw) for _ in range(32)])
    norms = baselines.reach(model, ids).flip(0)  # by distance
    return {distance: float(norms[distance] / norms[1]) for distance in range(1, longest + 1)}


def draw(results: dict, longest: int, out: str) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, (left, right, words) = pyplot.subplots(1, 3, figsize=(14, 4.2))
    known = learned(longest)
    for number, (kind, found) in enumerate(results.items()):
        of = found["accuracy"]
        line, = left.plot(list(of), list(of.values()), "-", color=f"C{number}",
                          label=kind.upper() if len(kind) < 5 else "Transformer")
        left.plot(known, [of[d] for d in known], "o", color=line.get_color(), markersize=4)
        arrives = found["gradient"]
        right.plot(list(arrives), [max(v, 1e-9) for v in arrives.values()],
                   color=line.get_color())
        if "repeated" in found:
            words.plot(WORDS, list(found["repeated"].values()), "o-", color=line.get_color(),
                       markersize=4)
    for axis in (left, words):
        axis.axhline(1 / 8, color="gray", linewidth=0.8, linestyle=":")
    words.set(xlabel="letters of the word", ylim=(0, 1.03), title="said again")
    left.set(xscale="log", xlabel="distance to the letter (dots: learned at)",
             ylabel="right answers", ylim=(0, 1.03))
    left.set_xscale("log", base=2)
    left.legend(fontsize=8, loc="lower left")
    right.set(yscale="log", xlabel="distance", ylabel="gradient, of that at distance 1",
              title="before training")
    left.set_title("after training (dotted: chance)")
    figure.tight_layout()
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--longest", type=int, default=32)
    parser.add_argument("--out", help="a .png")
    args = parser.parse_args()
    results: dict[str, dict] = {}
    print("distance    " + "".join(f"{d:>6}" for d in asked(args.longest)) + "  seconds")
    for kind in MODELS:
        began = time.process_time()
        arrives = gradients(build(kind, args.longest + 1), args.longest)
        of = accuracy(train(kind, args.longest, args.steps), args.longest)
        results[kind] = {"accuracy": of, "gradient": arrives}
        print(f"{kind:12}" + "".join(f"{v:6.2f}" for v in of.values())
              + f"{time.process_time() - began:9.0f}", flush=True)
    print("gradient, of that at distance 1")
    for kind, found in results.items():
        print(f"{kind:12}" + "".join(f"  {d}: {found['gradient'][d]:.1e}"
                                     for d in learned(args.longest)))
    print("letters    " + "".join(f"{n:>6}" for n in WORDS))
    for kind in SPEAKERS:
        results[kind]["repeated"] = repeated(kind, 4 * args.steps)
        print(f"{kind:12}" + "".join(f"{v:6.2f}" for v in results[kind]["repeated"].values()),
              flush=True)
    if args.out:
        draw(results, args.longest, args.out)


if __name__ == "__main__":
    main()

"""Time and memory against length: what attention costs, and what a recurrence does.

    python recipes/lengths.py [--lengths 128 256 512 1024] [--out docs/pictures/lengths.png]

One layer of width 64 reads one row, forward and backward. Beside the seconds and the peak of memory
stands what theory says of each: operations a layer, steps that must wait for each other, and the
longest path between two places (1706.03762, table 1). Where full attention becomes dearer than the
recurrence is marked.
"""

import argparse
import math
import multiprocessing
import resource
import time

import torch

from mirada import kernel
from mirada.core.attention import Attention
from mirada.core.context import Ctx
from mirada.core.mask import Mask, Strided
from mirada.train import baselines

D, HEADS = 64, 4
DEARER = ("lstm", "rnn", "attention, strided")  # than full attention, up to some length
THEORY = {  # operations, steps that wait, longest path; n places, d wide, k taps
    "attention, all weights kept": ("n² d", "1", "1"),
    "attention, in tiles": ("n² d", "1", "1"),
    "attention, strided": ("n √n d", "1", "2"),  # 1904.10509
    "lstm": ("n d²", "n", "n"),
    "rnn": ("n d²", "n", "n"),
    "convolutions": ("k n d²", "1", "log n"),
}


def layer(name: str):
    """(a function of x (1, n, D), the kernel it runs under)."""
    torch.manual_seed(0)
    if name in ("lstm", "rnn", "convolutions"):
        kind = "cnn" if name == "convolutions" else name
        body = baselines.build(kind, vocab=2, d=D, layers=4 if kind == "cnn" else 1).body
        return body, None

    def run(x):
        n = x.shape[1]
        few = (Strided(math.isqrt(n)),) if name.endswith("strided") else ()
        attention.mask = Mask(causal=True, patterns=few)
        return attention(x, Ctx(positions=torch.arange(n)[None]))

    attention = Attention(D, HEADS)
    return run, {"kept": "exact", "tiles": "sdpa", "strided": "sparse"}[name.split()[-1]]


def apart(name: str, lengths: list[int]) -> list[tuple[float, float]]:
    """What `measured` says, in a process of its own: its peak of memory is nobody else's."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(measured, (name, sorted(lengths)))


def measured(name: str, lengths: list[int]) -> list[tuple[float, float]]:
    """(seconds, peak megabytes above the start) there and back, at lengths that rise."""
    torch.set_num_threads(1)
    run, which = layer(name)

    def both(n: int) -> float:
        x = torch.randn(1, n, D, requires_grad=True)
        began = time.process_time()
        if which is None:
            run(x).sum().backward()
        else:
            with kernel(which):
                run(x).sum().backward()
        return time.process_time() - began

    both(32)  # what is loaded on first use is no part of it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = []
    for length in lengths:
        seconds = min(both(length) for _ in range(3))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        found.append((seconds, peak / 1024))
    return found


def slope(found: dict[int, float]) -> float:
    """The power of n by which it grows, by least squares on the longer half of the lengths."""
    some = sorted(found)[len(found) // 2 - 1 :]
    xs, ys = [math.log(n) for n in some], [math.log(max(found[n], 1e-6)) for n in some]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs)


def crossover(one: dict[int, float], other: dict[int, float]) -> float | None:
    """The length at which `one` becomes dearer than `other`, between two that were measured."""
    lengths = sorted(one)
    for a, b in zip(lengths, lengths[1:], strict=False):
        low, high = math.log(one[a] / other[a]), math.log(one[b] / other[b])
        if low < 0 <= high:
            return a * (b / a) ** (-low / (high - low))
    return None


def draw(seconds: dict, memory: dict, out: str) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4))
    for name, found in seconds.items():
        axes[0].plot(list(found), [1000 * v for v in found.values()], "o-", markersize=3,
                     label=f"{name}: {THEORY[name][0]}")
        axes[1].plot(list(found), [max(v, 0.1) for v in memory[name].values()], "o-", markersize=3)
    full = seconds["attention, all weights kept"]
    for name in DEARER:
        at = crossover(full, seconds[name])
        if at is not None:
            axes[0].axvline(at, color="gray", linewidth=0.8, linestyle=":")
            axes[0].text(at, 0.02, f"{at:.0f}: dearer than {name}", rotation=90, fontsize=7,
                         va="bottom", ha="right", color="gray",
                         transform=axes[0].get_xaxis_transform())
    axes[0].set(xlabel="places n", ylabel="milliseconds, forward and backward", xscale="log",
                yscale="log")
    axes[1].set(xlabel="places n", ylabel="peak memory, MB", xscale="log", yscale="log")
    for axis in axes:
        axis.set_xscale("log", base=2)
    axes[0].legend(fontsize=7, loc="upper center")
    figure.tight_layout()
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2**n for n in range(5, 12)])
    parser.add_argument("--out", help="a .png")
    args = parser.parse_args()
    seconds: dict[str, dict[int, float]] = {}
    memory: dict[str, dict[int, float]] = {}
    print(f"{'ms / MB at':28}" + "".join(f"{n:>14}" for n in sorted(args.lengths))
          + "   operations, waiting steps, path")
    for name, theory in THEORY.items():
        found = dict(zip(sorted(args.lengths), apart(name, args.lengths), strict=True))
        seconds[name] = {n: s for n, (s, _) in found.items()}
        memory[name] = {n: m for n, (_, m) in found.items()}
        print(f"{name:28}" + "".join(f"{1000 * s:8.1f}/{m:5.1f}" for s, m in found.values())
              + f"   {', '.join(theory)}; time grows by n^{slope(seconds[name]):.1f}", flush=True)
    full = seconds["attention, all weights kept"]
    for name in DEARER:
        at = crossover(full, seconds[name])
        print(f"attention with all weights kept is dearer than {name} "
              + (f"from {at:.0f} places on" if at else "at none of these lengths, or at all"))
    if args.out:
        draw(seconds, memory, args.out)


if __name__ == "__main__":
    main()

"""What attention costs as a text grows: time and memory of one layer, beside what theory says.

Run: python benchmarks/curves.py [--lengths 128,256,...] [--picture FILE.png] [--json FILE]
One layer of width 256, 4 heads, float32, one row, its projections included. Seconds are of the
processor, one thread, the best of some passes, which neighbours lengthen least. Memory is the most
that a pass holds at once besides its input and weights, by torch's own record of its allocator.
Backward: the gradients of a sum, of the input and of every weight.
"""

import argparse
import itertools
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: its profiler tells of each start

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from mirada.core.attend import Attend, kernel
from mirada.core.attention import Attention
from mirada.core.context import Ctx
from mirada.core.mask import Mask, Strided
from mirada.edit.linear import Linformer, Performer
from mirada.kernels.linear import draw
from mirada.look import draw as pictures

D, HEADS = 256, 4
SEEN = 256  # keys in a window, keys of a query's blocks, mixtures, features: each sees as much
BLOCK = 32
LENGTHS = tuple(2**n for n in range(7, 14))
PASSES = ("forward", "forward and backward")
REFERENCE = {"seconds": "full, fused", "bytes": "full, its square held"}  # what others fall below


class Blocks(Attend):
    """BigBird's pattern (2007.14062) by gathering: each block of queries sees the first and the
    last block, its neighbours and itself, and some drawn by seed, SEEN keys in all; the first and
    the last see everything."""

    def forward(self, q, kv, *, scale, mask, bias=None, cap=None, sinks=None) -> Tensor:
        k, v = kv.dense()
        plan = self.plan(q.shape[2] // BLOCK)
        if plan.shape[1] < SEEN // BLOCK:
            return F.scaled_dot_product_attention(q, k, v, scale=scale)
        split, ends = q.unflatten(2, (-1, BLOCK)), [0, -1]
        near = (x.unflatten(2, (-1, BLOCK))[:, :, plan[1:-1]].flatten(3, 4) for x in (k, v))
        middle = F.scaled_dot_product_attention(split[:, :, 1:-1], *near, scale=scale)
        whole = F.scaled_dot_product_attention(split[:, :, ends].flatten(2, 3), k, v, scale=scale)
        first, last = whole.split(BLOCK, 2)
        return torch.cat([first, middle.flatten(2, 3), last], 2)

    @staticmethod
    def plan(blocks: int) -> Tensor:
        """(blocks, SEEN / BLOCK): the blocks that each sees; fewer where there are not so many."""
        i, generator = torch.arange(blocks), torch.Generator().manual_seed(0)
        order = torch.rand(blocks, blocks, generator=generator)
        order[(i[:, None] - i).abs() <= 1] = 2.0
        order[:, [0, -1]] = 2.0
        return order.topk(min(SEEN // BLOCK, blocks)).indices.sort().values


@dataclass(frozen=True)
class Mechanism:
    """build(n) -> a layer for n tokens; work(n): its multiply-adds but for the four projections;
    the rest as in table 1 of 1706.03762. longest: past it its memory is more than a machine has."""

    build: Callable[[int], nn.Module]
    work: Callable[[int], float]
    order: str
    steps: str
    path: str
    kernel: str | None = None
    longest: int = LENGTHS[-1]


def attention(attend: Attend | None = None, **options) -> Attention:
    layer = Attention(D, HEADS, **options)
    layer.attend = attend or layer.attend
    return layer


def stride(n: int) -> int:
    return 2 ** math.ceil(math.log2(n) / 2)


def mixtures(n: int) -> Linformer:
    k = min(SEEN, n)
    return Linformer(*(nn.Parameter(torch.randn(1, k, n) * k**-0.5) for _ in "ef"))


def features() -> Performer:
    w = draw(SEEN, D // HEADS, torch.Generator().manual_seed(0)).float()
    return Performer(w, "positive")


class Recurrent(nn.LSTM):
    def forward(self, x: Tensor, ctx: Ctx) -> Tensor:
        return super().forward(x)[0]


MECHANISMS = {
    "full, its square held": Mechanism(
        lambda n: attention(), lambda n: 2 * n * n * D, "n² · d", "1", "1", "exact", 4096),
    "full, fused": Mechanism(
        lambda n: attention(), lambda n: 2 * n * n * D, "n² · d", "1", "1", "sdpa"),
    "strided": Mechanism(
        lambda n: attention(mask=Mask(patterns=(Strided(stride(n)),))),
        lambda n: 2 * n * (3 * stride(n) + n // stride(n)) * D, "n · √n · d", "1", "1", "sparse"),
    "window": Mechanism(
        lambda n: attention(mask=Mask(window=SEEN // 2)), lambda n: 2 * n * min(SEEN, n) * D,
        "n · w · d", "1", "n / w", "tiled"),
    "BigBird's blocks": Mechanism(
        lambda n: attention(Blocks()), lambda n: 2 * n * min(SEEN + 2 * BLOCK, n) * D,
        "n · w · d", "1", "1"),
    "Linformer": Mechanism(
        lambda n: attention(mixtures(n)), lambda n: 4 * n * min(SEEN, n) * D, "n · k · d", "1",
        "1"),
    "Performer": Mechanism(
        lambda n: attention(features()), lambda n: 4 * n * SEEN * D, "n · m · d", "1", "1"),
    "Performer, causal": Mechanism(
        lambda n: attention(features(), mask=Mask(causal=True)),
        lambda n: 4 * n * SEEN * D + 2 * n * 128 * D, "n · m · d", "log n", "1"),
    "LSTM": Mechanism(
        lambda n: Recurrent(D, D, batch_first=True), lambda n: 4 * n * D * D, "n · d²", "n", "n"),
}


def run(layer: nn.Module, x: Tensor, backward: bool) -> None:
    """One pass; gradients are let go of, as an optimizer would."""
    with nullcontext() if backward else torch.inference_mode():
        out = layer(x, Ctx())
        if backward:
            out.sum().backward()
            layer.zero_grad()


def peak(work: Callable[[], None]) -> tuple[int, float]:
    """Most bytes held at once of what `work` allocates, and the seconds that it took so."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        took = seconds(work, most=1)
    steps = sorted((e.start_ns(), e.nbytes()) for e in found.profiler.kineto_results.events()
                   if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in steps)), took


def seconds(work: Callable[[], None], budget: float = 0.0, most: int = 10) -> float:
    """The best of some passes; of one where one is longer than the budget."""
    times: list[float] = []
    while not times or (sum(times) + min(times) < budget and len(times) < most):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def measure(lengths=LENGTHS, names=tuple(MECHANISMS), budget: float = 0.3) -> dict:
    """{pass: {"seconds" or "bytes": {mechanism: one for each length, None past its longest}}}."""
    torch.manual_seed(0)
    found: dict = {p: {"seconds": {}, "bytes": {}} for p in PASSES}
    for name in names:
        mechanism = MECHANISMS[name]
        for p, n in itertools.product(PASSES, lengths):
            rows = [found[p][what].setdefault(name, []) for what in ("seconds", "bytes")]
            if n > mechanism.longest:
                for row in rows:
                    row.append(None)
                continue
            layer, x = mechanism.build(n), torch.randn(1, n, D, requires_grad=p != "forward")
            with kernel(mechanism.kernel) if mechanism.kernel else nullcontext():
                def work(layer=layer, x=x, backward=p != "forward"):
                    run(layer, x, backward)
                    x.grad = None

                if n == lengths[0]:
                    work()  # what a first call builds once
                most, took = peak(work)
                rows[1].append(most)  # a recorded pass tells its time too where that is long
                rows[0].append(took if took > budget else seconds(work, budget))
    return found


def crossing(lengths, row: list, full: list) -> float | None:
    """The length from which on `row` costs less than `full` at every longer one where both are
    known, between measured lengths on straight lines of logarithms; None where it never does."""
    known = [(n, math.log(a / b)) for n, a, b in zip(lengths, row, full, strict=True) if a and b]
    above = [i for i, (_, gap) in enumerate(known) if gap >= 0]
    if not above:
        return float(known[0][0])
    if above[-1] == len(known) - 1:
        return None
    (n, a), (longer, b) = known[above[-1] : above[-1] + 2]
    return n * (longer / n) ** (a / (a - b))


def growth(row: list) -> float:
    """The exponent at the end: 1 where twice the length costs twice, 2 where four times."""
    told = [x for x in row if x is not None]
    return math.log2(told[-1] / told[-2])


def tables(lengths, found: dict) -> str:
    """Theory, and what was measured, as Markdown: milliseconds and MiB, growth and crossing."""
    out = ["| layer | multiply-adds | steps in turn | longest path |", "|---|---|---|---|"]
    names = list(found[PASSES[0]]["seconds"])
    out += [f"| {n} | O({m.order}) | O({m.steps}) | O({m.path}) |"
            for n, m in MECHANISMS.items() if n in names]
    for p, (what, unit, by) in itertools.product(
            PASSES, (("seconds", "ms", 1e3), ("bytes", "MiB", 2**-20))):
        rows = found[p][what]
        full = rows[REFERENCE[what]]
        out += ["", f"{p.capitalize()}, {unit}:", "", f"| | {' | '.join(f'{n:,}' for n in lengths)}"
                f" | growth | below '{REFERENCE[what]}' from |",
                "|---" * (len(lengths) + 3) + "|"]
        for name, row in rows.items():
            cells = ["-" if x is None else f"{x * by:.3g}" for x in row]
            cross = None if row is full else crossing(lengths, row, full)
            out.append(f"| {name} | {' | '.join(cells)} | {growth(row):.2f} | "
                       f"{f'{cross:,.0f}' if cross else '-'} |")
    return "\n".join(out)


def theory(lengths, name: str) -> list[float]:
    """Multiply-adds with the projections; the LSTM's are those of what it reads."""
    return [MECHANISMS[name].work(n) + 4 * n * D * D for n in lengths]


def figure(lengths, found: dict):
    """Theory, and time and memory of both passes; a dot where a line falls below full attention."""
    drawn = pictures.canvas(16, 8.6)
    panels = drawn.subplots(2, 3)
    names = list(found[PASSES[0]]["seconds"])
    counted = {name: theory(lengths, name) for name in names}
    curve(panels[0, 0], lengths, counted, REFERENCE["seconds"], "Theory: multiply-adds", "")
    said = [f"{n}: {m.order}; {m.steps}; {m.path}" for n, m in MECHANISMS.items() if n in names]
    panels[1, 0].axis("off")
    panels[1, 0].legend(
        panels[0, 0].get_lines()[: len(names)], said, frameon=False, fontsize=10, loc="center left",
        labelcolor=pictures.INK, title="Multiply-adds; steps in turn; longest path", labelspacing=1)
    for row, p in zip(panels, PASSES, strict=True):
        time_, memory = found[p]["seconds"], found[p]["bytes"]
        curve(row[1], lengths, time_, REFERENCE["seconds"], f"{p.capitalize()}: time",
              "Milliseconds of one core", 1e3)
        curve(row[2], lengths, memory, REFERENCE["bytes"], f"{p.capitalize()}: most memory held",
              "MiB", 2**-20)
    return drawn


def curve(axes, lengths, rows: dict, full: str, title: str, unit: str, by: float = 1.0) -> None:
    """One panel: every row's line, then the dots where they fall below that of `full` for good."""
    pictures.dressed(axes, title, "Tokens", unit)
    inks = dict(zip(MECHANISMS, (*pictures.INKS, pictures.INK), strict=True))
    for name, row in rows.items():
        known = [(n, x * by) for n, x in zip(lengths, row, strict=True) if x]
        axes.plot(*zip(*known, strict=True), color=inks[name], linewidth=1.8)
    for name, row in rows.items():
        cross = None if name == full else crossing(lengths, row, rows[full])
        if cross and cross > lengths[0]:
            axes.plot([cross], [between(lengths, rows[full], cross) * by], "o", color=inks[name],
                      markersize=7, markeredgecolor=pictures.CLOTH)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.minorticks_off()
    axes.grid(color=pictures.EDGE, linewidth=0.5)


def between(lengths, row: list, n: float) -> float:
    """A row's value at a length between two, on a straight line of logarithms."""
    at = max(i for i, x in enumerate(lengths[:-1]) if x <= n)
    share = math.log(n / lengths[at]) / math.log(lengths[at + 1] / lengths[at])
    return row[at] ** (1 - share) * row[at + 1] ** share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--picture")
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lengths = [int(n) for n in args.lengths.split(",")]
    found = measure(lengths)
    print(tables(lengths, found))
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"lengths": lengths, "found": found}, file)
    if args.picture:
        print(pictures.save(figure(lengths, found), args.picture))


if __name__ == "__main__":
    main()

"""mirada runs: the runs of a folder, and their curves."""

import sys
from pathlib import Path

from .common import show

HELP = "list training runs, how far they came and their losses; --out draws their curves"


def fill(parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="runs",
                        help="a run, or a folder of runs; default: runs")
    parser.add_argument("-o", "--out", metavar="FILE", help="curves as .png, .svg or .pdf")
    parser.add_argument("--of", default="loss", metavar="NUMBER",
                        help="what is drawn: loss, rate, norm, seconds, or what an objective logs")
    parser.add_argument("--smooth", type=int, default=1, metavar="N",
                        help="draw the mean of so many steps")
    parser.add_argument("--tensorboard", metavar="FOLDER", help="write the logs for TensorBoard")


def run(args) -> None:
    from mirada.look import draw
    from mirada.train.runs import runs
    if args.out:
        draw.place(args.out)
    found = runs(args.folder)
    if args.out:
        print(draw.save(_curves(found, args.of, args.smooth), args.out), file=sys.stderr)
    if args.tensorboard:
        from mirada.train.tensorboard import export
        for one in found:
            print(export(one.path, Path(args.tensorboard) / one.name), file=sys.stderr)
    show(args, found)


def _curves(found, of: str, smooth: int):
    """One line a run."""
    from mirada.errors import MiradaError
    from mirada.look import draw
    from mirada.train.log import history
    if smooth < 1:
        raise MiradaError(f"--smooth is {smooth}; it is a number of steps, 1 or more")
    figure = draw.canvas(8, 4.5)
    axes = draw.dressed(figure.subplots(), of, "step", of)
    known: set[str] = set()
    for number, one in enumerate(found):
        lines = history(one.path)
        known.update(*lines)
        drawn = [(x["step"], x[of]) for x in lines if isinstance(x.get(of), int | float)]
        if not drawn:
            continue
        values = [y for _, y in drawn]
        means = [sum(part) / len(part) for end in range(1, len(values) + 1)
                 for part in (values[max(0, end - smooth) : end],)]
        axes.plot([x for x, _ in drawn], means, color=draw.INKS[number % len(draw.INKS)],
                  linewidth=1.4, label=draw.short(one.name, 40))
    if not axes.lines:
        raise MiradaError(f"no step has a number {of!r}; there are {', '.join(sorted(known))}")
    axes.grid(color=draw.EDGE, linewidth=0.5)
    axes.legend(frameon=False, fontsize=8, labelcolor=draw.INK)
    return figure

"""What the pictures share: where one may go, how it is written, how its axes look (matplotlib)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from mirada.errors import MiradaError

INK, CLOTH, EDGE = "#1c1a27", "#fbfaf7", "#d8d3c8"
HEAT = (CLOTH, "#fbe3b5", "#f5a35c", "#d9485f", "#7b2a78", "#241a3a")  # nothing to all of it
INKS = ("#7b2a78", "#f08c3a", "#2f7f86", "#d9485f", "#5f7f2f", "#3b4a8c", "#a0764a", "#77757f")
PICTURES = (".png", ".svg", ".pdf")


def canvas(width: float, height: float):
    """A matplotlib figure in the house's colours. Raises MiradaError where there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MiradaError("pictures need matplotlib: pip install 'mirada[look]'") from None
    return Figure(figsize=(width, height), facecolor=CLOTH, layout="constrained")


def heat():
    """The colours from nothing to all."""
    from matplotlib.colors import LinearSegmentedColormap
    return LinearSegmentedColormap.from_list("mirada", HEAT)


def dressed(axes, title: str = "", across: str = "", down: str = ""):
    """Axes with a title and the names of both directions."""
    axes.set_facecolor(CLOTH)
    axes.set_title(title, fontsize=11, color=INK, loc="left", fontweight="bold", pad=8)
    axes.set_xlabel(across, color=INK, fontsize=9, labelpad=6)
    axes.set_ylabel(down, color=INK, fontsize=9, labelpad=6)
    axes.tick_params(length=0, colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_edgecolor(EDGE)
        spine.set_linewidth(0.8)
    return axes


def bar(figure, picture, axes, label: str = "", size: int = 8, **options):
    """The scale of a picture's colours, beside it or below."""
    made = figure.colorbar(picture, ax=axes, **options)
    made.set_label(label, color=INK, fontsize=9)
    made.ax.tick_params(length=0, labelsize=size, colors=INK)
    made.outline.set_edgecolor(EDGE)
    return made


class Drawn:
    """A result that can be drawn: it says how in figure()."""

    def figure(self):
        """The result as a matplotlib figure."""
        raise NotImplementedError(f"{type(self).__name__} has no figure")

    def save(self, path) -> str:
        """Write the figure as .png, .svg or .pdf; the path it has. Raises MiradaError."""
        return save(self.figure(), path)


def short(text: str, most: int = 18) -> str:
    """A text as a label: no dollar (matplotlib would typeset it), no control sign, not too long."""
    shown = text if len(text) <= most else text[: most - 1] + "…"
    shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
    return shown.replace("$", r"\$")


def place(out, kinds: tuple[str, ...] = PICTURES) -> Path:
    """The path of a file to come. Raises MiradaError where it cannot be."""
    out = Path(out)
    if out.suffix not in kinds or not out.parent.is_dir():
        raise MiradaError(f"{out}: a picture is a file ending in {', '.join(kinds)} in a folder "
                          "that exists")
    return out


def save(figure, out) -> str:
    """Write a picture; the path it has."""
    return written(place(out), lambda path: figure.savefig(path, dpi=110))


def written(out: Path, write: Callable[[str], object]) -> str:
    """Aside first, then renamed: what is interrupted leaves no half file."""
    handle, aside = tempfile.mkstemp(suffix=out.suffix, dir=out.parent)
    os.close(handle)
    try:
        write(aside)
        os.chmod(aside, 0o644)
        os.replace(aside, out)
    except BaseException:
        os.unlink(aside)
        raise
    return str(out)

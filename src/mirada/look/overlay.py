"""A picture as the patches a model reads, and attention laid over it: by head, on average, rolled
out (Dosovitskiy et al., 2010.11929, figures 1 and 6; rollout: Abnar & Zuidema, 2005.00928)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from . import draw, paths, reduce, sites
from .describe import resolve
from .patterns import listed
from .views.heads import CELLS, STATED, rooted
from .views.view import View, spoken
from .views.words import WORDS

OVER = ((0.984, 0.89, 0.71, 0.0), (0.961, 0.639, 0.361, 0.55), (0.851, 0.282, 0.373, 0.88))
ACROSS = 6  # small heads in a row of the figure
COUNTED = 32  # patches a side up to which rows and columns are numbered


def cut(pixels: Tensor, patch: tuple[int, int]) -> Tensor:
    """(B, C, Y, X) -> (B, N, C * Py * Px): each patch as one vector, rows of patches first. A
    linear layer on it is the strided convolution that embeds them (2010.11929, eq. 1)."""
    return F.unfold(pixels, patch, stride=patch).transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Patched(draw.Drawn):
    """A picture (Y, X, C) in uint8 and the (height, width) of its patches in pixels."""

    picture: Tensor
    patch: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.picture.shape[0] // self.patch[0], self.picture.shape[1] // self.patch[1]

    @property
    def vectors(self) -> Tensor:
        """(N, C * Py * Px) uint8: what each patch is before it is projected."""
        return cut(self.picture.permute(2, 0, 1)[None].float(), self.patch)[0].byte()

    def data(self) -> dict:
        """For programs."""
        return {"pixels": list(self.picture.shape), "patch": list(self.patch),
                "grid": list(self.grid), "vectors": self.vectors.tolist()}

    def __str__(self) -> str:
        (height, width, channels), (rows, columns) = self.picture.shape, self.grid
        return (f"{height} x {width} pixels of {channels}: {rows} x {columns} patches of "
                f"{self.patch[0]} x {self.patch[1]}, {rows * columns} vectors of "
                f"{channels * self.patch[0] * self.patch[1]} numbers")

    def figure(self):
        """The picture, and beside it its patches apart."""
        (rows, columns), (tall, wide) = self.grid, self.patch
        gap = max(1, round(0.14 * max(self.patch)))
        sheet = np.full((rows * (tall + gap) - gap, columns * (wide + gap) - gap, 3), 255, np.uint8)
        picture = _colours(self.picture)
        for r in range(rows):
            for c in range(columns):
                sheet[r * (tall + gap) :, c * (wide + gap) :][:tall, :wide] = picture[
                    r * tall : (r + 1) * tall, c * wide : (c + 1) * wide]
        figure = draw.canvas(11, 11 / 2 * rows * tall / (columns * wide) + 0.4)
        whole, apart = figure.subplots(1, 2)
        numbers = self.picture.shape[2] * tall * wide
        draw.dressed(whole, f"{picture.shape[1]} × {picture.shape[0]} pixels")
        draw.dressed(apart, f"{rows} × {columns} patches of {tall} × {wide}: {rows * columns} "
                     f"vectors of {numbers}")
        whole.imshow(picture, interpolation="nearest")
        apart.imshow(sheet, interpolation="nearest")
        whole.set_axis_off()
        for spine in apart.spines.values():
            spine.set_visible(False)
        for set_ticks, count, side in ((apart.set_xticks, columns, wide),
                                       (apart.set_yticks, rows, tall)):
            shown = range(0, count, -(-count // COUNTED))
            set_ticks([n * (side + gap) + side / 2 for n in shown], list(shown))
        return figure


def patches(of, picture) -> Patched:
    """A picture cut as a model cuts it, after its processor has sized it.

    of: a Model, or what mirada.describe takes ("vit:base"). picture: see mirada.image.read.
    Raises MiradaError where the model sees no pictures.
    """
    model = resolve(of)
    embed = _embed(model, None)
    seen = _seen(model, picture)
    rows, columns = (n // p for n, p in zip(seen.shape, embed.patch, strict=False))
    return Patched(seen[: rows * embed.patch[0], : columns * embed.patch[1]], tuple(embed.patch))


@dataclass(frozen=True, eq=False, repr=False)
class OverPicture(View):
    """Where one place of a stack looks on a picture (Y, X, C), N = rows * columns patches.

    at: the patch (row, column) that looks; None: the class token, or the mean of all patches where
    there is none. heads: (H, N) of `layer`; rolled: (N,) through all layers; rest: (H,) what rests
    on the `extra` tokens before the patches. head: which one is drawn large, the mean when None.
    read(layer): (H, T, S) of any layer; mixed(): (T, T) the whole rollout.
    """

    picture: Tensor
    grid: tuple[int, int]
    layers: list[int]
    layer: int
    head: int | None
    at: tuple[int, int] | None
    extra: int
    heads: Tensor
    rolled: Tensor
    rest: Tensor
    read: Callable[[int], Tensor]
    mixed: Callable[[], Tensor]
    lang: str = "en"

    kind = "picture"
    tall = 720

    @property
    def chosen(self) -> Tensor:
        """(rows, columns): the weights of the head, or of all on average."""
        found = self.heads.mean(0) if self.head is None else self.heads[self.head]
        return found.unflatten(0, self.grid)

    def data(self) -> dict:
        """For programs."""
        return {"layer": self.layer, "head": self.head, "at": self.at, "grid": list(self.grid),
                "mean": self.heads.mean(0).unflatten(0, self.grid).tolist(),
                "heads": self.heads.unflatten(1, self.grid).tolist(),
                "rollout": self.rolled.unflatten(0, self.grid).tolist(), "rest": self.rest.tolist()}

    def __str__(self) -> str:
        lines = [f"layer {self.layer}, seen from {self._place('en')}, over {self.grid[0]} x "
                 f"{self.grid[1]} patches (row, column from 0):"]
        named = [(f"head {n}", weights, 1 - rest) for n, (weights, rest) in
                 enumerate(zip(self.heads, self.rest.tolist(), strict=True))]
        named += [("mean", self.heads.mean(0), 1 - self.rest.mean().item()),
                  ("rollout", self.rolled, self.rolled.sum().item())]
        for name, weights, share in named:
            best = int(weights.argmax())
            lines.append(f"  {name:8} {share:6.1%} on the picture, most at "
                         f"{divmod(best, self.grid[1])} with {weights[best].item():.1%}")
        return "\n".join([*lines, "Attention shows where a head looks, not why the model answers; "
                                  "rollout is a heuristic, not a cause."])

    __repr__ = __str__

    def _place(self, lang: str) -> str:
        if self.at is not None:
            return f"{WORDS[lang]['patch']} {self.at[0]}, {self.at[1]}"
        return "[CLS]" if self.extra else WORDS[lang]["patches"]

    def figure(self):
        """The picture, the chosen head or the mean over it, the rollout; all heads small below."""
        words, H = WORDS[self.lang], len(self.heads)
        across = min(H, ACROSS)
        rows, tall = -(-H // across), self.picture.shape[0] / self.picture.shape[1]
        figure = draw.canvas(11, 11 / 3 * tall + 1.4 + rows * (11 / ACROSS * tall + 0.25))
        above, below = figure.subfigures(2, 1, height_ratios=[
            11 / 3 * tall + 1.2, rows * (11 / ACROSS * tall + 0.25)]).flat
        seen, large, rolled = above.subplots(1, 3)
        draw.dressed(seen, f"{words['from']}: {self._place(self.lang)}")
        seen.imshow(_colours(self.picture), interpolation="nearest")
        self._mark(seen)
        said = words["meant"] if self.head is None else f"{words['head']} {self.head}"
        for axes, title, cells in (
                (large, f"{words['layer']} {self.layer} · {said}", self.chosen),
                (rolled, words["rollout"], self.rolled.unflatten(0, self.grid))):
            draw.dressed(axes, title)
            most = cells.max().item() or 1.0
            drawn = self._lay(axes, cells, most)
            draw.bar(above, drawn, axes, words["weight"], location="bottom", aspect=30, pad=0.03,
                     ticks=[0, most / 16, most / 4, most], format=lambda x, _: f"{100 * x:.2g} %")
        most = self.heads.max().item() or 1.0
        for n, axes in enumerate(below.subplots(rows, ACROSS, squeeze=False).flat):
            axes.set_axis_off()
            if n < H:
                self._lay(axes, self.heads[n].unflatten(0, self.grid), most)
                axes.set_title(f"{words['head']} {n} · {self.heads[n].max().item():.1%}",
                               fontsize=8, color=draw.INK, pad=3,
                               fontweight="bold" if n == self.head else "normal")
        for axes in (seen, large, rolled):
            axes.set_axis_off()
            axes.set_anchor("N")
        return figure

    def _lay(self, axes, cells: Tensor, most: float):
        """Weights (rows, columns) over the picture in grey, by their root so that faint ones
        show."""
        from matplotlib.colors import LinearSegmentedColormap, PowerNorm
        grey = _colours(self.picture).mean(2) * 0.75 + 64
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        tall, wide = self.picture.shape[:2]
        return axes.imshow(cells.numpy(), interpolation="nearest",
                           extent=(-0.5, wide - 0.5, tall - 0.5, -0.5),
                           cmap=LinearSegmentedColormap.from_list("over", OVER),
                           norm=PowerNorm(0.5, 0, most))

    def _mark(self, axes) -> None:
        if self.at is not None:
            from matplotlib.patches import Rectangle
            from matplotlib.patheffects import withStroke
            tall, wide = (n / g for n, g in zip(self.picture.shape, self.grid, strict=False))
            axes.add_patch(Rectangle((self.at[1] * wide - 0.5, self.at[0] * tall - 0.5), wide, tall,
                                     fill=False, edgecolor=draw.CLOTH, linewidth=2,
                                     path_effects=[withStroke(linewidth=4, foreground=draw.INK)]))

    def contents(self, lang: str) -> tuple[str, dict, Iterable[bytes]]:
        first = self.read(self.layers[0])
        H, T, S = first.shape
        whole = (self.extra > 0 or self.at is not None) and (
            len(self.layers) * H + 1) * T * S <= CELLS
        about = {"size": list(self.picture.shape[:2]), "grid": list(self.grid), "heads": H,
                 "extra": self.extra, "layers": self.layers, "layer": self.layer,
                 "head": self.head, "queries": T if whole else 1, "stated": STATED,
                 "query": self._query() if whole else 0, "asked": self._place(lang)}
        title = f"{WORDS[lang]['picture_title']} · {self.grid[0]} × {self.grid[1]}"
        return title, about, self._bytes(whole)

    def _query(self) -> int:
        return 0 if self.at is None else self.extra + self.at[0] * self.grid[1] + self.at[1]

    def _bytes(self, whole: bool) -> Iterable[bytes]:
        yield _colours(self.picture).tobytes()
        picked = [self._query()] if self.extra or self.at else slice(None)
        for layer in self.layers:
            weights = self.read(layer)
            yield rooted(weights if whole else weights[:, picked].mean(1))[0]
        mixed = self.mixed()
        yield rooted(mixed if whole else mixed[picked].mean(0))[0]


def look_at(model, picture, *, layer: int = -1, head: int | None = None) -> OverPicture:
    """over_picture of a pass that is recorded here."""
    _embed(model, None)
    with torch.inference_mode(), model.record() as tape:
        model(pixel_values=model.processor(picture)["pixel_values"].to(model.device))
    return over_picture(tape, picture, layer=layer, head=head)


def over_picture(tape, picture, *, layer: int = -1, head: int | None = None,
                 at: tuple[int, int] | None = None, stack: str | None = None, row: int = 0,
                 run: int = -1, lang: str = "en") -> OverPicture:
    """Where the class token, or the patch `at` (row, column), looks on a picture.

    tape: of a pass over `picture`, which is what mirada.image.read takes and is sized here as the
    model's processor sizes it. layer: whose heads; head: the one drawn large, their mean when None.
    row: of the batch. lang: of the labels, en or es. Raises MiradaError.
    """
    stack, layer = tape.site(layer, stack)
    seen, patch = _seen(tape.model, picture), _embed(tape.model, stack).patch
    grid = tuple(n // p for n, p in zip(seen.shape, patch, strict=False))
    B, H, T, S = tape.shape(layer, stack, run)
    extra = S - grid[0] * grid[1]
    if T != S or extra not in (0, 1, 2):
        raise MiradaError(f"this picture has {grid[0]} x {grid[1]} patches here, and the recorded "
                          f"pass {S} places: give the picture that it was a pass of, to a model "
                          "that looks at all of its patches at once")
    (row,) = listed(row, B, "row of the batch")
    if head is not None:
        (head,) = listed(head, H, "head")
    if at is not None and not all(0 <= n < most for n, most in zip(at, grid, strict=True)):
        raise MiradaError(f"there is no patch {at}: rows and columns are {grid[0]} and {grid[1]}")
    places = listed(None, T, "place") if at is None and not extra else [
        0 if at is None else extra + at[0] * grid[1] + at[1]]
    weights = tape.pattern(layer, rows=places, stack=stack, run=run)[row].float().cpu().mean(1)
    rolled = list(reduce.shares(tape, places, None, stack, run))[-1][row].float().cpu().mean(0)

    def read(layer: int) -> Tensor:
        return tape.pattern(layer, stack=stack, run=run)[row].float().cpu()

    def mixed() -> Tensor:
        return paths.rollout(tape, stack=stack, row=row, run=run).float().cpu()

    return OverPicture(seen[: grid[0] * patch[0], : grid[1] * patch[1]], grid, tape.layers(stack),
                       layer, head, at, extra, weights[:, extra:], rolled[extra:],
                       weights[:, :extra].sum(1), read, mixed, spoken(lang))


def _embed(model, stack: str | None):
    """What cuts pictures in a stack, or in the first that does. Raises MiradaError."""
    for name, found in sites.stacks(model).items():
        if stack in (None, name) and hasattr(found.embed, "patch"):
            return found.embed
    raise MiradaError(f"{model.architecture} cuts no pictures into patches"
                      + (f" in its stack {stack}" if stack else ""))


def _seen(model, picture) -> Tensor:
    if model.processor is None:
        raise MiradaError(f"{model.architecture} sees no pictures")
    return model.processor.seen(picture)


def _colours(picture: Tensor) -> np.ndarray:
    """(Y, X, 3) uint8, of grey three times the same."""
    return picture.expand(*picture.shape[:2], 3).contiguous().numpy()

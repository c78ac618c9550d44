"""What vectors know: neighbours of a word in a model's table, the senses that contexts give it,
and a map of any vectors in their plane of most variance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.core.embed import Tokens
from mirada.errors import MiradaError

from . import draw
from .describe import stacks
from .stages import read


@dataclass(frozen=True)
class Neighbor:
    id: int
    token: str
    cosine: float


@dataclass(frozen=True)
class Neighbors:
    """The tokens whose vectors point most nearly where a word's does. Printed, it is a table."""

    word: str
    ids: list[int]  # of the word: several where its vector is the mean of its pieces'
    pieces: list[str]
    found: list[Neighbor]

    def data(self) -> dict:
        """For programs."""
        return {**vars(self), "found": [vars(n) for n in self.found]}

    def __str__(self) -> str:
        of = " + ".join(f"{p} ({i})" for p, i in zip(self.pieces, self.ids, strict=True))
        wide = max(5, *(len(n.token) for n in self.found))
        return "\n".join([f"nearest to {self.word!r}, {of}", f"{'id':>8}  {'token':{wide}}  cosine",
                          *(f"{n.id:8}  {n.token:{wide}}  {n.cosine:6.3f}" for n in self.found)])

    def save(self, path) -> str:
        """Draw the cosines as bars into `path`."""
        figure = draw.canvas(5.2, 0.3 * len(self.found) + 1.2)
        axes = draw.dressed(figure.subplots(), f"Nearest to {draw.short(self.word)}", "Cosine")
        axes.barh(range(len(self.found)), [n.cosine for n in self.found], color=draw.INKS[0],
                  height=0.65)
        axes.set_yticks(range(len(self.found)), [draw.short(n.token) for n in self.found])
        axes.invert_yaxis()
        return draw.save(figure, path)


def neighbors(model, word: str, k: int = 10) -> Neighbors:
    """The k tokens nearest to a word in the model's token table, by cosine.

    A word of several pieces is the mean of their vectors, and says so. Raises MiradaError.
    """
    ids, table = _ids(model, word), F.normalize(_rows(model, range(model.config.vocab)), dim=-1)
    cosines = table @ F.normalize(_rows(model, ids).mean(0), dim=0)  # (V,)
    hidden = [*ids, *model.tokenizer.special_ids, *range(model.tokenizer.size, len(cosines))]
    cosines[hidden] = -2.0
    best = cosines.topk(min(k, len(cosines) - len(set(hidden))))
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Neighbors(word, ids, model.tokenizer.pieces(ids), [
        Neighbor(i, model.tokenizer.pieces([i])[0], x) for i, x in rows])


def word_map(model, words: Sequence[str] | Mapping[str, Sequence[str]]) -> Plane:
    """A map of words by their vectors in the model's token table.

    words: a list, or lists by the name of a group, which gets a colour. Raises MiradaError.
    """
    labels, groups = _grouped(words)
    vectors = torch.stack([_rows(model, _ids(model, word)).mean(0) for word in labels])
    return plane(vectors, labels, groups)


def senses(model, word: str, sentences: Sequence[str] | Mapping[str, Sequence[str]]) -> Plane:
    """A map of one word by the vectors that it has in several sentences, after the last block.

    sentences: a list, or lists by the name of a sense. The word must stand in each, by itself; its
    vector is the mean of its tokens'. Raises MiradaError.
    """
    labels, groups = _grouped(sentences)
    return plane(torch.stack([_within(model, word, text) for text in labels]), labels, groups)


@dataclass(frozen=True)
class Plane:
    """Vectors seen in the plane of their two widest directions, and how alike they are.

    labels, groups: a name and a group (or None) for each; points (N, 2): places on the map, of
    vectors of length one, centred; explained: the share of variance along each axis; cosines
    (N, N) between the vectors as they are.
    """

    labels: list[str]
    groups: list[str] | None
    points: Tensor
    explained: tuple[float, float]
    cosines: Tensor

    @property
    def nearest(self) -> list[int]:
        """For each vector, which other one is nearest."""
        return self.cosines.clone().fill_diagonal_(-2.0).argmax(1).tolist()

    @property
    def agreement(self) -> float | None:
        """The share of vectors whose nearest one is of their own group."""
        if self.groups is None:
            return None
        same = [self.groups[n] == self.groups[m] for n, m in enumerate(self.nearest)]
        return sum(same) / len(same)

    @property
    def alike(self) -> tuple[float, float] | None:
        """The mean cosine of two vectors of one group, and of two groups."""
        if self.groups is None or len(set(self.groups)) < 2:
            return None
        same = torch.tensor([[a == b for b in self.groups] for a in self.groups])
        others = ~torch.eye(len(same), dtype=torch.bool)
        if not bool((same & others).any()):
            return None
        return self.cosines[same & others].mean().item(), self.cosines[~same].mean().item()

    def data(self) -> dict:
        """For programs."""
        return {"labels": self.labels, "groups": self.groups, "points": self.points.tolist(),
                "explained": self.explained, "cosines": self.cosines.tolist(),
                "nearest": self.nearest, "agreement": self.agreement, "alike": self.alike}

    def __str__(self) -> str:
        groups = self.groups or [""] * len(self.labels)
        wide = [max(map(len, names)) for names in (self.labels, [*groups, "group"])]
        lines = [f"{'':{wide[0]}}  {'group' if self.groups else '':{wide[1]}}       x       y  "
                 "nearest (cosine)"]
        for n, (label, m) in enumerate(zip(self.labels, self.nearest, strict=True)):
            x, y = self.points[n].tolist()
            lines.append(f"{label:{wide[0]}}  {groups[n]:{wide[1]}}  {x:6.3f}  {y:6.3f}  "
                         f"{self.labels[m]} ({self.cosines[n, m]:.3f})")
        lines.append(f"the axes hold {self.explained[0]:.0%} and {self.explained[1]:.0%} of the "
                     "variance")
        if self.agreement is not None:
            lines.append(f"nearest of its own group: {self.agreement:.0%}")
        if self.alike is not None:
            lines.append(f"mean cosine {self.alike[0]:.3f} within a group, {self.alike[1]:.3f} "
                         "between groups")
        return "\n".join(lines)

    def save(self, path) -> str:
        """Draw the map into `path`."""
        figure = draw.canvas(7.2, 5.4)
        axes = draw.dressed(figure.subplots(), "", *(
            f"Principal axis {n + 1} ({share:.0%} of the variance)"
            for n, share in enumerate(self.explained)))
        kinds = list(dict.fromkeys(self.groups or [""]))
        for n, kind in enumerate(kinds):
            own = [i for i, g in enumerate(self.groups or [""] * len(self.labels)) if g == kind]
            axes.scatter(*self.points[own].T.tolist(), s=42, color=draw.INKS[n % len(draw.INKS)],
                         label=kind, zorder=3)
        _named(axes, self.points, self.labels)
        axes.axhline(0, color=draw.EDGE, linewidth=0.8)
        axes.axvline(0, color=draw.EDGE, linewidth=0.8)
        axes.margins(0.12)
        if self.groups:
            axes.legend(frameon=False, fontsize=9, labelcolor=draw.INK, loc="best")
        return draw.save(figure, path)


def plane(vectors: Tensor, labels: Sequence[str], groups: Sequence[str] | None = None,
          clusters: int | None = None) -> Plane:
    """A map of any vectors (N, D), such as those of mirada.embed, by principal axes.

    groups: one a vector. clusters: find so many groups instead (see clustered). Raises MiradaError.
    """
    if vectors.ndim != 2 or len(vectors) != len(labels) or len(vectors) < 2:
        raise MiradaError(f"a map is of two vectors or more, (N, D), each with a label; these are "
                          f"{tuple(vectors.shape)} and {len(labels)} labels")
    if groups is not None and len(groups) != len(vectors):
        raise MiradaError(f"{len(groups)} groups for {len(vectors)} vectors")
    if clusters is not None:
        groups = [str(n) for n in clustered(vectors, clusters)]
    unit = F.normalize(vectors.detach().cpu().double(), dim=-1)
    u, s, _ = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    u, s = F.pad(u, (0, 1))[:, :2], F.pad(s, (0, 1))[:2]  # one number a vector: no second axis
    far = u.abs().argmax(0)  # an axis has no sign of its own: the farthest point is positive
    u = u * u.gather(0, far[None]).sign()
    total = (unit - unit.mean(0)).square().sum().clamp(min=1e-30)
    shares = (s.square() / total).tolist()
    return Plane(list(labels), None if groups is None else list(groups), (u * s).float(),
                 (shares[0], shares[1]), (unit @ unit.T).float())


def clustered(vectors: Tensor, count: int, starts: int = 32, passes: int = 50) -> list[int]:
    """A group for each vector (N, D), by k-means on directions: the best of some starts, each from
    one vector and then those least like the ones chosen, so that no luck is in it."""
    if not 1 <= count <= len(vectors):
        raise MiradaError(f"{len(vectors)} vectors cannot make {count} clusters")
    unit = F.normalize(vectors.detach().cpu().double(), dim=-1)
    tried = [_means(unit, first, count, passes)
             for first in range(0, len(unit), -(-len(unit) // starts))]
    own = max(tried, key=lambda found: found[0])[1]
    number = {n: i for i, n in enumerate(dict.fromkeys(own))}  # numbered as they come
    return [number[n] for n in own]


def _means(unit: Tensor, first: int, count: int, passes: int) -> tuple[float, list[int]]:
    """k-means from one start: the sum of cosines to the centres, and each vector's centre."""
    chosen = [first]
    while len(chosen) < count:
        chosen.append(int((unit @ unit[chosen].T).max(1).values.argmin()))
    centres = unit[chosen]
    for _ in range(passes):
        own = (unit @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, own, unit)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=-1),
                              centres)  # a centre that lost all its vectors stays
    return (unit * centres[own]).sum().item(), own.tolist()


@torch.no_grad()
def _rows(model, ids) -> Tensor:
    """(N, D) rows of the token table, looked up as a pass does it (a table may be packed)."""
    embed = next(iter(stacks(model).values())).embed
    if not isinstance(embed, Tokens):
        raise MiradaError(f"{model.architecture} reads no words")
    return embed.token(torch.as_tensor(ids, device=model.device)).float()


def _ids(model, word: str) -> list[int]:
    """The ids of a word as it stands in a text: with a space before it, where that is shorter."""
    if model.tokenizer is None:
        raise MiradaError("this model has no tokenizer beside its weights, so a word has no ids; "
                          "set model.tokenizer")
    if not word.strip():
        raise MiradaError("there is no word to look up")
    forms = [model.tokenizer.encode(text, special=False).ids for text in (" " + word, word)]
    return min(forms, key=len)


def _grouped(named) -> tuple[list[str], list[str] | None]:
    if isinstance(named, Mapping):
        pairs = [(label, group) for group, labels in named.items() for label in labels]
        return [label for label, _ in pairs], [group for _, group in pairs]
    return list(named), None


@torch.no_grad()
def _within(model, word: str, text: str) -> Tensor:
    """(D,) the mean of the word's tokens after the last block."""
    found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE)
    if found is None:
        raise MiradaError(f"{word!r} does not stand in {text!r} as a word")
    batch, _, _ = read(model, text)
    offsets = model.tokenizer.encode(text).offsets
    where = [n for n, (a, b) in enumerate(offsets) if a < found.end() and b > found.start()]
    return last_stream(model, batch)[0, where].float().mean(0)


def last_stream(model, batch: dict) -> Tensor:
    """(B, T, D) after the last block and norm, before the head; of two stacks the encoder's."""
    if model.encoder_decoder:
        return model.encode(**{n: x for n, x in batch.items() if not n.startswith("decoder")})
    kept: list[Tensor] = []
    hook = model.body.register_forward_hook(lambda module, args, output: kept.append(output))
    try:
        model(**batch)
    finally:
        hook.remove()
    return kept[0]


def _named(axes, points: Tensor, labels: list[str]) -> None:
    """Labels beside their points, on the side with more room, moved up or down past others."""
    size, high = 8.5, 11  # of the letters; of a line, in points
    low, span = points.min(0).values, points.max(0).values - points.min(0).values
    spots = (points - low) / span.clamp(min=1e-6) * torch.tensor([330.0, 260.0])  # about in points
    taken = [(x - 4, x + 4, y - 4, y + 4) for x, y in spots.tolist()]
    for n in points[:, 1].argsort(descending=True).tolist():
        (x, y), text = spots[n].tolist(), draw.short(labels[n], 26)
        right, wide = x > 165, 0.56 * size * len(text)
        left = x - wide - 7 if right else x + 7
        boxes = [(left, left + wide, y + dy, y + dy + high)
                 for dy in (-4, 6, -14, 17, -25, 28, -36, 39, -47, 50, -58, 61)]
        box = next((b for b in boxes if not any(_overlap(b, other) for other in taken)), boxes[0])
        taken.append(box)
        far = abs(box[2] - y) > 14
        axes.annotate(text, points[n].tolist(), textcoords="offset points", zorder=4,
                      xytext=(-7 if right else 7, box[2] - y), fontsize=size, color=draw.INK,
                      ha="right" if right else "left", va="bottom",
                      arrowprops=dict(arrowstyle="-", color="#a9a294", lw=0.8, shrinkA=0,
                                      relpos=(float(right), 0.5)) if far else None)


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]

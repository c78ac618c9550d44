"""Heads that do the same: by where they look, and by what they bring; clusters of both.

Heads of one kind can stand in for each other, so that removing one of them shows little: a cluster
is a set to remove together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mirada.errors import MiradaError

from . import draw, logits

HEADS = 1024  # most that are compared, each with each
QUERIES = 64  # that a comparison of patterns samples
ALIKE = 0.15  # mean distance up to which patterns share a cluster


@dataclass(frozen=True, eq=False)
class Redundancy(draw.Drawn):
    """Every pair of heads: distance (N, N) of patterns, the square root of the Jensen-Shannon
    divergence in bits, 0 alike and 1 apart, its mean over queries; cosine (N, N) of what they add
    to the stream, or None where the tape has no z. heads: (layer, head) of each row. clusters:
    indices of heads, largest first, those alone left out."""

    stack: str
    heads: list[tuple[int, int]]
    distance: Tensor
    cosine: Tensor | None
    clusters: list[list[int]]
    queries: int
    threshold: float

    @property
    def cluster(self) -> list[int]:
        """Each head's cluster, those alone too, numbered from 0."""
        of = {n: c for c, members in enumerate(self.clusters) for n in members}
        alone = iter(range(len(self.clusters), len(self.heads) + len(self.clusters)))
        return [of[n] if n in of else next(alone) for n in range(len(self.heads))]

    def data(self) -> dict:
        """For programs."""
        return {"stack": self.stack, "heads": self.heads, "distance": self.distance.tolist(),
                "cosine": None if self.cosine is None else self.cosine.tolist(),
                "clusters": [[self.heads[n] for n in c] for c in self.clusters],
                "queries": self.queries, "threshold": self.threshold}

    def __str__(self) -> str:
        inside = sum(map(len, self.clusters))
        lines = [f"{len(self.heads)} heads of the {self.stack}, compared at {self.queries} queries:"
                 f" {inside} in {len(self.clusters)} clusters (mean distance up to "
                 f"{self.threshold:g})"]
        for members in self.clusters[:12]:
            named = " ".join("{}.{}".format(*self.heads[n]) for n in members[:16])
            more = f" and {len(members) - 16} more" if len(members) > 16 else ""
            line = f"  {len(members):3} heads, distance {_mean(self.distance, members):.2f}"
            if self.cosine is not None:
                line += f", cosine {_mean(self.cosine, members):+.2f}"
            lines.append(f"{line}: {named}{more}")
        return "\n".join([*lines, "Alike in this text; whether one stands in for another, removing "
                          "them together shows."])

    def figure(self):
        """The distances, clusters side by side, and the cosines where there are any."""
        order = [n for c in self.clusters for n in c]
        order += [n for n in range(len(self.heads)) if n not in set(order)]
        grids = [("Distance of patterns", self.distance, draw.heat().reversed(), 0)]
        if self.cosine is not None:
            grids.append(("Cosine of outputs", self.cosine, "PuOr_r", -1))
        figure = draw.canvas(5.8 * len(grids), 5.6)
        places = figure.subplots(1, len(grids), squeeze=False)[0]
        for axes, (title, grid, colors, low) in zip(places, grids, strict=True):
            draw.dressed(axes, title)
            picture = axes.imshow(grid[order][:, order].numpy(), cmap=colors, vmin=low, vmax=1,
                                  interpolation="nearest")
            step = -(-len(order) // 36)
            at = range(0, len(order), step)
            names = ["{}.{}".format(*self.heads[order[n]]) for n in at]
            axes.set_xticks(at, names, rotation=90, fontsize=7)
            axes.set_yticks(at, names, fontsize=7)
            begin = 0
            for members in self.clusters:
                size = len(members)
                axes.plot([begin - 0.5, begin + size - 0.5, begin + size - 0.5, begin - 0.5,
                           begin - 0.5], [begin - 0.5, begin - 0.5, begin + size - 0.5,
                                          begin + size - 0.5, begin - 0.5], color=draw.INKS[2],
                          linewidth=1.2)
                begin += size
            draw.bar(figure, picture, axes, location="bottom", aspect=40, pad=0.02)
        return figure


@torch.no_grad()
def redundant(tape, *, stack: str | None = None, threshold: float = ALIKE, queries: int = QUERIES,
              row: int = 0, run: int = -1) -> Redundancy:
    """Compare every head of a stack with every other, up to HEADS of them.

    Patterns are compared at up to `queries` seeded query tokens; with z=True on the tape, what the
    heads add to the stream too. Clusters join heads while the mean distance between two clusters is
    at most `threshold`. Raises MiradaError.
    """
    stack, _ = tape.site(tape.layers(stack)[0], stack)
    tape.across("a comparison of heads")
    layers = tape.layers(stack)
    heads = [(n, h) for n in layers for h in range(tape.heads(n, stack))]
    if len(heads) > HEADS:
        raise MiradaError(f"{len(heads)} heads are too many to compare each with each; record some "
                          f"layers only (m.record(layers=...)), at most {HEADS} heads")
    real = tape.real("decoder" if stack == "cross" else stack, run)[row].nonzero()[:, 0]
    shuffled = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    chosen = real[shuffled[:queries].to(real.device)].sort().values.tolist()
    rows = [tape.pattern(n, rows=chosen, stack=stack, run=run)[row] for n in layers]
    distance = js_distance(torch.cat(rows))
    cosine = _cosines(tape, stack, layers, chosen, row, run)
    return Redundancy(stack, heads, distance.cpu(), None if cosine is None else cosine.cpu(),
                      clusters(distance, threshold), len(chosen), threshold)


def js_distance(patterns: Tensor) -> Tensor:
    """(N, N) from patterns (N, R, S): the square root of the Jensen-Shannon divergence in bits, its
    mean over the rows. One head at a time, so that nothing of N x N x S is held."""
    own = torch.special.entr(patterns).sum(-1)  # (N, R)
    found = patterns.new_zeros(len(patterns), len(patterns))
    for n, pattern in enumerate(patterns):
        middle = torch.special.entr((patterns[n:] + pattern) / 2).sum(-1)
        bits = (middle - (own[n:] + own[n]) / 2) / torch.log(patterns.new_tensor(2.0))
        found[n, n:] = bits.clamp(min=0).sqrt().mean(-1)
        found[n, n] = 0.0
    return found + found.T


def clusters(distance: Tensor, threshold: float) -> list[list[int]]:
    """Sets of two or more that average linkage joins up to a distance, the largest first."""
    near = distance.double().clone().fill_diagonal_(float("inf"))
    members = [[n] for n in range(len(near))]
    while len(near) > 1 and near.min() <= threshold:
        a, b = sorted(divmod(int(near.argmin()), len(near)))
        sizes = len(members[a]), len(members[b])
        joined = (near[a] * sizes[0] + near[b] * sizes[1]) / sum(sizes)
        near[a], near[:, a] = joined, joined
        near[b], near[:, b], near[a, a] = float("inf"), float("inf"), float("inf")
        members[a], members[b] = members[a] + members[b], []
    return sorted((sorted(m) for m in members if len(m) > 1), key=lambda m: (-len(m), m))


def _cosines(tape, stack: str, layers: list[int], chosen: list[int], row: int,
             run: int) -> Tensor | None:
    """(N, N) cosine of what heads add to the stream at the chosen tokens, as one long vector."""
    if ("z", stack, layers[0]) not in tape.kept:
        return None
    brought = []
    for layer in layers:
        z = tape.z(layer, stack, run)[row, chosen].float()  # (R, H, Kv)
        weight = logits.matrix(tape.modules[stack, layer].o)[0].to(z).unflatten(1, z.shape[1:])
        brought.append(torch.einsum("rhk,dhk->hrd", z, weight).flatten(1))
    unit = torch.nn.functional.normalize(torch.cat(brought), dim=-1)
    return unit @ unit.T


def _mean(pairs: Tensor, members: list[int]) -> float:
    """Over the pairs of two different members."""
    some = pairs[members][:, members]
    return ((some.sum() - some.diagonal().sum()) / (len(members) * (len(members) - 1))).item()

"""Scaled dot-product attention by hand, one step after another (Vaswani et al., 1706.03762,
section 3.2.1), and what its scale is for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mirada.core.mask import Mask
from mirada.errors import MiradaError

from . import draw

STEPS = {"scores": "q kᵀ", "scaled": "q kᵀ · scale", "masked": "-∞ if hidden",
         "weights": "softmax", "output": "weights v"}


@dataclass(frozen=True)
class Steps:
    """Every intermediate value of softmax(scale * q kᵀ, masked) v. Printed, it is a page.

    scores, scaled, masked, weights: (..., T, S); output: (..., T, Kv). Where nothing is hidden,
    masked is scaled.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    scores: Tensor
    scaled: Tensor
    masked: Tensor
    weights: Tensor
    output: Tensor
    queries: list[str]
    keys: list[str]

    def data(self) -> dict:
        """For programs; -inf, which JSON has not, is None."""
        found = {name: _plain(getattr(self, name)) for name in ("q", "k", "v", *STEPS)}
        return found | {"scale": self.scale, "queries": self.queries, "keys": self.keys}

    def __str__(self) -> str:
        lines = []
        for name, words in self._shown().items():
            matrix = _first(getattr(self, name))
            heads = self.keys if name != "output" else [f"v{n}" for n in range(matrix.shape[1])]
            lines += [f"{name}: {words}", *_table(matrix, self.queries, heads), ""]
        return "\n".join(lines[:-1])

    def save(self, path) -> str:
        """Draw the steps beside each other into `path`; of a batch, its first."""
        shown = self._shown()
        figure = draw.canvas(2.8 * len(shown), 3.0)
        for axes, (name, words) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
            matrix = _first(getattr(self, name)).float()
            seen = matrix.masked_fill(matrix.isinf(), float("nan"))
            axes.imshow(seen.numpy(), cmap=draw.heat(), aspect="auto", alpha=0.85)
            draw.dressed(axes, f"{name}: {words}")
            labels = self.keys if name != "output" else [f"v{n}" for n in range(matrix.shape[1])]
            for ticks, texts in ((axes.set_xticks, labels), (axes.set_yticks, self.queries)):
                ticks(range(len(texts)), [draw.short(t, 10) for t in texts])
            middle = (seen.nan_to_num().min() + seen.nan_to_num().max()) / 2
            for t, row in enumerate(_numbers(matrix)) if matrix.numel() <= 144 else ():
                for s, x in enumerate(row):
                    axes.text(s, t, x, ha="center", va="center", fontsize=8,
                              color=draw.CLOTH if matrix[t, s] > middle else draw.INK)
        return draw.save(figure, path)

    def _shown(self) -> dict[str, str]:
        words = STEPS | {"scaled": f"q kᵀ · {self.scale:.4g}"}
        return {n: w for n, w in words.items() if n != "masked" or bool(self.masked.isinf().any())}


def steps(q, k, v, *, mask: Mask | None = None, scale: float | None = None,
          queries: list[str] | None = None, keys: list[str] | None = None) -> Steps:
    """Attention by the formula, with everything on the way.

    q (..., T, K), k (..., S, K), v (..., S, Kv): tensors or nested lists; K and Kv may differ.
    mask: who sees whom; all see all when None, and a query that sees nothing gets zeros.
    scale: K ** -0.5 when None. queries, keys: names for the printed tables. Raises MiradaError.
    """
    q, k, v = (x if torch.is_tensor(x) else torch.tensor(x, dtype=torch.float32) for x in (q, k, v))
    shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
    if min(q.ndim, k.ndim, v.ndim) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise MiradaError(f"q, k and v are {shapes}: they must be (T, K), (S, K) and (S, Kv)")
    T, S = q.shape[-2], k.shape[-2]
    queries = queries or [f"q{n}" for n in range(T)]
    keys = keys or (queries if T == S and queries[0] != "q0" else [f"k{n}" for n in range(S)])
    if (len(queries), len(keys)) != (T, S):
        raise MiradaError(f"{len(queries)} and {len(keys)} names for {T} queries and {S} keys")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.transpose(-1, -2)
    scaled = masked = scores * scale
    if mask is not None:
        masked = scaled.masked_fill(~mask.rows(0, T, T, S, q.device)[0, 0], float("-inf"))
    weights = masked.softmax(-1).nan_to_num()  # a row of -inf alone: nothing seen, nothing taken
    return Steps(q, k, v, scale, scores, scaled, masked, weights, weights @ v, queries, keys)


@dataclass(frozen=True)
class Scaled:
    """One key width: each figure without and with the scale."""

    width: int
    variance: tuple[float, float]  # of the scores
    entropy: tuple[float, float]  # of the weights, of the most there can be: 1 is an even look
    gradient: tuple[float, float]  # sum of d weight / d score: 0 where softmax lets nothing back


@dataclass(frozen=True)
class Scaling:
    """What dividing by the root of the key width does. Printed, it is a table."""

    keys: int
    rows: list[Scaled]

    def data(self) -> dict:
        """For programs."""
        return {"keys": self.keys, "rows": [vars(r) for r in self.rows]}

    def __str__(self) -> str:
        lines = [f"{'':8}{'variance':>20}{'entropy':>20}{'gradient':>20}",
                 f"{'width':8}" + f"{'without':>10}{'with':>10}" * 3]
        for r in self.rows:
            pairs = (r.variance, r.entropy, r.gradient)
            lines.append(f"{r.width:<8}" + "".join(f"{x:10.3f}" for pair in pairs for x in pair))
        return "\n".join([*lines, f"q and k of unit normal numbers, {self.keys} keys a query. "
                          "entropy: 1 is an even look, 0 one key alone;", "gradient: the sum of "
                          "d weight / d score, 0 where softmax passes nothing back"])

    def save(self, path) -> str:
        """Draw the three figures against the key width into `path`."""
        figure, widths = draw.canvas(10.5, 3.4), [r.width for r in self.rows]
        titles = {"variance": "Variance of the scores", "entropy": "Entropy of the weights",
                  "gradient": "Gradient through softmax"}
        for axes, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
            draw.dressed(axes, title, "Key width")
            for n, label in enumerate(("without the scale", "with 1 / √width")):
                axes.plot(widths, [getattr(r, name)[n] for r in self.rows], "o-", label=label,
                          color=draw.INKS[1 - n], markersize=4, linewidth=1.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(widths, [str(w) for w in widths])
            axes.minorticks_off()
            if name == "variance":
                axes.set_yscale("log", base=2)
                axes.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
                axes.legend(frameon=False, fontsize=8, labelcolor=draw.INK)
            else:
                axes.set_ylim(-0.03, 1.03)
            axes.grid(color=draw.EDGE, linewidth=0.5)
        return draw.save(figure, path)


def scaling(*widths: int, keys: int = 64, rows: int = 1024, seed: int = 0) -> Scaling:
    """Measure scores of random q and k of each width: 4 to 1024 when none is given.

    keys: how many each query looks at; rows: queries drawn. Raises MiradaError.
    """
    widths = widths or (4, 16, 64, 256, 1024)
    if min(*widths, keys - 1, rows) < 1:
        raise MiradaError("widths and rows must be 1 or more, and keys 2 or more")
    draws = torch.Generator().manual_seed(seed)
    return Scaling(keys, [_measured(width, keys, rows, draws) for width in widths])


def _measured(width: int, keys: int, rows: int, draws: torch.Generator) -> Scaled:
    q = torch.randn(rows, width, generator=draws)
    scores = q @ torch.randn(keys, width, generator=draws).T  # (rows, keys)
    pairs = []
    for s in (scores, scores * width**-0.5):
        w = s.softmax(-1)
        entropy = torch.special.entr(w).sum(-1).mean() / math.log(keys)
        gradient = (w * (1 - w)).sum(-1).mean()  # the trace of softmax's Jacobian
        pairs.append((s.var().item(), entropy.item(), gradient.item()))
    return Scaled(width, *zip(*pairs, strict=True))


def _plain(x: Tensor) -> list:
    if x.ndim:
        return [_plain(row) for row in x]
    return x.item() if x.isfinite() else None


def _first(x: Tensor) -> Tensor:
    """The first matrix of a batch of them."""
    return x.detach().cpu().reshape(-1, *x.shape[-2:])[0]


def _table(matrix: Tensor, rows: list[str], columns: list[str]) -> list[str]:
    wide, each = max(map(len, rows)), max(9, *(len(c) + 2 for c in columns))
    lines = [" " * (wide + 2) + "".join(f"{c:>{each}}" for c in columns)]
    return lines + [f"  {name:{wide}}" + "".join(f"{x:>{each}}" for x in row)
                    for name, row in zip(rows, _numbers(matrix), strict=True)]


def _numbers(matrix: Tensor) -> list[list[str]]:
    """The numbers of a table as text: whole ones, or all with four places."""
    finite = matrix[matrix.isfinite()]
    places = 0 if bool((finite == finite.round()).all()) else 4
    return [["-∞" if math.isinf(x) else f"{x:.{places}f}" for x in row] for row in matrix.tolist()]

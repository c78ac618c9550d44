"""Figures of attention patterns that are never held whole: each is made row block by row block.

Every function here reads `tape.blocks(...)`: some rows of weights (B, H, R, S) at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError

from .patterns import listed


def entropy(weights: Tensor, r0: int) -> Tensor:
    """(B, H, R) in nats: 0 where a query looks at one key, log n where at n alike."""
    return torch.special.entr(weights).sum(-1)


def distance(weights: Tensor, r0: int) -> Tensor:
    """(B, H, R) in tokens: how far a query looks on average, 2010.11929's figure 7."""
    return (weights * _steps(weights, r0).abs()).sum(-1)


def first(weights: Tensor, r0: int) -> Tensor:
    """(B, H, R): the weight of key 0, where heads rest that have nothing to say."""
    return weights[..., 0]


def itself(weights: Tensor, r0: int) -> Tensor:
    """(B, H, R): the weight of the query's own place."""
    return weights.masked_fill(_steps(weights, r0) != 0, 0).sum(-1)


def strongest(weights: Tensor, r0: int) -> Tensor:
    """(B, H, R): the largest weight (Voita et al., 1905.09418, call its mean confidence)."""
    return weights.amax(-1)


ROWWISE = {"entropy": entropy, "first": first, "strongest": strongest, "distance": distance,
           "itself": itself}
OWN = ("distance", "itself")  # these compare places of query and key, so both must be one text's


def rowwise(tape, layer: int, names=None, heads=None, stack: str | None = None,
            run: int = -1) -> dict[str, Tensor]:
    """name -> (B, H, T): figures of each row, several at one walk through the pattern.

    names: of ROWWISE; all that the stack has when None, which for cross-attention, and in windows
    of a grid, is not the distance. Raises MiradaError.
    """
    across = tape.site(layer, stack)[0] == "cross" or tape.windowed
    names = [n for n in ROWWISE if not (across and n in OWN)] if names is None else names
    for name in names:
        if name not in ROWWISE:
            raise MiradaError(f"no figure of a row is called {name!r}; there are "
                              f"{', '.join(ROWWISE)}")
        if name in OWN:
            _one_text(tape, layer, stack)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for r0, weights in tape.blocks(layer, heads, stack, run):
        for name, parts in found.items():
            parts.append(ROWWISE[name](weights, r0))
    return {name: torch.cat(parts, 2) for name, parts in found.items()}


def _one_text(tape, layer: int, stack: str | None) -> str:
    """The stack's name. Raises MiradaError where queries and keys are of different texts."""
    name, _ = tape.site(layer, stack)
    if name == "cross":
        raise MiradaError("cross-attention looks from one text at another: there is no distance "
                          "between their places")
    tape.across("a distance, or a flow,")
    return name


def offsets(tape, layer: int, at: list[int], heads=None, stack: str | None = None,
            run: int = -1) -> tuple[Tensor, Tensor]:
    """How far heads look a fixed number of tokens away: (B, H, len(at)) the mean weight of key
    i + k over the queries i that have one, and the share of these whose strongest key it is.

    at: offsets k, -1 the token before. Queries and keys that are pads do not count.
    """
    real = tape.real(_one_text(tape, layer, stack), run)  # (B, T)
    parts = []
    for r0, weights in tape.blocks(layer, heads, stack, run):
        B, H, R, S = weights.shape
        steps, best = _steps(weights, r0), weights.argmax(-1)  # (R, S), (B, H, R)
        rows = torch.arange(r0, r0 + R, device=weights.device)
        made = []
        for k in at:
            there = (rows + k).clamp(0, S - 1)
            valid = (there == rows + k) & real[:, rows] & real[:, there]  # (B, R)
            valid = valid[:, None].to(weights.dtype)
            looked = weights.masked_fill(steps != k, 0).sum(-1)
            made.append(torch.stack([(looked * valid).sum(-1),
                                     ((best == rows + k) * valid).sum(-1),
                                     valid.sum(-1).expand(B, H)]))
        parts.append(torch.stack(made, -1))  # (3, B, H, len(at))
    weight, hits, count = torch.stack(parts).sum(0)
    return weight / count.clamp(min=1), hits / count.clamp(min=1)


def largest(weights: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest weights of each row and their keys, (B, H, R, k), and what the others share."""
    values, keys = weights.topk(min(k, weights.shape[3]), -1)
    return values, keys, (weights.sum(-1) - values.sum(-1)).clamp(min=0)


def pooled(tape, layer: int, size: int, heads=None, stack: str | None = None,
           run: int = -1) -> Tensor:
    """(B, H, R, C), R and C at most `size`: the largest weight of each tile of the pattern."""
    B, H, T, S = tape.shape(layer, stack, run)
    R, C = min(size, T), min(size, S)
    out = None
    for r0, weights in tape.blocks(layer, heads, stack, run):
        across = F.adaptive_max_pool2d(weights.flatten(0, 1), (weights.shape[2], C))
        tile = torch.arange(r0, r0 + weights.shape[2], device=weights.device) * R // T
        if out is None:
            out = weights.new_zeros(*weights.shape[:2], R, C)
        across = across.unflatten(0, weights.shape[:2])
        out.scatter_reduce_(2, tile[:, None].expand_as(across), across, "amax")
    return out


def rollout(tape, target: int = -1, stack: str | None = None, run: int = -1) -> Tensor:
    """(L + 1, B, T): what part of `target` after the last layer comes from each place before layer
    n, the heads on average and half of each step the residual (Abnar & Zuidema, 2005.00928).

    One vector goes down through the layers, so that no product of patterns is ever formed.
    """
    return torch.stack([share[:, 0] for share in shares(tape, [target], None, stack, run)][::-1])


def shares(tape, targets: list[int] | None = None, upto: int | None = None,
           stack: str | None = None, run: int = -1) -> Iterator[Tensor]:
    """(B, R, T) of the targets' rollouts (every place's when None), from after layer `upto` (the
    last when None) down to the embedding: one for each depth."""
    layers = [n for n in tape.layers(stack) if upto is None or n <= tape.site(upto, stack)[1]]
    stack = _one_text(tape, layers[0], stack)
    B, _, T, _ = tape.shape(layers[0], stack, run)
    targets = listed(targets, T, "token")
    share = None
    for layer in reversed(layers):
        below = None
        for r0, weights in tape.blocks(layer, None, stack, run):
            if share is None:
                share = weights.new_zeros(B, len(targets), T)
                share[:, range(len(targets)), targets] = 1.0
                yield share
            mean = weights.mean(1)  # (B, r, T)
            whole = 1 + mean.sum(-1)  # less than 2 where a sink took part of the look
            own = share[:, :, r0 : r0 + mean.shape[1]] / whole[:, None]
            given = own @ mean  # (B, R, T)
            given[:, :, r0 : r0 + mean.shape[1]] += own
            below = given if below is None else below + given
        share = below
        yield share


def _steps(weights: Tensor, r0: int) -> Tensor:
    """(R, S): key less query."""
    R, S = weights.shape[2:]
    places = torch.arange(S, device=weights.device)
    return places - torch.arange(r0, r0 + R, device=weights.device)[:, None]

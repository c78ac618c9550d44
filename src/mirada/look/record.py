"""Recording: what every attention looked at, without changing a kernel or an output bit.

A tape keeps, for each call of each attention, the queries as they enter the kernel and the keys
that are new at that call, with mask and bias as values. Weights are computed later, exactly, and
only the layers, heads and rows that are asked for. While the kernel's output is at hand a few rows
are checked against it, so that the pattern shown is known to be the pattern used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mirada.core.attend import Attend, Call
from mirada.core.attention import Attention, CrossAttention
from mirada.core.bias import Bias
from mirada.core.block import Stack
from mirada.core.cache import KV
from mirada.core.mask import Mask
from mirada.errors import MiradaError

CHECKED_ROWS = 4
TILE = 512  # rows computed at a time


@dataclass(frozen=True, eq=False)
class Taken:
    """One call of one attention, as kept: q (B, H, T, K), the new keys (B, G, T', K)."""

    q: Tensor
    k: Tensor
    grows: bool  # the keys join those of earlier calls (a cache), else they are all there are
    scale: float
    mask: Mask
    bias: Bias | None
    cap: float | None
    sinks: Tensor | None
    error: float  # largest difference of weights . values from the kernel's output


@dataclass
class Tape:
    """What was recorded. A site is (stack, layer); stacks are encoder, decoder and cross.

    runs: per site, one list of calls for each pass; the steps of a cached generation are one run.
    """

    runs: dict[tuple[str, int], list[list[Taken]]] = field(default_factory=dict)

    @property
    def stacks(self) -> list[str]:
        return list(dict.fromkeys(stack for stack, _ in self.runs))

    def layers(self, stack: str | None = None) -> list[int]:
        """Layers recorded in a stack, by their place in its order."""
        stack = self._stack(stack)
        return [layer for name, layer in self.runs if name == stack]

    def heads(self, layer: int = 0, stack: str | None = None) -> int:
        """Number of heads of a layer."""
        return self._run(layer, stack, -1)[0].q.shape[1]

    @property
    def selfcheck(self) -> float:
        """Largest difference, over the rows checked, of weights . values from what ran."""
        return max((t.error for runs in self.runs.values() for run in runs for t in run),
                   default=0.0)

    def pattern(self, layer: int, heads=None, rows=None, stack: str | None = None,
                run: int = -1) -> Tensor:
        """Attention weights (B, H, R, S): row t says how query t spread its look over the keys.

        layer: place in the stack's order, negative from the end. heads: an index or a list; all
        when None. rows: an index, a range or slice of queries; all when None. stack: needed when
        several were recorded. run: which pass, the last when -1; a cached generation is one run
        and gives one aligned matrix.
        """
        taken = self._run(layer, stack, run)
        heads = _listed(heads, taken[0].q.shape[1], "head")
        total = sum(t.q.shape[2] for t in taken)
        wanted = _listed(rows, total, "row")
        keys = torch.cat([t.k for t in taken], 2) if taken[0].grows else taken[0].k
        out = keys.new_zeros(keys.shape[0], len(heads), len(wanted), keys.shape[2])
        at = 0
        for t in taken:
            T = t.q.shape[2]
            here = [(n, r - at) for n, r in enumerate(wanted) if at <= r < at + T]
            S = _first(t) + T if t.grows else keys.shape[2]
            for n, r0, r1 in _stretches(here):
                out[:, :, n : n + r1 - r0, :S] = _weights(t, keys[:, :, :S], heads, r0, r1)
            at += T
        return out

    def _stack(self, stack: str | None) -> str:
        if not self.runs:
            raise MiradaError("nothing was recorded: call the model inside `with m.record() as "
                              "tape`")
        if stack is None and len(self.stacks) > 1:
            stack = "decoder" if "decoder" in self.stacks else self.stacks[0]
        stack = stack or self.stacks[0]
        if stack not in self.stacks:
            raise MiradaError(f"no stack is called {stack!r}; recorded: {', '.join(self.stacks)}")
        return stack

    def _run(self, layer: int, stack: str | None, run: int) -> list[Taken]:
        stack = self._stack(stack)
        layers = self.layers(stack)
        where = layer if layer >= 0 else layer + max(layers) + 1
        if where not in layers:
            raise MiradaError(f"layer {layer} of {stack} was not recorded; there are {layers}")
        runs = self.runs[stack, where]
        if not -len(runs) <= run < len(runs):
            raise MiradaError(f"run {run} was not recorded; there are {len(runs)}")
        return runs[run]

    def _take(self, site: tuple[str, int], taken: Taken) -> None:
        runs = self.runs.setdefault(site, [])
        last = runs[-1][-1] if runs else None
        goes_on = last is not None and (
            _first(taken) > 0 if taken.grows else not last.grows and _same(last.k, taken.k))
        if goes_on:
            runs[-1].append(taken)
        else:
            runs.append([taken])


def _same(a: Tensor, b: Tensor) -> bool:
    """The same keys in the same place: what a cache of the source hands out at every step."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


def _weights(t: Taken, keys: Tensor, heads: list[int], r0: int, r1: int) -> Tensor:
    """Rows r0..r1 of one call's weights for some heads, against keys in their true order."""
    group = t.q.shape[1] // keys.shape[1]
    mask = _in_order(t.mask, keys.shape[2])
    bias = None if t.bias is None else _SomeHeads(replace(t.bias, mask=mask), t.q, keys, heads)
    k = keys[:, [h // group for h in heads]]
    sinks = None if t.sinks is None else t.sinks[heads]
    call = Call(t.q[:, heads], KV(k, k), t.scale, mask, bias, t.cap, sinks)
    tiles = [Attend.weights(call, (a, min(a + TILE, r1))) for a in range(r0, r1, TILE)]
    return torch.cat(tiles, 2).detach()


@dataclass(frozen=True, eq=False)
class _SomeHeads:
    """A bias value seen through a choice of heads."""

    bias: Bias
    q: Tensor
    k: Tensor
    heads: list[int]

    def rows(self, q: Tensor, k: Tensor, r0: int, r1: int) -> Tensor:
        return self.bias.rows(self.q, self.k, r0, r1)[:, self.heads]


def _in_order(mask: Mask, S: int) -> Mask:
    """The mask a cache gave, for keys laid out by index instead of by slot."""
    padding, slots = mask.padding, mask.slots
    if slots is not None and padding is not None:
        if slots.ndim == 1:  # a rolling cache: what it dropped lies outside every window
            padding = torch.cat([padding.new_ones(len(padding), int(slots[0])), padding], 1)
        padding = padding[:, :S]
    start = int(torch.as_tensor(mask.start).reshape(-1)[0])
    return replace(mask, start=start, slots=None, padding=padding, memo={})


def _first(t: Taken) -> int:
    """Index of the call's first query among all keys of its run."""
    start = torch.as_tensor(t.mask.start).reshape(-1)
    if (start != start[0]).any():
        raise MiradaError("the rows of this cache have different lengths; an aligned pattern "
                          "needs rows of one length (pad on the left)")
    return int(start[0])


def _listed(chosen, count: int, what: str) -> list[int]:
    if chosen is None:
        return list(range(count))
    if isinstance(chosen, slice):
        return list(range(count))[chosen]
    listed = [chosen] if isinstance(chosen, int) else list(chosen)
    for n in listed:
        if not -count <= n < count:
            raise MiradaError(f"{what} {n} does not exist: there are {count}")
    return [n % count for n in listed]


def _stretches(pairs: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(place, row) pairs -> (place, first row, end row) of runs of consecutive rows."""
    begin = 0
    for n in range(1, len(pairs) + 1):
        if n == len(pairs) or pairs[n][1] != pairs[n - 1][1] + 1:
            yield pairs[begin][0], pairs[begin][1], pairs[n - 1][1] + 1
            begin = n


@contextmanager
def record(model: nn.Module, layers: list[int] | None = None):
    """Within this context every pass of `model` is recorded; yields the Tape.

    layers: places in each stack's order, all when None. Memory: queries and keys of those layers.
    Record greedy or sampled generation, not beams: their rows change places between steps.
    """
    tape, handles = Tape(), []
    for name, stack in _stacks(model).items():
        handles += _listen(tape, name, stack, layers)
    model.tape = tape
    try:
        yield tape
    finally:
        model.tape = None
        for handle in handles:
            handle.remove()


def _stacks(model: nn.Module) -> dict[str, Stack]:
    if model.encoder_decoder:
        return {"encoder": model.body.encoder, "decoder": model.body.decoder}
    return {"decoder" if model.kind == "decoder" else "encoder": model.body}


def _listen(tape: Tape, name: str, stack: Stack, layers) -> list:
    """Hooks that count places in the stack's order and take every attention's call."""
    place = [-1]

    def begin(module, args):
        place[0] = -1

    def step(module, args):
        place[0] += 1

    handles = [stack.register_forward_pre_hook(begin)]
    for block in stack.blocks:
        handles.append(block.register_forward_pre_hook(step))
        for attention in (m for m in block.modules() if isinstance(m, Attention)):
            site = "cross" if isinstance(attention, CrossAttention) else name

            def take(module, args, kwargs, output, site=site):
                if layers is None or place[0] in layers:
                    dropped = module.training and module.dropout > 0
                    tape._take((site, place[0]), _taken(args, kwargs, output, dropped))

            handles.append(attention.attend.register_forward_hook(take, with_kwargs=True))
    return handles


@torch.no_grad()
def _taken(args, kwargs, output: Tensor, dropped: bool) -> Taken:
    """What one call leaves on the tape; values forget the dense masks of their pass."""
    (q, kv), given = args, kwargs
    call = Call(q, kv, given["scale"], given["mask"], given["bias"], given["cap"], given["sinks"])
    error = float("nan") if dropped else _error(call, output)  # dropout changed the kernel's rows
    mask = replace(call.mask, memo={})
    bias = None if call.bias is None else replace(call.bias, mask=mask)
    sinks = None if call.sinks is None else call.sinks.detach()
    return Taken(q.detach(), kv.fresh.detach(), kv.new is not None, call.scale, mask, bias,
                 call.cap, sinks, error)


def _error(call: Call, output: Tensor) -> float:
    """weights . values of a few seeded rows, against the kernel's own output."""
    T, (_, v) = call.q.shape[2], call.kv.dense()
    chosen = torch.randperm(T, generator=torch.Generator().manual_seed(T))[:CHECKED_ROWS]
    worst = 0.0
    v = v.repeat_interleave(call.q.shape[1] // v.shape[1], 1)
    for row in chosen.tolist():
        mine = Attend.weights(call, (row, row + 1)) @ v  # (B, H, 1, Kv)
        worst = max(worst, (mine - output[:, :, row : row + 1]).abs().max().item())
    return worst

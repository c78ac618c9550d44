"""Recording: what every attention looked at, without changing a kernel or an output bit.

A tape keeps, for each call of each attention, the queries as they enter the kernel and the keys
that are new at that call, with mask and bias as values. Weights are computed later, exactly, and
only the layers, heads and rows that are asked for. While the kernel's output is at hand a few rows
are checked against it, so that the pattern shown is known to be the pattern used.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from mirada.core.attend import Attend, Call
from mirada.core.attention import Attention
from mirada.core.cache import KV
from mirada.core.mask import Mask
from mirada.errors import MiradaError
from mirada.look import reduce, sites
from mirada.look.patterns import (
    Reading,
    Taken,
    Terms,
    calls_before,
    in_order,
    is_plain,
    listed,
    one_batch,
    together,
    value_lengths,
    weights,
)
from mirada.look.sites import Spot

CHECKED_ROWS = 4

@dataclass
class Tape:
    """What was recorded. A site is (stack, layer); stacks are encoder, decoder and cross; of two
    towers text and vision.

    runs: per site, one list of calls for each pass; the steps of a cached generation are one run.
    kept: the same for tensors that were asked for besides, by (name, stack, layer): ids, real
    (where no pad stands), resid, added.attn, added.cross, added.mlp, z, mlp. modules: each site's
    attention.
    """

    model: nn.Module | None = None
    runs: dict[tuple[str, int], list[list[Taken]]] = field(default_factory=dict)
    kept: dict[tuple[str, str, int], list[list[Tensor]]] = field(default_factory=dict)
    modules: dict[tuple[str, int], Attention] = field(default_factory=dict)

    @property
    def stacks(self) -> list[str]:
        """Those with an attention on the tape."""
        return list(dict.fromkeys(stack for stack, _ in self.runs))

    def layers(self, stack: str | None = None) -> list[int]:
        """Layers recorded in a stack, by their place in its order."""
        stack = self._stack(stack)
        return [layer for name, layer in self.runs if name == stack]

    def heads(self, layer: int = 0, stack: str | None = None) -> int:
        """Number of heads of a layer."""
        return self.modules[self.site(layer, stack)].heads

    def shape(self, layer: int = 0, stack: str | None = None, run: int = -1) -> tuple[int, ...]:
        """(B, H, T, S) of a layer's pattern."""
        site = self.site(layer, stack)
        taken = self._run(*site, run)
        q, k = self._reads(site, taken[0])
        T = sum(t.length for t in taken)
        return len(q), q.shape[1], T, T if taken[0].grows else k.shape[2]

    @property
    def valued(self) -> bool:
        """Whether values were recorded too (v=True)."""
        return all(t.v is not None for runs in self.runs.values() for run in runs for t in run)

    @property
    def selfcheck(self) -> float:
        """Largest difference, over the rows checked, of weights . values from what ran."""
        return max((self.error(layer, stack) for stack, layer in self.runs), default=0.0)

    def error(self, layer: int, stack: str | None = None) -> float:
        """The selfcheck of one layer; not a number where dropout was at work."""
        return max(t.error for run in self.runs[self.site(layer, stack)] for t in run)

    def pattern(self, layer: int, heads=None, rows=None, stack: str | None = None,
                run: int = -1) -> Tensor:
        """Attention weights (B, H, R, S): row t says how query t spread its look over the keys.

        layer: place in the stack's order, negative from the end. heads: an index or a list; all
        when None. rows: an index, a range or slice of queries; all when None. stack: needed when
        several were recorded. run: which pass, the last when -1; a cached generation is one run
        and gives one aligned matrix. Computed in float32 or wider. Where an attention has no matrix
        of its own, entry (i, j) is the factor with which value j enters output i. One that runs in
        windows of a grid (Swin) gives (B * windows, H, places, places): which place of the grid
        each is, the `places` of the module around it says.
        """
        return self.read(layer, heads, stack, run).rows(rows)

    def read(self, layer: int, heads=None, stack: str | None = None, run: int = -1) -> Reading:
        """A pattern made ready, to compute some rows of it after others."""
        site = self.site(layer, stack)
        chosen = listed(heads, self.modules[site].heads, "head")
        taken = self._run(*site, run)
        return Reading(taken, [self._reads(site, t) for t in taken], chosen,
                       self.modules[site].attend)

    def row(self, layer: int, head: int, i: int, stack: str | None = None,
            run: int = -1) -> Tensor:
        """(B, S): how query i of one head spread its look."""
        return self.pattern(layer, head, i, stack, run)[:, 0, 0]

    def blocks(self, layer: int, heads=None, stack: str | None = None,
               run: int = -1) -> Iterator[tuple[int, Tensor]]:
        """(first row, weights (B, H, R, S)) over all rows of a pattern that is never held whole."""
        B, H, T, S = self.shape(layer, stack, run)
        reading = self.read(layer, heads, stack, run)
        rows = together(B * len(reading.heads) * S)
        for r0 in range(0, T, rows):
            yield r0, reading.rows(range(r0, min(r0 + rows, T)))

    def pooled(self, size: int = 64, layers: list[int] | None = None, heads=None,
               stack: str | None = None, run: int = -1) -> Tensor:
        """(L, B, H, R, C): the largest weight in each of at most size x size tiles of a pattern."""
        layers = self.layers(stack) if layers is None else layers
        if len({self.shape(n, stack, run)[1:] for n in layers}) > 1:
            raise MiradaError("these layers have patterns of several shapes, which do not stack: "
                              "name layers= of one shape")
        return torch.stack([reduce.pooled(self, n, size, heads, stack, run) for n in layers])

    def topk(self, layer: int, k: int = 32, heads=None, rows=None, stack: str | None = None,
             run: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row its k largest weights and their keys, (B, H, R, k) each, and (B, H, R) the
        weight that the other keys share."""
        if rows is not None:
            return reduce.largest(self.pattern(layer, heads, rows, stack, run), k)
        parts = [reduce.largest(w, k) for _, w in self.blocks(layer, heads, stack, run)]
        values, keys, rest = (torch.cat(p, 2) for p in zip(*parts, strict=True))
        return values, keys, rest

    def qk_terms(self, layer: int, head: int, i: int, j: int, stack: str | None = None,
                 run: int = -1, row: int = 0) -> Terms:
        """How the score of query i and key j comes about, in one head and row of the batch."""
        B, H, T, S = self.shape(layer, stack, run)
        asked = ((head, H, "head"), (i, T, "query"), (j, S, "key"), (row, B, "row of the batch"))
        (head,), (i,), (j,), (row,) = (listed(*one) for one in asked)
        return self.read(layer, head, stack, run).terms(i, j, row)

    def values(self, layer: int, stack: str | None = None, run: int = -1) -> Tensor:
        """(B, G, S, Kv) the values that were looked at; recorded with v=True."""
        taken = self._run(*self.site(layer, stack), run)
        if taken[0].v is None:
            raise MiradaError("values were not recorded: call m.record(v=True)")
        parts = [t.v for t in taken] if taken[0].grows else [taken[0].v]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def values_norm(self, layer: int, heads=None, rows=None, stack: str | None = None,
                    run: int = -1) -> Tensor:
        """(B, H, R, S): the length of what each key really brings, weight * ||v W_o|| (Kobayashi et
        al., 2004.10102). A large weight on a short vector brings little. Recorded with v=True."""
        attention = self.modules[self.site(layer, stack)]
        heads = listed(heads, attention.heads, "head")
        brought = value_lengths(attention, self.values(layer, stack, run), heads)  # (B, H, S)
        return self.pattern(layer, heads, rows, stack, run) * brought[:, :, None]

    def resid(self, layer: int, stack: str | None = None, run: int = -1) -> Tensor:
        """(B, T, D): the residual stream as it enters place `layer`; at the number of layers, and
        at -1, as it leaves the last and enters the final norm. Recorded with resid=True."""
        return self._tensor("resid", layer, stack, run, "m.record(resid=True)")

    def added(self, layer: int, part: str, stack: str | None = None, run: int = -1) -> Tensor:
        """(B, T, D): what a sublayer, attn, cross or mlp, adds to the stream (after a norm that
        stands behind it). Recorded with resid="sublayers"."""
        return self._tensor(f"added.{part}", layer, stack, run, 'm.record(resid="sublayers")')

    def z(self, layer: int, stack: str | None = None, run: int = -1) -> Tensor:
        """(B, T, H, Kv): what each head brings, before W_o mixes them. Recorded with z=True."""
        key = self._key("z", layer, stack, "m.record(z=True)")
        heads = self.modules[key[1:]].heads
        return _joined(_chosen(self.kept[key], run)).unflatten(-1, (heads, -1))

    def mlp(self, layer: int, stack: str | None = None, run: int = -1) -> Tensor:
        """(B, T, F): how far each neuron of an MLP fired, as enters its last projection. Recorded
        with mlp=True; experts have none, for each sees tokens of its own."""
        return self._tensor("mlp", layer, stack, run, "m.record(mlp=True)")

    def lens(self, stack: str | None = None, run: int = -1) -> Tensor:
        """(L + 1, B, T, D): the stream before each place and after the last, what a logit lens
        reads. Recorded with resid=True."""
        self.across("a stack of streams")
        _, stack, _ = self._key("resid", -1, stack, "m.record(resid=True)")
        places = sorted(n for name, of, n in self.kept if (name, of) == ("resid", stack))
        return torch.stack([self.resid(n, stack, run) for n in places])

    def ids(self, stack: str | None = None, run: int = -1) -> Tensor:
        """(B, T): the tokens that a stack read."""
        return self._tensor("ids", 0, stack, run, "token ids: this stack read none")

    def real(self, stack: str | None = None, run: int = -1) -> Tensor:
        """(B, T): True where a token stands and no pad."""
        return self._tensor("real", 0, stack, run, "a pass of the model")

    @property
    def windowed(self) -> bool:
        """Whether attention ran in windows of a grid: a row of one layer's pattern is then no place
        of the next one's."""
        return self.model is not None and any(hasattr(m, "reach") for m in self.model.modules())

    def across(self, what: str) -> None:
        """Raises MiradaError where `what`, which joins the layers' patterns, has none to join."""
        if self.windowed:
            raise MiradaError(f"{what} needs layers that all look at the same places, and this "
                              "model looks in windows of grids of several sizes: read the "
                              "tape.pattern of one layer, (windows, heads, rows, keys)")

    def site(self, layer: int, stack: str | None = None) -> tuple[str, int]:
        """(stack, place) of a layer that was recorded. Raises MiradaError."""
        stack = self._stack(stack)
        layers = self.layers(stack)
        where = layer if layer >= 0 else layer + max(layers) + 1
        if where not in layers:
            raise MiradaError(f"layer {layer} of {stack} was not recorded; there are {layers}")
        return stack, where

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

    def _run(self, stack: str, layer: int, run: int) -> list[Taken]:
        return _chosen(self.runs[stack, layer], run)

    def _reads(self, site: tuple[str, int], t: Taken) -> tuple[Tensor, Tensor]:
        """q and the new keys of a call; projected again from the stream under keep="resid"."""
        if t.q is not None:
            return t.q, t.k
        with torch.no_grad():
            q, kv, _ = self.modules[site].look(t.x, t.ctx, None)
        return q, kv.k

    def _key(self, name: str, layer: int, stack: str | None, how: str) -> tuple[str, str, int]:
        """Where a kept tensor lies. Raises MiradaError, which says how to record it."""
        having = [of for kind, of, _ in self.kept if kind == name]
        if stack is None:
            stack = "decoder" if "decoder" in having else (having or ["any stack"])[0]
        layers = [n for kind, of, n in self.kept if (kind, of) == (name, stack)]
        where = layer if layer >= 0 else layer + max(layers, default=0) + 1
        if where not in layers:
            had = f"; there are layers {layers}" if layers else ""
            raise MiradaError(f"{name} of {stack}, layer {layer}, is not on this tape: it takes "
                              f"{how}{had}")
        return name, stack, where

    def _tensor(self, name: str, layer: int, stack: str | None, run: int, how: str) -> Tensor:
        return _joined(_chosen(self.kept[self._key(name, layer, stack, how)], run))

    def _keep(self, name: str, stack: str, layer: int, start: int, x: Tensor) -> None:
        """One pass's (B, T, ...) of a tensor: after what earlier steps left, where they go on."""
        runs = self.kept.setdefault((name, stack, layer), [])
        if runs and start:
            runs[-1] = [*_before(runs[-1], start), x]
        else:
            runs.append([x])

    def _take(self, site: tuple[str, int], start: int, taken: Taken) -> None:
        runs = self.runs.setdefault(site, [])
        if not runs or not start:
            runs.append([taken])
            return
        if not taken.grows:  # a source's keys are the same at every step: held once
            taken = replace(taken, k=runs[-1][0].k, v=runs[-1][0].v)
        runs[-1] = [*calls_before(runs[-1], start), taken]  # a cache may have taken tokens back


def _chosen(runs: list, run: int) -> list:
    if not -len(runs) <= run < len(runs):
        raise MiradaError(f"run {run} was not recorded; there are {len(runs)}")
    return runs[run]


def _joined(parts: list[Tensor]) -> Tensor:
    one_batch(len(x) for x in parts)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _before(parts: list[Tensor], start: int) -> list[Tensor]:
    """The first `start` tokens of parts (B, T, ...)."""
    kept, at = [], 0
    for part in parts:
        if at < start:
            kept.append(part[:, : start - at])
        at += part.shape[1]
    return kept


@dataclass(frozen=True)
class Wanted:
    """What a recording keeps; see record."""

    layers: list[int] | None
    keep: str | None
    v: bool
    resid: bool | str
    z: bool
    mlp: bool
    device: str | torch.device | None

    def of(self, layer: int) -> bool:
        return self.layers is None or layer in self.layers

    def own(self, x: Tensor) -> Tensor:
        """x without its history, holding no more memory than its own."""
        x = x.detach()
        if self.device is not None and x.device != torch.device(self.device):
            return x.to(self.device)
        return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


@contextmanager
def record(model: nn.Module, layers: list[int] | None = None, *, keep: str | None = "qk",
           v=False, resid: bool | str = False, z=False, mlp=False, device=None):
    """Within this context every pass of `model` is recorded; yields the Tape.

    layers: places in each stack's order, all when None. keep: "qk" (queries and keys, for
    patterns), "resid" (in their place what each attention read, about half as much; they are
    projected again when asked for, so the weights must still be those) or None. v: values; resid:
    True, the stream before every layer and after the last, or "sublayers", also what each adds; z:
    what each head brings; mlp: how far each neuron fires. device: where the tape lies, "cpu" to
    spare a GPU. Memory: queries and keys of those layers, and what is asked for besides. Record
    greedy or sampled generation, not beams: their rows change places between steps. A compiled
    model runs eagerly in here, and its outputs are those of the eager model.
    """
    if keep not in ("qk", "resid", None) or resid not in (True, False, "layers", "sublayers"):
        raise MiradaError(f"record(keep={keep!r}, resid={resid!r}): keep is 'qk', 'resid' or None; "
                          "resid is True, False or 'sublayers'")
    wanted = Wanted(layers, keep, v, resid, z, mlp, device)
    tape, handles = Tape(model), []
    for name, stack in sites.stacks(model).items():
        handles += _listen(tape, name, stack, wanted)
    model.tape = tape
    try:
        with sites.eager():
            yield tape
    finally:
        model.tape = None
        for handle in handles:
            handle.remove()


def _listen(tape: Tape, name: str, stack: nn.Module, wanted: Wanted) -> list:
    """Hooks on every boundary of one stack that the tape wants to know of."""
    spot, handles = sites.follow(name, stack)

    def read(module, args):
        if spot.layer == 0:
            tape._keep("real", name, 0, spot.after, wanted.own(spot.real))
            if spot.ids is not None:
                tape._keep("ids", name, 0, spot.after, wanted.own(spot.ids))

    for block in stack.blocks[:1]:
        handles.append(block.register_forward_pre_hook(read))
    for block in stack.blocks:
        for site, attention in sites.attentions(name, block):
            handles += _attention(tape, spot, site, attention, wanted)
        handles += _stream(tape, spot, block, wanted)
    if wanted.resid:
        def leave(module, args):
            tape._keep("resid", name, len(stack.order), spot.after, wanted.own(args[0]))

        handles.append(stack.norm.register_forward_pre_hook(leave))
    return handles


def _stream(tape: Tape, spot: Spot, block: nn.Module, wanted: Wanted) -> list:
    """The residual stream into a block, what its sublayers add, and its neurons."""
    def before(name):
        def take(module, args):
            if wanted.of(spot.layer):
                tape._keep(name, spot.name, spot.layer, spot.after, wanted.own(args[0]))
        return take

    def behind(name):
        def take(module, args, output):
            if wanted.of(spot.layer):
                tape._keep(name, spot.name, spot.layer, spot.after, wanted.own(output))
        return take

    handles = []
    if wanted.resid:
        handles.append(block.register_forward_pre_hook(before("resid")))
    if wanted.resid == "sublayers":
        handles += [sites.adder(part).register_forward_hook(behind(f"added.{name}"))
                    for name, part in sites.sublayers(block)]
    if wanted.mlp and sites.network(block) is not None:
        handles.append(sites.network(block).down.register_forward_pre_hook(before("mlp")))
    return handles


def _attention(tape: Tape, spot: Spot, site: str, attention: Attention, wanted: Wanted) -> list:
    """What one attention is given, what its kernel makes of it and what its heads bring."""
    entered: list = [None, None]  # x and ctx of the call that runs

    def enter(module, args):
        entered[:] = args[0], args[1]

    def take(module, args, kwargs, output):
        if wanted.of(spot.layer):
            tape.modules[site, spot.layer] = attention
            dropped = module.training and module.dropout > 0
            tape._take((site, spot.layer), spot.after,
                       _taken(module, args, kwargs, output, dropped, entered, wanted))

    def bring(module, args, output):
        if wanted.of(spot.layer):
            tape.modules[site, spot.layer] = attention
            tape._keep("z", site, spot.layer, spot.after, wanted.own(output))

    handles = []
    if wanted.keep == "resid":
        handles.append(attention.register_forward_pre_hook(enter))
    if wanted.keep:
        handles.append(attention.attend.register_forward_hook(take, with_kwargs=True))
    if wanted.z:
        handles.append(attention.gate.register_forward_hook(bring))
    return handles


@torch.no_grad()
def _taken(attend: Attend, args, kwargs, output: Tensor, dropped: bool, entered: list,
           wanted: Wanted) -> Taken:
    """What one call leaves on the tape; values forget the dense masks of their pass."""
    (q, kv), given = args, kwargs
    call = Call(q, kv, given["scale"], given["mask"], given["bias"], given["cap"], given["sinks"])
    checked = is_plain(attend) and not dropped  # dropout changed the kernel's rows
    error = _error(call, output) if checked else float("nan")
    T, grows = q.shape[2], kv.new is not None
    mask = _by_index(call.mask, T, kv.k.shape[2], grows)
    bias = None if call.bias is None else replace(call.bias, mask=mask)
    sinks = None if call.sinks is None else call.sinks.detach()
    q_and_k = (wanted.own(q), wanted.own(kv.fresh)) if wanted.keep == "qk" else (None, None)
    x_and_ctx = (None, None) if wanted.keep == "qk" else (wanted.own(entered[0]), entered[1])
    v = wanted.own(_new_values(kv, call.mask, T)) if wanted.v else None
    return Taken(*q_and_k, *x_and_ctx, T, grows, call.scale, mask, bias, call.cap, sinks, v, error)


def _by_index(mask: Mask, T: int, S: int, grows: bool) -> Mask:
    """The mask without a cache's slots, which would cost as much as the queries at every step;
    as it is where rows have different lengths."""
    start = torch.as_tensor(mask.start).reshape(-1)
    if (start != start[0]).any():
        return replace(mask, memo=UserDict())
    return in_order(mask, int(start[0]) + T if grows else S)


def _new_values(kv: KV, mask: Mask, T: int) -> Tensor:
    """The values that entered at this call, (B, G, T, Kv); all there are without a cache."""
    if kv.new is None:
        return kv.v
    if mask.slots is None or mask.slots.ndim == 1:
        return kv.v[:, :, -T:]
    at = mask.queries(T, kv.v.device).expand(len(kv.v), T)  # a buffer: each row at its place
    return kv.v.gather(2, at[:, None, :, None].expand(-1, kv.v.shape[1], -1, kv.v.shape[3]))


def _error(call: Call, output: Tensor) -> float:
    """weights . values of a few seeded rows, against the kernel's own output."""
    T, (_, v) = call.q.shape[2], call.kv.dense()
    chosen = torch.randperm(T, generator=torch.Generator().manual_seed(T))[:CHECKED_ROWS]
    G, worst = v.shape[1], 0.0
    for row in chosen.tolist():
        made = weights(call, row, row + 1)  # (B, H, 1, S)
        mine = made.unflatten(1, (G, -1)).squeeze(3) @ v.to(made.dtype)  # (B, G, H / G, Kv)
        ran = output[:, :, row]
        worst = max(worst, (mine.flatten(1, 2) - ran).abs().max().item())
    return worst

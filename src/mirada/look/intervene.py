"""Interventions: a head, a neuron, a position or one look changed while a model runs, to see what
the output owes to it.

Attention shows where a head looks, not what for; only a change shows that. Each change is plain
data and acts at a module boundary: every part that it does not name computes as always, and no
change at all leaves every bit as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from mirada.core.attend import Call
from mirada.core.attention import Attention
from mirada.core.bias import Bias
from mirada.core.cache import KV
from mirada.errors import MiradaError
from mirada.look import sites
from mirada.look.patterns import is_plain, listed, stretches, weights
from mirada.look.sites import Spot

TENSOR_OPS = ("zero", "mean", "resample", "patch", "scale")
OPS = {  # site -> what can be done there
    "head_out": TENSOR_OPS,  # what a head brings, before W_o
    "attn": TENSOR_OPS, "cross": TENSOR_OPS, "mlp": TENSOR_OPS,  # what a sublayer adds
    "neuron": TENSOR_OPS,  # of an MLP, before its last projection
    "resid": TENSOR_OPS,  # the stream into a layer; at the number of layers, out of the last
    "value": ("zero", "scale"),  # what a key hands over, while it is still looked at
    "edge": ("knockout",),  # the look of a query at a key, before the softmax
    "pattern": ("freeze",),  # a head's weights, put in from a tape
}


@dataclass(frozen=True, eq=False)
class Change:
    """One intervention, checked. The same words as keys make the dict that users write.

    stack: encoder, decoder or cross. heads, neurons: all when None. pos: tokens (of an edge and a
    pattern, the queries), "all" or a list, negative from the end. keys: an edge's other end, a
    value's place. rows: of the batch, all when None. factor: of scale. source: for mean, resample,
    patch and freeze, a Tape that recorded the site, or for the first three a tensor; run: which
    pass of it; source_layer, source_pos: where in it, when not in `layer` and at `pos`. seed: which
    other row a resample takes.
    """

    site: str
    layer: int
    op: str
    stack: str | None = None
    heads: tuple[int, ...] | None = None
    neurons: tuple[int, ...] | None = None
    pos: Any = "all"
    keys: Any = "all"
    rows: tuple[int, ...] | None = None
    factor: float = 1.0
    source: Any = None
    run: int = -1
    source_layer: int | None = None
    source_pos: tuple[int, ...] | None = None
    seed: int = 0

    @property
    def from_layer(self) -> int:
        """The layer of the source."""
        return self.layer if self.source_layer is None else self.source_layer

    @property
    def words(self) -> str:
        """The change in a few words, for messages and tables."""
        which = "" if self.heads is None else f" heads {list(self.heads)}"
        which += "" if self.neurons is None else f" neurons {list(self.neurons)}"
        where = "" if self.pos == "all" else f" at {self.pos}"
        to = "" if self.keys == "all" else f" to {self.keys}"
        return f"{self.op} {self.site} of {self.stack} layer {self.layer}{which}{where}{to}"


@contextmanager
def intervene(model: nn.Module, *changes: dict | Change | list) -> Iterator[list[Change]]:
    """Within this context every pass of `model` runs with these changes; yields them, checked.

    A change is a dict: site (see OPS) and op, layer (negative from the end), and where it applies,
    heads, neurons, pos, keys, rows, stack; see Change. mean without a source takes the mean over
    this pass's own tokens, the first of each row apart from the others; resample without one takes
    another row of this batch. A query from which every key is knocked out brings nothing.

        with m.intervene({"site": "head_out", "layer": 5, "heads": [1], "op": "mean"}): m(...)

    Changes at one place act in the order given. Raises MiradaError before any pass runs where a
    change names what the model lacks, and in the pass where a source does not fit it.
    """
    flat = [c for given in changes for c in (given if isinstance(given, list) else [given])]
    checked = [check(model, c) for c in flat]
    handles = []
    try:
        for name, stack in sites.stacks(model).items():
            here = [c for c in checked if home_of(model, c.stack) == name]
            if here:
                spot, follows = sites.follow(name, stack)
                handles += follows
                for change in here:
                    handles.append(_install(model, stack, spot, change))
        with sites.eager():
            yield checked
    finally:
        for handle in handles:
            handle.remove()


def check(model: nn.Module, given: dict | Change) -> Change:
    """The change that a dict means in this model, its numbers counted from the front. Raises
    MiradaError where there is no such thing."""
    given = dict(vars(given)) if isinstance(given, Change) else dict(given)
    _keys_known(given)
    site, op = given["site"], given["op"]
    if site not in OPS:
        raise MiradaError(f"no site is called {site!r}; there are {', '.join(OPS)}")
    if op not in OPS[site]:
        raise MiradaError(f"{site} cannot be changed by {op!r}; it takes {', '.join(OPS[site])}")
    names = list(sites.stacks(model))
    given["stack"] = given.get("stack") or ("cross" if site == "cross" else names[-1])
    if given["stack"] not in (*names, "cross"):
        raise MiradaError(f"no stack is called {given['stack']!r}; this model has "
                          f"{', '.join(names)}")
    for name in ("heads", "neurons", "rows", "source_pos"):
        value = given.get(name)
        if value is not None:
            given[name] = (value,) if isinstance(value, int) else tuple(value)
    for name in ("pos", "keys"):
        value = given.get(name, "all")
        if isinstance(value, str) and value != "all":
            raise MiradaError(f"{name} is 'all' or a list of places, not {value!r}")
        given[name] = [value] if isinstance(value, int) else value if value == "all" else [*value]
    change = Change(**given)
    if op in ("patch", "freeze") and change.source is None:
        raise MiradaError(f"{op} needs a source: a tape recorded from the other pass")
    if op == "freeze" and isinstance(change.source, Tensor):
        raise MiradaError("freeze takes its weights from a tape: source=tape")
    return _within(model, change)


def _keys_known(given: dict) -> None:
    known = {f.name for f in fields(Change)}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise MiradaError(f"a change has no key {key!r}" + (
                f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(sorted(known))}"))
    for key in ("site", "op", "layer"):
        if key not in given:
            raise MiradaError(f"the change {given} does not say its {key}")


def _within(model: nn.Module, change: Change) -> Change:
    """The change with layer, heads and neurons counted from the front, all of which exist."""
    built = sites.stacks(model)[home_of(model, change.stack)]
    L = len(built.order) + (change.site == "resid")
    if not -L <= change.layer < L:
        raise MiradaError(f"layer {change.layer} does not exist: {change.stack} has "
                          f"{len(built.order)}")
    change = replace(change, layer=change.layer % L)
    heads = neurons = 0
    if change.site in ("head_out", "value", "edge", "pattern"):
        heads = attention_of(model, change).heads
    elif change.site == "neuron":
        neurons = _network(model, change).up.out_features
    elif change.site in ("attn", "cross", "mlp"):
        _part(model, change)
    return replace(change, heads=_existing(change, "head", change.heads, heads),
                   neurons=_existing(change, "neuron", change.neurons, neurons))


def _existing(change: Change, what: str, chosen, count: int) -> tuple[int, ...] | None:
    if chosen is None:
        return None
    if not count:
        raise MiradaError(f"the site {change.site} has no {what}s to choose from")
    return tuple(listed(chosen, count, what))


def home_of(model: nn.Module, stack: str) -> str:
    """The stack of blocks in which a pattern's stack lies: cross-attention is the decoder's."""
    names = list(sites.stacks(model))
    return stack if stack in names else names[-1]


def _block(model: nn.Module, change: Change) -> nn.Module:
    built = sites.stacks(model)[home_of(model, change.stack)]
    return built.blocks[built.order[change.layer]]


def attention_of(model: nn.Module, change: Change) -> Attention:
    home = home_of(model, change.stack)
    for site, attention in sites.attentions(home, _block(model, change)):
        if site == change.stack:
            return attention
    raise MiradaError(f"layer {change.layer} of {home} has no attention called {change.stack}")


def _network(model: nn.Module, change: Change):
    network = sites.network(_block(model, change))
    if network is None:
        raise MiradaError(f"layer {change.layer} of {change.stack} has no neurons that see every "
                          "token (experts each see their own)")
    return network


def _part(model: nn.Module, change: Change) -> nn.Module:
    parts = dict(sites.sublayers(_block(model, change)))
    if change.site not in parts:
        raise MiradaError(f"layer {change.layer} of {change.stack} has no {change.site}; it has "
                          f"{', '.join(parts)}")
    return parts[change.site]


def _install(model: nn.Module, stack: nn.Module, spot: Spot, change: Change):
    """The hook of one change, on the boundary where it acts."""
    def changed(x: Tensor, heads: int | None = None) -> Tensor:
        return apply(x, change, spot, model, heads)

    def before(module, args):
        if spot.layer == change.layer:
            return (changed(args[0]), *args[1:])

    def behind(module, args, output):
        if spot.layer == change.layer:
            return changed(output)

    if change.site == "resid":
        if change.layer == len(stack.order):
            return stack.norm.register_forward_pre_hook(
                lambda module, args: (changed(args[0]), *args[1:]))
        return _block(model, change).register_forward_pre_hook(before)
    if change.site == "neuron":
        return _network(model, change).down.register_forward_pre_hook(before)
    if change.site in ("attn", "cross", "mlp"):
        return sites.adder(_part(model, change)).register_forward_hook(behind)
    attention = attention_of(model, change)
    if change.site == "head_out":
        return attention.gate.register_forward_hook(
            lambda module, args, output: changed(output, attention.heads)
            if spot.layer == change.layer else None)
    if change.site == "value":
        def hand(module, args, kwargs):
            if spot.layer == change.layer:
                return (args[0], _values(_call(args, kwargs), change, spot)), kwargs
        return attention.attend.register_forward_pre_hook(hand, with_kwargs=True)
    if not is_plain(attention.attend):
        raise MiradaError(f"{change.words}: this attention is more than weights over its keys, so "
                          "no look of it can be changed alone")

    def look(module, args, kwargs, output):
        if spot.layer == change.layer:
            return _looked(_call(args, kwargs), output, change, spot)
    return attention.attend.register_forward_hook(look, with_kwargs=True)


def _call(args: tuple, kwargs: dict) -> Call:
    return Call(*args, **{k: kwargs[k] for k in ("scale", "mask", "bias", "cap", "sinks")})


def apply(x: Tensor, change: Change, spot: Spot, model: nn.Module, heads: int | None) -> Tensor:
    """x (B, T, C) with the change made; heads: how many lie side by side in C, or None."""
    at = _places(change.pos, spot.start, x.shape[1], spot.cached)
    if not at:
        return x
    out = x.clone()
    whole = out if heads is None else out.unflatten(-1, (heads, -1))
    rows = _all(change.rows, len(x))
    index = _long(rows)[:, None], _long([p for p, _ in at])
    old = whole[index]  # (R, P, ...)
    chosen = change.heads if heads is not None else change.neurons
    some = slice(None) if chosen is None else list(chosen)
    new = _new(old, whole, rows, at, change, spot, model)
    old[:, :, some] = new[:, :, some]
    whole[index] = old
    return out


def _new(old: Tensor, whole: Tensor, rows: list[int], at: list[tuple[int, int]], change: Change,
         spot: Spot, model: nn.Module) -> Tensor:
    """What stands in the changed places, (R, P, ...): of every head and neuron, of which the caller
    takes the chosen."""
    if change.op == "zero":
        return torch.zeros_like(old)
    if change.op == "scale":
        return old * change.factor
    source = _source(change, home_of(model, change.stack))
    if source is not None and source.ndim < old.ndim:
        return source.to(old).expand_as(old)  # one vector for every place
    if change.op == "mean":
        return _mean(source, whole, rows, at, change, spot).expand_as(old)
    if source is None:
        if len(rows) < 2:
            raise MiradaError(f"{change.words}: a batch of one row has no other to take it from; "
                              "give a source")
        shift = 1 + change.seed % (len(rows) - 1)
        return old.roll(shift, 0)
    _fits(source, whole, change, spot, model)
    places = change.source_pos or tuple(place for _, place in at)
    if change.op == "resample":
        from_rows = [(n + change.seed) % len(source) for n in range(len(rows))]
    else:
        from_rows = _source_rows(source, rows, len(whole), change)
    return source[_long(from_rows)[:, None], _long(places)].to(old)


def _source(change: Change, home: str) -> Tensor | None:
    """What was recorded at this site, (B, T, ...), or the tensor that was given."""
    if change.source is None or isinstance(change.source, Tensor):
        return change.source
    tape, layer, run = change.source, change.from_layer, change.run
    if change.site == "head_out":
        return tape.z(layer, change.stack, run)
    if change.site == "neuron":
        return tape.mlp(layer, home, run)
    if change.site == "resid":
        return tape.resid(layer, home, run)
    return tape.added(layer, change.site, home, run)


def _mean(source: Tensor | None, whole: Tensor, rows: list[int], at: list[tuple[int, int]],
          change: Change, spot: Spot) -> Tensor:
    """(R, P, ...): the mean over a reference's tokens, of first tokens at a first place and of the
    others elsewhere, for a first token is like no other. Pads do not count."""
    if source is None and spot.start:
        raise MiradaError(f"{change.words}: a step of a generation is one token, whose mean is "
                          "itself; give a source")
    here, first_here = _kinds(whole, spot.real, spot.start)
    if source is None:
        source, real, first = whole[rows], here[rows], first_here[rows]
    elif isinstance(change.source, Tensor):
        real, first = _kinds(source, None, 0)
    else:
        real, first = _kinds(source, change.source.real(spot.name, change.run), 0)
    others = real & ~first
    mean = source[others if others.any() else real].mean(0)
    start = source[first].mean(0) if first.any() else mean
    chosen = first_here[_long(rows)[:, None], _long([p for p, _ in at])]  # (R, P)
    wide = chosen.reshape(*chosen.shape, *[1] * mean.ndim)
    return torch.where(wide.to(whole.device), start.to(whole), mean.to(whole))


def _kinds(x: Tensor, real: Tensor | None, start: int) -> tuple[Tensor, Tensor]:
    """(B, T) each: where x (B, T, ...) is of a token and no pad, and of a row's first token. All
    are tokens where `real` is of other places, as an attention's that chose some of them."""
    if real is None or real.shape != x.shape[:2]:
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return real, real & (real.cumsum(1) == 1) & (start == 0)


def _source_rows(source: Tensor, rows: list[int], B: int, change: Change) -> list[int]:
    if len(source) == len(rows):
        return list(range(len(rows)))
    if len(source) == 1:
        return [0] * len(rows)
    if len(source) == B:
        return rows
    raise MiradaError(f"{change.words}: the source has {len(source)} rows and {len(rows)} are to "
                      "be changed")


def _fits(source: Tensor, whole: Tensor, change: Change, spot: Spot, model: nn.Module) -> None:
    """Raises MiradaError where the source's tokens do not stand beside this pass's own."""
    T, S = spot.start + whole.shape[1], source.shape[1]
    if change.source_pos is not None or T == S or (spot.start and T < S):
        return
    said = f"{change.words}: the source has {S} tokens and this pass {T}"
    if not isinstance(change.source, Tensor) and spot.ids is not None and not spot.start:
        theirs = change.source.ids(spot.name, change.run)[0].tolist()
        said += ": " + difference(theirs, spot.ids[0].tolist(), model)
    raise MiradaError(said + ". Use texts of the same number of tokens, or say which place of the "
                      "source goes where with source_pos and pos")


def difference(source: list[int], ours: list[int], model: nn.Module) -> str:
    """Two rows of tokens as one: [-only in the source-], {+only in ours+}."""
    tokenizer = model.tokenizer
    a, b = ((tokenizer.pieces(ids) if tokenizer is not None else [f"{n} " for n in ids])
            for ids in (source, ours))
    said = []
    for op, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if op == "equal":
            said.append("".join(a[a0:a1]))
            continue
        if a1 > a0:
            said.append(f"[-{''.join(a[a0:a1])}-]")
        if b1 > b0:
            said.append(f"{{+{''.join(b[b0:b1])}+}}")
    return "".join(said)


def _long(places: Sequence[int]) -> Tensor:
    return torch.tensor(places, dtype=torch.long)


def _all(chosen: tuple[int, ...] | None, count: int) -> list[int]:
    return list(range(count)) if chosen is None else list(chosen)


def _places(pos, start: int, T: int, cached: bool) -> list[tuple[int, int]]:
    """(place in this pass, place in the whole text) of the chosen tokens that this pass reads;
    cached: later passes may read the others."""
    chosen = range(start, start + T) if pos == "all" else pos
    total = start + T
    found = [(p + total if p < 0 else p) for p in chosen]
    for p, given in zip(found, chosen, strict=True):
        if p < 0 or (p >= total and not cached):
            raise MiradaError(f"position {given} does not exist: this pass reads {T} tokens")
    return [(p - start, p) for p in found if start <= p < total]


def _values(call: Call, change: Change, spot: Spot) -> KV:
    """The same keys with other values for some heads; heads that share them part company."""
    (k, v), H = call.kv.dense(), call.q.shape[1]
    if v.shape[1] != H:
        k, v = (x.repeat_interleave(H // x.shape[1], 1) for x in (k, v))
    there = _keys(call, change.keys, spot).expand(len(v), -1)[:, None, :, None]  # (B, 1, S, 1)
    heads = torch.zeros(H, dtype=torch.bool, device=v.device)
    heads[_all(change.heads, H)] = True
    rows = torch.zeros(len(v), dtype=torch.bool, device=v.device)
    rows[_all(change.rows, len(v))] = True
    there = there & heads[:, None, None] & rows[:, None, None, None]
    factor = 0.0 if change.op == "zero" else change.factor
    return replace(call.kv, k=k, v=torch.where(there, v * factor, v))


def _looked(call: Call, output: Tensor, change: Change, spot: Spot) -> Tensor:
    """The kernel's output (B, H, T, Kv) with the changed queries of the changed heads made anew."""
    H, T = call.q.shape[1:3]
    at = _places(change.pos, spot.start, T, spot.cached)
    heads = _all(change.heads, H)
    index = _long(_all(change.rows, len(output)))[:, None], _long(heads)
    out, v = output.clone(), call.kv.dense()[1]
    hidden = None
    if change.op == "knockout":
        hidden = _keys(call, change.keys, spot)
        call = replace(call, bias=Hidden(call.bias, hidden, heads))
    for _, r0, r1 in stretches(list(enumerate(place for place, _ in at))):
        if hidden is None:
            made = _frozen(change, range(r0 + spot.start, r1 + spot.start), v.shape[2], spot, H)
        else:  # a row without any key left would share its weight among the hidden ones
            made = weights(call, r0, r1).masked_fill(hidden[:, None, None], 0.0)
        grouped = made.unflatten(1, (v.shape[1], -1)).flatten(2, 3)  # (B, G, H / G * R, S)
        brought = (grouped @ v.to(made.dtype)).reshape(len(made), H, r1 - r0, v.shape[3])
        out[:, :, r0:r1][index] = brought.expand(len(out), -1, -1, -1)[index].to(out.dtype)
    return out


def _keys(call: Call, chosen, spot: Spot) -> Tensor:
    """(1 or B, S): True at the chosen keys, wherever a cache keeps them."""
    held = call.mask.keys(call.kv.k.shape[2], call.q.device)
    places = [p for p, _ in _places(chosen, 0, int(held.max()) + 1, spot.cached)]
    return torch.isin(held, torch.tensor(places, device=held.device)).reshape(-1, held.shape[-1])


def _frozen(change: Change, rows: range, S: int, spot: Spot, H: int) -> Tensor:
    """(B, H, R, S): the source's weights of some queries."""
    made = change.source.pattern(change.from_layer, None, rows, change.stack, change.run)
    if made.shape[1] != H or made.shape[3] < S or (made.shape[3] > S and not spot.start):
        raise MiradaError(f"{change.words}: the source looks at {made.shape[3]} keys and this pass "
                          f"at {S}")
    return made[..., :S]


@dataclass(frozen=True, eq=False)
class Hidden:
    """A bias that also hides keys from some heads: theirs become the least number there is, before
    the softmax, so that the other keys share the whole weight."""

    bias: Bias | None
    hidden: Tensor  # (1 or B, S)
    heads: list[int]

    def rows(self, q: Tensor, k: Tensor, r0: int, r1: int) -> Tensor:
        shape = (len(q), q.shape[1], r1 - r0, k.shape[2])
        bias = q.new_zeros(()) if self.bias is None else self.bias.rows(q, k, r0, r1)
        out = bias.expand(shape).clone()
        some = out[:, self.heads]
        out[:, self.heads] = some.masked_fill(self.hidden[:, None, None],
                                              torch.finfo(out.dtype).min)
        return out

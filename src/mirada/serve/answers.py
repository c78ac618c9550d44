"""What a run answers: a function for each call of the schema, from words of the address to JSON or
safetensors bytes."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from mirada.look import reduce
from mirada.look.record import Tape

from . import graph
from .errors import Refused, missing
from .packing import ENCODINGS, check_size, encode, packed, triangle
from .query import Query
from .runs import Run

NARROWER = "ask for fewer rows=, cols= or heads=, for enc=u8sqrt, or for the overview with pool="


def overview(run: Run, query: Query, stack: str) -> bytes:
    """Every head of some layers, max-pooled."""
    tape = _tape(run, stack)
    all_layers = tape.layers(stack)
    pool = query.number("pool", 64, 1, 256)
    layers = query.span("layers", max(all_layers) + 1, inclusive=True)
    layers = [n for n in all_layers if n in layers]
    if not layers:
        raise Refused(400, "input", "none of these layers has an attention", field="layers")
    _, _, T, S = tape.shape(layers[0], stack)
    heads = max(tape.heads(n, stack) for n in layers)
    check_size(len(layers) * heads * min(pool, T) * min(pool, S), "u8sqrt", "ask for some layers=")
    maps = torch.zeros(len(layers), heads, min(pool, T), min(pool, S))
    entropy = torch.full((len(layers), heads), float("nan"))
    for n, layer in enumerate(layers):
        here = tape.heads(layer, stack)
        maps[n, :here] = reduce.pooled(tape, layer, pool, None, stack)[0]
        entropy[n, :here] = reduce.rowwise(tape, layer, ("entropy",), None, stack)[
            "entropy"][0].mean(-1)
    numbers, scale = encode(maps, "u8sqrt")
    return packed({"pattern": numbers, "entropy": entropy.numpy()}, enc="u8sqrt", layout="full",
                  pool=pool, stack=stack, layers=",".join(map(str, layers)), heads=heads, rows=T,
                  cols=S, scale=scale)


def layer(run: Run, query: Query, stack: str, layer: int) -> bytes:
    """Some heads, rows and columns of one layer's patterns."""
    tape = _tape(run, stack)
    _layer(tape, stack, layer)
    _, H, T, S = tape.shape(layer, stack)
    heads = query.span("heads", H, inclusive=True)
    rows, cols = query.span("rows", T), query.span("cols", S)
    value = query.choice("value", "weight", ("weight", "norm", "score"))
    enc = query.choice("enc", "f32" if value == "score" else "u8sqrt", tuple(ENCODINGS))
    layout = query.choice("layout", "full", ("full", "tri"))
    if value == "score" and enc == "u8sqrt":
        raise Refused(400, "input", "scores may be negative: ask for enc=f16 or f32", field="enc")
    whole = len(cols) == S and T == S and stack == "decoder"
    if layout == "tri" and not whole:
        raise Refused(400, "input", "layout=tri is for all columns of causal self-attention",
                      field="layout")
    numbers = sum(r + 1 for r in rows) if layout == "tri" else len(rows) * len(cols)
    check_size(len(heads) * numbers, enc, NARROWER)
    x = _values(run, tape, stack, layer, list(heads), rows, value)[:, :, cols.start : cols.stop]
    if layout == "tri":
        x = triangle(x, rows.start)
    found, scale = encode(x, enc)
    return packed({"pattern": found}, enc=enc, layout=layout, stack=stack, layer=layer, value=value,
                  heads=",".join(map(str, heads)), rows=f"{rows.start}:{rows.stop}",
                  cols=f"{cols.start}:{cols.stop}", scale=scale)


def topk(run: Run, query: Query, stack: str, layer: int) -> bytes:
    """The largest weights of each row, and the mass that is not listed."""
    tape = _tape(run, stack)
    _layer(tape, stack, layer)
    _, H, T, S = tape.shape(layer, stack)
    heads, rows = query.span("heads", H, inclusive=True), query.span("rows", T)
    k = min(query.number("k", 32, 1, 256), S)
    check_size(len(heads) * len(rows) * k, "f32", "ask for fewer rows=, heads= or a smaller k=")
    weights, keys, rest = tape.topk(layer, k, list(heads), rows, stack)
    byte, scale = encode(weights[0], "u8sqrt")
    index = keys[0].numpy().astype("uint16" if S <= 1 << 16 else "uint32")
    return packed({"index": index, "weight": byte, "rest": encode(rest[0], "f16")[0]}, enc="u8sqrt",
                  layout="topk", stack=stack, layer=layer, heads=",".join(map(str, heads)),
                  rows=f"{rows.start}:{rows.stop}", k=k, scale=scale)


def row(run: Run, query: Query, stack: str, layer: int, head: int, i: int) -> bytes:
    """One query's row of one head, exact."""
    tape = _tape(run, stack)
    _layer(tape, stack, layer)
    _, H, T, _ = tape.shape(layer, stack)
    _inside("head", head, H)
    _inside("row", i, T)
    value = query.choice("value", "weight", ("weight", "norm", "score"))
    x = _values(run, tape, stack, layer, [head], range(i, i + 1), value)[0, 0]
    return packed({"row": encode(x, "f32")[0]}, enc="f32", layout="full", stack=stack, layer=layer,
                  heads=head, rows=i, value=value, scale=1.0)


def qk(run: Run, query: Query, stack: str, layer: int, head: int) -> bytes:
    """How one query meets the keys in one head: what is multiplied, added and hidden."""
    live(run)
    tape = _tape(run, stack)
    _layer(tape, stack, layer)
    _, H, T, S = tape.shape(layer, stack)
    _inside("head", head, H)
    i, j = query.number("i", None, 0, T - 1), query.number("j", -1, -1, S - 1)
    one = range(S) if j < 0 else range(j, j + 1)
    q, k, dot, score, scale, cap = _scored(tape, stack, layer, [head], range(i, i + 1))
    seen = torch.isfinite(score[0, 0])
    added = torch.where(seen, score[0, 0] - dot[0, 0], 0.0)
    weight = tape.pattern(layer, [head], range(i, i + 1), stack)[0, 0, 0]
    tensors = {"dot": dot[0, 0], "bias": added, "score": score[0, 0], "weight": weight}
    found = {name: encode(x[one.start : one.stop], "f32")[0] for name, x in tensors.items()}
    found |= {"q": encode(q[0, 0], "f32")[0], "k": encode(k[0, one.start : one.stop], "f32")[0]}
    kv_heads = run.served.data["stacks"]
    group = next(s for s in kv_heads if s["id"] == stack)["layers"][layer]
    return packed(found, stack=stack, layer=layer, heads=head, rows=i,
                  cols=f"{one.start}:{one.stop}", scale=scale, cap=cap,
                  kv_head=head * group["kv_heads"] // group["heads"])


def resid(run: Run, query: Query) -> bytes:
    """Lengths of the stream at each token, and of what each sublayer adds."""
    stack = query.choice("stack", run.main, tuple(run.tokens))
    found = run.lengths()[stack]
    return packed({name: x.numpy() for name, x in found.items()}, enc="f32", layout="full",
                  stack=stack)


def node(run: Run, query: Query, name: str) -> dict:
    """One box of the pass: its weights, and its output at a token."""
    live(run)
    if name not in run.passed.boxes:
        raise missing("this pass has no such box")
    box = run.passed.boxes[name]
    pos = query.number("pos", -1, -1, len(run.tokens.get(box.stack, run.tokens[run.main])) - 1)
    with run.served.lock:
        return graph.node(run.served.model, run.batch, name, None if pos < 0 else pos,
                          run.served.paths)


def logits(run: Run, query: Query, pos: int) -> bytes:
    """The scores of the whole vocabulary at one token."""
    live(run)
    enc = query.choice("enc", "f32", ("f16", "f32"))
    _inside("pos", pos, len(run.tokens[run.main]))
    return packed({"logits": encode(run.logits(pos), enc)[0]}, enc=enc, layout="full", rows=pos,
                  stack=run.main, scale=1.0)


def vocab(served, query: Query) -> dict:
    """Readable pieces of some ids."""
    size = max(served.data["vocab"], 1)
    if query.has("ids"):
        ids = query.numbers("ids", 8192, size)
    else:
        first = query.number("from", 0, 0, size)
        ids = range(first, min(query.number("to", size, 0, size), first + 8192))
    return {"tokens": served.labels(ids)}


def _tape(run: Run, stack: str) -> Tape:
    tape = run.kept()
    if stack not in tape.stacks:
        raise missing(f"this run has no such stack; it has {', '.join(tape.stacks)}")
    return tape


def live(run: Run) -> None:
    """Refuses what only a model can answer, of a run that came from a file."""
    if run.served is None:
        raise Refused(409, "conflict", "this run came from a file, which holds its attention only; "
                      "load its model for the rest")
    run.kept()


def _layer(tape: Tape, stack: str, layer: int) -> None:
    if layer not in tape.layers(stack):
        raise missing(f"layer {layer} of {stack} has no attention; there are "
                      f"{tape.layers(stack)}")


def _inside(what: str, n: int, count: int) -> None:
    if not 0 <= n < count:
        raise missing(f"{what} {n} does not exist: there are {count}")


def _values(run: Run, tape: Tape, stack: str, layer: int, heads: list[int], rows: range,
            value: str) -> Tensor:
    """(h, R, S) weights, lengths of what they bring, or scores."""
    if value == "score":
        live(run)
        return _scored(tape, stack, layer, heads, rows)[3]
    if value == "norm":
        live(run)
        return run.again(layers=[layer], v=True).values_norm(layer, heads, rows, stack)[0]
    return tape.pattern(layer, heads, rows, stack)[0]


def _scored(tape: Tape, stack: str, layer: int, heads: list[int], rows: range):
    """(q (h, R, K), k (S, K) of each head, scale * q.k, scores, scale, cap), in float32 or wider.

    A run is one pass without a cache, so that its keys lie in order from 0.
    """
    reading = tape.read(layer, None, stack)
    (t,), (q,), k = reading.taken, reading.q, reading.k
    wide = torch.promote_types(q.dtype, torch.float32)
    group, S = q.shape[1] // k.shape[1], k.shape[2]
    some_q = q[0, heads, rows.start : rows.stop].to(wide)
    some_k = k[0, [h // group for h in heads]].to(wide)
    dot = some_q @ some_k.mT * t.scale  # (h, R, S)
    score = dot if t.cap is None else t.cap * torch.tanh(dot / t.cap)
    if t.bias is not None:
        score = score + t.bias.rows(q, k, rows.start, rows.stop)[0, heads]
    if not t.mask.trivial(q.shape[2], S):
        seen = t.mask.rows(rows.start, rows.stop, q.shape[2], S, k.device)[0]
        score = score.masked_fill(~seen, float("-inf"))
    return some_q, some_k, dot, score, t.scale, t.cap


def names(served, ids) -> str:
    """The labels of ids, as text of __metadata__."""
    return json.dumps(served.labels(ids), ensure_ascii=False)

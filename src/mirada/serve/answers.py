"""What a run answers: a function for each call of the schema, from words of the address to JSON or
safetensors bytes."""

from __future__ import annotations

import json
import math
from itertools import count

import numpy
import torch
from torch import Tensor

from mirada.errors import MiradaError
from mirada.look import paths, reduce
from mirada.look.logits import dla as mirada_dla
from mirada.look.logits import lens as mirada_lens
from mirada.look.neurons import firing, neuron_terms, top_tokens
from mirada.look.record import Tape
from mirada.look.redundancy import redundant

from . import graph
from .errors import Refused, missing
from .packing import ENCODINGS, check_size, encode, packed, triangle
from .query import Query
from .runs import Run

SCORES = 1 << 26  # numbers of logits that a lens may make at a time, 256 MB
AT_ONCE = 64  # tokens whose vocabularies are scored together
NAMED = 8192  # tokens that are named at once
ROLLED = 1024  # tokens of a whole rollout, a product of squares
NARROWER = "ask for fewer rows=, cols= or heads=, for enc=u8sqrt, or for the overview with pool="


def overview(run: Run, query: Query, stack: str) -> bytes:
    """Every head of some layers, max-pooled."""
    tape = _tape(run, stack)
    all_layers = tape.layers(stack)
    pool = query.number("pool", 64, 1, 256)
    asked = query.span("layers", max(all_layers) + 1, inclusive=True)
    layers = [n for n in all_layers if n in asked]
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
    some = None if len(rows) == T else rows  # all of them are made in tiles, never held whole
    weights, keys, rest = tape.topk(layer, k, list(heads), some, stack)
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
    found = neuron_terms(tape, layer, head, i, stack=stack)
    dot = found.products.sum(-1)
    added = torch.where(found.seen, found.score - dot, 0.0)
    tensors = {"dot": dot, "bias": added, "score": found.score, "weight": found.weight,
               "k": found.k}
    some = {name: encode(x[one.start : one.stop], "f32")[0] for name, x in tensors.items()}
    some["q"] = encode(found.q, "f32")[0]
    return packed(some, stack=stack, layer=layer, heads=head, rows=i, cap=found.cap,
                  cols=f"{one.start}:{one.stop}", scale=found.scale, kv_head=found.kv_head)


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


def surprise(run: Run, query: Query) -> bytes:
    """How sure the model is at each token, and how likely it held the one that came."""
    live(run)
    T = len(run.tokens[run.main])
    if T * run.served.data["vocab"] > SCORES:
        raise Refused(413, "too_large", f"each of {T:,} tokens would have its whole vocabulary "
                      "scored, which is too much", advice="run a shorter text")
    entropy, came = torch.zeros(T), torch.full((T,), float("nan"))
    for a in range(0, T, AT_ONCE):
        chances = run.scores(a, a + AT_ONCE).double().log_softmax(-1)
        entropy[a : a + AT_ONCE] = -(chances.exp() * chances).sum(-1) / math.log(2)
        ahead = run.served.output == "next"
        ids = [t["id"] for t in run.tokens[run.main][a + ahead : a + ahead + len(chances)]]
        own = chances[: len(ids)].exp().gather(1, torch.tensor(ids)[:, None])[:, 0]
        came[a : a + len(ids)] = own.float()
    return packed({"entropy": entropy.numpy(), "came": came.numpy()}, stack=run.main)


def lens(run: Run, query: Query) -> bytes:
    """What each depth would already answer at each token."""
    live(run)
    T, L = len(run.tokens[run.main]), run.served.data["layers"] + 1
    top, rows = query.number("top", 5, 1, 20), query.span("rows", T)
    token = query.number("token", -1, -1, 1 << 30)
    check_size(L * len(rows) * top * 2, "f32", "ask for fewer rows=")
    if T * run.served.data["vocab"] > SCORES:
        raise Refused(413, "too_large", f"a lens scores every token's whole vocabulary, and {T:,} "
                      "tokens are too many for that", advice="run a shorter text")
    with run.served.lock:
        found = mirada_lens(run.again(keep=None, resid=True), top=top,
                            token=None if token < 0 else token, positions=list(rows))
    return packed({"id": found.ids.numpy().astype("uint32"), "p": encode(found.probs, "f32")[0],
                   "chosen_p": encode(found.prob, "f32")[0],
                   "chosen_rank": (found.rank - 1).numpy().astype("uint32")},
                  stack=run.main, rows=f"{rows.start}:{rows.stop}", top=top,
                  token=None if token < 0 else token,
                  depths=json.dumps(["embed", *map(str, range(1, L))]),
                  labels=json.dumps({str(n): w for n, w in found.words.items()}))


def dla(run: Run, query: Query) -> dict:
    """One logit as the sum of what each part adds."""
    live(run)
    pos = query.number("pos", len(run.tokens[run.main]) - 1, 0, len(run.tokens[run.main]) - 1)
    token = query.number("token", -1, -1, 1 << 30)
    with run.served.lock:
        found = mirada_dla(run.again(keep=None, resid="sublayers", z=True),
                           None if token < 0 else token, pos=pos).data()
    del found["against"]
    asked = f"mirada.look.dla(tape, {found['token']['id']}, pos={pos})"
    return {**found, "snippet": snippet(run, 'keep=None, resid="sublayers", z=True', asked)}


def mlp(run: Run, query: Query, layer: int) -> dict:
    """The neurons that wrote most at a token."""
    live(run)
    stack = query.choice("stack", run.main, tuple(run.tokens))
    T = len(run.tokens[stack])
    pos, top = query.number("pos", T - 1, 0, T - 1), query.number("top", 12, 1, 64)
    with run.served.lock:
        found = firing(run.again(keep=None, mlp=True), layer, pos, top=top, words=6, stack=stack)
    units = [{**vars(unit), **{name: [{"id": n, "s": s, "value": x} for n, s, x in
                                      getattr(unit, name)] for name in ("promoted", "suppressed")}}
             for unit in found.units]
    return {"stack": stack, "layer": layer, "pos": pos, "width": found.width, "neurons": units,
            "snippet": snippet(run, "keep=None, mlp=True", "mirada.look.firing(tape, "
                               f"{layer}, {pos}, top={top}, stack={stack!r})")}


def fires(served, given: dict, job) -> dict:
    """Where some neurons fire most in a user's own texts, as a job."""
    model, steps = served.twin(), count(1)
    job.progress(0, len(given["texts"]), "reading texts")
    model.register_forward_pre_hook(
        lambda module, args: job.progress(next(steps), len(given["texts"])))
    stack = given.get("stack", served.data["stacks"][0]["id"])
    if stack not in {s["id"] for s in served.data["stacks"]}:
        raise MiradaError(f"this model has no {stack}")
    found = top_tokens(model, given["texts"], given["layer"], given["neurons"],
                       k=given.get("top", 8), stack=stack).data()
    return {**found, "stack": stack}


def flow(run: Run, query: Query) -> dict | bytes:
    """Where an output token's information may have come from."""
    live(run)
    method = query.choice("method", "rollout", paths.METHODS)
    if run.layers is not None:
        raise Refused(409, "conflict", "a flow goes through all layers, and not all of this run's "
                      "are recorded")
    stack = query.choice("stack", run.main, tuple(run.tokens))
    T = len(run.tokens[stack])
    target = query.number("from", -1, -1, T - 1)
    if method == "rollout":
        return _rollout(run, query, stack, target, T)
    threshold = query.real("threshold", 0.04, 0.0, 1.0) if method == "routes" else 0.0
    with run.served.lock:
        tape = run.kept() if method == "maxflow" else run.again(v=True, resid="sublayers")
        found = paths.flow(tape, method, target, stack=stack, threshold=threshold).data()
    del found["tokens"]
    return found


def _rollout(run: Run, query: Query, stack: str, target: int, T: int) -> bytes:
    """The whole rollout up to a layer, or of one query at each depth."""
    tape = run.kept()
    if target >= 0:
        found = paths.flow(tape, "rollout", target, stack=stack).shares
        return packed({"rollout": encode(found, "f32")[0]}, stack=stack, **{"from": target})
    layer = query.number("layer", max(tape.layers(stack)), 0, max(tape.layers(stack)))
    if T > ROLLED:
        raise Refused(413, "too_large", f"a whole rollout is worked out for at most {ROLLED:,} "
                      f"tokens, and there are {T:,}", advice="ask for one query with from=")
    found = paths.rollout(tape, layer, stack=stack)
    return packed({"rollout": encode(found, "f32")[0]}, stack=stack, layer=layer)


def redundancy(run: Run, query: Query) -> bytes:
    """Which heads look alike, and which bring alike."""
    live(run)
    stack = query.choice("stack", run.main, ("encoder", "decoder", "cross"))
    _tape(run, stack)
    with run.served.lock:
        found = redundant(run.again(z=True), stack=stack)
    return packed({"distance": encode(found.distance, "f32")[0],
                   "cosine": encode(found.cosine, "f32")[0],
                   "cluster": numpy.array(found.cluster, "uint32")}, stack=stack,
                  threshold=found.threshold, queries=found.queries,
                  heads=json.dumps(found.heads))


def snippet(run: Run, recorded: str, asked: str) -> str:
    """Python that records a run's pass and prints an answer about it."""
    return (f"import mirada, torch\nm = {run.served.loading}\n"
            f"batch = {written(run.batch)}\nwith torch.no_grad(), m.record({recorded}) as tape:\n"
            f"    m(**batch)\nprint({asked})")


def written(batch: dict[str, Tensor]) -> str:
    """A batch as Python."""
    return "dict(" + ", ".join(f"{k}=torch.tensor({x.tolist()})" for k, x in batch.items()) + ")"


def vocab(served, query: Query) -> dict:
    """Readable pieces of some ids."""
    size = max(served.data["vocab"], 1)
    if query.has("ids"):
        return {"tokens": served.labels(query.numbers("ids", NAMED, size))}
    first = query.number("from", 0, 0, size)
    last = min(query.number("to", size, 0, size), first + NAMED)
    return {"tokens": served.labels(range(first, last))}


def _tape(run: Run, stack: str) -> Tape:
    tape = run.kept()
    if stack not in tape.stacks:
        raise missing("nothing was recorded of such a stack; there is "
                      f"{', '.join(tape.stacks) or 'none'}")
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
        return _scores(tape, stack, layer, heads, rows)
    if value == "norm":
        live(run)
        return tape.values_norm(layer, heads, rows, stack)[0]
    return tape.pattern(layer, heads, rows, stack)[0]


def _scores(tape: Tape, stack: str, layer: int, heads: list[int], rows: range) -> Tensor:
    """(h, R, S) before the softmax, in float32 or wider. A run is one pass without a cache, so that
    its keys lie in order from 0."""
    ((_, call),) = tape.read(layer, None, stack).calls()
    q, k = call.q, call.kv.k
    wide, group = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1]
    score = q[0, heads, rows.start : rows.stop].to(wide) @ k[
        0, [h // group for h in heads]].to(wide).mT * call.scale  # (h, R, S)
    if call.cap is not None:
        score = call.cap * torch.tanh(score / call.cap)
    if call.bias is not None:
        score = score + call.bias.rows(q, k, rows.start, rows.stop)[0, heads]
    if not call.mask.trivial(q.shape[2], k.shape[2]):
        seen = call.mask.rows(rows.start, rows.stop, q.shape[2], k.shape[2], k.device)[0]
        score = score.masked_fill(~seen, float("-inf"))
    return score

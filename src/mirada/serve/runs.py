"""Runs: a text as one model saw it. What they answer never changes; their recordings may be
evicted and brought back by the same pass."""

from __future__ import annotations

import copy
import datetime
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor

from mirada.core.attend import pinned
from mirada.core.attention import Attention
from mirada.core.heads import Classifier, LMHead
from mirada.errors import MiradaError
from mirada.look import describe, sites
from mirada.look.record import Tape

from . import graph
from .errors import Refused, missing

KEPT = 1 << 30  # bytes of recordings held at a time
TOKENS = 8192  # most tokens of a run
SCORES = 1 << 26  # numbers of logits that a pass may make, 256 MB
RUNS = 1000  # runs that are remembered, recordings or not
ROLES = ("bos", "cls", "sep", "pad", "unk", "mask")


class Served:
    """A model behind the Explorer. Passes hold its lock: hooks of two passes must not meet."""

    def __init__(self, id: str, model, name: str):
        self.id, self.model, self.name = id, model.eval(), name
        self.lock = threading.RLock()
        self.paths = {module: path for path, module in model.named_modules()}
        self.data = self._data()

    def twin(self):
        """The same weights in modules of their own, so that long work can hook them while calls
        are answered."""
        model, shared = self.model, {}
        for module in model.modules():
            shared |= {id(x): x for x in vars(module).values() if isinstance(x, Tensor)}
        for x in (*model.parameters(), *model.buffers(), model.tokenizer, model.native):
            shared[id(x)] = x
        return copy.deepcopy(model, shared)

    @property
    def output(self) -> str:
        """next, mask, labels or none: what the model's answer is."""
        if self.model.generates:
            return "next"
        if isinstance(self.model.head, LMHead):
            return "mask"
        return "labels" if isinstance(self.model.head, Classifier) else "none"

    def _data(self) -> dict:
        """The model's part of the schema."""
        m, tokenizer = self.model, self.model.tokenizer
        stacks = {name: _layers(stack, False) for name, stack in sites.stacks(m).items()}
        first = next((layer for layer in next(iter(stacks.values())) if layer["heads"]), {})
        labels = m.origin.raw.get("id2label") or {}
        data = {
            "id": self.id, "name": self.name, "family": m.family, "kind": m.kind,
            "architecture": m.architecture, "layers": len(m.decoder.order),
            "heads": first.get("heads", 0), "kv_heads": first.get("kv_heads", 0),
            "d": _width(m), "vocab": getattr(m.config, "vocab", 0), "context": m.context,
            "output": self.output, "live": True,
            "chat": bool(getattr(tokenizer, "templates", None)),
            "special": _special(tokenizer),
            "stacks": [{"id": name, "kind": "self", "causal": name == "decoder",
                        "queries": name, "keys": name, "layers": layers}
                       for name, layers in stacks.items()]}
        if m.encoder_decoder:
            data["stacks"].append({
                "id": "cross", "kind": "cross", "causal": False, "queries": "decoder",
                "keys": "encoder", "layers": _layers(m.body.decoder, True)})
        if self.output == "labels":
            data["labels"] = [labels[key] for key in sorted(labels, key=int)]
        return data

    def card(self) -> dict:
        """What the model is, for its card."""
        told = describe.describe(self.model)
        return {"schema": "explorer/1", "model": self.data, "parameters": told.parameters,
                "facts": told.facts, "parts": told.parts, "tree": told.tree, "notes": told.notes,
                "config": {k: v for k, v in vars(self.model.config).items()
                           if isinstance(v, int | float | str | bool | None)}}

    def labels(self, ids) -> dict[str, str]:
        """id -> readable piece, of those that the vocabulary has."""
        ids = list(dict.fromkeys(ids))
        if self.output == "labels":
            names = self.data.get("labels", [])
            return {str(i): names[i] if i < len(names) else f"LABEL_{i}" for i in ids}
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            return {str(i): str(i) for i in ids}
        known = [i for i in ids if i < tokenizer.size]  # some tables have rows beyond
        pieces = dict(zip(known, tokenizer.pieces(known), strict=True))
        return {str(i): pieces.get(i, "") for i in ids}

    def choice(self, id: int, **numbers: float) -> dict:
        """A token with what is said of it."""
        return {"id": id, "s": self.labels([id])[str(id)], **numbers}


def _layers(stack, cross: bool) -> list[dict]:
    """Each layer's attention, in the stack's order."""
    found = []
    for index in stack.order:
        name = "cross" if cross else "self"
        own = [a for kind, a in sites.attentions("self", stack.blocks[index]) if kind == name]
        found.append(_attention(own[0]) if own else {"attn": "none", "heads": 0, "kv_heads": 0})
    return found


def _attention(attention: Attention) -> dict:
    counts = {"heads": attention.heads, "kv_heads": attention.kv_heads}
    window = attention.mask.window
    return {"attn": "window", "w": window, **counts} if window else {"attn": "full", **counts}


def _width(model) -> int:
    attention = next((m for m in model.modules() if isinstance(m, Attention)), None)
    return attention.q.in_features if attention is not None else 0


def _special(tokenizer) -> dict[str, int]:
    if tokenizer is None:
        return {}
    found = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
    found["eos"] = min(tokenizer.eos_ids, default=None)
    return {role: id for role, id in found.items() if id is not None}


@dataclass
class Run:
    """One text in one model.

    batch: what the model is called with; kept: the recording, None when evicted; x: (T, D) what
    the head reads.
    """

    id: str
    served: Served
    inputs: dict
    batch: dict[str, Tensor]
    tokens: dict[str, list[dict]]
    made: str
    tape: Tape | None = None
    x: Tensor | None = None
    passed: graph.Pass | None = None
    error: float | None = None
    kernel: str = ""
    bytes: int = 0

    @property
    def state(self) -> str:
        return "evicted" if self.tape is None else "kept"

    @property
    def main(self) -> str:
        """The stack whose tokens the head reads."""
        return "encoder" if "decoder" not in self.tokens else "decoder"

    def kept(self) -> Tape:
        """The recording. Raises Refused when it is gone."""
        if self.tape is None:
            raise Refused(410, "evicted", "this run's recording has left memory to make room for "
                          "others", advice="POST recompute")
        return self.tape

    def again(self, **wanted) -> Tape:
        """A recording of one more pass, of what the run itself does not hold."""
        with self.served.lock, torch.no_grad(), self.served.model.record(**wanted) as tape:
            self.served.model(**self.batch, **self.spared())
        return tape

    def spared(self) -> dict:
        """What keeps a pass over a long text from scoring a whole vocabulary at every token."""
        many = len(self.tokens[self.main]) * self.served.data["vocab"] > SCORES
        return {"logits_to_keep": 1} if many and self.served.output in ("next", "mask") else {}

    def logits(self, pos: int) -> Tensor:
        """(V,) of one token, or of the labels."""
        self.kept()
        if self.served.output == "none":
            raise Refused(409, "conflict", f"{self.served.model.architecture} has no head that "
                          "scores tokens or labels")
        with self.served.lock, torch.no_grad():
            if self.served.output == "labels":  # a classifier reads all tokens, and their pads
                return self.served.model(**self.batch).logits[0]
            out = self.served.model.head(self.x[None, pos : pos + 1], None, None)
        return next(x for name, x in out.items() if "logits" in name)[0, 0]

    def lengths(self) -> dict[str, dict[str, Tensor]]:
        """stack -> x (L + 1, T), the lengths of the stream, and of what each part adds (L, T)."""
        return {stack: self._lengths(stack) for stack in self.tokens}

    def _lengths(self, stack: str) -> dict[str, Tensor]:
        of = {(part, n): x for (name, part, n), x in self.passed.lengths.items() if name == stack}
        L, none = 1 + max(n for _, n in of), torch.full((len(self.tokens[stack]),), float("nan"))
        found = {"x": torch.stack([of["x", n] for n in range(-1, L)])}
        for part in dict.fromkeys(part for part, _ in of if part != "x"):
            found[part] = torch.stack([of.get((part, n), none) for n in range(L)])
        return found

    def record(self) -> None:
        """Run the model over the batch and keep what the screens read."""
        model = self.served.model
        held: list[Tensor] = []
        with self.served.lock, torch.no_grad():
            handle = model.decoder.norm.register_forward_hook(lambda m, args, x: held.append(x))
            try:
                with model.record() as tape, graph.watch(model) as passed:
                    model(**self.batch, **self.spared())
            finally:
                handle.remove()
        self.tape, self.x, self.passed = tape, held[-1][0], passed
        self.error = tape.selfcheck if tape.runs and tape.selfcheck == tape.selfcheck else None
        self.kernel = pinned() or "sdpa"
        self.bytes = self.x.nbytes + sum(
            x.nbytes for runs in tape.runs.values() for run in runs for t in run
            for x in (t.q, t.k) if x is not None)

    def data(self) -> dict:
        """The run of the schema."""
        model = self.served.model
        notes = []
        if model.training:
            notes.append("the model is in training mode")
        return {
            "schema": "explorer/1", "run": self.id, "state": self.state, "made": self.made,
            "inputs": self.inputs, "model": self.served.data, "tokens": self.tokens,
            "caps": self.caps(), "bytes": self.bytes, "snippet": self.snippet(),
            "numerics": {"dtype": str(model.dtype).removeprefix("torch."), "kernel": self.kernel,
                         "selfcheck": self.error, "stored": "exact"},
            "hidden": {"truncated": False, "layers": len(self.tape.runs) if self.tape else 0,
                       "notes": notes},
            "graph": self.passed.data(self.served.paths)}

    def caps(self) -> list[str]:
        """The screens that have something to show."""
        output = self.served.output
        found = ["attn", "qk", "resid", "flow", "redundancy"]
        if any(sites.network(b) for s in sites.stacks(self.served.model).values()
               for b in s.blocks):
            found.append("mlp")
        if output in ("next", "mask"):
            found += ["lens", "dla", "sample" if output == "next" else "mask"]
        if output == "labels":
            found.append("labels")
        if output != "none":
            found += ["causal", "sweep"]
        return [*found, "roles"] if self.served.model.tokenizer is not None else found

    def snippet(self) -> str:
        """Python that makes the same recording."""
        given = ", ".join(f"{name}=torch.tensor({x.tolist()})" for name, x in self.batch.items())
        return (f"import mirada, torch\nm = mirada.load({self.served.name!r})\n"
                f"batch = dict({given})\n"
                "with torch.no_grad(), m.record() as tape:\n    out = m(**batch)")


class Runs:
    """All runs of a launch, the least recently used recordings evicted beyond a number of bytes."""

    def __init__(self, room: int = KEPT):
        self.room, self.runs = room, OrderedDict()
        self.lock = threading.RLock()

    def add(self, run: Run) -> Run:
        with self.lock:
            self.runs[run.id] = run
            while len(self.runs) > RUNS:
                self.runs.popitem(last=False)
            self._evict(run)
        return run

    def find(self, id: str) -> Run:
        """The run, which from now on is the most recently used. Raises Refused."""
        with self.lock:
            if id not in self.runs:
                raise missing("there is no such run; it was deleted, or the server was restarted")
            self.runs.move_to_end(id)
            return self.runs[id]

    def delete(self, id: str) -> None:
        self.find(id)
        with self.lock:
            self.runs.pop(id, None)

    def held(self) -> int:
        """Bytes of all recordings."""
        return sum(run.bytes for run in self.runs.values() if run.tape is not None)

    def restore(self, run: Run) -> None:
        """Bring an evicted recording back."""
        if run.tape is None:
            run.record()
        with self.lock:
            self._evict(run)

    def _evict(self, spared: Run) -> None:
        for run in list(self.runs.values()):
            if self.held() <= self.room:
                return
            if run is not spared and run.served is not None and run.tape is not None:
                run.tape = run.x = None

    def data(self) -> dict:
        """The list of the schema, the latest first."""
        with self.lock:
            listed = sorted(self.runs.values(), key=lambda run: run.made, reverse=True)
            return {"schema": "explorer/1", "kept_bytes": self.held(), "runs": [{
                "run": run.id, "state": run.state, "made": run.made, "model": run.served.id if run.served else "file",
                "text": _title(run), "bytes": run.bytes,
                "tokens": sum(map(len, run.tokens.values()))} for run in listed]}


def _title(run: Run) -> str:
    text = run.inputs.get("text")
    if text is None:
        text = "".join(token["s"] for token in next(iter(run.tokens.values())))
    return text[:200]


def make(served: Served, inputs: dict) -> Run:
    """Encode what was asked for, run it and record it. Raises MiradaError."""
    batch, tokens = read(served, inputs)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    run = Run(f"r_{secrets.token_hex(6)}", served, inputs, batch, tokens, now)
    run.record()
    return run


def read(served: Served, inputs: dict) -> tuple[dict[str, Tensor], dict[str, list[dict]]]:
    """(the model's batch, tokens by stack). Raises MiradaError."""
    model = served.model
    if not hasattr(model.config, "vocab"):
        raise MiradaError(f"{model.architecture} reads no text")
    if ("ids" in inputs) == ("text" in inputs):
        raise MiradaError("inputs must hold a text or ids, one of the two")
    name = "encoder" if model.encoder_decoder else model.kind
    ids, types, marks = _encoded(served, inputs)
    tokens = {name: marks}
    batch = {"input_ids": torch.tensor([ids], device=model.device)}
    if types is not None:
        batch["token_type_ids"] = torch.tensor([types], device=model.device)
    if model.encoder_decoder:
        target = _target(served, inputs, ids)
        tokens["decoder"] = [_token(served, id, None, None, None) for id in target]
        _words(tokens["decoder"])
        batch["decoder_input_ids"] = torch.tensor([target], device=model.device)
    for row in tokens.values():
        limit = min(model.context or TOKENS, TOKENS)
        if not 0 < len(row) <= limit:
            raise Refused(400, "input", "the text is empty: there is nothing to look at"
                          if not row else f"the text has {len(row):,} tokens and at most "
                          f"{limit:,} can be looked at; shorten it", field="text")
    return batch, tokens


def _encoded(served: Served, inputs: dict) -> tuple[list[int], list[int] | None, list[dict]]:
    """(ids, token types or None, tokens of the schema) of the first stack's text."""
    tokenizer, pair = served.model.tokenizer, inputs.get("pair")
    if "ids" in inputs:
        rows = [_token(served, id, None, None, None) for id in inputs["ids"]]
        _words(rows)
        return inputs["ids"], None, rows
    if tokenizer is None:
        raise MiradaError("this model has no tokenizer beside its weights, so a text cannot be "
                          "read; give ids")
    text = inputs["text"]
    if inputs.get("chat"):
        if not tokenizer.templates:
            raise MiradaError("this model has no chat template; leave chat out")
        ids = tokenizer.chat([{"role": "user", "content": text}])
        rows = [_token(served, id, None, None, None) for id in ids]
        _words(rows)
        return ids, None, rows
    found = tokenizer.encode(text, pair)
    spans = [None if special else list(span) for special, span in
             zip(found.special_mask, found.offsets, strict=True)]
    rows = [_token(served, *one) for one in
            zip(found.ids, spans, found.found.word_ids, found.sequence, strict=True)]
    if len({row["w"] for row in rows} - {None}) < 2:  # a tokenizer that splits no words itself
        _words(rows)
    typed = "token_type_ids" in tokenizer.inputs and served.model.kind == "encoder"
    return found.ids, found.type_ids if typed and pair is not None else None, rows


def _target(served: Served, inputs: dict, source: list[int]) -> list[int]:
    """What the decoder of an encoder-decoder reads: its start and the target's tokens."""
    if "target_ids" in inputs:
        return inputs["target_ids"]
    model = served.model
    start = source[-1] if model.config.start is None else model.config.start
    if not inputs.get("target"):
        return [start]
    return [start, *model.tokenizer.encode(inputs["target"], special=False).ids]


def _token(served: Served, id: int, span, word, sequence) -> dict:
    tokenizer = served.model.tokenizer
    special = tokenizer is not None and id in tokenizer.special_ids
    return {"id": id, "s": served.labels([id])[str(id)] if served.output != "labels" else
            _piece(tokenizer, id), "b": span, "w": word, "seq": sequence, "special": special}


def _piece(tokenizer, id: int) -> str:
    return str(id) if tokenizer is None or id >= tokenizer.size else tokenizer.pieces([id])[0]


def _words(rows: list[dict]) -> None:
    """Number the words where only pieces are known: by their spaces, or by WordPiece's hyphens."""
    spaced = any("·" in row["s"] for row in rows)
    word, fresh = -1, True
    for row in rows:
        if row["special"]:
            fresh = True
            continue
        begins = row["s"].startswith("·") if spaced else not row["s"].startswith("-")
        word += begins or fresh
        fresh, row["w"] = False, word

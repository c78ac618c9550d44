"""Runs: a text as one model saw it. What they answer never changes; their recordings may be
evicted and brought back by the same pass."""

from __future__ import annotations

import datetime
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mirada.core.attend import Call, choose
from mirada.core.attention import Attention
from mirada.look import describe, sites
from mirada.look.record import Tape, is_plain

from . import graph, reading
from .errors import Refused, missing
from .served import Served

KEPT = 1 << 30  # bytes of recordings held at a time
RUNS = 1000  # runs that are remembered, recordings or not


@dataclass
class Run:
    """One text in one model.

    batch: what the model is called with; layers: those that are recorded, all when None; tape: the
    recording, None when evicted; x: (T, D) what the head reads; notes: what is not kept, and why.
    """

    id: str
    served: Served
    inputs: dict
    batch: dict[str, Tensor]
    tokens: dict[str, list[dict]]
    made: str
    layers: list[int] | None
    notes: list[str]
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
        """Keeps a pass from scoring a whole vocabulary at each token, which none here reads."""
        return {"logits_to_keep": 1} if self.served.output in ("next", "mask") else {}

    def logits(self, pos: int) -> Tensor:
        """(V,) of one token, or of the labels."""
        self.kept()
        if self.served.output == "none":
            raise Refused(409, "conflict", f"{self.served.model.architecture} has no head that "
                          "scores tokens or labels")
        if self.served.output == "labels":  # a classifier reads all tokens, and their pads
            with self.served.lock, torch.no_grad():
                return self.served.model(**self.batch).logits[0]
        return self.scores(pos, pos + 1)[0]

    def scores(self, a: int, b: int) -> Tensor:
        """(b - a, V) of some tokens, by the head that scores each."""
        with self.served.lock, torch.no_grad():
            out = self.served.model.head(self.x[None, a:b], None, None)
        return next(x for name, x in out.items() if "logits" in name)[0]

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
        kernels: dict[str, None] = {}
        with self.served.lock, torch.no_grad():
            handles = [model.decoder.norm.register_forward_hook(lambda m, a, x: held.append(x))]
            handles += [m.attend.register_forward_pre_hook(
                lambda attend, args, given: kernels.update({_kernel(attend, args, given): None}),
                with_kwargs=True) for m in model.modules() if isinstance(m, Attention)]
            try:
                with (model.record(layers=self.layers, v=True) as tape,
                      graph.watch(model) as passed):
                    model(**self.batch, **self.spared())
            finally:
                for handle in handles:
                    handle.remove()
        self.tape, self.x, self.passed = tape, held[-1][0], passed
        self.error = tape.selfcheck if tape.runs and tape.selfcheck == tape.selfcheck else None
        self.kernel = ", ".join(kernels)
        self.bytes = self.x.nbytes + sum(
            x.nbytes for runs in tape.runs.values() for run in runs for t in run
            for x in (t.q, t.k, t.v) if x is not None)

    def data(self) -> dict:
        """The run of the schema."""
        model = self.served.model
        return {
            "schema": "explorer/1", "run": self.id, "state": self.state, "made": self.made,
            "inputs": self.inputs, "model": self.served.data, "tokens": self.tokens,
            "caps": self.caps(), "bytes": self.bytes, "snippet": self.snippet(),
            "numerics": {"dtype": str(model.dtype).removeprefix("torch."), "kernel": self.kernel,
                         "selfcheck": self.error, "stored": "exact"},
            "hidden": {"truncated": self.layers is not None, "notes": self.notes,
                       "layers": len(self.tape.runs) if self.tape else 0},
            "graph": self.passed.data(self.served.paths)}

    def caps(self) -> list[str]:
        """The screens that have something to show."""
        output = self.served.output
        found = ["resid"]
        if self.layers != []:
            found += ["attn", "qk", "redundancy"]
        if self.layers is None:
            found.append("flow")
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
        return (f"import mirada, torch\nm = {self.served.loading}\n"
                f"batch = dict({given})\n"
                "with torch.no_grad(), m.record() as tape:\n    out = m(**batch)")


class Runs:
    """All runs of a launch, each a Run or a runfile.Opened; beyond `room` bytes of recordings the
    least recently used are evicted."""

    def __init__(self, room: int = KEPT):
        self.room, self.runs = room, OrderedDict[str, Any]()
        self.lock = threading.RLock()

    def add(self, run: Any) -> Any:
        with self.lock:
            self.runs[run.id] = run
            while len(self.runs) > RUNS:
                self.runs.popitem(last=False)
            self._evict(run)
        return run

    def find(self, id: str) -> Any:
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

    def restore(self, run: Any) -> None:
        """Bring an evicted recording back."""
        if run.tape is None:
            run.record()
        with self.lock:
            self._evict(run)

    def _evict(self, spared: Any) -> None:
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
                "run": run.id, "state": run.state, "made": run.made, "bytes": run.bytes,
                "model": run.served.id if run.served else "file", "text": _title(run),
                "tokens": sum(map(len, run.tokens.values()))} for run in listed]}


def _title(run: Any) -> str:
    text = run.inputs.get("text")
    if text is None:
        text = "".join(token["s"] for token in next(iter(run.tokens.values())))
    return text[:200]


def _kernel(attend, args: tuple, given: dict) -> str:
    """The name of what computes one call of an attention."""
    if not is_plain(attend):
        return type(attend).__name__
    return choose(Call(*args, **{k: given[k] for k in ("scale", "mask", "bias", "cap", "sinks")}))


def make(served: Served, inputs: dict, room: int = KEPT, qk: bool = True) -> Run:
    """Encode what was asked for, run it and record it. Raises MiradaError.

    room: bytes a recording may have; a longer one keeps the last layers. qk: False records no
    attention, for steps of a text of which the next token is all that is asked.
    """
    batch, tokens = reading.read(served, inputs)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    layers, notes = ([], ["attention was not recorded"]) if not qk else _fitting(
        served, tokens, room)
    run = Run(f"r_{secrets.token_hex(6)}", served, inputs, batch, tokens, now, layers, notes)
    run.record()
    return run


def _fitting(served: Served, tokens: dict, room: int) -> tuple[list[int] | None, list[str]]:
    """The layers whose recording fits into a room, all when None, and what to say of it."""
    T, size = max(map(len, tokens.values())), served.model.dtype.itemsize
    costs = []  # of each layer, in all stacks
    for layer in range(max(len(s["layers"]) for s in served.data["stacks"])):
        own = [a for stack in sites.stacks(served.model).values() if layer < len(stack.order)
               for _, a in sites.attentions("", stack.blocks[stack.order[layer]])]
        costs.append(size * T * sum(m.out_features for a in own for m in (a.q, a.k, a.v)))
    if sum(costs) <= room:
        return None, []
    kept, left = [], room
    for layer in reversed(range(len(costs))):
        left -= costs[layer]
        if left < 0:
            break
        kept.insert(0, layer)
    return kept, [f"of {len(costs)} layers the last {len(kept)} are recorded: all would take "
                  f"{describe.size(sum(costs))} of the {describe.size(room)} that may be kept"]

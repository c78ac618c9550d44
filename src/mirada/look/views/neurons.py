"""Neuron view: how the channels of a query and a key add up to a weight, in any attention we have.

bertviz's neuron view (Vig, 1906.05714) knows three models, for it needs a copy of each; here
queries and keys are read where they enter the kernel: normed, rotated, of the head's group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from mirada.errors import MiradaError
from mirada.look import patterns, record
from mirada.look.views import drawings, given
from mirada.look.views.view import View, spoken
from mirada.look.views.words import WORDS


@dataclass(frozen=True, eq=False, repr=False)
class Neurons(View):
    """One head, channel by channel: score = cap(q . k * scale) + bias where seen."""

    layer: int
    head: int
    stack: str
    queries: list[str]
    keys: list[str]
    q: np.ndarray  # (T, K) as enters the kernel
    k: np.ndarray  # (S, K) of the head's group
    bias: np.ndarray  # (T, S) in the score's units
    seen: np.ndarray  # (T, S) False: hidden by the mask
    weights: np.ndarray  # (T, S)
    scale: float
    cap: float | None
    lang: str = "en"

    kind = "neuron"

    def products(self, i: int, j: int) -> np.ndarray:
        """(K,) what each channel adds to the score of query i and key j."""
        return self.q[i].astype(np.float64) * self.k[j] * self.scale

    @property
    def scores(self) -> np.ndarray:
        """(T, S) what the softmax is given."""
        made = self.q.astype(np.float64) @ self.k.T * self.scale
        if self.cap is not None:
            made = self.cap * np.tanh(made / self.cap)
        return np.where(self.seen, made + self.bias, -np.inf)

    def contents(self, lang: str):
        about = {"layer": self.layer, "head": self.head, "queries": self.queries,
                 "keys": self.keys, "channels": self.q.shape[1], "scale": self.scale,
                 "cap": self.cap, "biased": bool(self.bias.any())}
        numbers = (self.q, self.k, self.weights, *((self.bias,) if about["biased"] else ()))
        words = WORDS[lang]
        title = (f"{words['neuron_title']} · {words['layer']} {self.layer} · {words['head']} "
                 f"{self.head}")
        return title, about, [*(np.ascontiguousarray(x, "<f4").tobytes() for x in numbers),
                              self.seen.astype(np.uint8).tobytes()]

    def data(self) -> dict:
        """For programs: queries and keys, their scores and weights."""
        return {name: getattr(self, name) for name in (
            "layer", "head", "stack", "queries", "keys", "q", "k", "bias", "seen", "scores",
            "weights", "scale", "cap")}

    def figure(self, i: int = -1, j: int | None = None):
        """Query i and key j, the strongest when None."""
        j = int(self.weights[i].argmax()) if j is None else j
        return drawings.channels(self.q[i], self.k[j], self.scale, self.queries[i], self.keys[j],
                                 float(self.weights[i, j]), self.lang)

    def __str__(self) -> str:
        j = int(self.weights[-1].argmax())
        parts = self.products(-1, j)
        best = np.argsort(-np.abs(parts))[:5]
        return "\n".join([
            f"neuron view: {self.stack} layer {self.layer}, head {self.head}: {len(self.queries)} "
            f"queries, {len(self.keys)} keys, {self.q.shape[1]} channels",
            f"  {self.queries[-1].strip()} → {self.keys[j].strip()}: weight "
            f"{self.weights[-1, j]:.1%}, score {self.scores[-1, j]:.3f}; largest channels "
            + ", ".join(f"{n} ({parts[n]:+.3f})" for n in best)])

    __repr__ = __str__


@torch.no_grad()
def neuron_view(tape, layer: int = 0, head: int = 0, *, stack: str | None = None, row: int = 0,
                run: int = -1, lang: str = "en") -> Neurons:
    """One head of a tape, channel by channel: any family, any stack, cached or not.

    Raises MiradaError for an attention whose weights are no softmax over scores (linear ones), or
    for something other than a tape.
    """
    if not isinstance(tape, record.Tape):
        raise MiradaError("neuron_view needs queries and keys, which weights alone do not hold: "
                          "give a tape (with model.record() as tape: model(...))")
    stack, layer = tape.site(layer, stack)
    reading = tape.read(layer, head, stack, run)
    if not patterns.is_plain(reading.attend):
        raise MiradaError(f"layer {layer} of {stack} has no score of query and key: its attention "
                          "is not a softmax over the keys")
    B, _, T, S = tape.shape(layer, stack, run)
    (at,) = patterns.listed(row, B, "row of the batch")
    bias, seen = np.zeros((T, S), np.float32), np.zeros((T, S), bool)
    for r0, call in reading.calls():
        rows, S_here = call.q.shape[2], call.kv.k.shape[2]
        shown = call.mask.rows(0, rows, rows, S_here, call.q.device)[:, 0]  # (1 or B, rows, S)
        seen[r0 : r0 + rows, :S_here] = shown[at % len(shown)].expand(rows, S_here).cpu()
        if call.bias is not None:
            made = replace(call.bias, mask=call.mask).rows(call.q, call.kv.k, 0, rows)
            bias[r0 : r0 + rows, :S_here] = made[at % len(made), reading.heads[0]].float().cpu()
    queries, keys = given.tape_tokens(tape, stack, at, run)
    first = reading.taken[0]
    q = torch.cat(reading.some_q, 2)[at, 0].float().cpu().numpy()
    return Neurons(layer, reading.heads[0], stack, [given.readable(t) for t in queries],
                   [given.readable(t) for t in keys], q,
                   reading.some_k[at, 0].float().cpu().numpy(), np.where(seen, bias, 0), seen,
                   reading.rows()[at, 0].float().cpu().numpy(), first.scale, first.cap,
                   spoken(lang))

"""Attention weighed by what it changes: a score's gradient at each weight, times the weight.

The gradient at weight (i, j) of a head is that of the score at the head's output i, times value j:
no matrix is needed in the pass, so any kernel may run it. `relevance` joins the layers as Chefer et
al., 2103.15679, do for self-attention. A guess to first order, and not a test: for that, intervene.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.errors import MiradaError

from . import patterns, record, sites

MOST = 2048  # tokens up to which layers are joined: that holds T x T


@dataclass(frozen=True, eq=False)
class GradientAttention:
    """One score's gradient at each attention. tape holds the pass; slopes: per (stack, layer) the
    gradient (H, T, Kv) at what the heads gave, of one row. position, token: whose logit it was."""

    tape: record.Tape
    slopes: dict[tuple[str, int], Tensor]
    position: int
    token: int
    score: float
    row: int

    def weights(self, layer: int, heads=None, rows=None, stack: str | None = None, *,
                times: bool = True) -> Tensor:
        """(H, R, S) weight times gradient; times=False: the gradient alone."""
        site = self.tape.site(layer, stack)
        H, T = self.slopes[site].shape[:2]
        chosen = patterns.listed(heads, H, "head")
        wanted = patterns.listed(rows, T, "row")
        v = self.tape.values(site[1], site[0])[self.row]  # (G, S, Kv)
        v = v[[h * len(v) // H for h in chosen]].float()
        slope = self.slopes[site][chosen][:, wanted] @ v.mT
        if not times:
            return slope
        return slope * self.tape.pattern(site[1], chosen, wanted, site[0])[self.row]

    def heads(self, stack: str | None = None) -> Tensor:
        """(L, H) of each head the sum of weight times gradient: to first order, what the score
        would lose without the head's looks."""
        layers = self.tape.layers(stack)
        return torch.stack([(self.slopes[site] * self._given(*site)).sum((1, 2))
                            for site in (self.tape.site(n, stack) for n in layers)])

    def relevance(self, stack: str | None = None) -> Tensor:
        """(T, T): row i, how much each input place counted for place i; the rises only."""
        layers = self.tape.layers(stack)
        T, S = self.tape.shape(layers[0], stack)[2:]
        if T != S or T > MOST:
            raise MiradaError("relevance joins layers that look at their own places, at most "
                              f"{MOST}; this stack looks from {T} at {S}")
        found = torch.eye(T)
        for layer in layers:
            found = found + self.weights(layer, stack=stack).clamp(min=0).mean(0).cpu() @ found
        return found

    def _given(self, stack: str, layer: int) -> Tensor:
        """(H, T, Kv) what the heads gave: weights times values, made anew."""
        v = self.tape.values(layer, stack)[self.row].float()
        parts = [w[self.row].unflatten(0, (len(v), -1)) @ v[:, None].to(w)
                 for _, w in self.tape.blocks(layer, None, stack)]
        return torch.cat(parts, 2).flatten(0, 1)


def gradient_attention(model: nn.Module, batch: dict, token: int | None = None, *, pos: int = -1,
                       row: int = 0) -> GradientAttention:
    """One pass forward and back: the gradient of a logit at every attention.

    batch: what the model is called with. token: an id or label, the model's answer when None. pos:
    at which token of the row; a classifier has one place. Raises MiradaError.
    """
    seen: dict[nn.Module, list[Tensor]] = {}
    tracked = [p for p in model.parameters() if p.requires_grad]

    def take(module, args, kwargs, output):
        if not output.requires_grad:
            output.requires_grad_()
        seen.setdefault(module, []).append(output)
        return output

    with record.record(model, v=True) as tape:
        handles = [m.attend.register_forward_hook(take, with_kwargs=True)
                   for m in model.modules() if hasattr(m, "attend")]
        try:
            for parameter in tracked:  # the pass back needs none of theirs
                parameter.requires_grad_(False)
            with torch.inference_mode(False), torch.enable_grad():
                out = model(**batch)
                scores = next((out[n] for n in ("logits", "prediction_logits") if n in out), None)
                if scores is None:
                    raise MiradaError(f"{model.architecture} ends without logits, so there is no "
                                      "score to follow: load it with a head")
                here = scores[row] if scores.ndim == 2 else scores[row, pos]
                token = int(here.argmax()) if token is None else token
                if not 0 <= token < len(here):
                    raise MiradaError(f"id {token} is not among the {len(here)} outputs")
                outputs = [x for calls in seen.values() for x in calls]
                found = dict(zip(map(id, outputs), torch.autograd.grad(
                    here[token], outputs, allow_unused=True), strict=True))
        finally:
            for parameter in tracked:
                parameter.requires_grad_(True)
            for handle in handles:
                handle.remove()
    slopes, calls = {}, {module: iter(made) for module, made in seen.items()}
    for name in sites.stacks(model):  # a shared block ran once for each of its places
        for site, layer in _order(model, name):
            if (site, layer) in tape.runs:
                made = next(calls[tape.modules[site, layer].attend])
                slope = found[id(made)]
                slope = torch.zeros_like(made) if slope is None else slope
                slopes[site, layer] = slope[row].detach().float()
    if scores.ndim == 3:
        pos %= scores.shape[1]
    return GradientAttention(tape, slopes, pos, token, here[token].item(), row)


def _order(model: nn.Module, name: str):
    """(stack, layer) of every attention below one stack, in the order in which they run."""
    stack = sites.stacks(model)[name]
    for layer, index in enumerate(stack.order):
        for site, _ in sites.attentions(name, stack.blocks[index]):
            yield site, layer

"""Logits read early and taken apart: what each layer would already say (logit lens), and what every
part of a model adds to one logit (direct logit attribution).

The lens puts the stream of each depth through the model's own last norm and head. Attribution holds
the scale of each norm where the pass left it: then all from a part to the logit is linear, and the
parts' terms add up to it (Elhage et al., A Mathematical Framework for Transformer Circuits, 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import Block, Branch, ParallelBlock, Residual, Stack
from mirada.core.context import Ctx, Inputs
from mirada.core.heads import Classifier, First, LMHead, Transform
from mirada.core.linear import Quantized
from mirada.core.mask import Mask
from mirada.core.mlp import Activation
from mirada.core.norm import DropPath, LayerNorm, LayerScale, RMSNorm
from mirada.errors import MiradaError

from . import draw, sites
from .patterns import listed
from .views import pages
from .views.view import View

SAID = 12  # terms that a printed attribution names
COLUMNS = 24  # tokens that a printed lens or a picture of one shows
CAUTION = ("A lens reads early layers with the last one's eyes: what they hold may be written "
           "otherwise, so a poor answer there is not yet ignorance.")
FROZEN = "Norms keep the scale they had in this pass; the terms would be others at another scale."


@dataclass(frozen=True, eq=False)
class Lens(View):
    """What each depth would answer at each token: depth 0 the embedding, the last the model itself.

    ids, probs (L + 1, T, k): the likeliest tokens and their probabilities. targets (T,): the token
    followed at each place; prob, rank (L + 1, T): its probability, and its place, 1 the first.
    words: the text of every id that occurs.
    """

    tokens: list[str]
    positions: list[int]
    words: dict[int, str]
    ids: Tensor
    probs: Tensor
    targets: Tensor
    prob: Tensor
    rank: Tensor

    def data(self) -> dict:
        """For programs."""
        numbers = {name: getattr(self, name).tolist()
                   for name in ("ids", "probs", "targets", "prob", "rank")}
        return {"tokens": self.tokens, "positions": self.positions,
                "words": {str(n): w for n, w in self.words.items()}, **numbers, "note": CAUTION}

    def __str__(self) -> str:
        width, shown = 9, range(len(self.tokens))[-COLUMNS // 2 :]
        rows = [["depth", *(self.tokens[t] for t in shown)]]
        for n in reversed(range(len(self.ids))):
            name = "embed" if n == 0 else f"{n}"
            rows.append([name, *(self.words[int(self.ids[n, t, 0])] for t in shown)])
        left = len(self.tokens) - len(shown)
        said = [f"{left} earlier tokens are not shown"] if left else []
        table = ["  ".join(f"{cell[:width]:{width}}" for cell in row).rstrip() for row in rows]
        return "\n".join([*table, *said, CAUTION])

    kind = "lens"  # of its page

    def contents(self, lang: str):
        return pages.lens(self, lang)

    def figure(self):
        """The grid as a matplotlib figure: its last tokens, at most COLUMNS."""
        shown = range(len(self.tokens))[-COLUMNS:]
        depths = len(self.ids)
        figure = draw.canvas(1.3 + 0.95 * len(shown), 1.5 + 0.34 * depths)
        axes = draw.dressed(figure.subplots(), "What each depth would answer", "Token read",
                            "Depth")
        best = self.probs[:, shown.start :, 0].float().numpy()
        picture = axes.imshow(best, cmap=draw.heat(), vmin=0, vmax=1, aspect="auto",
                              origin="lower")
        for n in range(depths):
            for x, t in enumerate(shown):
                word = draw.short(self.words[int(self.ids[n, t, 0])], 10)
                axes.text(x, n, word, ha="center", va="center", fontsize=8,
                          color=draw.CLOTH if best[n, x] > 0.45 else draw.INK)
        axes.set_xticks(range(len(shown)), [draw.short(self.tokens[t], 10) for t in shown])
        axes.set_yticks(range(depths), ["embed", *map(str, range(1, depths))])
        draw.bar(figure, picture, axes, "Probability of the word shown", format="{x:.0%}",
                 pad=0.01, aspect=30)
        return figure


@torch.no_grad()
def lens(tape, *, top: int = 5, token: int | None = None, positions: list[int] | None = None,
         row: int = 0, run: int = -1,
         through: Callable[[int, Tensor], Tensor] | None = None) -> Lens:
    """The logit lens over a tape recorded with resid=True.

    top: how many tokens of each cell. token: the id whose probability and rank are followed; each
    place's own answer when None. positions: all when None. row: of the batch. through(depth, x):
    what a tuned lens (2303.08112) puts between the stream and the last norm. The last depth is the
    model's output, exactly. One depth's logits are held at a time. Raises MiradaError.
    """
    tape.across("a lens")
    model, stack = tape.model, answering(tape)
    depths = len(sites.stacks(model)[stack].order) + 1
    ids, probs, prob, rank, targets, chosen, labels = [], [], [], [], None, [], []
    for n in reversed(range(depths)):
        x = tape.resid(n, stack, run)
        if through is not None:
            x = through(n, x)
        logits = read_out(tape, x, stack, run)[row]  # (T, V), a classifier's (1, V)
        if targets is None:
            chosen = listed(positions, len(logits), "token")
            labels = tokens(tape, stack, row, run) if len(logits) == x.shape[1] else ["answer"]
        logits = logits[chosen].to(torch.promote_types(logits.dtype, torch.float32))
        if targets is None:
            targets = logits.argmax(-1) if token is None else torch.full(
                (len(logits),), _inside(token, logits.shape[1]), device=logits.device)
        mine = logits.gather(1, targets[:, None])
        best = logits.softmax(-1).topk(min(top, logits.shape[1]))
        ids.insert(0, best.indices)
        probs.insert(0, best.values)
        prob.insert(0, (mine - logits.logsumexp(-1, keepdim=True)).exp()[:, 0])
        rank.insert(0, 1 + (logits > mine).sum(-1))
    ids, probs, prob, rank = (torch.stack(x).cpu() for x in (ids, probs, prob, rank))
    targets = targets.cpu()
    found = sorted(set(ids.flatten().tolist()) | set(targets.tolist()))
    words = dict(zip(found, names(model, found), strict=True))
    return Lens([labels[t] for t in chosen], chosen, words, ids, probs, targets, prob, rank)


@dataclass(frozen=True)
class Term:
    """What one part adds to a logit. kind: embed, head, cross, mlp, bias or other."""

    name: str
    kind: str
    layer: int | None
    head: int | None
    value: float


@dataclass(frozen=True)
class Attribution(View):
    """A logit as a sum of terms. total: their sum; logit: the model's own, beside it.

    against: the id whose logit was taken off, where a difference of two was asked for.
    """

    tokens: list[str]
    position: int
    token: int
    word: str
    against: int | None
    other: str | None
    logit: float
    terms: list[Term]

    @property
    def total(self) -> float:
        """What the terms add up to."""
        return sum(t.value for t in self.terms)

    @property
    def what(self) -> str:
        """The number taken apart, in words."""
        return (f"logit of {self.word!r}" if self.other is None
                else f"logit of {self.word!r} less that of {self.other!r}")

    def data(self) -> dict:
        """For programs."""
        return {"pos": self.position, "token": {"id": self.token, "s": self.word},
                "against": None if self.against is None else {"id": self.against, "s": self.other},
                "logit": self.logit, "sum": self.total, "terms": [vars(t) for t in self.terms],
                "note": FROZEN}

    def largest(self, most: int = SAID) -> tuple[list[Term], float]:
        """The terms of the greatest size, and what all others add together."""
        best = sorted(self.terms, key=lambda t: -abs(t.value))[:most]
        return best, self.total - sum(t.value for t in best)

    def __str__(self) -> str:
        best, rest = self.largest()
        lines = [f"{self.what} after {self.tokens[self.position]!r}: {self.logit:.4f}"]
        lines += [f"  {t.value:+9.4f}  {t.name}" for t in best]
        if len(self.terms) > len(best):
            lines.append(f"  {rest:+9.4f}  {len(self.terms) - len(best)} other parts")
        return "\n".join([*lines, f"  {self.total:9.4f}  sum of all {len(self.terms)} parts "
                          f"({abs(self.total - self.logit):.0e} from the logit)", FROZEN])

    kind = "dla"  # of its page

    def contents(self, lang: str):
        return pages.attribution(self, lang)

    def figure(self):
        """The waterfall as a matplotlib figure: each term where those before it left off."""
        best, rest = self.largest()
        bars = [(t.name, t.value) for t in best]
        if len(self.terms) > len(best):
            bars.append((f"{len(self.terms) - len(best)} other parts", rest))
        figure = draw.canvas(7.4, 1.3 + 0.3 * (len(bars) + 1))
        axes = draw.dressed(figure.subplots(), f"{draw.short(self.what, 60)} after "
                            f"{draw.short(repr(self.tokens[self.position]))}", "Logit")
        at = 0.0
        for n, (_, value) in enumerate(bars):
            axes.barh(n, value, left=at, color=draw.INKS[2 if value > 0 else 1], height=0.72)
            axes.plot([at + value] * 2, [n - 0.36, n + 1.36], color=draw.EDGE, linewidth=0.9)
            axes.annotate(f"{value:+.2f}", (max(at, at + value), n), (4, 0),
                          textcoords="offset points", va="center", fontsize=8, color=draw.INK)
            at += value
        axes.barh(len(bars), at, color=draw.INKS[0], height=0.72)
        axes.annotate(f"{at:.2f}", (max(at, 0.0), len(bars)), (4, 0),
                      textcoords="offset points", va="center", fontsize=8, color=draw.INK)
        axes.axvline(0, color=draw.INK, linewidth=0.7)
        axes.set_yticks(range(len(bars) + 1), [*(draw.short(n, 30) for n, _ in bars), "sum"])
        axes.use_sticky_edges = False
        axes.margins(x=0.12)  # room for the last numbers
        axes.invert_yaxis()
        return figure


@torch.no_grad()
def dla(tape, token: int | None = None, *, pos: int = -1, against: int | None = None, row: int = 0,
        run: int = -1) -> Attribution:
    """One logit as the sum of what each part adds: the embedding, every head, every MLP, biases.

    tape: recorded with resid="sublayers" and z=True. token: an id, the model's answer when None.
    against: an id whose logit is taken off, so that the terms explain a preference. pos: the token
    after which (at which, of a masked model) the logit stands. A soft cap and an activation in the
    head keep the slope they had, as norms keep their scale. kind other: what a sublayer added that
    its heads do not account for. Computed in float64. Raises MiradaError where a block or head does
    not add up so.
    """
    model, stack = tape.model, answering(tape)
    module, T = sites.stacks(model)[stack], tape.resid(0, stack, run).shape[1]
    head = _head(model)
    if isinstance(head, Classifier):
        pos = 0
    (pos,) = listed(pos, T, "token")
    x = tape.resid(-1, stack, run)
    logits = read_out(tape, x if isinstance(head, Classifier) else x[:, pos : pos + 1],
                      stack, run)[row, 0].double()
    token = int(logits.argmax()) if token is None else _inside(token, len(logits))
    parts = Parts.of(tape, stack, module, row, pos, run)
    parts.through(module.norm)
    values, logit = _scored(head, parts, token), logits[token]
    if against is not None:
        against = _inside(against, len(logits))
        values, logit = values - _scored(head, parts, against), logit - logits[against]
    terms = [Term(*label, value)
             for label, value in zip(parts.labels, values.tolist(), strict=True)]
    word, other = names(model, [token, token if against is None else against])
    return Attribution(tokens(tape, stack, row, run), pos, token, word, against,
                       None if against is None else other, logit.item(), terms)


class Parts:
    """The stream at one token as a sum of named parts, (n, D) in float64."""

    def __init__(self, embedded: Tensor):
        self.labels = [("embed", "embed", None, None), ("biases", "bias", None, None)]
        self.vectors = torch.stack([embedded.double(), torch.zeros_like(embedded.double())])

    @classmethod
    def of(cls, tape, stack: str, module: Stack, row: int, pos: int, run: int) -> Parts:
        """All that the blocks left in the stream, before the last norm."""
        parts = cls(tape.resid(0, stack, run)[row, pos])
        for layer, index in enumerate(module.order):
            for name, sub in additive(module.blocks[index]):
                added = tape.added(layer, name, stack, run)[row, pos].double()
                if isinstance(sub.f, Attention):
                    site = "cross" if name == "cross" else stack
                    z = tape.z(layer, site, run)[row, pos].double()  # (H, Kv)
                    parts.heads(name, layer, sub, z, added)
                else:
                    parts.add([(f"{name} {layer}", "mlp", layer, None)], added[None])
                parts.through(getattr(sub, "out", nn.Identity()))
        return parts

    def heads(self, name: str, layer: int, sub: nn.Module, z: Tensor, added: Tensor) -> None:
        """What each head of one attention brought to the stream."""
        weight, bias = matrix(sub.f.o)  # (D, H * Kv)
        brought = torch.einsum("hk,dhk->hd", z, weight.unflatten(1, z.shape))
        post = getattr(sub, "post", nn.Identity())
        brought, more = held(post, torch.cat([brought, bias[None]]), brought.sum(0) + bias)
        kind, prefix = ("cross", "cross ") if name == "cross" else ("head", "")
        self.add([(f"{prefix}layer {layer} head {h}", kind, layer, h) for h in range(len(z))],
                 brought[:-1])
        self.vectors[1] += brought[-1] + more
        rest = added - brought.sum(0) - more
        if rest.norm() > 1e-3 * added.norm() + 1e-6:
            self.add([(f"{name} {layer}, the rest", "other", layer, None)], rest[None])

    def add(self, labels: list[tuple], vectors: Tensor) -> None:
        self.labels += labels
        self.vectors = torch.cat([self.vectors, vectors])

    def through(self, module: nn.Module) -> None:
        """The parts behind a module, what it adds of its own among the biases."""
        self.vectors, constant = held(module, self.vectors, self.vectors.sum(0))
        self.vectors[1] += constant


def held(module: nn.Module, parts: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
    """parts (n, D) behind a module that stays as it was for `whole` (D), and a constant (D): the
    parts' sum and the constant are what the module makes of the whole.

    Norms keep their scale, activations the ratio of what comes out to what goes in. Raises
    MiradaError for a module that mixes otherwise.
    """
    zero = parts.new_zeros(())
    if isinstance(module, nn.Identity | DropPath):
        return parts, zero.expand(parts.shape[1])
    if isinstance(module, LayerNorm):
        scale = torch.rsqrt(whole.var(unbiased=False) + module.eps)
        if module.weight is not None:
            scale = scale * module.weight.double()
        bias = zero if module.bias is None else module.bias.double()
        return (parts - parts.mean(-1, keepdim=True)) * scale, bias.expand(parts.shape[1])
    if isinstance(module, RMSNorm):
        scale = torch.rsqrt(whole.square().mean() + module.eps)
        return parts * scale * (module.offset + module.weight.double()), zero.expand(parts.shape[1])
    if isinstance(module, LayerScale):
        return parts * module.weight.double(), zero.expand(parts.shape[1])
    if isinstance(module, nn.Linear | Quantized):
        weight, bias = matrix(module)
        return parts @ weight.T, bias
    if isinstance(module, Activation):
        made = module(whole)
        ratio = torch.where(whole == 0, zero, made / whole)
        return parts * ratio, made - whole * ratio
    if isinstance(module, Transform | nn.Sequential):
        constant = zero
        for child in module.children():
            parts, more = held(child, torch.cat([parts, constant.expand(1, parts.shape[1])]), whole)
            parts, constant = parts[:-1], parts[-1] + more
            whole = parts.sum(0) + constant
        return parts, constant
    raise MiradaError(f"a {type(module).__name__} stands in this model's way to the logits, and "
                      "does not let parts through one by one: attribution cannot add up here")


def additive(block: nn.Module):
    """(name, sublayer) of a block that only adds to its stream. Raises MiradaError for another."""
    subs = list(sites.sublayers(block))
    plain = type(block).forward in (Block.forward, ParallelBlock.forward) and all(
        type(sub).forward in (Residual.forward, Branch.forward) for _, sub in subs)
    if not plain:
        raise MiradaError(f"the blocks of this model ({type(block).__name__}) do more than add to "
                          "their stream: it cannot be taken apart into what each part added")
    return subs


@torch.no_grad()
def matrix(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """(weight (out, in), bias (out,), zeros where it has none) of a projection, in float64."""
    if type(linear) not in (nn.Linear, Quantized):  # an adapter, a packed one: by what it does
        some = next(p for p in linear.parameters() if p.is_floating_point())
        bias = linear(some.new_zeros(1, linear.in_features))[0]
        weight = linear(torch.eye(linear.in_features).to(some)) - bias
        return weight.T.double(), bias.double()
    weight = linear.expand() if isinstance(linear, Quantized) else linear.weight
    weight = weight.double()
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.double()
    return weight, bias


def _scored(head: nn.Module, parts: Parts, token: int) -> Tensor:
    """(n,) the parts' terms of one logit."""
    out = head.score if isinstance(head, Classifier) else head.out
    vectors, whole = parts.vectors, parts.vectors.sum(0)
    scale, cap = 1.0, None
    if isinstance(head, LMHead):
        vectors, constant = held(head.transform, vectors, whole)
        vectors = vectors.clone()
        vectors[1] += constant
        scale, cap = head.scale, head.cap
    if isinstance(out, Quantized):
        weight = Quantized(out.blocks[token : token + 1], out.type).expand()[0].double()
    else:
        weight = out.weight[token].double()
    values = vectors @ weight * scale
    bias = getattr(head, "bias", None)  # of some translators' words, beside their table
    for more in (out.bias, bias):
        if torch.is_tensor(more):
            values[1] += more.flatten()[token].double()
    total = values.sum()
    if cap is not None and total != 0:
        values = values * (cap * torch.tanh(total / cap) / total)
    return values


def _head(model) -> nn.Module:
    head = model.head
    if isinstance(head, LMHead) or isinstance(head, Classifier) and type(head.pool) is First:
        return head
    raise MiradaError(f"{model.architecture} ends in a {type(head).__name__}, which is no sum over "
                      "the stream: attribution needs a head over a vocabulary, or a classifier of "
                      "the first token")


def answering(tape) -> str:
    """The stack on which the head stands."""
    return list(sites.stacks(tape.model))[-1]


def read_out(tape, x: Tensor, stack: str, run: int = -1) -> Tensor:
    """(B, T, V) logits of a stream x (B, T, D), through the last norm and the head; (B, 1, V) of a
    classifier. Raises MiradaError for a model that ends without either."""
    model = tape.model
    ids = ids_of(tape, next(iter(sites.stacks(model))), run)
    real = tape.real(stack, run)
    padding = None if bool(real.all()) or x.shape[1] != real.shape[1] else real
    x = sites.stacks(model)[stack].norm(x)
    out = model.head(x, Inputs(input_ids=ids), Ctx(mask=Mask(padding=padding)))
    for name in ("logits", "prediction_logits"):
        if name in out:
            return out[name] if out[name].ndim == 3 else out[name][:, None]
    raise MiradaError(f"{model.architecture} ends without logits (it gives {', '.join(out)}): load "
                      "it with a head over its vocabulary or labels to read its layers")


def ids_of(tape, stack: str, run: int = -1) -> Tensor | None:
    """(B, T) the ids a stack read; None where it read something else."""
    return tape.ids(stack, run) if ("ids", stack, 0) in tape.kept else None


def tokens(tape, stack: str, row: int = 0, run: int = -1) -> list[str]:
    """The readable tokens of one row of a stack's pass; where it read no text, see sites.places."""
    ids = ids_of(tape, stack, run)
    if ids is None:
        return sites.places(sites.stacks(tape.model)[stack], tape.real(stack, run).shape[1])
    return pieces(tape.model, ids[row].tolist())


def pieces(model, ids: list[int]) -> list[str]:
    """The readable pieces of ids; the ids themselves where a tokenizer lacks them."""
    if model.tokenizer is None:
        return [str(i) for i in ids]
    return [model.tokenizer.pieces([i])[0] if i < model.tokenizer.size else str(i) for i in ids]


def names(model, ids: list[int]) -> list[str]:
    """What a model's outputs are called: words of its vocabulary, or its labels."""
    labels = model.origin.raw.get("id2label") or {}
    if isinstance(model.head, LMHead):
        return pieces(model, ids)
    return [str(labels.get(str(i), f"label {i}")) for i in ids]


def _inside(token: int, count: int) -> int:
    if not 0 <= token < count:
        raise MiradaError(f"id {token} is not in the vocabulary of {count}")
    return token

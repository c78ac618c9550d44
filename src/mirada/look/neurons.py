"""Neurons: a score's channels in any attention, and the hidden units of an MLP, what makes them
fire over a corpus and what they say when they do.

What an MLP neuron writes, read by the model's own head, names words it makes likelier (Geva et al.,
2203.14680). That is its direct word only; what later layers make of it, ablating it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.heads import Classifier, First, LMHead
from mirada.core.linear import Quantized
from mirada.core.mlp import MLP
from mirada.errors import MiradaError

from . import draw, logits, record, sites
from .patterns import first, in_order, listed, starts

AROUND = 5  # tokens shown on each side of one that made a neuron fire
DIRECT = "What a neuron writes straight to the answer; later layers may read it otherwise."


@dataclass(frozen=True, eq=False)
class ScoreTerms(draw.Drawn):
    """How one query of a head scores every key, channel by channel; tensors in float64.

    q (K,), k (S, K): as they enter the kernel, normed and rotated; kv_head: the head whose keys
    these are. products (S, K) = q * k * scale; the cap bends their sum; bias (S,) is added; what
    seen (S,) denies is hidden. weight (S,): the softmax of score (S,), beside a sink where there is
    one.
    """

    layer: int
    head: int
    query: int
    kv_head: int
    tokens: list[str]
    keys: list[str]
    q: Tensor
    k: Tensor
    scale: float
    cap: float | None
    bias: Tensor
    seen: Tensor
    weight: Tensor

    @property
    def products(self) -> Tensor:
        """(S, K) each channel's part of q . k * scale."""
        return self.q * self.k * self.scale

    @property
    def score(self) -> Tensor:
        """(S,) what the softmax is given."""
        dot = self.products.sum(-1)
        if self.cap is not None:
            dot = self.cap * torch.tanh(dot / self.cap)
        return (dot + self.bias).masked_fill(~self.seen, float("-inf"))

    def data(self) -> dict:
        """For programs; a hidden key's score is None."""
        numbers = {n: getattr(self, n).tolist() for n in ("q", "k", "products", "bias", "seen",
                                                          "weight")}
        scores = [x if x > float("-inf") else None for x in self.score.tolist()]
        return {**vars(self), **numbers, "score": scores}

    def __str__(self) -> str:
        best = self.weight.argsort(descending=True)[:8].tolist()
        width = max(len(self.keys[j]) for j in best)
        lines = [f"layer {self.layer} head {self.head} (keys of head {self.kv_head}), query "
                 f"{self.tokens[self.query]!r} (token {self.query})",
                 f"  {'key':>{width}}  weight    score = q.k*scale + bias   largest channels"]
        for j in best:
            parts, dot = self.products[j], self.products[j].sum().item()
            top = parts.abs().argsort(descending=True)[:3].tolist()
            said = ", ".join(f"{c}: {parts[c]:+.2f}" for c in top)
            lines.append(f"  {self.keys[j]:>{width}}  {self.weight[j]:6.1%}  {self.score[j]:7.3f}"
                         f"   {dot:8.3f}  {self.bias[j]:+7.3f}  {said}")
        return "\n".join(lines if self.cap is None else
                         [*lines, f"q.k*scale is bent by a soft cap of {self.cap:g} first"])

    def figure(self):
        """q, the products by key and channel, and the weights as a matplotlib figure; keys
        downwards, at most the 40 strongest."""
        shown = sorted(self.weight.argsort(descending=True)[:40].tolist())
        figure = draw.canvas(11, 1.9 + 0.26 * len(shown))
        axes = figure.subplots(2, 2, sharex="col", width_ratios=[5, 1],
                               height_ratios=[1, max(2, 0.45 * len(shown))])
        channels = range(len(self.q))
        draw.dressed(axes[0, 0], f"Layer {self.layer} head {self.head}: q of "
                     f"{draw.short(repr(self.tokens[self.query]))}")
        axes[0, 0].bar(channels, self.q.numpy(), color=draw.INKS[0], width=0.8)
        axes[0, 1].set_axis_off()
        parts = self.products[shown]
        most = parts.abs().max().item() or 1.0
        draw.dressed(axes[1, 0], "q × k × scale", "Channel", "Key")
        picture = axes[1, 0].imshow(parts.numpy(), cmap="PuOr_r", vmin=-most, vmax=most,
                                    aspect="auto", interpolation="nearest")
        axes[1, 0].set_yticks(range(len(shown)), [draw.short(self.keys[j], 14) for j in shown])
        draw.dressed(axes[1, 1], "Weight", "Softmax of the score")
        axes[1, 1].barh(range(len(shown)), self.weight[shown].numpy(), color=draw.INKS[2])
        axes[1, 1].set_ylim(*axes[1, 0].get_ylim())
        axes[1, 1].set_yticks([])
        draw.bar(figure, picture, axes[1, 0], location="bottom", aspect=50, pad=0.02)
        return figure


@torch.no_grad()
def neuron_terms(tape, layer: int, head: int, i: int = -1, *, stack: str | None = None,
                 row: int = 0, run: int = -1) -> ScoreTerms:
    """Query i's scores in one head taken apart, for any attention: rotations and norms of q and k
    are in them; distances, buckets and other biases stand beside. Raises MiradaError."""
    stack, layer = tape.site(layer, stack)
    _, H, T, S = tape.shape(layer, stack, run)
    (head,), (i,) = listed(head, H, "head"), listed(i, T, "query")
    reading = tape.read(layer, None, stack, run)
    n, t, at = next((n, t, i - begun) for n, (t, begun) in enumerate(starts(reading.taken))
                    if i < begun + t.length)
    q, k = reading.q[n], reading.k[:, :, : first(t) + t.length if t.grows else None]
    mask, bias = in_order(t.mask, k.shape[2]), q.new_zeros(1, H, 1, k.shape[2])
    if t.bias is not None:
        bias = replace(t.bias, mask=mask).rows(q, k, at, at + 1)  # (1 or B, H, 1, S)
    seen = mask.rows(at, at + 1, t.length, k.shape[2], k.device)  # (1 or B, 1, 1, S)
    mine, later = head * k.shape[1] // H, (0, S - k.shape[2])  # keys of later steps are not seen
    asking, asked = ("decoder", "encoder") if stack == "cross" else (stack, stack)
    return ScoreTerms(
        layer, head, i, mine, logits.tokens(tape, asking, row, run),
        logits.tokens(tape, asked, row, run), q[row, head, at].double(),
        F.pad(k[row, mine].double(), (0, 0, *later)), t.scale, t.cap,
        F.pad(bias[row % len(bias), head, 0].double(), later),
        F.pad(seen[row % len(seen), 0, 0].expand(k.shape[2]), later),
        tape.row(layer, head, i, stack, run)[row].double())


@dataclass(frozen=True)
class Unit:
    """One neuron at one token: how far it fired, how much it wrote, and over the whole row.

    writes: |value| times the length of what the neuron writes. promoted, suppressed: (id, word,
    logit) of its direct word for each unit of firing, see promoted.
    """

    neuron: int
    value: float
    writes: float
    strip: list[float]
    promoted: list[tuple[int, str, float]]
    suppressed: list[tuple[int, str, float]]


@dataclass(frozen=True)
class Firing(draw.Drawn):
    """The neurons of one MLP that wrote most at one token."""

    stack: str
    layer: int
    position: int
    width: int
    tokens: list[str]
    units: list[Unit]

    def data(self) -> dict:
        """For programs."""
        return {**vars(self), "units": [vars(u) for u in self.units], "note": DIRECT}

    def __str__(self) -> str:
        lines = [f"{self.stack} layer {self.layer}, token {self.position} "
                 f"({self.tokens[self.position]!r}): the neurons of {self.width} that wrote most"]
        for u in self.units:
            towards = u.promoted if u.value > 0 else u.suppressed  # below 0 it pushes
            said = " ".join(repr(w) for _, w, _ in towards[:4])
            lines.append(f"  {u.neuron:6}  fired {u.value:+8.3f}  wrote {u.writes:7.3f}"
                         + (f"  towards {said}" if said else ""))
        return "\n".join([*lines, DIRECT])

    def figure(self):
        """The strips as a matplotlib figure, the token of interest marked."""
        strips = torch.tensor([u.strip for u in self.units])
        most = strips.abs().max().item() or 1.0
        figure = draw.canvas(min(2.2 + 0.55 * len(self.tokens), 15), 1.8 + 0.32 * len(strips))
        axes = draw.dressed(figure.subplots(), f"Neurons of layer {self.layer} that wrote most at "
                            f"{draw.short(repr(self.tokens[self.position]))}", "", "Neuron")
        picture = axes.imshow(strips.numpy(), cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
        axes.axvspan(self.position - 0.5, self.position + 0.5, fill=False, edgecolor=draw.INK)
        step = -(-len(self.tokens) // 40)
        at = range(0, len(self.tokens), step)
        axes.set_xticks(at, [draw.short(self.tokens[n], 12) for n in at], rotation=60, ha="right")
        axes.set_yticks(range(len(strips)), [str(u.neuron) for u in self.units])
        draw.bar(figure, picture, axes, "Firing", pad=0.01, aspect=24)
        return figure


@torch.no_grad()
def firing(tape, layer: int, pos: int = -1, *, top: int = 12, words: int = 5,
           stack: str | None = None, row: int = 0, run: int = -1) -> Firing:
    """The neurons that wrote most at token `pos` in one layer's MLP, of a tape with mlp=True.

    words: how many promoted and suppressed words of each, 0 for none. Raises MiradaError.
    """
    stack = stack or logits.answering(tape)
    acts = tape.mlp(layer, stack, run)[row].float()  # (T, F)
    (pos,) = listed(pos, len(acts), "token")
    network = _network(tape.model, layer, stack)
    lengths = _columns(network, None).norm(dim=0).to(acts)
    wrote = acts[pos].abs() * lengths
    best = wrote.topk(min(top, len(wrote))).indices
    ends = [([], [])] * len(best)
    if words and stack == logits.answering(tape) and _names_words(tape.model):
        ends = [(p.promoted, p.suppressed) for p in promoted(tape.model, layer, best.tolist(),
                                                             k=words, stack=stack)]
    units = [Unit(n, acts[pos, n].item(), wrote[n].item(), acts[:, n].tolist(), *end)
             for n, end in zip(best.tolist(), ends, strict=True)]
    return Firing(stack, layer, pos, acts.shape[1], logits.tokens(tape, stack, row, run), units)


@dataclass(frozen=True)
class Word:
    """What one neuron writes, read by the model's head: (id, word, logit a unit of firing)."""

    layer: int
    neuron: int
    promoted: list[tuple[int, str, float]]
    suppressed: list[tuple[int, str, float]]

    def data(self) -> dict:
        """For programs."""
        return {**vars(self), "note": DIRECT}

    def __str__(self) -> str:
        lines = [f"layer {self.layer} neuron {self.neuron}"]
        for name, ends in (("promotes", self.promoted), ("suppresses", self.suppressed)):
            lines.append(f"  {name:10} " + "  ".join(f"{w!r} {x:+.3f}" for _, w, x in ends))
        return "\n".join([*lines, DIRECT])


@torch.no_grad()
def promoted(model: nn.Module, layer: int, neurons: int | list[int], *, k: int = 10,
             stack: str | None = None) -> list[Word]:
    """The words that each neuron's output makes likelier and less likely, straight to the head.

    The direction a neuron writes goes through the last norm, whose own scale (a positive number of
    the pass) is left at 1, and the head; norms behind later sublayers are passed over. Raises
    MiradaError for a model whose head names no words.
    """
    stack = stack or list(sites.stacks(model))[-1]
    if not _names_words(model):
        raise MiradaError(f"{model.architecture} has no table of words or labels behind its stream "
                          "that a neuron could speak through")
    network = _network(model, layer, stack)
    wanted = [neurons] if isinstance(neurons, int) else list(neurons)
    for n in wanted:
        if not 0 <= n < network.down.in_features:
            raise MiradaError(f"neuron {n} does not exist: layer {layer} has "
                              f"{network.down.in_features}")
    ways = _columns(network, wanted).T  # (n, D)
    norm = sites.stacks(model)[stack].norm
    ways = _unscaled(norm, ways)
    head = model.head
    if isinstance(head, LMHead):
        if not isinstance(head.transform, nn.Identity):
            ways = ways @ logits.matrix(head.transform.dense)[0].T
            ways = _unscaled(head.transform.norm, ways)
        ways, out = ways * head.scale, head.out
    else:
        out = head.score
    weight = out.expand() if isinstance(out, Quantized) else out.weight
    found = []
    for n, way in zip(wanted, ways.to(weight.dtype), strict=True):
        scores = (weight @ way).float()
        ends = []
        for best in (scores.topk(min(k, len(scores))), scores.topk(min(k, len(scores)),
                                                                   largest=False)):
            ids = best.indices.tolist()
            ends.append(list(zip(ids, logits.names(model, ids), best.values.tolist(), strict=True)))
        found.append(Word(layer, n, *ends))
    return found


@dataclass(frozen=True)
class Hit:
    """One token that made a neuron fire: how far, in which text, and what stood around it."""

    value: float
    text: int
    position: int
    before: str
    token: str
    after: str


@dataclass(frozen=True)
class TopTokens:
    """Of each neuron of one MLP the tokens of a corpus at which it fired most, largest first."""

    layer: int
    texts: int
    tokens: int
    hits: dict[int, list[Hit]]

    def data(self) -> dict:
        """For programs."""
        return {**vars(self), "hits": {str(n): [vars(h) for h in hits]
                                       for n, hits in self.hits.items()}}

    def __str__(self) -> str:
        lines = [f"layer {self.layer}, {self.tokens} tokens of {self.texts} texts"]
        for neuron, hits in list(self.hits.items())[:20]:
            lines.append(f"neuron {neuron}")
            lines += [f"  {h.value:+8.3f}  {h.before}[{h.token}]{h.after}" for h in hits]
        if len(self.hits) > 20:
            lines.append(f"and {len(self.hits) - 20} more neurons")
        return "\n".join(lines)


def top_tokens(model: nn.Module, texts: Iterable[str], layer: int, neurons: list[int] | None = None,
               *, k: int = 10, length: int = 256, stack: str | None = None) -> TopTokens:
    """The tokens that fired each neuron most, over a user's own texts, read once.

    texts: any iterable, of any length: only the k best of each neuron and AROUND tokens on each
    side are held. length: longer texts are read in pieces of so many tokens. neurons: all when
    None. Reads one stack, the last when None. Raises MiradaError.
    """
    if model.tokenizer is None:
        raise MiradaError("this model has no tokenizer beside its weights, so texts cannot be read")
    stack = stack or list(sites.stacks(model))[-1]
    network = _network(model, layer, stack)
    layer %= len(sites.stacks(model)[stack].order)
    chosen = list(range(network.down.in_features)) if neurons is None else list(neurons)
    if chosen and not 0 <= min(chosen) <= max(chosen) < network.down.in_features:
        raise MiradaError(f"layer {layer} has neurons 0 to {network.down.in_features - 1}; asked "
                          f"for {min(chosen)} to {max(chosen)}")
    length = min(length, model.context or length)
    best, where, around = None, None, None
    count = read = 0
    for number, begin, ids in _pieces(model, texts, length):
        count, read = number + 1, read + len(ids)
        batch = {"input_ids": torch.tensor([ids], device=model.device)}
        if model.encoder_decoder and stack == "decoder":
            batch["decoder_input_ids"] = batch["input_ids"]
        with record.record(model, [layer], keep=None, mlp=True) as tape, torch.no_grad():
            model(**batch)
        acts = tape.mlp(layer, stack)[0][:, chosen].float().cpu().T  # (n, T)
        value, at = acts.topk(min(k, len(ids)))
        mine = torch.stack([torch.full_like(at, number), begin + at], -1)  # (n, k, 2)
        padded = torch.tensor([-1] * AROUND + ids + [-1] * AROUND)
        near = padded[at[..., None] + torch.arange(2 * AROUND + 1)]  # (n, k, 2 AROUND + 1)
        if best is not None:
            value, mine = torch.cat([best, value], 1), torch.cat([where, mine], 1)
            near = torch.cat([around, near], 1)
        best, order = value.topk(min(k, value.shape[1]))
        where = mine.gather(1, order[..., None].expand(-1, -1, 2))
        around = near.gather(1, order[..., None].expand(-1, -1, near.shape[2]))
    if best is None:
        raise MiradaError("the texts hold no token: there is nothing to read")
    hits = {}
    for n, neuron in enumerate(chosen):
        hits[neuron] = [
            Hit(value, text, position, _said(model, ids[:AROUND]),
                _said(model, [ids[AROUND]]), _said(model, ids[AROUND + 1 :]))
            for value, (text, position), ids in zip(
                best[n].tolist(), where[n].tolist(), around[n].tolist(), strict=True)]
    return TopTokens(layer, count, read, hits)


def _pieces(model, texts: Iterable[str], length: int) -> Iterator[tuple[int, int, list[int]]]:
    """(number of the text, first token, ids) of pieces of at most `length` tokens."""
    if isinstance(texts, str):
        raise MiradaError("texts is one text; give a list of texts, or an open file of lines")
    for number, text in enumerate(texts):
        ids = model.tokenizer.encode(text.rstrip("\n")).ids
        for begin in range(0, len(ids), length):
            yield number, begin, ids[begin : begin + length]


def _said(model, ids: list[int]) -> str:
    return "".join(logits.pieces(model, [i for i in ids if i >= 0]))


def _network(model: nn.Module, layer: int, stack: str) -> MLP:
    module = sites.stacks(model)[stack]
    if not -len(module.order) <= layer < len(module.order):
        raise MiradaError(f"layer {layer} does not exist: the {stack} has {len(module.order)}")
    network = sites.network(module.blocks[module.order[layer]])
    if network is None:
        raise MiradaError(f"layer {layer} of the {stack} has no MLP that sees every token (experts "
                          "see tokens of their own)")
    return network


def _columns(network: MLP, neurons: list[int] | None) -> Tensor:
    """(D, n) what each neuron writes when it fires by 1."""
    weight = logits.matrix(network.down)[0]
    return weight if neurons is None else weight[:, neurons]


def _names_words(model) -> bool:
    head = model.head
    return isinstance(head, LMHead) or isinstance(head, Classifier) and type(head.pool) is First


def _unscaled(norm: nn.Module, ways: Tensor) -> Tensor:
    """Directions behind a norm, whose scale of the pass is left out."""
    if isinstance(norm, nn.LayerNorm):
        ways = ways - ways.mean(-1, keepdim=True)
    weight = getattr(norm, "weight", None)
    if weight is not None:
        ways = ways * (weight.double() + getattr(norm, "offset", 0.0))
    return ways

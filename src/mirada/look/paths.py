"""How information may have come from the tokens to an output: three readings of attention.

Rollout and max-flow (Abnar & Zuidema, 2005.00928) read the heads' mean weights only, with half of
each step the residual: values, MLPs and norms do not count. Information-flow routes (Ferrando &
Voita, 2403.00824) ask how near each part of what a layer wrote is to all that it wrote, so that a
large weight on a short value counts little. None of them is a cause: for that, intervene.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from mirada.core.attention import Attention
from mirada.core.block import ParallelBlock
from mirada.errors import MiradaError

from . import draw, logits, maxflow, reduce, sites
from .patterns import listed
from .views import pages
from .views.view import View

FLOWED = 64  # tokens up to which a max-flow is worked out: its cost grows with their fourth power
ROUTED = 512  # tokens up to which routes are
EDGES = 2000  # most that a graph holds
METHODS = ("rollout", "maxflow", "routes")
NOTES = {
    "rollout": "Rollout reads attention weights only: values, MLPs and norms do not count. A "
               "heuristic, not a cause.",
    "maxflow": "Max-flow reads attention weights only, and the edges are one greatest flow of "
               "several. A heuristic, not a cause.",
    "routes": "Routes say whose vectors made up what was written, not what the answer needed. A "
              "heuristic, not a cause.",
}


@dataclass(frozen=True)
class Edge:
    """A step from `query` after a layer to `key` before it. kind: attn, cross, resid or mlp.

    sublayer: of a route, the one whose sum this is a part of; "" where the layer is one step.
    """

    layer: int
    query: int
    key: int
    head: int | None  # None: the mean of the heads, or no attention
    kind: str
    weight: float
    sublayer: str = ""


@dataclass(frozen=True, eq=False)
class Flow(View):
    """Where an output token's information may have come from.

    shares: (L + 1, T), depth 0 the embedding: of a rollout, the target's share of each place; of
    the others, what of their edges passes through it. value: (T,) how much of it each input token
    holds, adding to 1. edges: strongest first; hidden: how many more there are, and their part.
    sources: the other stack's tokens, which cross edges lead to.
    """

    method: str
    stack: str
    tokens: list[str]
    target: int
    shares: Tensor
    value: list[float]
    edges: list[Edge] = field(default_factory=list)
    hidden: tuple[int, float] = (0, 0.0)
    sources: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """What this reading leaves out."""
        return NOTES[self.method]

    def data(self) -> dict:
        """For programs. Nodes and edges count layers from 0; layer -1 is the embedding."""
        nodes = {(e.layer, e.query) for e in self.edges} | {
            (e.layer if e.kind == "mlp" else e.layer - 1, e.key) for e in self.edges
            if e.kind != "cross"}
        return {"method": self.method, "stack": self.stack, "from": self.target,
                "tokens": self.tokens, "shares": self.shares.tolist(), "value": self.value,
                "nodes": [{"layer": n, "pos": i} for n, i in sorted(nodes)],
                "edges": [vars(e) for e in self.edges], "sources": self.sources,
                "hidden": {"edges": self.hidden[0], "share": self.hidden[1]}, "note": self.note}

    def __str__(self) -> str:
        best = sorted(enumerate(self.value), key=lambda x: -x[1])[:10]
        width = max(len(self.tokens[n]) for n, _ in best)
        lines = [f"{self.method}: where {self.tokens[self.target]!r} (token {self.target}) after "
                 f"the last layer of the {self.stack} comes from"]
        lines += [f"  {self.tokens[n]:>{width}}  {share:6.1%}  token {n}" for n, share in best
                  if share > 0]
        if self.edges:
            kept = f"{len(self.edges)} edges"
            lines.append(kept + (f"; {self.hidden[0]} weaker ones, {self.hidden[1]:.0%} of the "
                                 "weight, left out" if self.hidden[0] else ""))
        return "\n".join([*lines, self.note])

    kind = "flow"  # of its page

    def contents(self, lang: str):
        return pages.flow(self, lang)

    def figure(self):
        """A matplotlib figure: tokens across, depth upwards, each place as dark as its share."""
        depths, T = self.shares.shape
        figure = draw.canvas(min(2.4 + 0.55 * T, 16), min(1.7 + 0.42 * depths, 9))
        axes = draw.dressed(figure.subplots(), f"{self.method}: where "
                            f"{draw.short(repr(self.tokens[self.target]))} comes from", "", "Depth")
        for edge in reversed(self.edges):  # the strongest on top
            low = edge.layer if edge.kind != "mlp" else edge.layer + 1
            if edge.kind not in ("mlp", "cross"):
                color = draw.INKS[7] if edge.key == edge.query else draw.INKS[0]
                axes.plot([edge.key, edge.query], [low, edge.layer + 1], color=color,
                          linewidth=0.4 + 3 * edge.weight, alpha=0.15 + 0.75 * edge.weight)
        depth, place = np.meshgrid(range(depths), range(T), indexing="ij")
        share = self.shares.cpu().numpy().ravel()
        axes.scatter(place.ravel(), depth.ravel(), s=6 + 150 * np.sqrt(share), c=np.sqrt(share),
                     cmap=draw.heat(), vmin=0, vmax=1, edgecolors=draw.EDGE, linewidths=0.6,
                     zorder=3)
        step = -(-T // 60)
        axes.set_xticks(range(0, T, step), [draw.short(self.tokens[n], 14) for n in
                                            range(0, T, step)], rotation=60, ha="right")
        axes.set_yticks(range(depths), ["embed", *map(str, range(1, depths))])
        axes.set_xlim(-0.6, T - 0.4)
        axes.set_ylim(-0.6, depths - 0.4)
        return figure


def flow(tape, method: str = "rollout", target: int = -1, *, stack: str | None = None, row: int = 0,
         run: int = -1, threshold: float = 0.04) -> Flow:
    """Where token `target` after the last layer may have come from.

    method: "rollout" (one vector down the layers; any length), "maxflow" (up to FLOWED tokens) or
    "routes" (up to ROUTED; its edges are those above `threshold`; the tape needs v=True and
    resid="sublayers"). stack: of an encoder-decoder, its decoder when None. Raises MiradaError.
    """
    if method not in METHODS:
        raise MiradaError(f"no flow is called {method!r}; there are {', '.join(METHODS)}")
    stack, _ = tape.site(tape.layers(stack)[0], stack)
    tape.across("a flow")
    if stack == "cross":
        raise MiradaError("a flow goes through one stack's own places: ask for encoder or decoder")
    _, _, T, S = tape.shape(tape.layers(stack)[0], stack, run)
    (target,) = listed(target, T, "token")
    if method == "rollout":
        shares = reduce.rollout(tape, target, stack, run)[:, row]
        labels = logits.tokens(tape, stack, row, run)
        return Flow(method, stack, labels, target, shares.cpu(), shares[0].tolist())
    if method == "maxflow":
        return _max_flow(tape, stack, target, row, run)
    return Routes(tape, stack, row, run, threshold).flow(target)


def rollout(tape, layer: int | None = None, *, stack: str | None = None, row: int = 0,
            run: int = -1) -> Tensor:
    """(T, T) the whole rollout up to a layer, the last when None: row i says where place i's
    information comes from, and adds to 1. For one place, flow(tape) costs less."""
    for share in reduce.shares(tape, None, layer, stack, run):
        found = share[row]
    return found


def max_flow(tape, target: int = -1, *, stack: str | None = None, row: int = 0,
             run: int = -1) -> Flow:
    """The greatest flow from `target` after the last layer to each input token on its own: see
    flow(method="maxflow"), whose value is these flows, made to add to 1 as in the paper."""
    return flow(tape, "maxflow", target, stack=stack, row=row, run=run)


def capacities(tape, stack: str, row: int = 0, run: int = -1) -> np.ndarray:
    """(L, T, T): half the heads' mean weights and half the residual, each row adding to 1."""
    steps = []
    for layer in tape.layers(stack):
        mean = tape.pattern(layer, stack=stack, run=run)[row].mean(0).double().cpu().numpy()
        steps.append((mean + np.eye(len(mean))) / (1 + mean.sum(1, keepdims=True)))
    return np.stack(steps)


def _max_flow(tape, stack: str, target: int, row: int, run: int) -> Flow:
    T = tape.shape(tape.layers(stack)[0], stack, run)[2]
    if T > FLOWED:
        raise MiradaError(f"max-flow is worked out for at most {FLOWED} tokens (its cost grows "
                          f"with their fourth power) and this pass has {T}: take method='rollout', "
                          "or a shorter text")
    steps = capacities(tape, stack, row, run)
    values, edges = flows(steps, target)
    whole = values.sum()
    through = np.zeros((len(steps) + 1, T))
    through[-1, target] = 1.0
    through[:-1] = edges.sum(1)  # what reaches each place from above
    found = [Edge(int(n), int(i), int(j), None, "resid" if i == j else "attn",
                  float(edges[n, i, j])) for n, i, j in zip(*np.nonzero(edges > 1e-9), strict=True)]
    kept, hidden = _strongest(found)
    return Flow("maxflow", stack, logits.tokens(tape, stack, row, run), target,
                torch.from_numpy(through), (values / whole).tolist(), kept, hidden)


def flows(steps: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """(T,) the greatest flow from `target` above all steps (L, T, T) to each place below them, and
    (L, T, T) those flows together, scaled so that 1 leaves the target."""
    L, T, _ = steps.shape
    capacity = np.zeros(((L + 1) * T, (L + 1) * T))
    for n, step in enumerate(steps):
        capacity[(n + 1) * T : (n + 2) * T, n * T : (n + 1) * T] = step
    values, total = np.zeros(T), np.zeros_like(capacity)
    for sink in range(T):
        one = maxflow.greatest(capacity, L * T + target, sink)
        values[sink] = one[:, sink].sum()
        total += one
    total /= values.sum()
    return values, np.stack([total[(n + 1) * T : (n + 2) * T, n * T : (n + 1) * T]
                             for n in range(L)])


def _strongest(edges: list[Edge]) -> tuple[list[Edge], tuple[int, float]]:
    """At most EDGES of them, the strongest first, and how many and how much is left out."""
    edges = sorted(edges, key=lambda e: -e.weight)
    whole = sum(e.weight for e in edges) or 1.0
    rest = edges[EDGES:]
    return edges[:EDGES], (len(rest), sum(e.weight for e in rest) / whole)


class Routes:
    """The graph of who wrote whom, followed down from one token (2403.00824, section 2).

    Of what a sublayer leaves in the stream, y, each part a (the stream before it, each head's look
    at each token, an MLP's output) counts by max(0, ||y|| - ||y - a||) in the 1-norm, the parts of
    one y adding to 1. Biases belong to nobody. Before a norm that stands behind the sum.
    """

    @torch.no_grad()
    def __init__(self, tape, stack: str, row: int, run: int, threshold: float):
        T = tape.shape(tape.layers(stack)[0], stack, run)[2]
        if T > ROUTED:
            raise MiradaError(f"routes are followed through at most {ROUTED} tokens and this pass "
                              f"has {T}: take method='rollout', or a shorter text")
        if not 0 < threshold < 1:
            raise MiradaError(f"threshold is {threshold}; it lies between 0 and 1")
        self.tape, self.stack, self.row, self.run, self.threshold = tape, stack, row, run, threshold
        self.module = sites.stacks(tape.model)[stack]
        self.edges: list[Edge] = []
        self.fainter, self.faint = 0, 0.0  # edges under the threshold, what they weigh together

    @torch.no_grad()
    def flow(self, target: int) -> Flow:
        """The routes into `target`, from the last layer down."""
        T = len(self.tape.resid(0, self.stack, self.run)[self.row])
        depths = len(self.module.order)
        through = torch.zeros(depths + 1, T)
        through[depths, target] = 1.0
        for layer in reversed(range(depths)):
            block, there = self.module.blocks[self.module.order[layer]], through[layer + 1]
            for x, subs in reversed(self._groups(layer, block)):  # what comes last is met first
                there = self._step(layer, x, subs, there)
            through[layer] = there
        left = [n for n, e in enumerate(self.edges) if e.kind == "cross"]
        sources = (logits.tokens(self.tape, "encoder", self.row, self.run) if left else [])
        kept, (many, _) = _strongest(self.edges)
        whole = sum(e.weight for e in self.edges) + self.faint or 1.0
        share = 1 - sum(e.weight for e in kept) / whole
        value = through[0] / through[0].sum().clamp(min=1e-12)
        return Flow("routes", self.stack, logits.tokens(self.tape, self.stack, self.row, self.run),
                    target, through, value.tolist(), kept, (many + self.fainter, share), sources)

    def _groups(self, layer: int, block: nn.Module) -> list[tuple]:
        """(stream before, sublayers that add to it) in the order in which they run."""
        x = self.tape.resid(layer, self.stack, self.run)[self.row].float()
        subs = logits.additive(block)
        if isinstance(block, ParallelBlock):
            return [(x, subs)]
        groups = []
        for name, sub in subs:
            groups.append((x, [(name, sub)]))
            added = self.tape.added(layer, name, self.stack, self.run)[self.row]
            x = sub.out((x + added).to(added.dtype)).float()
        return groups

    def _step(self, layer: int, x: Tensor, subs: list, there: Tensor) -> Tensor:
        """What passes through each place (T,) before some sublayers, of what passes after them."""
        places = there.nonzero()[:, 0].tolist()
        added = {name: self.tape.added(layer, name, self.stack, self.run)[self.row].float()
                 for name, _ in subs}
        y = x + sum(added.values())  # (T, D)
        before = torch.zeros_like(there)
        near = {("resid", None): _nearness(y[places], x[places])[:, None]}  # (places, keys)
        for name, sub in subs:
            if isinstance(sub.f, Attention):
                for head, part in self._looked(layer, name, sub, places, y):
                    near[name, head] = part
            else:
                near[name, None] = _nearness(y[places], added[name][places])[:, None]
        whole = sum(part.sum(1) for part in near.values()).clamp(min=1e-12)
        for (kind, head), part in near.items():
            part = part / whole[:, None]
            small = (part > 0) & (part < self.threshold)
            self.fainter += int(small.sum())
            self.faint += part[small].sum().item()
            for n, key in (part >= self.threshold).nonzero().tolist():
                query, weight = places[n], part[n, key].item()
                key = query if kind in ("resid", "mlp") else key
                self.edges.append(Edge(layer, query, key, head, kind, weight, subs[-1][0]))
                if kind != "cross":
                    before[key] += there[query] * weight
        return before

    def _looked(self, layer: int, name: str, sub: nn.Module, places: list[int], y: Tensor):
        """(head, (places, S)) how near what each key brought is to what was written."""
        site = "cross" if name == "cross" else self.stack
        v = self.tape.values(layer, site, self.run)[self.row].float()  # (G, S, Kv)
        look = self.tape.pattern(layer, None, places, site, self.run)[self.row].to(v)  # (H, P, S)
        v = v.repeat_interleave(len(look) // len(v), 0)  # (H, S, Kv)
        weight, bias = logits.matrix(sub.f.o)  # (D, H * Kv)
        whole = (look @ v).transpose(0, 1).flatten(1).double() @ weight.T + bias  # (P, D)
        weight = weight.float().unflatten(1, (len(v), -1))
        post = getattr(sub, "post", nn.Identity())
        for head, values in enumerate(v):
            brought = values @ weight[:, head].T  # (S, D)
            part = torch.zeros(len(places), len(brought))
            for n, place in enumerate(places):
                vectors = look[head, n, :, None] * brought
                if not isinstance(post, nn.Identity):  # a norm behind, its scale held
                    vectors = logits.held(post, vectors.double(), whole[n])[0].float()
                part[n] = _nearness(y[place], vectors)
            yield head, part


def _nearness(y: Tensor, part: Tensor) -> Tensor:
    """max(0, ||y|| - ||y - part||) in the 1-norm, over the last axis."""
    return (y.abs().sum(-1) - (y - part).abs().sum(-1)).clamp(min=0)

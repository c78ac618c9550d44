"""How far a head's pattern fits a role, beside a baseline, and whether chance could do it.

Each measure takes the weights of one layer, (B, H, T, S) in float32, and a Probe, and gives for
each role a value of every unit (row, pair of words) and head, (U, H), and its baseline, (U, 1) or
(U, H). A sign-flip test over the units then asks how often flips alone would reach the difference.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mirada.look import logits, sites
from mirada.look.heads.probes import Probe

OFFSETS = (-1, 1, -2, 2, -3, 3)
RADIUS = 8  # tokens to either side of a broad head's look
FIRST_QUERIES = 4  # left out where the first token is nearly all that a query sees
MARGIN = 0.10  # by which a syntactic head beats the best fixed offset (Voita et al.)
FEWEST = 100  # pairs of a relation


FIGURES = ("before", "by length")  # details that are shown beside a role and are no role
DEAD = 0.05  # of an even share of what a layer's heads bring; a head below it brings nothing


@dataclass(frozen=True)
class Role:
    """threshold: least value; margin: over the baseline; test: how it is judged (see verdicts);
    source: whose definition."""

    threshold: float
    test: str
    source: str
    english: str
    spanish: str
    margin: float = 0.0


ROLES = {
    "previous": Role(.4, "feeds", "1905.09418, 2209.11895", "looks at the token before",
                     "mira la palabra anterior"),
    "next": Role(.4, "edges", "1905.09418", "looks at the token after", "mira la siguiente"),
    "offset": Role(.4, "edges", "1905.09418", "looks a fixed number of tokens away",
                   "mira a una distancia fija"),
    "window": Role(.5, "edges", "1906.04341", "spreads over its neighbours (amplitude)",
                   "se reparte entre las vecinas (amplitud)"),
    "sink": Role(.5, "rest", "2309.17453", "rests on the first token", "descansa en la primera"),
    "delimiter": Role(.5, "rest", "1906.04341, 2004.10102", "rests on separators and punctuation",
                      "descansa en separadores y puntuación"),
    "duplicate": Role(.4, "edges", "2211.00593", "looks at an equal token",
                      "mira una palabra igual"),
    "induction": Role(.4, "repeat", "2209.11895", "looks at what followed an equal token",
                      "mira lo que siguió a una palabra igual"),
    "copying": Role(.5, "repeat", "2209.11895", "raises the tokens that it looks at",
                    "favorece las palabras que mira"),
    "syntactic": Role(.5, "edges", "1906.04341, 1905.09418", "links words by grammar",
                      "une palabras por la gramática", MARGIN),
    "coreference": Role(.5, "edges", "1906.04341", "links a pronoun with what it means",
                        "une un pronombre con su antecedente", MARGIN),
    "rare": Role(.5, "edges", "1905.09418", "looks at the rarest token", "mira la más rara"),
    "similarity": Role(.25, "edges", "here", "looks at words of like meaning",
                       "mira palabras de significado parecido"),
    "negation": Role(.75, "edges", "here", "looks at no, not, never, without",
                     "mira no, nunca, sin"),
    "alignment": Role(.5, "edges", "1905.09418", "links a word with its translation",
                      "une una palabra con su traducción", MARGIN),
}


@dataclass(frozen=True)
class Score:
    """One head measured for one role. passes: value and baseline by the role's thresholds, and p
    below the bound that keeps false finds of all tests at 5 %."""

    stack: str
    layer: int
    head: int
    role: str
    detail: str
    value: float
    baseline: float
    n: int
    p: float
    passes: bool = False

    @property
    def at(self) -> tuple[str, int, int]:
        return self.stack, self.layer, self.head


def measure(weights: Tensor, probe: Probe) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(role, detail) -> values (U, H) and baselines of one layer's weights on one probe."""
    weights = weights.float()
    found: dict = {}
    for role, detail, edges in claims(probe):
        found[role, detail] = mass(weights, edges, probe.seen)
    if probe.kind == "passages":
        found["window", ""] = _window(weights, probe)
    if probe.kind == "twins":
        found["negation", ""] = _negation(weights, probe)
    if probe.kind in ("sentences", "pairs"):
        found |= _words(weights, probe)
    return found


def claims(probe: Probe):
    """(role, detail, edges (B, T, S)) of the roles whose value is the weight that lies on edges."""
    T, S = probe.seen.shape[1:]
    steps = torch.arange(S) - torch.arange(T)[:, None]
    ids, usable = probe.ids, probe.seen & ~probe.special[:, :, None] & (
        ~probe.special[:, None] if T == S else True)
    if probe.kind == "passages":
        for k in OFFSETS if probe.stack == "encoder" else [k for k in OFFSETS if k < 0]:
            role = {-1: "previous", 1: "next"}.get(k, "offset")
            yield role, "" if abs(k) == 1 else f"{k:+}", usable & (steps == k)
        late = torch.arange(T)[:, None] >= FIRST_QUERIES
        yield "sink", "", probe.seen & late & (torch.arange(S) == 0)
        rest = probe.stops.clone()
        rest[:, 0] = False  # the first token is the sink's
        yield "delimiter", "", probe.seen & late & rest[:, None] & ~probe.stops[:, :, None]
    if probe.kind == "repeats":
        same = ids[:, :, None] == ids[:, None]
        yield "duplicate", "", usable & same & (steps != 0)
        if probe.stack == "decoder":
            yield "induction", "", usable & _shifted(same, 1) & (steps <= 0)
            yield "induction", "before", usable & _shifted(same, -1) & (steps < -1)


def _shifted(same: Tensor, by: int) -> Tensor:
    """True at keys whose neighbour on the other side is equal to the query."""
    out = same.roll(by, -1)
    out[..., 0 if by > 0 else -1] = False
    return out & (same.tril(-1).any(-1, keepdim=True))


def mass(weights: Tensor, edges: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The mean weight on a query's edges, (B, H), and what an even look would put there, (B, 1)."""
    there = edges.any(-1)  # (B, T)
    count = there.sum(1).clamp(min=1)
    on = torch.einsum("bhts,bts->bh", weights, edges.to(weights)) / count[:, None]
    even = (edges.sum(-1) / seen.sum(-1).clamp(min=1) * there).sum(1) / count
    none = ~there.any(1)
    on[none] = even[none] = math.nan
    return on, even[:, None]


def _window(weights: Tensor, probe: Probe) -> tuple[Tensor, Tensor]:
    """The share of queries whose look is broad and near, (B, H): four fifths of its weight within
    RADIUS tokens, spread over these with 0.7 of an even look's entropy or more."""
    T = weights.shape[2]
    steps = (torch.arange(T) - torch.arange(T)[:, None]).abs()
    within = torch.stack([(weights * (steps <= r)).sum(-1) for r in range(RADIUS + 1)], -1)
    radius = (within < 0.8).sum(-1)  # (B, H, T): the least that holds four fifths
    keys = torch.stack([(probe.seen & (steps <= r)).sum(-1) for r in range(T)], -1)  # (B, T, T)
    room = keys[:, None].expand(-1, weights.shape[1], -1, -1).gather(3, radius[..., None])[..., 0]
    spread = torch.special.entr(weights).sum(-1)
    fits = (radius >= 2) & (radius <= RADIUS) & (spread >= 0.7 * room.float().log())
    wide = probe.seen.sum(-1) >= 2 * RADIUS  # where a look could also be far
    value = (fits & wide[:, None]).sum(-1) / wide.sum(-1).clamp(min=1)[:, None]
    return value.float(), torch.zeros(len(value), 1)


def _negation(weights: Tensor, probe: Probe) -> tuple[Tensor, Tensor]:
    """How often the negated word looks more at its cue than its twin at what stands there: the area
    under the curve of the two, one row a pair; (U, H), beside one half. Rows come in pairs."""
    looks = []
    for b, s in enumerate(probe.sentences):
        queries, keys = (probe.words[b][at] for at in s.cue)
        block = weights[b][:, queries][:, :, keys]
        looks.append(block.sum(-1).mean(-1) if queries and keys else block.new_zeros(len(block)))
    negated, plain = torch.stack(looks).unflatten(0, (-1, 2)).unbind(1)  # (U, H)
    compared = (negated[:, None] - plain[None]).sign() / 2 + 0.5  # (U, U, H)
    return compared.mean(1), torch.full((len(negated), 1), 0.5)


def pooled(weights: Tensor, words: list[list[int]], keys: list[list[int]]) -> Tensor:
    """(H, W, W'): looks of words at words: of several tokens the mean from, the sum to."""
    T, S = weights.shape[1:]
    mean, total = torch.zeros(len(words), T), torch.zeros(S, len(keys))
    for n, tokens in enumerate(words):
        mean[n, tokens] = 1 / max(len(tokens), 1)
    for n, tokens in enumerate(keys):
        total[tokens, n] = 1
    return mean @ weights @ total


@dataclass(frozen=True)
class Pair:
    """One gold link: in row b, word `query` should look at word `key` among `others`."""

    role: str
    detail: str
    b: int
    query: int
    key: int
    others: tuple[int, ...]


def gold(probe: Probe) -> list[Pair]:
    """Every link of the probe's sentences that the mask allows, in both directions."""
    found = []
    for b, s in enumerate(probe.sentences):
        if probe.kind == "pairs":
            source, target = s
            there = tuple(n for n, t in enumerate(probe.keys[b]) if t)
            found += [Pair("alignment", "", b, at, source.names[name], there)
                      for name, at in target.names.items()
                      if name in source.names and probe.words[b][at]]
            continue
        links = [("syntactic", f"{name}: dependent → head", d, h) for name, d, h in s.relations]
        links += [("syntactic", f"{name}: head → dependent", h, d) for name, d, h in s.relations]
        for role, detail, query, key in links:
            found.append(Pair(role, detail, b, query, key, others(probe, b, query)))
        for query, key in s.corefs:
            earlier = tuple(m for m in s.mentions if m < query)
            found.append(Pair("coreference", "", b, query, key, earlier))
    return [p for p in found
            if p.key in p.others and len(p.others) > 1 and probe.words[p.b][p.query]]


def others(probe: Probe, b: int, query: int) -> tuple[int, ...]:
    """Words that a word may look at, itself left out."""
    words = probe.words[b]
    return tuple(n for n, tokens in enumerate(words) if tokens and n != query and (
        words[query] and probe.seen[b, words[query][-1], tokens[-1]]))


def _words(weights: Tensor, probe: Probe) -> dict:
    """How often a word's strongest look is at the word it belongs to, (U, H), by relation; beside
    the best rule that knows places alone: a fixed offset, or the nearest, or the first noun."""
    maps: dict[int, Tensor] = {}
    hits, sets = defaultdict(list), defaultdict(list)
    for pair in gold(probe):
        if pair.b not in maps:
            maps[pair.b] = pooled(weights[pair.b], probe.words[pair.b], probe.keys[pair.b])
        among = torch.tensor(pair.others)
        best = among[maps[pair.b][:, pair.query][:, among].argmax(-1)]  # (H,)
        hits[pair.role, pair.detail].append(best == pair.key)
        sets[pair.role, pair.detail].append(pair)
    found = {key: (torch.stack(x).float(), by_place(sets[key])) for key, x in hits.items()}
    if probe.kind == "sentences":
        found["rare", ""] = _rare(weights, probe)
    return found


def by_place(given: list[Pair]) -> Tensor:
    """(U, 1): where the best rule of places alone is right."""
    nouns = given[0].role == "coreference"
    rules = [[max(p.others) == p.key for p in given], [min(p.others) == p.key for p in given]]
    if not nouns:
        offsets = {p.key - p.query for p in given}
        rules = [[p.query + k == p.key for p in given] for k in offsets]
    best = max(rules, key=sum)
    return torch.tensor(best).float()[:, None]


def _rare(weights: Tensor, probe: Probe) -> tuple[Tensor, Tensor]:
    """The share of queries whose strongest key is the rarest token that they see, (B, H)."""
    usable, edges = _spoken(probe), rarest(probe)
    wide = usable.sum(-1) >= FIRST_QUERIES
    best = weights.masked_fill(~usable[:, None], -1).argmax(-1)  # (B, H, T)
    right = edges[:, None].expand(-1, weights.shape[1], -1, -1).gather(3, best[..., None])[..., 0]
    count = wide.sum(-1).clamp(min=1)[:, None]
    even = (edges.sum(-1) / usable.sum(-1).clamp(min=1) * wide).sum(-1, keepdim=True) / count
    return (right & wide[:, None]).sum(-1) / count, even


def rarest(probe: Probe) -> Tensor:
    """(B, T, S): True at the rarest of the tokens that a query sees, all of them where several
    are."""
    counts = torch.tensor([[probe.counts[i] for i in row] for row in probe.ids.tolist()]).float()
    usable = _spoken(probe)
    how = counts[:, None].expand(usable.shape).masked_fill(~usable, math.inf)
    return usable & (how == how.amin(-1, keepdim=True))


def likest(probe: Probe, table: Tensor) -> Tensor:
    """(B, T, S): True at the token most like the query's that is not equal to it."""
    x = F.normalize(table[probe.ids].float(), dim=-1)
    usable = _spoken(probe) & (probe.ids[:, :, None] != probe.ids[:, None])
    alike = (x @ x.transpose(1, 2)).masked_fill(~usable, -2)
    return usable & (alike == alike.amax(-1, keepdim=True))


def _spoken(probe: Probe) -> Tensor:
    """(B, T, S): looks of a word's token at another's."""
    usable = probe.seen & ~probe.stops[:, None] & ~probe.stops[:, :, None]
    return usable & ~torch.eye(usable.shape[1], dtype=torch.bool)


def similarity(weights: Tensor, probe: Probe, table: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H): the rank correlation of a look with how alike two tokens' vectors are in the table,
    distance and equal tokens left out of it; beside 0."""
    x = F.normalize(table[probe.ids].float(), dim=-1)
    alike = x @ x.transpose(1, 2)
    T = alike.shape[1]
    steps = (torch.arange(T) - torch.arange(T)[:, None]).abs().float()
    spoken, out = _spoken(probe), []
    for b in range(len(probe)):
        usable = spoken[b] & (probe.ids[b][:, None] != probe.ids[b])
        looks = _ranks(weights[b][:, usable])  # (H, P)
        near, cosine = (_ranks(m[usable][None]) for m in (steps, alike[b]))
        a, c, d = looks @ cosine.T, looks @ near.T, cosine @ near.T  # (H, 1), (H, 1), (1, 1)
        out.append(((a - c * d) / ((1 - c**2) * (1 - d**2)).clamp(min=1e-9).sqrt())[:, 0])
    return torch.stack(out), torch.zeros(len(out), 1)


def _ranks(x: Tensor) -> Tensor:
    """Centred ranks of each row, ties sharing the middle of theirs, of length one."""
    rows = []
    for row in x:
        _, at, counts = row.unique(return_inverse=True, return_counts=True)
        rows.append((counts.cumsum(0) - (counts - 1) / 2)[at])
    ranks = torch.stack(rows)
    return F.normalize(ranks - ranks.mean(-1, keepdim=True), dim=-1)


def copying(values: Tensor, attention, gain: Tensor | None, out: Tensor, probe: Probe):
    """(B, H): of all that a head raises among a row's tokens when it hands over each of them, the
    share that is the token handed over, from -1 to 1; beside an even share (2209.11895).

    values: (B, G, S, Kv) of one layer; out: the unembedding (V, D), gain: the final norm's.
    """
    H = attention.heads
    v = values.float().repeat_interleave(H // values.shape[1], 1)  # (B, H, S, Kv)
    o = attention.o.weight.detach().float().unflatten(1, (H, -1))  # (D, H, Kv)
    made, even = [], []
    for b, ids in enumerate(probe.ids):
        kinds, where = torch.unique(ids, return_inverse=True)
        first = torch.stack([(where == n).nonzero()[0, 0] for n in range(len(kinds))])
        row = torch.einsum("hsk,dhk->hsd", v[b][:, first], o)
        row = row if gain is None else row * gain
        raised = row @ out[kinds].float().T  # (H, handed over, raised)
        raised = (raised - raised.mean(-1, keepdim=True)).clamp(min=0)
        total = raised.sum((1, 2)).clamp(min=1e-9)
        made.append(2 * raised.diagonal(dim1=1, dim2=2).sum(-1) / total - 1)
        even.append(2 / len(kinds) - 1)
    return torch.stack(made), torch.tensor(even)[:, None]


@dataclass(frozen=True)
class Figures:
    """What is measured of a head beside all roles. confidence: the mean over words of the largest
    weight on a word (1905.09418); share: of the lengths of what its layer's heads bring, its own,
    times their number: 1 where all bring alike, below DEAD of a head that could as well be gone."""

    confidence: float
    share: float

    @property
    def dead(self) -> bool:
        return self.share < DEAD


def figures(model, probe: Probe) -> dict[tuple[str, int, int], Figures]:
    """Every head's, on the first rows of running text."""
    part, found = probe.rows(list(range(min(CHUNK, len(probe))))), {}
    with torch.inference_mode(), model.record(z=True) as tape:
        model(**part.batch)
    words = part.real & ~part.special
    for layer in tape.layers(part.stack):
        weights = tape.pattern(layer, stack=part.stack).float()
        best = weights.masked_fill(part.special[:, None, None], 0).amax(-1)  # (B, H, T)
        sure = best.transpose(1, 2)[words].mean(0)
        z = tape.z(layer, part.stack)[words].float()  # (N, H, Kv)
        weight = logits.matrix(tape.modules[part.stack, layer].o)[0].float()
        lengths = torch.einsum("nhk,dhk->nhd", z, weight.unflatten(1, z.shape[1:])).norm(dim=-1)
        share = (lengths / lengths.sum(-1, keepdim=True).clamp(min=1e-30)).mean(0) * z.shape[1]
        for h, pair in enumerate(zip(sure.tolist(), share.tolist(), strict=True)):
            found[part.stack, layer, h] = Figures(*pair)
    return found


def chance(value: Tensor, base: Tensor) -> Tensor:
    """(H,): how often random signs of the differences (U, H) would sum to as much (the normal limit
    of the sign-flip test)."""
    gap = (value - base).double()
    z = gap.sum(0) / (gap**2).sum(0).clamp(min=1e-30).sqrt()
    return 0.5 * torch.erfc(z / math.sqrt(2))


def controlled(scores: list[Score], q: float = 0.05) -> list[Score]:
    """The same with `passes` set: Benjamini and Hochberg's bound over all of them."""
    bound = 0.0
    for rank, p in enumerate(sorted(s.p for s in scores), 1):
        if p <= q * rank / len(scores):
            bound = p
    return [replace(s, passes=s.p <= bound and s.value >= ROLES[s.role].threshold and (
        s.value >= s.baseline + ROLES[s.role].margin) and s.detail not in FIGURES) for s in scores]


CHUNK = 16  # rows that are looked at together; even, for twins come in pairs


def scan(model, probes: list[Probe], only: set[str]) -> list[Score]:
    """Every head of every layer measured on every probe, each score with its chance."""
    found: dict = defaultdict(list)
    work = [(p, n) for p in probes for n in range(0, len(p), CHUNK)]
    for probe, start in tqdm(work, "patterns", disable=None, leave=False):
        part = probe.rows(list(range(start, min(start + CHUNK, len(probe)))))
        with torch.inference_mode(), model.record(v=probe.kind in ("passages", "repeats")) as tape:
            model(**part.batch)
        for layer in tape.layers(part.stack):
            for key, made in _of_layer(model, tape, layer, part).items():
                if key[0] in only:
                    found[probe.kind, layer, key].append(made)
    kinds = {p.kind: p for p in probes}
    return [s for (kind, layer, key), parts in found.items()
            for s in _scores(kinds[kind], layer, key, parts)]


def _of_layer(model, tape, layer: int, part: Probe) -> dict:
    """All measures of one layer on some rows, those that read weights of the model too."""
    weights = tape.pattern(layer, stack=part.stack).float()
    found = measure(weights, part)
    if part.kind == "passages":
        stack = sites.stacks(model)[part.stack]
        if isinstance(getattr(stack.embed, "token", None), torch.nn.Embedding):
            table = stack.embed.token.weight.detach()
            found["similarity", ""] = similarity(weights, part, table)
        edges = next(e for role, _, e in claims(part) if role == "delimiter")
        lengths = tape.values_norm(layer, stack=part.stack).float()
        lengths = lengths / lengths.sum(-1, keepdim=True).clamp(min=1e-9)
        found["delimiter", "by length"] = mass(lengths, edges, part.seen)
    out = getattr(model.head, "out", None)
    if part.kind == "repeats" and part.stack == "decoder" and isinstance(out, torch.nn.Linear):
        gain = getattr(model.body.norm, "weight", None)
        found["copying", ""] = copying(
            tape.values(layer, part.stack), tape.modules[part.stack, layer],
            None if gain is None else gain.detach().float(), out.weight.detach(), part)
    return found


def _scores(probe: Probe, layer: int, key: tuple[str, str], parts: list) -> list[Score]:
    role, detail = key
    value = torch.cat([v for v, _ in parts])  # (U, H)
    base = torch.cat([b for _, b in parts])
    if role in ("syntactic", "coreference", "alignment"):  # the best rule for all of them
        base = by_place([p for p in gold(probe) if (p.role, p.detail) == key])
    there = ~value.isnan().any(1)
    value, base = value[there], base[there]
    if not len(value) or (role == "syntactic" and len(value) < FEWEST):
        return []
    p = chance(value, base)
    return [Score(probe.stack, layer, h, role, detail, value[:, h].mean().item(),
                  base.expand_as(value)[:, h].mean().item(), len(value), p[h].item())
            for h in range(value.shape[1])]

"""The causal verdict: what happens to the model when a head may no longer do what it seems to do.

edges   the looks that make the role are cut before the softmax, and equally many others of the
        same queries, as near to the same distance as can be: how much more the first change the
        model's output (nats of KL a token; of a model without a vocabulary, 1 - cosine)
repeat  the head is replaced by its mean: how much worse the second half of a repeated row is
        foretold, less what it costs in the first (nats a token)
feeds   the same: how much weight the induction heads above lose on what they look for
rest    the values it rests on are zeroed, which should change nothing; the control heads lose the
        same share of what they bring

Each effect has a value a row, so an interval by bootstrap; and where that alone could be the
claimed one the same is done to control heads, those nearest in depth that make no claim to the same
work. What lies below a head is the same with it and without, and is not run again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mirada.look import intervene
from mirada.look.heads import probes, scores
from mirada.look.heads.probes import Probe
from mirada.look.heads.scores import RADIUS, ROLES, Score
from mirada.look.sweeps import Tail, bootstrap
from mirada.model import Model

VERDICTS = ("verified", "pattern only", "causal only", "contradicted")
ROWS, LENGTH, CHUNK = 24, 32, 8  # rows of a test, tokens of running text in one, rows at a time
CONTROLS, FEWEST = 32, 8
AGREE = 0.8  # share of the rows in which the effect has its sign
OUTLIER = 10  # median deviations by which a control stands out that is called causal only
CIRCUIT = {"induction", "previous", "copying"}  # one circuit: none is a control for another


@dataclass(frozen=True)
class Verdict:
    """A score with what came of cutting it. effect: see the module; interval: 95 %, over rows;
    percentile: share of the controls below it. None where no test, or no control, was run."""

    score: Score
    verdict: str
    effect: float | None = None
    interval: tuple[float, float] | None = None
    percentile: float | None = None
    rows: int = 0
    controls: int = 0
    test: str | None = None


@dataclass(frozen=True, eq=False)
class Without:
    """A tape whose patterns lack some looks; the others take over the weight, or with rest=True
    the weight is lost, as if those keys had no values."""

    tape: Any
    edges: Tensor  # (B, T, S)
    rest: bool = False

    def pattern(self, layer, heads=None, rows=None, stack=None, run=-1) -> Tensor:
        whole = self.tape.pattern(layer, heads, rows, stack, run)
        cut = whole.masked_fill(self.edges[:, None, rows.start : rows.stop], 0)
        if self.rest:
            return cut
        total = cut.sum(-1, keepdim=True)  # where it all lay on the edges the head brings nothing
        return cut * (whole.sum(-1, keepdim=True) / total.clamp(min=1e-12)).where(total > 1e-6, 0)


@dataclass(eq=False)
class Part:
    """Some rows of a test as they run untouched."""

    probe: Probe
    edges: Tensor
    others: Tensor  # equally many looks of each query elsewhere
    tape: Any
    out: dict
    output: Tensor


@dataclass(eq=False)
class Trials:
    """Tests of one model; what was run once is kept."""

    model: Model
    probes: dict[str, Probe]
    claimed: list[Score]
    seed: int = 0
    effects: dict = field(default_factory=dict)
    shape: dict = field(default_factory=dict)  # stack -> layer -> heads
    last: tuple = (None, ())  # the rows of one test: those of all would fill the memory

    def judge(self, score: Score) -> Verdict:
        """The verdict on a head whose pattern passes."""
        test, controls = self.test(score), self.controls(score)
        effect = self.effect(score, score.at, test)
        if effect is None or not controls:
            return Verdict(score, "pattern only")
        if not telling(effect, test):
            controls = []
        named = f"{score.role} {score.layer}.{score.head}"
        null = [self.effect(score, at, test).mean().item()
                for at in tqdm(controls, named, disable=None, leave=False)]
        return judged(score, effect, null, test)

    def test(self, score: Score) -> str:
        """The test of its role; where it cannot be run, that of its looks."""
        test = ROLES[score.role].test
        if test == "feeds" and not self.fed(score.layer):
            return "edges"
        if test == "repeat" and not self.model.generates:
            return "edges"
        return test

    def fed(self, layer: int) -> list[Score]:
        """The induction heads above a layer."""
        return [s for s in self.claimed if s.role == "induction" and s.layer > layer]

    def controls(self, score: Score) -> list[tuple]:
        """Up to CONTROLS heads of its stack, the nearest in depth first, drawn by seed: such as
        make no claim, and where these are few also those that claim other work."""
        work = CIRCUIT if score.role in CIRCUIT else {score.role}
        busy = {s.at for s in self.claimed if s.role in work and (
            s.role in CIRCUIT or s.detail == score.detail)} | {score.at}
        if score.stack not in self.shape:
            tape = self.part(score)[0].tape
            self.shape[score.stack] = {n: tape.heads(n, score.stack)
                                       for n in tape.layers(score.stack)}
        most = max((s.layer for s in self.fed(score.layer)), default=0)
        free = [(score.stack, layer, h) for layer, heads in self.shape[score.stack].items()
                for h in range(heads) if (score.stack, layer, h) not in busy
                and (self.test(score) != "feeds" or layer < most)]
        random.Random(self.seed).shuffle(free)
        free.sort(key=lambda at: abs(at[1] - score.layer))
        idle = [at for at in free if at not in {s.at for s in self.claimed}]
        return (idle if len(idle) >= FEWEST else free)[:CONTROLS]

    def effect(self, score: Score, at: tuple, test: str) -> Tensor | None:
        """(U,) the effect of each row when head `at` is kept from what `score` claims."""
        given = score.layer if test == "feeds" else round(score.value, 6) if test == "rest" else 0
        key = (test, score.role, score.detail, given, at)
        if key not in self.effects:
            rows = [getattr(self, f"_{test}")(score, at, p) for p in self.part(score)]
            self.effects[key] = torch.cat(rows).double() if rows else None
        return self.effects[key]

    def part(self, score: Score) -> list[Part]:
        """The rows of a test, recorded as they are."""
        key, test = self.rows(score), self.test(score)
        if key != self.last[0]:
            if test in ("repeat", "feeds"):
                period = self.probes["repeats"].ids.shape[1] // 4
                probe = probes.repeats(self.model, ROWS, min(12, period), 2, self.seed + 1)
                edges = next(e for role, _, e in scores.claims(probe) if role == "induction")
                cases = [(probe, edges, edges)]
            else:
                cases = [case(self.model, self.probes, score, random.Random(self.seed))]
            self.last = key, [self._run(probe.rows(rows), edges[rows], others[rows])
                              for probe, edges, others in cases for rows in _chunks(len(probe))]
        return self.last[1]

    def rows(self, score: Score):
        """Which rows a score is tested on: equal where they are the same."""
        return self.test(score) in ("repeat", "feeds") or (score.role, score.detail)

    @torch.inference_mode()
    def _run(self, probe: Probe, edges: Tensor, others: Tensor) -> Part:
        with self.model.record(resid=True) as tape:
            out = self.model(**probe.batch)
        return Part(probe, edges, others, tape, out, self._output(out))

    def _output(self, out: dict) -> Tensor:
        x = out["logits"] if "logits" in out else next(iter(out.values()))
        return x.float().log_softmax(-1) if x.shape[-1] == self.model.config.vocab else x.float()

    @torch.inference_mode()
    def _without(self, part: Part, change: dict) -> Tensor:
        """The output of a part with a change, run from its layer on."""
        home, layer = intervene.home_of(self.model, change["stack"]), change["layer"]
        tail = Tail(self.model, home, layer, part.tape.resid(layer, home), part.probe.batch,
                    part.out)
        with intervene.intervene(tail.model, change | {"layer": 0, "source_layer": layer}):
            return self._output(tail())

    def _moved(self, part: Part, change: dict) -> Tensor:
        """(U,) how far the output is from what it was, on average over a row's tokens."""
        now = self._without(part, change)
        if now.shape[-1] == self.model.config.vocab:
            far = F.kl_div(now, part.output, log_target=True, reduction="none").sum(-1)
        else:
            far = 1 - F.cosine_similarity(now, part.output, dim=-1)
        if far.ndim < 2:
            return far
        real = part.probe.real if far.shape == part.probe.real.shape else torch.ones_like(far)
        return (far.clamp(min=0) * real).sum(1) / real.sum(1)  # rounding alone goes below 0

    def _edges(self, score: Score, at: tuple, part: Part) -> Tensor:
        cut, other = (self._moved(part, _pattern(at, Without(part.tape, edges)))
                      for edges in (part.edges, part.others))
        return cut - other

    def _rest(self, score: Score, at: tuple, part: Part) -> Tensor:
        if at == score.at:
            return self._moved(part, _pattern(at, Without(part.tape, part.edges, rest=True)))
        lost = score.value * part.edges.any(-1).sum() / part.probe.real.sum()
        return self._moved(part, _head(at, "scale", factor=1 - lost.item()))

    def _repeat(self, score: Score, at: tuple, part: Part) -> Tensor:
        def loss(log_p: Tensor) -> Tensor:
            ids = part.probe.ids
            each = -log_p[:, :-1].gather(2, ids[:, 1:, None])[..., 0]  # (B, T - 1)
            half = ids.shape[1] - part.edges.any(-1)[0].sum() + 1  # the first that can be foretold
            return each[:, half - 1 :].mean(1) - each[:, : half - 1].mean(1)
        return loss(self._without(part, _head(at, "mean"))) - loss(part.output)

    def _feeds(self, score: Score, at: tuple, part: Part) -> Tensor:
        def found(tape) -> Tensor:
            return torch.stack([scores.mass(tape.pattern(s.layer, [s.head], stack=s.stack).float(),
                                            part.edges, part.probe.seen)[0][:, 0]
                                for s in self.fed(score.layer)]).mean(0)
        with (torch.inference_mode(), self.model.intervene(_head(at, "mean")),
              self.model.record() as tape):
            self.model(**part.probe.batch)
        return found(part.tape) - found(tape)


def _head(at: tuple, op: str, **more) -> dict:
    return {"site": "head_out", "stack": at[0], "layer": at[1], "heads": [at[2]], "op": op, **more}


def _pattern(at: tuple, source: Without) -> dict:
    return {"site": "pattern", "stack": at[0], "layer": at[1], "heads": [at[2]], "op": "freeze",
            "source": source}


def _chunks(count: int) -> list[list[int]]:
    return [list(range(n, min(n + CHUNK, count))) for n in range(0, count, CHUNK)]


def case(model, given: dict[str, Probe], score: Score, draw: random.Random):
    """(probe, edges, others) to test a role's looks on: at most ROWS rows that have any."""
    kind = {"syntactic": "sentences", "coreference": "sentences", "rare": "sentences",
            "negation": "twins", "alignment": "pairs", "duplicate": "repeats",
            "induction": "repeats", "copying": "repeats"}.get(score.role, "passages")
    probe = given[kind]
    if kind in ("passages", "repeats"):
        probe = probe.rows(list(range(len(probe))), LENGTH)
    edges = looks(model, probe, score)
    rows = edges.flatten(1).any(1).nonzero()[:, 0].tolist()
    rows = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    probe, edges = probe.rows(rows), edges[rows]
    if ROLES[score.role].test == "rest":
        return probe, edges, edges
    return probe, *_matched(edges, probe, draw)


def looks(model, probe: Probe, score: Score) -> Tensor:
    """(B, T, S): True at the looks that make a role."""
    T, S = probe.seen.shape[1:]
    if score.role == "window":
        steps = (torch.arange(S) - torch.arange(T)[:, None]).abs()
        wide = probe.seen.sum(-1) >= 2 * RADIUS
        return probe.seen & (steps <= RADIUS) & (steps > 0) & wide[..., None]
    if score.role == "rare":
        return scores.rarest(probe)
    if score.role == "similarity":
        table = model.body.embed.token.weight if not model.encoder_decoder else (
            model.body.encoder.embed.token.weight)
        return scores.likest(probe, table.detach())
    edges = torch.zeros(probe.seen.shape, dtype=torch.bool)
    if score.role == "negation":
        links = [(b, *s.cue) for b, s in enumerate(probe.sentences) if b % 2 == 0]
    elif score.role in ("syntactic", "coreference", "alignment"):
        links = [(p.b, p.query, p.key) for p in scores.gold(probe)
                 if (p.role, p.detail) == (score.role, score.detail)]
    else:
        return next(e for role, detail, e in scores.claims(probe)
                    if (role, detail) == (score.role, score.detail))
    for b, query, key in links:
        for i in probe.words[b][query]:
            edges[b, i, probe.keys[b][key]] = True
    return edges & probe.seen


def _matched(edges: Tensor, probe: Probe, draw: random.Random) -> tuple[Tensor, Tensor]:
    """The edges that have a match, and their matches: of the same query, to a key that is no edge,
    as near as can be to the same distance; neither the query itself nor a special token."""
    kept, others = torch.zeros_like(edges), torch.zeros_like(edges)
    alone = edges.shape[1] == edges.shape[2]
    for b, i in edges.any(-1).nonzero().tolist():
        free = (probe.seen[b, i] & ~edges[b, i]).nonzero()[:, 0].tolist()
        free = [j for j in free if not alone or (j != i and not probe.special[b, j])]
        for j in edges[b, i].nonzero()[:, 0].tolist():
            if free:
                match = min(free, key=lambda o: (abs(abs(i - o) - abs(i - j)), draw.random()))
                free.remove(match)
                kept[b, i, j] = others[b, i, match] = True
    return kept, others


def telling(effect: Tensor, test: str) -> bool:
    """Whether controls can decide: an effect that may be 0, or in which rows disagree, is none."""
    low, high = bootstrap(effect)
    agree = (effect > 0).double().mean().item() >= AGREE
    return test == "rest" or (low > 0 and agree) or high < 0


def judged(score: Score, effect: Tensor, null: list[float], test: str) -> Verdict:
    """The rule. verified: the interval leaves out 0, most rows agree, and 95 % of the controls do
    less; of rest: 95 % do more. contradicted: the effect is below the controls' median and surely
    not the claimed one (below 0; of rest: above the median)."""
    mean, (low, high) = effect.mean().item(), bootstrap(effect)
    if not telling(effect, test):
        return Verdict(score, "pattern only", mean, (low, high), None, len(effect), 0, test)
    controls = torch.tensor(null, dtype=torch.float64)
    middle = controls.median().item()
    below = (controls < mean).double().mean().item()
    if test == "rest":
        verdict = ("verified" if below <= 0.05 else
                   "contradicted" if low > middle else "pattern only")
    else:
        verdict = ("verified" if low > 0 and below >= 0.95 else
                   "contradicted" if high < 0 and mean < middle else "pattern only")
    return Verdict(score, verdict, mean, (low, high), below, len(effect), len(null), test)


def judge(model, given: list[Probe], found: list[Score], seed: int = 0) -> list[Verdict]:
    """The verdicts on all scores that pass, and on controls that stand out without the pattern."""
    claimed = [s for s in found if s.passes]
    trials = Trials(model, {p.kind: p for p in given}, claimed, seed)
    order = list(dict.fromkeys(map(trials.rows, claimed)))
    by_rows = sorted(claimed, key=lambda s: order.index(trials.rows(s)))
    made = [trials.judge(s) for s in tqdm(by_rows, "verdicts", disable=None, leave=False)]
    return made + _causal_only(trials, found, made)


def _causal_only(trials: Trials, found: list[Score], made: list[Verdict]) -> list[Verdict]:
    """Controls of a verified head that do the same without looking it."""
    extra, by_place = [], {(s.role, s.detail, s.at): s for s in found}
    seen = {(v.score.role, v.score.detail, v.score.at) for v in made}
    for v in made:
        test = trials.test(v.score)
        if v.verdict != "verified" or test == "rest":
            continue
        controls = trials.controls(v.score)
        effects = {at: trials.effect(v.score, at, test) for at in controls}
        null = torch.stack([e.mean() for e in effects.values()])
        spread = (null - null.median()).abs().median()
        for at, effect in effects.items():
            key = (v.score.role, v.score.detail, at)
            if key in seen or key not in by_place or len(null) < CONTROLS:
                continue
            rest = [x for other, x in zip(effects, null.tolist(), strict=True) if other != at]
            one = judged(by_place[key], effect, rest, test)
            if one.verdict == "verified" and one.effect > null.median() + OUTLIER * spread:
                seen.add(key)
                extra.append(replace(one, verdict="causal only"))
    return extra

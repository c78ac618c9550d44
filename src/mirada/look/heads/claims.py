"""What the guides say of their example sentences, put to a model: does a head do it, and does the
output owe anything to it? The answer is yes or no, with the figures."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from mirada.errors import MiradaError
from mirada.look.describe import resolve
from mirada.look.heads import probes, scores, templates
from mirada.look.heads.scores import Score
from mirada.look.heads.verdicts import Trials, Verdict

HOLDS = 0.8  # share of the sentence's variants in which a head links the two words
VARIANTS = 24
PLAIN = 40  # other sentences, in which a look of place shows


@dataclass(frozen=True)
class Example:
    """A sentence of the guides. links: (what is claimed, from word, to word, the word it is not);
    variants: what each of these words is replaced by, all of them in step."""

    text: str
    links: tuple[tuple[str, str, str, str | None], ...]
    variants: tuple[dict[str, tuple[str, ...]], ...] = ()


_NAMES = ("Diego", "Ana", "Laura", "Carlos", "Elena", "Pablo")
EXAMPLES = {
    "gato": Example(
        "El gato bebió la leche porque tenía sed", (("subject", "tenía", "gato", "leche"),),
        ({"gato": ("gato", "perro", "niño", "lobo", "caballo", "rey")},
         {"la leche": ("la leche", "la sopa", "la cerveza", "el agua")})),
    "perro": Example(
        "El perro grande corrió rápido",
        (("subject", "corrió", "perro", None), ("modifier", "grande", "perro", None),
         ("modifier", "rápido", "corrió", None)),
        ({"perro": ("perro", "gato", "niño", "lobo", "caballo", "padre")},
         {"grande": ("grande", "pobre", "triste", "alegre")})),
    "pizza": Example(
        "La pizza acaba de salir del horno, estaba rica",
        (("subject", "estaba", "pizza", "horno"),),
        ({"pizza": ("pizza", "tarta", "carne", "torta", "empanada", "galleta")},
         {"horno": ("horno", "fuego", "taller", "mercado")})),
    "diego": Example(
        "Diego eats pizza", (("subject", "eats", "Diego", "pizza"),),
        ({"Diego": _NAMES}, {"pizza": ("pizza", "bread", "soup", "cheese")})),
    "pizza diego": Example(
        "Pizza eats Diego", (("subject", "eats", "Pizza", "Diego"),),
        ({"Diego": _NAMES}, {"Pizza": ("Pizza", "Bread", "Soup", "Cheese")})),
    "banco": Example(
        "El banco del parque está junto al banco donde guardo mi dinero",
        (("meaning", "banco", "parque", "dinero"),)),
}


def examples() -> dict[str, Example]:
    """The guides' sentences by name, with what is claimed of each."""
    return dict(EXAMPLES)


@dataclass(frozen=True)
class Answer:
    """Whether some head of a model links two words of a sentence, and whether that matters.

    holds: a head's strongest look from `query` goes to `key`, here and in HOLDS of the variants
    (of a sentence without variants, here), and the head does not look so far from any word alike.
    share: in how many variants. by_place: share of the words of other sentences from which the
    head looks as far; HOLDS or more is a look of place. rather: the word that it should not be.
    heads: how many hold. verdict: the causal test of the head on the variants, where it holds.
    """

    text: str
    claim: str
    query: str
    key: str
    rather: str | None
    holds: bool
    head: tuple[str, int, int]
    weight: float
    others: dict[str, float]
    share: float
    by_place: float
    heads: int
    of: int
    verdict: Verdict | None

    @property
    def matters(self) -> bool | None:
        """Whether the causal test verified it."""
        return None if self.verdict is None else self.verdict.verdict == "verified"

    def data(self) -> dict:
        """For programs."""
        own = {k: v for k, v in vars(self).items() if k != "verdict"}
        causal = None if self.verdict is None else {
            "effect": self.verdict.effect, "interval": self.verdict.interval,
            "percentile": self.verdict.percentile, "verdict": self.verdict.verdict}
        return {**own, "matters": self.matters, "causal": causal}

    def __str__(self) -> str:
        stack, layer, head = self.head
        answer = "yes" if self.holds else "no"
        lines = [self.text, f"{self.query} → {self.key} ({self.claim}): {answer}"]
        looks = ", ".join(f"{w} {x:.0%}" for w, x in self.others.items())
        lines.append(f"  {self.heads} of {self.of} heads; the best is {stack} {layer}.{head}: "
                     f"{self.weight:.0%} on {self.key} here ({looks}), its strongest look in "
                     f"{self.share:.0%} of the variants; it looks as far from {self.by_place:.0%} "
                     "of other words")
        if self.verdict is not None and self.verdict.effect is not None:
            v = self.verdict
            low, high = v.interval
            found = "matters" if self.matters else "does not show that it matters"
            beside = (f", more than {v.percentile:.0%} of {v.controls} other heads"
                      if v.controls else "")
            lines.append(f"  and it {found}: cutting the look moves the output by {v.effect:.3g} "
                         f"[{low:.3g}, {high:.3g}] more than cutting another{beside}")
        return "\n".join(lines)


class Answers(list):
    """An Answer for each link that is claimed. Printed, they are a page."""

    def data(self) -> list:
        """For programs."""
        return [one.data() for one in self]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))


def claim(model, example: str | Example = "gato", seed: int = 0) -> Answers:
    """Whether what the guides say of a sentence holds in a model: an Answer for each link claimed.

    example: a name of examples(), or an Example of one's own. In a causal model a word sees only
    what is before it: a link ahead raises MiradaError, as does a word that is not there.
    """
    model = resolve(model)
    if model.tokenizer is None:
        raise MiradaError("this model has no tokenizer beside its weights, so a text cannot be "
                          "read")
    if isinstance(example, str):
        if example not in EXAMPLES:
            raise MiradaError(f"no example is called {example!r}; there are {', '.join(EXAMPLES)}")
        example = EXAMPLES[example]
    return Answers(_answer(model, example, *link, seed) for link in example.links)


def variants(example: Example, query: str, key: str, seed: int = 0) -> list[templates.Sentence]:
    """The sentence itself first, then others like it; the gold link is relation "claim"."""
    draw, texts = random.Random(seed), [(example.text, query, key)]
    choices = [(old, new) for among in example.variants for old, new in among.items()]
    for _ in range(50 * VARIANTS if choices else 0):
        swaps = [(old, draw.choice(new)) for old, new in choices]
        made = []
        for text in (example.text, query, key):
            for old, new in swaps:
                text = text.replace(old, new)
            made.append(text)
        one, asks, looks = made
        if (one, asks, looks) not in texts and len(texts) < VARIANTS:
            texts.append((one, asks, looks))
    return [_annotated(*one) for one in texts]


def _annotated(text: str, query: str, key: str) -> templates.Sentence:
    words = text.replace(",", " ,").split()
    joined, spans = templates.laid(words)
    for word in (query, key):
        if word not in words:
            raise MiradaError(f"the sentence {text!r} has no word {word!r}")
    return templates.Sentence(joined, spans, [("claim", words.index(key), words.index(query))])


def _answer(model, example: Example, what: str, query: str, key: str, rather, seed: int) -> Answer:
    given = variants(example, query, key, seed)
    probe = probes.sentences(model, given)
    found = [p for p in scores.gold(probe) if p.detail == "claim: head → dependent"]
    if len(found) < len(given):
        raise MiradaError(f"in {given[0].text!r} {query!r} does not see {key!r}: this model reads "
                          "from left to right, or the sentence is too long for it")
    text = probes.sentences(model, templates.sentences("es", PLAIN))
    with torch.inference_mode(), model.record() as plain:
        model(**text.batch)
    hits, here, place = {}, {}, {}
    with torch.inference_mode(), model.record() as tape:
        model(**probe.batch)
    for layer in tape.layers(probe.stack):
        weights = tape.pattern(layer, stack=probe.stack).float()
        maps = [scores.pooled(weights[p.b], probe.words[p.b], probe.keys[p.b]) for p in found]
        best = [m[:, p.query][:, list(p.others)].argmax(-1)
                for m, p in zip(maps, found, strict=True)]
        for h in range(weights.shape[1]):
            right = [p.others[b[h]] == p.key for b, p in zip(best, found, strict=True)]
            hits[probe.stack, layer, h] = right
            here[probe.stack, layer, h] = maps[0][h, found[0].query]
        for h, rate in enumerate(_by_place(plain, layer, text, found[0].key - found[0].query)):
            place[probe.stack, layer, h] = rate
    holding = [at for at, right in hits.items() if right[0] and place[at] < HOLDS
               and sum(right) >= HOLDS * len(right)]
    at = max(hits, key=lambda a: (a in holding, sum(hits[a]), here[a][found[0].key].item()))
    share = sum(hits[at]) / len(found)
    score = Score(*at, "syntactic", "claim: head → dependent", share, 0.0, len(found), 0.0, True)
    verdict = None
    if len(given) > 1 and at in holding:
        busy = [Score(*a, score.role, score.detail, 1.0, 0.0, 1, 0.0, True) for a in holding]
        verdict = Trials(model, {"sentences": probe}, busy, seed).judge(score)
    words = given[0].words
    others = {words[n]: here[at][n].item() for n in found[0].others if n != found[0].key}
    top = dict(sorted(others.items(), key=lambda x: -x[1])[:3])
    if rather is not None and rather in words:
        top[rather] = others.get(rather, 0.0)
    return Answer(example.text, what, query, key, rather, bool(holding), at,
                  here[at][found[0].key].item(), top, share, place[at],
                  len(holding), len(hits), verdict)


def _by_place(tape, layer: int, probe, offset: int) -> list[float]:
    """Of each head, from how many words of other sentences its strongest look is as far."""
    same, weights = [], tape.pattern(layer, stack=probe.stack).float()
    for b in range(len(probe)):
        looks = scores.pooled(weights[b], probe.words[b], probe.keys[b])
        for i in range(looks.shape[1]):
            others = scores.others(probe, b, i)
            if len(others) > 1 and i + offset in others:
                best = looks[:, i][:, list(others)].argmax(-1)
                same.append(torch.tensor(others)[best] == i + offset)
    return torch.stack(same).float().mean(0).tolist() if same else [0.0] * weights.shape[1]

"""`mirada look MODEL --roles`: which head does what, and whether it matters."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import torch

from mirada.errors import MiradaError
from mirada.look import draw
from mirada.look.describe import resolve
from mirada.look.heads import probes, templates
from mirada.look.heads.scores import FIGURES, ROLES, Figures, Score, controlled, figures, scan
from mirada.look.heads.verdicts import VERDICTS, Verdict, judge
from mirada.look.views import pages
from mirada.look.views.view import View

WORDS = {
    "en": {"verified": "verified", "pattern only": "looks like it", "causal only": "acts like it",
           "contradicted": "contradicted"},
    "es": {"verified": "verificada", "pattern only": "se parece", "causal only": "actúa así",
           "contradicted": "desmentida"},
}
EFFECTS = {  # of a verdict, by its role's test
    "en": {"repeat": "without it repeated tokens cost {} nats more",
           "feeds": "without it the induction heads look {} less at what they seek",
           "edges": "cutting these looks moves the output by {} more than cutting others",
           "rest": "zeroing what it rests on moves the output by {}"},
    "es": {"repeat": "sin ella lo repetido cuesta {} nats más",
           "feeds": "sin ella las cabezas de inducción miran {} menos lo que buscan",
           "edges": "cortar esas miradas cambia la salida {} más que cortar otras",
           "rest": "anular aquello en lo que descansa cambia la salida {}"},
}
SAID = {
    "en": ("{n} of {of} heads have a role; {v} roles are verified. Data: {data}.",
           "Attention shows where a head looks; only a verified role says that it matters.",
           "head", "role", "score", "base", "verdict"),
    "es": ("{n} de {of} cabezas tienen un papel; {v} papeles están verificados. Datos: {data}.",
           "La atención muestra dónde mira una cabeza; solo un papel verificado dice que importa.",
           "cabeza", "papel", "valor", "base", "veredicto"),
}
NOTHING = {
    "en": "{n} heads bring next to nothing to the stream: {which}",
    "es": "{n} cabezas no aportan casi nada al flujo: {which}",
}


@dataclass(frozen=True)
class Report(View):
    """What the heads of a model do. verdicts: the roles found; scores: all that was measured;
    figures: how sure each head is, and how much it brings."""

    model: str
    lang: str
    sources: str
    shape: dict[str, list[int]]  # stack -> heads of each layer
    verdicts: list[Verdict]
    scores: list[Score]
    figures: dict[tuple[str, int, int], Figures]  # of the heads that read running text

    def data(self) -> dict:
        """For programs: the roles found, with the figures behind them."""
        return {"model": self.model, "lang": self.lang, "data": self.sources, "heads": self.shape,
                "roles": [self._row(v) for v in self.verdicts],
                "figures": [{"stack": stack, "layer": layer, "head": head, **vars(f),
                             "dead": f.dead}
                            for (stack, layer, head), f in self.figures.items()]}

    def head(self, layer: int, head: int, stack: str | None = None) -> list[Score]:
        """All that was measured of one head, the best fit first."""
        of = [s for s in self.scores if (s.layer, s.head) == (layer, head)
              and stack in (None, s.stack)]
        return sorted(of, key=lambda s: s.value - max(s.baseline, ROLES[s.role].threshold),
                      reverse=True)

    def _row(self, v: Verdict) -> dict:
        s = v.score
        beside = {o.detail: o.value for o in self.scores if o.detail in FIGURES
                  and (o.at, o.role) == (s.at, s.role)}
        return {"stack": s.stack, "layer": s.layer, "head": s.head, "role": s.role,
                "detail": s.detail, "score": s.value, "baseline": s.baseline, "n": s.n, "p": s.p,
                **beside, **(vars(self.figures[s.at]) if s.at in self.figures else {}),
                "verdict": v.verdict, "effect": v.effect,
                "interval": None if v.interval is None else list(v.interval),
                "percentile": v.percentile, "rows": v.rows, "controls": v.controls,
                "words": self.words(v)}

    def words(self, v: Verdict) -> str:
        """The verdict as a sentence."""
        role = ROLES[v.score.role]
        does = role.spanish if self.lang == "es" else role.english
        does += f" ({v.score.detail})" if v.score.detail else ""
        said = f"{WORDS[self.lang][v.verdict]}: {does}"
        if v.effect is None:
            return said
        low, high = v.interval
        figure = f"{v.effect:.3g} [{low:.3g}, {high:.3g}]"
        return f"{said}; {EFFECTS[self.lang][v.test].format(figure)}"

    def __str__(self) -> str:
        first, caveat, *names = SAID[self.lang]
        heads = {v.score.at for v in self.verdicts}
        every = sum(map(sum, self.shape.values()))
        lines = [first.format(n=len(heads), of=every, data=self.sources,
                              v=sum(v.verdict == "verified" for v in self.verdicts)), ""]
        rows = [[f"{v.score.stack} {v.score.layer}.{v.score.head}",
                 v.score.role + (f" {v.score.detail}" if v.score.detail else ""),
                 f"{v.score.value:.2f}", f"{v.score.baseline:.2f}", self.words(v)]
                for v in self._sorted()]
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)][:-1]
        for row in [names, *rows]:
            lines.append("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)),
                                    row[-1]]).rstrip())
        dead = [f"{stack} {layer}.{head}" for (stack, layer, head), f in self.figures.items()
                if f.dead]
        if dead:
            lines += ["", NOTHING[self.lang].format(n=len(dead), which=", ".join(dead[:24])
                                                    + (" …" if len(dead) > 24 else ""))]
        return "\n".join([*lines, "", caveat])

    def _sorted(self) -> list[Verdict]:
        return sorted(self.verdicts, key=lambda v: (
            VERDICTS.index(v.verdict), list(ROLES).index(v.score.role), v.score.at))

    kind = "roles"  # of its page

    def contents(self, lang: str):
        return pages.roles(self, lang)

    def save(self, path) -> str:
        """The roles as a table (.csv), the map of layers and heads as a picture or a page."""
        out = draw.place(path, (*draw.PICTURES, ".csv", ".html"))
        return draw.written(out, self._table) if out.suffix == ".csv" else super().save(out)

    def _table(self, path: str) -> None:
        rows = [self._row(v) for v in self._sorted()]
        names = list(dict.fromkeys(name for row in rows for name in row)) or ["stack"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)

    def figure(self):
        """A matplotlib figure: each head in the colour of its best role, full where verified."""
        from matplotlib.patches import Patch
        stacks = list(self.shape)
        tall = max(map(len, self.shape.values()))
        wide = max(max(n) for n in self.shape.values())
        figure = draw.canvas(len(stacks) * (0.34 * wide + 1) + 2.6, 0.3 * tall + 1.4)
        best = {}
        for v in reversed(self._sorted()):
            best[v.score.at] = v
        shown = [r for r in ROLES if any(v.score.role == r for v in best.values())]
        for axes, stack in zip(figure.subplots(1, len(stacks), squeeze=False)[0], stacks,
                               strict=True):
            heads = self.shape[stack]
            draw.dressed(axes, stack, *(("cabeza", "capa") if self.lang == "es" else
                                        ("head", "layer")))
            for layer, count in enumerate(heads):
                for head in range(count):
                    v = best.get((stack, layer, head))
                    axes.add_patch(_cell(head, layer, v, shown))
            axes.set(xlim=(-.5, max(heads) - .5), ylim=(len(heads) - .5, -.5), aspect="equal",
                     xticks=range(max(heads)), yticks=range(len(heads)))
        keys = [Patch(color=draw.INKS[shown.index(r) % len(draw.INKS)], label=r) for r in shown]
        if keys:
            figure.legend(handles=keys, loc="outside right upper", frameon=False, fontsize=8,
                          labelcolor=draw.INK)
        return figure


def _cell(head: int, layer: int, v: Verdict | None, shown: list[str]):
    from matplotlib.patches import Rectangle
    ink = draw.EDGE if v is None else draw.INKS[shown.index(v.score.role) % len(draw.INKS)]
    full = v is not None and v.verdict == "verified"
    return Rectangle((head - .42, layer - .42), .84, .84, facecolor=ink if full else draw.CLOTH,
                     edgecolor=ink, linewidth=1.6, hatch="xx" if v is not None and v.verdict ==
                     "contradicted" else None)


def roles(model, lang: str = "en", *, only=None, causal: bool = True, conllu=None,
          sentences: list | None = None, rows: int = 50, count: int = 400, seed: int = 0) -> Report:
    """What each attention head does, by the scores of `heads.scores`, and the causal verdict on
    each role found (see `heads.verdicts`).

    model: a Model, or a word for one. lang: of the words and of the template sentences, "en" or
    "es". only: names of roles, all when None. conllu: a file of annotated sentences in place of the
    templates; sentences: the same as a list of templates.Sentence. rows: of random and of running
    text; count: of sentences. Costs about 4 * rows + count short passes and, for each role and
    head, some 24 rows for it and 32 control heads. Raises MiradaError, UntrustedInputError.
    """
    model = resolve(model)
    wanted = set(ROLES) if only is None else {only} if isinstance(only, str) else set(only)
    for name in wanted - set(ROLES):
        raise MiradaError(f"no role is called {name!r}; there are {', '.join(ROLES)}")
    if model.kind == "dual-encoder":
        raise MiradaError(f"{model.architecture} has two towers, and roles are of one stack's "
                          "heads: load a text tower's own files")
    if model.kind == "vision":
        raise MiradaError("roles are measured on text, and this model sees pictures")
    if lang not in WORDS:
        raise MiradaError(f"lang is {' or '.join(WORDS)}, not {lang!r}")
    given, source = _sentences(model, lang, conllu, sentences, count, seed)
    made = _probes(model, lang, given, wanted, rows, seed)
    asked = wanted | ({"induction"} if "previous" in wanted else set())  # whom it feeds
    found = controlled(scan(model, made, asked))
    found = [s for s in found if s.stack in {p.stack for p in made}]
    verdicts = judge(model, made, found, seed) if causal else [
        Verdict(s, "pattern only") for s in found if s.passes]
    name = f"{model.family} {model.architecture}"
    text = next((p for p in made if p.kind == "passages"), None)
    return Report(name, lang, source, _shape(model, made),
                  [v for v in verdicts if v.score.role in wanted],
                  [s for s in found if s.role in wanted],
                  {} if text is None else figures(model, text))


def _sentences(model, lang, conllu, sentences, count, seed) -> tuple[list, str]:
    if model.tokenizer is None:
        return [], "random tokens (the model has no tokenizer)"
    if sentences is not None:
        return list(sentences), f"{len(sentences)} sentences"
    if conllu is not None:
        found = templates.read_conllu(conllu)[:count]
        return found, f"{len(found)} sentences of {conllu}"
    found = templates.sentences(lang, count, seed)
    return found, f"{len(found)} template sentences ({lang}); conllu= reads real ones"


def _probes(model, lang, given, wanted: set[str], rows: int, seed: int) -> list:
    """The probes that the wanted roles need."""
    made = []
    text = [s.text for s in given]
    if wanted & {"previous", "next", "offset", "window", "sink", "delimiter", "similarity"}:
        made.append(probes.passages(model, text, rows))
    if wanted & {"duplicate", "induction", "copying", "previous"}:
        made.append(probes.repeats(model, rows, seed=seed))
    if given and wanted & {"syntactic", "coreference", "rare"}:
        made.append(probes.sentences(model, given))
    if model.tokenizer is not None and "negation" in wanted:
        both = [s for pair in templates.twins(lang, max(rows, 60), seed) for s in pair]
        made.append(probes.sentences(model, both, "twins"))
    if model.tokenizer is not None and "alignment" in wanted and model.encoder_decoder:
        found = templates.pairs(rows, seed)
        made.append(probes.pairs(model, found if lang == "en" else [(b, a) for a, b in found]))
    if not made:
        raise MiradaError(f"{', '.join(sorted(wanted))}: this model has no tokenizer, or no "
                          "attention of the kind that such a role needs")
    return made


def _shape(model, made: list) -> dict[str, list[int]]:
    """stack -> how many heads each layer has."""
    found = {}
    for probe in made:
        if probe.stack not in found:
            part = probe.rows([0])
            with torch.inference_mode(), model.record() as tape:
                model(**part.batch)
            found[probe.stack] = [tape.heads(n, probe.stack) for n in tape.layers(probe.stack)]
    return found

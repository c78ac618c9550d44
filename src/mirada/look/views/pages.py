"""What the pages of flows, lenses, attributions and roles are given to show."""

from __future__ import annotations

import numpy as np

from mirada.look.views.words import WORDS

DEEPEST = 400  # tokens of a lens that a page holds, the last ones


def flow(flow, lang: str) -> tuple[str, dict, list[bytes]]:
    """Of a paths.Flow: depths by tokens, how much passes each place, the edges."""
    token = flow.tokens[flow.target].strip()
    edges = [[e.layer, e.query, e.key, e.head, e.kind, e.weight] for e in flow.edges]
    about = {"tokens": flow.tokens, "target": flow.target, "value": flow.value, "edges": edges,
             "shares": flow.shares.tolist(), "hidden": list(flow.hidden), "note": flow.note,
             "sources": flow.sources}
    return f"{WORDS[lang]['flow_title']} · {flow.method} · “{token}”", about, []


def lens(lens, lang: str) -> tuple[str, dict, list[bytes]]:
    """Of a logits.Lens: the likeliest words of each depth and token, and the followed one."""
    count, depths, top = len(lens.tokens), len(lens.ids), lens.ids.shape[2]
    last = slice(max(0, count - DEEPEST), None)
    about = {"tokens": lens.tokens[last], "cut": count > DEEPEST, "depths": depths, "top": top,
             "names": {str(n): word for n, word in lens.words.items()},
             "targets": lens.targets[last].tolist()}
    numbers = [(lens.ids, "<i4"), (lens.rank, "<i4"), (lens.probs, "<f4"), (lens.prob, "<f4")]
    return WORDS[lang]["lens_title"], about, [
        np.ascontiguousarray(x[:, last].float().numpy() if kind == "<f4" else x[:, last].numpy(),
                             kind).tobytes() for x, kind in numbers]


def attribution(found, lang: str) -> tuple[str, dict, list[bytes]]:
    """Of a logits.Attribution: every term, the largest first."""
    terms = sorted(found.terms, key=lambda t: -abs(t.value))
    about = {"terms": [[t.name, t.value] for t in terms], "sum": found.total,
             "logit": found.logit, "note": found.data()["note"]}
    return f"{found.what} · “{found.tokens[found.position].strip()}”", about, []


def roles(report, lang: str) -> tuple[str, dict, list[bytes]]:
    """Of a heads.report.Report: each head with its roles and their verdicts."""
    about = {"shape": report.shape, "rows": report.data()["roles"]}
    first = str(report).splitlines()[0]
    return WORDS[lang]["roles_title"], {**about, "note": first}, []

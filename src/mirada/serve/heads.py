"""Head roles as a job: mirada.look's report, put in the words of the schema."""

from __future__ import annotations

import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from mirada.look.heads.report import roles as report
from mirada.look.heads.scores import ROLES
from mirada.look.heads.verdicts import VERDICTS

from .jobs import Job
from .served import Served

SUITES: dict[str, dict[str, Any]] = {"default": {}, "quick": {"rows": 16, "count": 120}}


def roles(served: Served, asked: dict, job: Job) -> dict:
    """The roles of the schema. Every pass of the model counts as a step, and may end the job."""
    model, steps = served.twin(), count(1)
    job.progress(0, 0, "measuring heads")
    model.register_forward_pre_hook(lambda module, args: job.progress(next(steps), 0))
    lang = asked.get("lang", "en")
    found = report(model, lang, **SUITES[asked.get("suite", "default")])
    data = found.data()
    rows = sorted(data["roles"], key=lambda r: VERDICTS.index(r["verdict"]))
    best: dict[tuple, dict] = {}
    for row in rows:
        best.setdefault((row["stack"], row["layer"], row["head"]), row)
    return {"lang": lang, "data": data["data"], "csv": _csv(found),
            "notes": str(found).splitlines()[-1:], "cards": [_card(row) for row in rows],
            "heads": [_cell(best, stack, layer, head) for stack, layers in data["heads"].items()
                      for layer, heads in enumerate(layers) for head in range(heads)]}


def _card(row: dict) -> dict:
    role = row["role"] + (f" {row['detail']}" if row["detail"] else "")
    same = {name: row[name] for name in ("stack", "layer", "head", "score", "n", "verdict",
                                         "effect", "baseline")}
    percentile = row["percentile"]
    return {**same, "role": role, "threshold": ROLES[row["role"]].threshold,
            "wording": row["words"], "ci": row["interval"],
            "percentile": None if percentile is None else 100 * percentile}


def _cell(best: dict, stack: str, layer: int, head: int) -> dict:
    row = best.get((stack, layer, head))
    return {"stack": stack, "layer": layer, "head": head, "role": row["role"] if row else None,
            "verdict": row["verdict"] if row else "none"}


def _csv(found) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return Path(found.save(Path(folder) / "roles.csv")).read_text(encoding="utf-8")

"""The causal lab: one pass with changes beside one without, and what a change of each head does."""

from __future__ import annotations

import torch
from torch import Tensor

from mirada.errors import MiradaError
from mirada.look import sweeps
from mirada.look.intervene import difference

from . import answers
from .errors import Refused, missing
from .jobs import Job
from .runs import Run, Runs

SHOWN = 10  # likeliest tokens, before and after
OWN_MEAN = "the mean over this text's own tokens, its first token apart from the others"


def effect(run: Run, runs: Runs, asked: dict) -> dict:
    """The effect of the schema: the model's answer with and without some changes."""
    answers.live(run)
    changes, sources = [], []
    for given in asked["interventions"]:
        change, source = _change(run, runs, given)
        changes.append(change)
        sources.append(source)
    pos = _position(run, asked)
    with run.served.lock, torch.no_grad():
        out = run.served.model(**run.batch)
    before = _scores(run, out, pos)
    token, other = chosen(before, asked)
    with run.served.lock, torch.no_grad(), run.served.model.intervene(*changes):
        after = _scores(run, run.served.model(**run.batch), pos)
    a, b = before.double().log_softmax(-1), after.double().log_softmax(-1)
    said = OWN_MEAN if any(c["op"] == "mean" and "source" not in c for c in changes) else None
    found: dict = {"before": _outcome(run, before, token, other),
                   "after": _outcome(run, after, token, other)}
    if asked.get("apart"):
        found["apart"] = [_alone(run, c, pos, token, other) - found["before"]["logit_diff"]
                          for c in changes]
    if asked.get("null"):
        metric = _difference(token, other, pos)
        with run.served.lock:
            found["percentile"] = 100 * sweeps.effect(
                run.served.model, run.batch, metric, changes, null=asked["null"]).percentile
    return {
        **found, "pos": pos, "token": run.served.choice(token), "other": run.served.choice(other),
        "metrics": {
            "logit_diff": found["after"]["logit_diff"] - found["before"]["logit_diff"],
            "kl": (a.exp() * (a - b)).sum().clamp(min=0).item(),
            "probability": (b[token].exp() - a[token].exp()).item()},
        "identical": torch.equal(before, after), "reference": said,
        "snippet": _snippet(run, changes, sources, _read(out, pos), token, other)}


def _alone(run: Run, change: dict, pos: int, token: int, other: int) -> float:
    with run.served.lock, torch.no_grad(), run.served.model.intervene(change):
        x = _scores(run, run.served.model(**run.batch), pos)
    return (x[token] - x[other]).item()


def _difference(token: int, other: int, pos: int):
    """The metric of the lab: the logit of one token less that of another."""
    def metric(out) -> Tensor:
        x = sweeps.logits(out)
        row = x if x.ndim == 2 else x[:, pos]
        return row[:, token] - row[:, other]
    return metric


def answered(run: Run, pos: int) -> Tensor:
    """(V,) what the untouched model answers at a token."""
    with run.served.lock, torch.no_grad():
        return _scores(run, run.served.model(**run.batch), pos)


def chosen(scores: Tensor, asked: dict) -> tuple[int, int]:
    """The two tokens whose logits are compared: those asked for, else the likeliest two."""
    best = scores.topk(min(2, len(scores))).indices.tolist()
    token = asked.get("token", best[0])
    other = asked.get("other", next((i for i in best if i != token), token))
    for id in (token, other):
        if id >= len(scores):
            raise missing(f"token {id} does not exist: there are {len(scores)}")
    return token, other


def donor(run: Run, runs: Runs, asked: dict) -> Run | None:
    """The run that a sweep's patches are taken from. Raises MiradaError, with the aligned
    difference, where its texts have other numbers of tokens."""
    if asked.get("op") != "patch":
        return None
    if "source" not in asked:
        raise MiradaError("patch takes its values from another run: give source")
    found = _of_the_same_model(run, runs, asked["source"])
    for stack, tokens in run.tokens.items():
        theirs, ours = ([t["id"] for t in row] for row in (found.tokens[stack], tokens))
        if len(theirs) != len(ours):
            raise MiradaError(f"the source has {len(theirs)} tokens and this text {len(ours)}: "
                              f"{difference(theirs, ours, run.served.model)}. Use texts of the "
                              "same number of tokens")
    return found


def sweep(run: Run, given: Run | None, asked: dict, job: Job) -> dict:
    """The sweep of the schema: the same change at each head, sublayer or position, one at a time,
    layer by layer. given: what donor found."""
    answers.live(run)
    pos, stack, op = _position(run, asked), asked.get("stack", run.main), asked.get("op", "mean")
    site = asked.get("site", "head_out")
    token, other = chosen(answered(run, pos), asked)
    source = None if given is None else given.again(keep=None, **_kept({"site": site}))
    L = next(len(s["layers"]) for s in run.served.data["stacks"] if s["id"] == stack)
    model, effects, made = run.served.twin(), [], None
    for layer in range(L):
        job.progress(layer, L, "ablating heads" if op != "patch" else "patching")
        made = sweeps.sweep(model, run.batch, _difference(token, other, pos), op=op, site=site,
                            stack=stack, layers=[layer], source=source)
        effects.append(made.mean[0].tolist())
    asking = f"op={op!r}, site={site!r}, stack={stack!r}"
    asking += "" if given is None else f", source={answers.written(given.batch)}"
    return {"stack": stack, "op": op, "site": site, "metric": "logit difference",
            "before": made.base.item(), "pos": pos, "token": run.served.choice(token),
            "other": run.served.choice(other), "effects": effects,
            "reference": OWN_MEAN if op == "mean" else None,
            "snippet": f"import mirada, torch\nfrom mirada.look import sweeps\n"
            f"m = {run.served.loading}\nbatch = {answers.written(run.batch)}\n"
            f"metric = sweeps.logit_difference({token}, {other}, at={pos})\n"
            f"print(sweeps.sweep(m, batch, metric, {asking}).mean)"}


def _position(run: Run, asked: dict) -> int:
    count = len(run.tokens[run.main])
    pos = asked.get("pos", count - 1)
    if pos >= count:
        raise missing(f"position {pos} does not exist: there are {count}")
    return pos


def _scores(run: Run, out: dict, pos: int) -> Tensor:
    name = _logits(out)
    if name is None:
        raise Refused(409, "conflict", f"{run.served.model.architecture} has no head whose answer "
                      "could change")
    return out[name][0] if out[name].ndim == 2 else out[name][0, pos]


def _logits(out: dict) -> str | None:
    return next((name for name in ("logits", "prediction_logits") if name in out), None)


def _outcome(run: Run, scores: Tensor, token: int, other: int) -> dict:
    chances = scores.float().softmax(-1)
    best = scores.topk(min(SHOWN, len(scores))).indices.tolist()
    return {"logit_diff": (scores[token] - scores[other]).item(),
            "top": [run.served.choice(i, p=chances[i].item(), logit=scores[i].item())
                    for i in best]}


def _change(run: Run, runs: Runs, given: dict) -> tuple[dict, Run | None]:
    """The page's intervention in the words of mirada.look.intervene, and the run it takes from."""
    change = {k: v for k, v in given.items() if k not in ("query", "key", "source")}
    if given["site"] == "edge":
        change |= {"pos": [given["query"]]} if "query" in given else {}
        change |= {"keys": [given["key"]]} if "key" in given else {}
    if given["site"] == "value" and "pos" in change:
        change["keys"] = change.pop("pos")
    if "source" not in given:
        if given["op"] == "resample":
            raise MiradaError("resample takes its values from another run: give source")
        return change, None
    source = _of_the_same_model(run, runs, given["source"])
    return {**change, "source": source.again(**_kept(given))}, source


def _of_the_same_model(run: Run, runs: Runs, id: str) -> Run:
    found = runs.find(id)
    if found.served is not run.served:
        raise Refused(409, "conflict", "the source is a run of another model", field="source")
    return found


def _kept(given: dict) -> dict:
    """What a source's recording must hold for a change to take from it."""
    site = given["site"]
    wanted = {"head_out": {"z": True}, "neuron": {"mlp": True}, "resid": {"resid": True},
              "pattern": {}, "edge": {}, "value": {}}
    return wanted.get(site, {"resid": "sublayers"})


def _read(out: dict, pos: int) -> str:
    """How Python reads the scores of a token from a model's output."""
    name = _logits(out)
    return f".{name}[0]" if out[name].ndim == 2 else f".{name}[0, {pos}]"


def _snippet(run: Run, changes: list[dict], sources: list[Run | None], read: str, token: int,
             other: int) -> str:
    """Python that returns the change of the logit difference."""
    lines = [f"import mirada, torch\nm = {run.served.loading}",
             f"batch = {answers.written(run.batch)}"]
    told = []
    for n, (change, source) in enumerate(zip(changes, sources, strict=True)):
        words = ", ".join(f"{k!r}: {v!r}" for k, v in change.items() if k != "source")
        if source is not None:
            kept = ", ".join(f"{k}={v!r}" for k, v in _kept(change).items())
            lines.append(f"with torch.no_grad(), m.record({kept}) as tape{n}:\n"
                         f"    m(**{answers.written(source.batch)})")
            words += f", 'source': tape{n}"
        told.append(f"    {{{words}}},")
    lines += ["changes = [", *told, "]", "with torch.no_grad():",
              f"    before = m(**batch){read}", "    with m.intervene(*changes):",
              f"        after = m(**batch){read}",
              f"difference = lambda x: (x[{token}] - x[{other}]).item()",
              "print(difference(after) - difference(before))"]
    return "\n".join(lines)


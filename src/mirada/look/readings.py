"""One text through a model, read one way: flow, lens, attribution, neurons, redundant heads."""

from __future__ import annotations

import torch

from mirada.errors import MiradaError

from . import logits, neurons, paths, redundancy
from .stages import read

KEPT: dict[str, dict] = {  # kind of reading -> what its recording must keep
    "rollout": {}, "maxflow": {}, "routes": dict(v=True, resid="sublayers"),
    "lens": dict(keep=None, resid=True), "dla": dict(keep=None, resid="sublayers", z=True),
    "neurons": dict(keep=None, mlp=True), "redundant": dict(z=True),
}


def reading(model, text: str, kind: str, *, to: str | None = None, layer: int | None = None,
            stack: str | None = None, token: str | None = None, at: int = -1):
    """What flow (by method), lens, dla, firing ("neurons") or redundant find for one text.

    to: the decoder's text, of encoder-decoders. token: the word whose logit lens and dla follow.
    at: the token that is looked at, the last when -1. layer: whose neurons, the last when None.
    Raises MiradaError.
    """
    if kind not in KEPT:
        raise MiradaError(f"no reading is called {kind!r}; there are {', '.join(KEPT)}")
    batch, _, _ = read(model, text, to)
    with model.record(**KEPT[kind]) as tape, torch.inference_mode():
        model(**batch)
    id = None if token is None else _id(model, token)
    if kind == "lens":
        return logits.lens(tape, token=id)
    if kind == "dla":
        return logits.dla(tape, id, pos=at)
    if kind == "neurons":
        return neurons.firing(tape, -1 if layer is None else layer, at, stack=stack)
    if kind == "redundant":
        return redundancy.redundant(tape, stack=stack)
    return paths.flow(tape, kind, at, stack=stack)


def _id(model, word: str) -> int:
    """The one token that a word is, as it is written or else with a space before it."""
    for spelt in (word, " " + word):
        ids = model.tokenizer.encode(spelt, special=False).ids
        if len(ids) == 1:
            return ids[0]
    parts = " ".join(model.tokenizer.pieces(ids))
    raise MiradaError(f"{word!r} is {len(ids)} tokens here ({parts}): name one token")

"""`mirada next`: what may come next, how likely it is, and how each choice becomes input."""

from __future__ import annotations

import json
import sys

from mirada.model import Model

from .loop import next_tokens, steps
from .text import needed
from .window import Fit, fit, forgotten


def show(model: Model, prompt: str, k: int = 10, as_json: bool = False,
         context: int | None = None) -> None:
    """Print the k likeliest tokens after a text, with their ids and chances; on stderr which words
    of it they cannot depend on. context: the last tokens that are read. Raises MiradaError."""
    ids = _ids(model, prompt)
    read = ids if context is None else fit(ids, context, 0, "left").ids
    rows = _rows(model, next_tokens(model, read, k))
    lost = _lost(model, forgotten(model, ids, context), as_json)
    if as_json:
        return _json({"prompt": prompt, "prompt_tokens": len(ids), **lost, "next": rows})
    wide = max(len("Token"), *(len(_quoted(row["token"])) for row in rows))
    print(f"{'TokenId':<8}  {'Token':<{wide}}  {'Probs':>7}")
    for row in rows:
        print(f"{row['id']:<8}  {_quoted(row['token']):<{wide}}  {row['probability']:>7.2%}")


def trace(model: Model, prompt: str, n: int, k: int = 10, as_json: bool = False,
          context: int | None = None) -> None:
    """Print n greedy steps: what went in, the token that came out, and how likely it was.

    k: how many candidates of each step the JSON lists. context: tokens that the prompt and the n
    take together, its oldest being left out. An end that the model's files force where the room is
    used up is left out: n ends the looking, not the text. Raises MiradaError.
    """
    fitting, tokenizer = fit(_ids(model, prompt), context, n, "left"), model.tokenizer
    ids, lost = fitting.ids, _lost(model, fitting, as_json)
    fed, said, rows = ids if not model.encoder_decoder else [], [], []
    options = {"max_new_tokens": n, "do_sample": False, "forced_eos_token_id": ()}
    for number, step in enumerate(steps(model, [ids], [[1] * len(ids)], top=k, **options), 1):
        text = tokenizer.decode([*fed, *said], skip_special=False)
        token = tokenizer.decode([step.id], skip_special=False)
        said.append(step.id)
        if as_json:
            rows.append({"step": number, "input": text, "id": step.id, "token": token,
                         "probability": step.probability, "next": _rows(model, step.top)})
        else:
            print(f"Step {number}: {_quoted(text)} -> {_quoted(token)}  "
                  f"({step.id}, {step.probability:.2%})", flush=True)
    text = tokenizer.decode(said)
    if as_json:
        return _json({"prompt": prompt, "prompt_tokens": len(ids), **lost, "steps": rows,
                      "text": text})
    print(f"Result: {_quoted(text)}")


def _ids(model: Model, prompt: str) -> list[int]:
    """The ids of a text as it is, without a chat's words around it."""
    tokenizer = needed(model)
    ids = tokenizer.encode(prompt).ids
    return ids or [i for i in [tokenizer.bos_id] if i is not None]


def _lost(model: Model, fitting: Fit, as_json: bool) -> dict:
    """The text that was forgotten, said on stderr, or for the JSON."""
    if not fitting.dropped:
        return {}
    text = model.tokenizer.decode(fitting.dropped)
    if as_json:
        return {"forgotten": text, "forgotten_tokens": len(fitting.dropped)}
    print(f"[forgotten, as the model looks back {len(fitting.ids)} tokens here: {_quoted(text)}]",
          file=sys.stderr)
    return {}


def _rows(model: Model, table: list[tuple[int, float]]) -> list[dict]:
    return [{"id": token, "token": model.tokenizer.decode([token], skip_special=False),
             "probability": chance} for token, chance in table]


def _quoted(text: str) -> str:
    """A text on one line, its spaces to be seen."""
    return json.dumps(text, ensure_ascii=False)


def _json(data: dict) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2))

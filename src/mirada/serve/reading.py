"""What the page typed, as a model reads it: a batch, and each token with its place in the text."""

from __future__ import annotations

import torch
from torch import Tensor

from mirada.errors import MiradaError

from .errors import Refused
from .served import Served

TOKENS = 8192  # most tokens of a run


def read(served: Served, inputs: dict) -> tuple[dict[str, Tensor], dict[str, list[dict]]]:
    """(the model's batch, tokens by stack). Raises MiradaError."""
    model = served.model
    if not hasattr(model.config, "vocab"):
        raise MiradaError(f"{model.architecture} reads no text")
    if ("ids" in inputs) == ("text" in inputs):
        raise MiradaError("inputs must hold a text or ids, one of the two")
    name = "encoder" if model.encoder_decoder else model.kind
    ids, types, marks = _encoded(served, inputs)
    if "write" in inputs and not model.encoder_decoder:
        fresh = _written(served, ids, inputs["write"])[len(ids):]
        ids, marks = [*ids, *fresh], [*marks, *(_token(served, n, None, None, None) for n in fresh)]
        _words(marks)
    tokens = {name: marks}
    batch = {"input_ids": torch.tensor([ids], device=model.device)}
    if types is not None:
        batch["token_type_ids"] = torch.tensor([types], device=model.device)
    if model.encoder_decoder:
        target = _target(served, inputs, ids)
        tokens["decoder"] = [_token(served, id, None, None, None) for id in target]
        _words(tokens["decoder"])
        batch["decoder_input_ids"] = torch.tensor([target], device=model.device)
    for row in tokens.values():
        limit = min(model.context or TOKENS, TOKENS)
        if not 0 < len(row) <= limit:
            raise Refused(400, "input", "the text is empty: there is nothing to look at"
                          if not row else f"the text has {len(row):,} tokens and at most "
                          f"{limit:,} can be looked at; shorten it", field="text")
    return batch, tokens


def _encoded(served: Served, inputs: dict) -> tuple[list[int], list[int] | None, list[dict]]:
    """(ids, token types or None, tokens of the schema) of the first stack's text."""
    tokenizer, pair = served.model.tokenizer, inputs.get("pair")
    if "ids" in inputs:
        rows = [_token(served, id, None, None, None) for id in inputs["ids"]]
        _words(rows)
        return inputs["ids"], None, rows
    if tokenizer is None:
        raise MiradaError("this model has no tokenizer beside its weights, so a text cannot be "
                          "read; give ids")
    text = inputs["text"]
    if inputs.get("chat"):
        if not tokenizer.templates:
            raise MiradaError("this model has no chat template; leave chat out")
        ids = tokenizer.chat([{"role": "user", "content": text}])
        rows = [_token(served, id, None, None, None) for id in ids]
        _words(rows)
        return ids, None, rows
    found = tokenizer.encode(text, pair)
    spans = [None if special else list(span) for special, span in
             zip(found.special_mask, found.offsets, strict=True)]
    rows = [_token(served, *one) for one in
            zip(found.ids, spans, found.found.word_ids, found.sequence, strict=True)]
    if len({row["w"] for row in rows} - {None}) < 2:  # a tokenizer that splits no words itself
        _words(rows)
    typed = "token_type_ids" in tokenizer.inputs and served.model.kind == "encoder"
    return found.ids, found.type_ids if typed and pair is not None else None, rows


def _target(served: Served, inputs: dict, source: list[int]) -> list[int]:
    """What the decoder of an encoder-decoder reads: its start and the target's tokens."""
    if "target_ids" in inputs:
        return inputs["target_ids"]
    model = served.model
    if "write" in inputs and not inputs.get("target"):
        return _written(served, source, inputs["write"])
    start = source[-1] if model.config.start is None else model.config.start
    if not inputs.get("target"):
        return [start]
    return [start, *model.tokenizer.encode(inputs["target"], special=False).ids]


def _written(served: Served, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens behind a prompt: prompt and answer, or a decoder's start and answer."""
    if not served.model.generates:
        raise MiradaError(f"{served.model.architecture} writes no text; leave write out")
    with served.lock, torch.no_grad():
        return served.model.generate(torch.tensor([ids]), max_new_tokens=count,
                                     do_sample=False)[0].tolist()


def _token(served: Served, id: int, span, word, sequence) -> dict:
    tokenizer = served.model.tokenizer
    special = tokenizer is not None and id in tokenizer.special_ids
    return {"id": id, "s": served.labels([id])[str(id)] if served.output != "labels" else
            _piece(tokenizer, id), "b": span, "w": word, "seq": sequence, "special": special}


def _piece(tokenizer, id: int) -> str:
    return str(id) if tokenizer is None or id >= tokenizer.size else tokenizer.pieces([id])[0]


def _words(rows: list[dict]) -> None:
    """Number the words where only pieces are known: by their spaces, or by WordPiece's hyphens."""
    spaced = any("·" in row["s"] for row in rows)
    word, fresh = -1, True
    for row in rows:
        if row["special"]:
            fresh = True
            continue
        begins = row["s"].startswith("·") if spaced else not row["s"].startswith("-")
        word += begins or fresh
        fresh, row["w"] = False, word

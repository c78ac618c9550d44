"""What the views are given: a tape, or raw weights as other libraries hand them out, one per layer.

Either way it becomes arms: one stack's attention with the texts of its queries and keys.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.errors import MiradaError
from mirada.look import logits, patterns, record

SPECIAL = re.compile(r"\[(CLS|SEP|PAD|BOS|EOS)\]|<[/|]?[\w ]*[|]?>|<｜.*｜>")


@dataclass(frozen=True, eq=False)
class Arm:
    """One stack's attention. read(layer) gives its weights (H, T, S) in float32."""

    name: str  # "", encoder, decoder or cross
    queries: list[str]
    keys: list[str]
    layers: list[int]
    heads: list[int]
    read: Callable[[int], Tensor]
    pool: Callable[[int, int], Tensor]  # (layer, size): the largest weight of each tile
    split: int | None = None  # first token of a second sentence
    lengths: Callable[[int], Tensor] | None = None  # layer -> (H, S) ||v W_o|| of each key

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, T, S) of a layer."""
        return len(self.heads), len(self.queries), len(self.keys)


def arms(attention=None, tokens=None, sentence_b_start=None, *, prettify_tokens=True,
         encoder_attention=None, decoder_attention=None, cross_attention=None,
         encoder_tokens=None, decoder_tokens=None, include_layers=None, include_heads=None,
         stack=None, row=0, run=-1) -> list[Arm]:
    """The arms of a tape or of raw weights, named as bertviz names them. Raises MiradaError."""
    chosen = dict(layers=include_layers, heads=include_heads, pretty=prettify_tokens)
    sides = {"encoder": (encoder_attention, encoder_tokens, encoder_tokens),
             "decoder": (decoder_attention, decoder_tokens, decoder_tokens),
             "cross": (cross_attention, decoder_tokens, encoder_tokens)}
    given = {name: side for name, side in sides.items() if side[0] is not None}
    if isinstance(attention, record.Tape):
        return _taped(attention, tokens, sentence_b_start, stack, row, run, chosen)
    if attention is not None and given:
        raise MiradaError("give either attention and tokens, or encoder_, decoder_ and "
                          "cross_attention with encoder_tokens and decoder_tokens; not both")
    if attention is not None:
        return [_raw("", attention, tokens, tokens, "tokens", chosen, sentence_b_start)]
    if not given:
        raise MiradaError("there is no attention: give a tape (with model.record() as tape) or "
                          "weights, one tensor (1, heads, n, n) a layer")
    return [_raw(name, weights, queries, keys,
                 "encoder_tokens" if name == "encoder" else "decoder_tokens", chosen)
            for name, (weights, queries, keys) in given.items()]


def _taped(tape, tokens, split, stack, row, run, chosen) -> list[Arm]:
    names = [n for n in ("encoder", "decoder", "cross") if n in tape.stacks]
    names += [n for n in tape.stacks if n not in names]
    if not names or stack is not None:
        names = [tape.site(tape.layers(stack)[0], stack)[0]]  # says what is wrong
    made = []
    for name in names:
        places = tape.layers(name)
        B, H, T, S = tape.shape(places[0], name, run)
        (at,) = patterns.listed(row, B, "row of the batch")
        queries, keys = tape_tokens(tape, name, at, run)
        if tokens is not None and len(names) == 1:
            queries = keys = list(tokens)
        fit(queries, keys, T, S, "tokens")
        shown = _some(chosen["layers"], places, "layer")
        heads = patterns.listed(chosen["heads"], H, "head")

        def read(layer, name=name, heads=heads, at=at):
            return tape.pattern(layer, heads, stack=name, run=run)[at].float()

        def pool(layer, size, name=name, heads=heads, at=at):
            return tape.pooled(size, [layer], heads, name, run)[0, at].float()

        def lengths(layer, name=name, heads=heads, at=at):
            brought = tape.values(layer, name, run)[at : at + 1]
            return patterns.value_lengths(tape.modules[name, layer], brought, heads)[0]

        made.append(Arm(name if len(names) > 1 else "", _shown(queries, chosen["pretty"]),
                        _shown(keys, chosen["pretty"]), shown, heads, read, pool, _cut(split, T),
                        lengths if tape.valued else None))
    return made


def tape_tokens(tape, stack: str, row: int, run: int) -> tuple[list[str], list[str]]:
    """The texts of a stack's queries and keys; their numbers where the pass read no text."""
    if stack == "cross":
        return logits.tokens(tape, "decoder", row, run), logits.tokens(tape, "encoder", row, run)
    both = logits.tokens(tape, stack, row, run)
    T, S = tape.shape(tape.layers(stack)[0], stack, run)[2:]
    if len(both) != T:  # a stack that looks at other things than its tokens
        return [str(n) for n in range(T)], [str(n) for n in range(S)]
    return both, both if S == T else [str(n) for n in range(S)]


def _raw(name, weights, queries, keys, said, chosen, split=None) -> Arm:
    weights = layers(weights, f"{name}_attention".lstrip("_"))
    shapes = {tuple(w.shape) for w in weights}
    if len(shapes) != 1:
        raise MiradaError(f"the layers' weights have different shapes: {sorted(shapes)}")
    H, T, S = shapes.pop()
    for words in (queries, keys):
        if words is None:
            raise MiradaError(f"{said} is missing: give the text of each token, e.g. "
                              "tokenizer.convert_ids_to_tokens(ids)")
    fit(list(queries), list(keys), T, S, said)
    shown = _some(chosen["layers"], list(range(len(weights))), "layer")
    heads = patterns.listed(chosen["heads"], H, "head")
    def read(layer):
        return weights[layer][heads]

    def pool(layer, size):
        return F.adaptive_max_pool2d(read(layer), (min(size, T), min(size, S)))

    return Arm(name, _shown(queries, chosen["pretty"]), _shown(keys, chosen["pretty"]), shown,
               heads, read, pool, _cut(split, T))


def layers(given, said: str) -> list[Tensor]:
    """Each layer's (H, T, S) of what a caller has: (1, H, T, S) or (H, T, S) a layer."""
    if isinstance(given, np.ndarray | Tensor) and given.ndim < 4:
        raise MiradaError(f"{said} has the shape {tuple(given.shape)}: give a list, one tensor "
                          "(1, heads, queries, keys) for each layer")
    made = []
    for n, layer in enumerate(given):
        if layer is None or isinstance(layer, list | tuple):
            raise MiradaError(f"layer {n} of {said} is {'empty' if layer is None else 'a list'}: "
                              "a model that runs a fused kernel hands no weights out, and a "
                              "generation hands out one list a step; record it with mirada, or "
                              "load it with attn_implementation='eager' and run one pass")
        layer = torch.as_tensor(layer).detach().to("cpu", torch.float32)
        if layer.ndim == 4 and len(layer) != 1:
            raise MiradaError(f"{said} holds a batch of {len(layer)}: choose one text of it, "
                              f"e.g. [layer[:1] for layer in {said}], without its padding")
        layer = layer[0] if layer.ndim == 4 else layer
        if layer.ndim != 3:
            raise MiradaError(f"layer {n} of {said} has the shape {tuple(layer.shape)}: it must "
                              "be (1, heads, queries, keys)")
        if not torch.isfinite(layer).all():
            raise MiradaError(f"layer {n} of {said} holds numbers that are not finite")
        made.append(layer)
    if not made:
        raise MiradaError(f"{said} has no layer")
    return made


def fit(queries: Sequence, keys: Sequence, T: int, S: int, said: str) -> None:
    if (len(queries), len(keys)) != (T, S):
        count = len(queries) if T == S else f"{len(queries)} and {len(keys)}"
        size = T if T == S else f"{T} queries and {S} keys"
        raise MiradaError(f"{said}: {count} texts for weights of {size}; they must be the tokens "
                          "of that very pass, with special tokens and without padding")


def _some(wanted, places: list[int], what: str) -> list[int]:
    missing = [n for n in wanted or [] if n not in places]
    if missing:
        raise MiradaError(f"{what} {missing[0]} is not there; there are {places}")
    return places if wanted is None else list(wanted)


def _cut(split, T: int) -> int | None:
    if split is not None and not 0 < split < T:
        raise MiradaError(f"sentence_b_start is {split}: the second sentence begins inside the "
                          f"{T} tokens")
    return split


def _shown(tokens: Sequence, pretty: bool) -> list[str]:
    return [readable(str(token)) if pretty else str(token) for token in tokens]


def readable(token: str) -> str:
    """A token without the marks that stand for spaces; what cannot be seen as a sign."""
    token = token.replace("Ġ", " ").replace("▁", " ").replace("</w>", "").replace("Ċ", "\n")
    token = token.replace("\n", "⏎").replace("\t", "⇥")
    token = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in token)
    return token if token.strip() else "␣" * max(1, len(token))


def resting(tokens: Sequence[str]) -> tuple[list[int], bool]:
    """Places on which idle heads rest, and whether their tokens are special ones: those that mark a
    beginning, an end or a gap; where a text has none, its first."""
    found = [n for n, token in enumerate(tokens) if SPECIAL.fullmatch(token.strip())]
    return found or [0], bool(found)

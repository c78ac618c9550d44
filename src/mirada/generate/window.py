"""The context as a window: how much of it a text takes, and what to drop when it is too small."""

from __future__ import annotations

from typing import NamedTuple

from mirada.core.attention import Attention, CrossAttention
from mirada.errors import MiradaError
from mirada.model import Model

POLICIES = ("error", "left", "middle")


class Fit(NamedTuple):
    """Ids that fit, the ids that were dropped, and where the dropped ones began."""

    ids: list[int]
    dropped: list[int]
    start: int


def fit(ids, context: int | None, room: int, policy: str = "error") -> Fit:
    """Make a prompt fit a context with room for an answer.

    ids: of one prompt. context: tokens in all, None for no limit. room: tokens kept free. policy:
    "error" raises when it does not fit; "left" drops the oldest tokens; "middle" keeps the head
    and the tail, half each. Raises MiradaError.
    """
    ids = [int(i) for i in ids]
    if policy not in POLICIES:
        raise MiradaError(f"no policy is called {policy!r}; there are {', '.join(POLICIES)}")
    if context is None or len(ids) + room <= context:
        return Fit(ids, [], 0)
    keep = context - room
    if keep < 1:
        raise MiradaError(f"a context of {context} tokens has no place for a prompt beside an "
                          f"answer of {room}: ask for a shorter answer")
    if policy == "error":
        raise MiradaError(f"the prompt has {len(ids)} tokens; with {room} for the answer, the "
                          f"context of {context} takes {keep}: shorten it, or choose the policy "
                          '"left" or "middle"')
    start = 0 if policy == "left" else keep // 2
    end = start + len(ids) - keep
    return Fit(ids[:start] + ids[end:], ids[start:end], start)


def reach(model: Model) -> int | None:
    """The last tokens that the next one can depend on, where each layer of the decoder looks
    through a window: a token hears by the layer below what its window's oldest heard. None where
    a layer looks at everything."""
    decoder = model.decoder
    attentions = [module for index in decoder.order for module in decoder.blocks[index].modules()
                  if isinstance(module, Attention) and not isinstance(module, CrossAttention)]
    windows = [a.mask.window if a.mask is not None else None for a in attentions]
    return None if None in windows else 1 + sum(window - 1 for window in windows)


def forgotten(model: Model, ids, context: int | None = None) -> Fit:
    """What of a prompt the next token depends on, and what it cannot: the oldest tokens, which
    fall out of a context of so many tokens or out of the reach of the model's own windows.

    The next token's chances are those of any prompt with the same `ids`.
    """
    limits = [n for n in (context, reach(model)) if n is not None]
    return fit(ids, min(limits, default=None), 0, "left")


def count(tokenizer, text: str) -> tuple[int, int]:
    """How many words (between spaces) and tokens a text has: what it takes of the context."""
    return len(text.split()), len(tokenizer.encode(text))

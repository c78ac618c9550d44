"""The context as a window: how much of it a text takes, and what to drop when it is too small."""

from __future__ import annotations

from typing import NamedTuple

from mirada.errors import MiradaError

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


def count(tokenizer, text: str) -> tuple[int, int]:
    """How many words (between spaces) and tokens a text has: what it takes of the context."""
    return len(text.split()), len(tokenizer.encode(text))

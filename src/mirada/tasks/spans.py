"""Windows over a text that is longer than a model reads at once."""

from __future__ import annotations

from mirada.errors import MiradaError
from mirada.text.tokenizer import Encoding

from .inputs import Row, part


def windows(encoding: Encoding, which: int, most: int | None, stride: int) -> list[Row]:
    """Rows of at most `most` tokens that cover text `which` (0 or 1), `stride` of its tokens
    shared by neighbours; all other tokens stand in each. Raises MiradaError."""
    inside = [i for i, s in enumerate(encoding.sequence) if s == which]
    if most is None or len(encoding) <= most:
        return [part(encoding, list(range(len(encoding))))]
    if type(stride) is not int or stride < 0:
        raise MiradaError(f"stride is {stride!r}; it must be a whole number of tokens from 0")
    room = most - (len(encoding) - len(inside))
    if room <= stride:
        raise MiradaError(f"windows of {most} tokens have {max(room, 0)} for the passage, and "
                          f"neighbours are to share {stride}: shorten the question, or choose a "
                          "smaller stride")
    rows = []
    for start in range(0, len(inside), room - stride):
        kept = set(inside[start : start + room])
        rows.append(part(encoding, [i for i, s in enumerate(encoding.sequence)
                                    if s != which or i in kept]))
        if start + room >= len(inside):
            break
    return rows

"""Stop strings: when one is complete, and how much of a text may be the beginning of one."""

from __future__ import annotations


def hit(tokenizer, ids: list[int], stops: tuple[str, ...]) -> bool:
    """Whether the text of ids, of which the last is new, holds one of the stop strings.

    Only the last tokens are decoded: each stands for a byte at least, and eight more keep what
    decoders do at the beginning of a text out of the way.
    """
    if not stops:
        return False
    reach = max(len(stop.encode()) for stop in stops) + 8
    text = tokenizer.decode(ids[-reach:], skip_special=False)
    return any(stop in text for stop in stops)


def cut(text: str, stops: tuple[str, ...]) -> str | None:
    """The text before the first stop string in it, or None where there is none."""
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    return text[: min(found)] if found else None


def held(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of text may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-n:]) for stop in stops):
            return n
    return 0


def reason(token: int, written: list[int], options, room: int, tokenizer) -> str | None:
    """Why an answer ends with this token: "eos", "stop", "length" or "context"; None: it goes on.

    written: the answer so far, the token included; room: how many tokens it may have.
    """
    if token in options.eos_token_id:
        return "eos"
    if hit(tokenizer, written, options.stop):
        return "stop"
    if len(written) < room:
        return None
    return "length" if len(written) == options.max_new_tokens else "context"

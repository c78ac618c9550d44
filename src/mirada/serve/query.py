"""Words of an address, read strictly: every one is known, in range, and used."""

from __future__ import annotations

from urllib.parse import parse_qsl

from .errors import Refused


class Query:
    """The parameters behind the question mark. Raises Refused for what is unknown or wrong."""

    def __init__(self, text: str):
        try:
            pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text),
                              max_num_fields=20)
        except ValueError:
            raise Refused(400, "input", "the address has malformed parameters") from None
        self.given = dict(pairs)
        if len(self.given) != len(pairs):
            raise Refused(400, "input", "a parameter is given twice")
        self.unread = set(self.given)

    def has(self, name: str) -> bool:
        return name in self.given

    def number(self, name: str, default: int | None, low: int, high: int) -> int:
        """A whole number within [low, high]; needed when default is None."""
        text = self._take(name)
        if text is None:
            if default is None:
                raise Refused(400, "input", f"{name}= is missing", field=name)
            return default
        return _whole(name, text, low, high)

    def real(self, name: str, default: float, low: float, high: float) -> float:
        """A number within [low, high]."""
        text = self._take(name)
        try:
            x = default if text is None else float(text)
        except ValueError:
            x = float("nan")
        if not low <= x <= high:
            raise Refused(400, "input", f"{name}= must be a number from {low:g} to {high:g}",
                          field=name)
        return x

    def choice(self, name: str, default: str, of: tuple[str, ...]) -> str:
        """One of some words."""
        text = self._take(name) or default
        if text not in of:
            raise Refused(400, "input", f"{name}= must be one of {', '.join(of)}", field=name)
        return text

    def span(self, name: str, count: int, inclusive: bool = False) -> range:
        """a:b (without b), a-b (b included) or one number, within 0..count; all when absent."""
        text = self._take(name)
        if text is None:
            return range(count)
        first, mark, last = text.partition("-" if inclusive else ":")
        a = _whole(name, first, 0, count - 1)
        b = a + 1 if not mark else _whole(name, last, 0, count - inclusive) + inclusive
        if b <= a:
            raise Refused(400, "input", f"{name}= is empty", field=name)
        return range(a, b)

    def numbers(self, name: str, most: int, below: int) -> list[int]:
        """Whole numbers between commas."""
        words = (self._take(name) or "").split(",")
        if len(words) > most:
            raise Refused(400, "input", f"{name}= may list {most:,}", field=name)
        return [_whole(name, word, 0, below - 1) for word in words]

    def done(self) -> None:
        """Refuses parameters that nothing read: a typo must not pass silently."""
        if self.unread:
            name = sorted(self.unread)[0][:40]
            raise Refused(400, "input", f"this call has no parameter {name!r}", field=name)

    def _take(self, name: str) -> str | None:
        self.unread.discard(name)
        return self.given.get(name)


def _whole(name: str, text: str, low: int, high: int) -> int:
    digits = text.removeprefix("-")
    number = digits.isascii() and digits.isdigit() and len(text) <= 12
    if not number or not low <= int(text) <= high:
        raise Refused(400, "input", f"{name}= must be a whole number from {low} to {high}",
                      field=name)
    return int(text)

"""What a tokenizer does to a text, to be read: a row a token; and what ids say."""

from dataclasses import dataclass

from mirada.text.tokenizer import Encoding, Tokenizer


@dataclass
class Table:
    """The tokens of one text, or of a pair: id, token, and the part of its text it stands for."""

    tokenizer: Tokenizer
    encoding: Encoding
    texts: tuple[str, str | None]

    def data(self) -> dict:
        names = ("ids", "offsets", "type_ids", "special_mask", "sequence")
        told = {name: list(getattr(self.encoding, name)) for name in names}
        return {"tokens": [self.tokenizer.token(i) for i in told["ids"]], **told}

    def __str__(self) -> str:
        rows = [("id", "token", "at", "text")]
        e = self.encoding
        for number, (start, end), which in zip(e.ids, e.offsets, e.sequence, strict=True):
            part = "" if which is None else self.texts[which][start:end]
            at = "" if which is None else f"{start}-{end}"
            token = self.tokenizer.token(number)
            rows.append((str(number), _shown(token), at, _shown(part)))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, [*widths, 0], strict=True)).rstrip()
                 for row in rows]
        return "\n".join([*lines, f"{len(e)} tokens"])


@dataclass
class Text:
    """The text of ids."""

    tokenizer: Tokenizer
    ids: list[int]
    skip_special: bool

    def data(self) -> dict:
        return {"ids": self.ids, "tokens": [self.tokenizer.token(i) for i in self.ids],
                "text": str(self)}

    def __str__(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special=self.skip_special)


def _shown(text: str) -> str:
    """No character that a terminal would obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

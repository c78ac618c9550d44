"""Ids to text, a token at a time: what is shown is final, and never half a character.

Each step of a decoder is a small machine with push(token) -> tokens and end() -> tokens, so the
whole costs time linear in the tokens, and the joined output is what decoding all at once gives.
"""

import codecs
import re
from functools import cache

from mirada.errors import MiradaError


@cache
def byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


def bytes_of(token: str) -> bytes:
    """The bytes of one byte-level token; one outside the table (an added token) is itself."""
    table = byte_of()
    if all(c in table for c in token):
        return bytes(table[c] for c in token)
    return token.encode()


class Step:
    """A step that looks at one token at a time; `first` tells whether it is the first."""

    def __init__(self, change):
        self.change, self.first = change, True

    def push(self, token: str) -> list[str]:
        text = self.change(token, self.first)
        self.first = False
        return [text]

    def end(self) -> list[str]:
        return []


class Bytes:
    """Byte-level tokens: bytes wait until they are a character or can no longer become one."""

    def __init__(self):
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> list[str]:
        return [self.decoder.decode(bytes_of(token))]

    def end(self) -> list[str]:
        return [self.decoder.decode(b"", final=True)]


class ByteFallback:
    """Runs of <0xXX>: a run is UTF-8 as a whole or one U+FFFD a byte, so it waits for its end."""

    def __init__(self):
        self.run = bytearray()

    def push(self, token: str) -> list[str]:
        if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            self.run.append(int(token[3:5], 16))
            return []
        return [*self.end(), token]

    def end(self) -> list[str]:
        if not self.run:
            return []
        try:
            text = [self.run.decode()]
        except UnicodeDecodeError:
            text = ["�"] * len(self.run)
        self.run.clear()
        return text


class Strip:
    """Drops up to `left` leading `content` of each token, or, once fused, of the whole text."""

    def __init__(self, content: str, left: int, fused: bool):
        self.content, self.left, self.fused = content, left, fused
        self.remaining = left

    def push(self, token: str) -> list[str]:
        if not self.fused:
            self.remaining = self.left
        while self.remaining and token.startswith(self.content):
            token, self.remaining = token[len(self.content):], self.remaining - 1
        if token:
            self.remaining = 0
        return [token]

    def end(self) -> list[str]:
        return []


class WordEnds:
    """A suffix that ends words becomes a space, except on the last token, which waits."""

    def __init__(self, suffix: str):
        self.suffix = suffix
        self.held: str | None = None

    def push(self, token: str) -> list[str]:
        held, self.held = self.held, token
        return [] if held is None else [held.replace(self.suffix, " ")]

    def end(self) -> list[str]:
        return [] if self.held is None else [self.held.replace(self.suffix, "")]


class Whole:
    """A decoder we cannot take apart: nothing is shown until the end."""

    def __init__(self, decode):
        self.decode, self.tokens = decode, []

    def push(self, token: str) -> list[str]:
        self.tokens.append(token)
        return []

    def end(self) -> list[str]:
        return [self.decode(self.tokens)] if self.tokens else []


def _metaspace(spec: dict):
    mark, drop = spec.get("replacement", "▁"), spec.get("prepend_scheme", "always") != "never"
    return lambda token, first: token.replace(mark, "" if first and drop else " ")


def _wordpiece(spec: dict):
    prefix, cleanup = spec.get("prefix", "##"), spec.get("cleanup", True)

    def change(token: str, first: bool) -> str:
        if not first:
            token = token[len(prefix):] if token.startswith(prefix) else " " + token
        return _clean(token) if cleanup else token

    return change


def _clean(text: str) -> str:
    for mark in (".", "?", "!", ","):
        text = text.replace(f" {mark}", mark)
    text = text.replace(" ' ", "'").replace(" n't", "n't").replace(" 'm", "'m")
    text = text.replace(" do not", " don't")
    return text.replace(" 's", "'s").replace(" 've", "'ve").replace(" 're", "'re")


def steps(spec: dict | None) -> list | None:
    """The machines for a decoder's description; None where one of its steps is not known here."""
    if spec is None:
        return [Step(lambda token, first: token if first else " " + token)]
    parts = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    made: list = []
    fused = False
    for part in parts:
        kind = part["type"]
        if fused and kind not in ("Fuse", "Strip"):
            return None
        if kind == "ByteLevel":
            made.append(Bytes())
        elif kind == "ByteFallback":
            made.append(ByteFallback())
        elif kind == "Metaspace":
            made.append(Step(_metaspace(part)))
        elif kind == "WordPiece":
            made.append(Step(_wordpiece(part)))
        elif kind == "BPEDecoder":
            made.append(WordEnds(part.get("suffix", "</w>")))
        elif kind == "Replace" and "String" in part["pattern"]:
            old, new = part["pattern"]["String"], part["content"]
            made.append(Step(lambda token, first, old=old, new=new: token.replace(old, new)))
        elif kind == "Strip" and not part.get("stop"):
            made.append(Strip(part["content"], part.get("start", 0), fused))
        elif kind != "Fuse":
            return None
        fused |= kind in ("Fuse", "ByteLevel")
    return made


class Stream:
    """push(id) -> the text that is now certain; end() -> the rest.

    "".join of all pushes and end() equals decode of all ids.
    """

    def __init__(self, tokenizer, skip_special: bool):
        self._tokenizer, self._skip = tokenizer, skip_special
        self._steps = steps(tokenizer.decoder) or [Whole(tokenizer.decode_tokens)]
        self._ended = False

    def push(self, id: int) -> str:
        """The text that the token `id` makes certain, "" if none. Raises MiradaError."""
        if self._ended:
            raise MiradaError("this stream has ended; start a new one with tokenizer.stream()")
        if self._skip and id in self._tokenizer.special_ids:
            return ""
        return self._through([self._tokenizer.token(id)], 0)

    def end(self) -> str:
        """What still waited; the stream takes no more ids after it."""
        self._ended = True
        return "".join(self._through(step.end(), i + 1) for i, step in enumerate(self._steps))

    def _through(self, tokens: list[str], start: int) -> str:
        for step in self._steps[start:]:
            tokens = [text for token in tokens for text in step.push(token)]
        return "".join(tokens)

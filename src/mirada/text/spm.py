"""SentencePiece models: a bounded reader of the ModelProto, and the merges its scores mean.

Kudo and Richardson 2018, arXiv 1808.06226.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from mirada.errors import UntrustedInputError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2
PIECES = 2_000_000
PIECE_BYTES = 1_024


@dataclass
class Model:
    """A ModelProto's contents: `pieces` are (text, score, type) in the order of their ids.

    merges: BPE's pairs in their order, where another file lists them; scores mean nothing then.
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = UNIGRAM
    byte_fallback: bool = False
    suffix_space: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    charsmap: bytes = b""
    dummy_prefix: bool = True
    trim: bool = True
    escape: bool = True
    merges: list[tuple[str, str]] = field(default_factory=list)


_TRAINER = {
    3: "kind", 24: "suffix_space", 35: "byte_fallback",
    40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id",
}
_NORMALIZER = {2: "charsmap", 3: "dummy_prefix", 4: "trim", 5: "escape"}


def parse(data: bytes, path) -> Model:
    """The model in `data`; `path` is for messages. Raises UntrustedInputError."""
    model = Model()
    try:
        for number, value in _fields(data, 0, len(data)):
            if number == 1:
                model.pieces.append(_piece(data, value))
            elif number in (2, 3):
                _settings(data, value, _TRAINER if number == 2 else _NORMALIZER, model)
            if len(model.pieces) > PIECES:
                raise ValueError(f"more than {PIECES:,} pieces")
    except (ValueError, IndexError, struct.error) as error:
        reason = "it ends in the middle" if isinstance(error, IndexError) else str(error)
        raise UntrustedInputError(path, "sentencepiece model", reason) from None
    if not model.pieces:
        raise UntrustedInputError(path, "sentencepiece model", "holds no pieces")
    return model


Value = int | tuple[int, int]  # a number, or where bytes start and end


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, Value]]:
    """Yield (number, value) of one message."""
    value: Value
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at, end)
        elif wire == 2:
            size, at = _varint(data, at, end)
            value, at = (at, at + size), at + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            value, at = (at, at + size), at + size
        else:
            raise ValueError(f"field {number} has wire type {wire} (groups are not allowed)")
        if at > end:
            raise IndexError
        yield number, value


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise IndexError
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has more than ten bytes")


def _piece(data: bytes, span) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data, *_bytes(span)):
        if number == 1:
            start, end = _bytes(value)
            if end - start > PIECE_BYTES:
                raise ValueError(f"a piece has more than {PIECE_BYTES} bytes")
            text = data[start:end].decode("utf-8")
        elif number == 2:
            score = struct.unpack("<f", data[slice(*_bytes(value))])[0]
        elif number == 3:
            kind = value if isinstance(value, int) else 0
    if kind not in range(NORMAL, BYTE + 1):
        raise ValueError(f"a piece has the unknown type {kind!r}")
    return text, score, kind


def _settings(data: bytes, span, names: dict[int, str], model: Model) -> None:
    for number, value in _fields(data, *_bytes(span)):
        if (name := names.get(number)) is None:
            continue
        if name == "charsmap":
            model.charsmap = data[slice(*_bytes(value))]
        elif not isinstance(value, int):
            raise ValueError(f"{name} is not a number")
        elif isinstance(getattr(model, name), bool):
            setattr(model, name, bool(value))
        else:
            setattr(model, name, value - (1 << 64) if value >> 63 else value)


def _bytes(value: Value) -> tuple[int, int]:
    if isinstance(value, int):
        raise ValueError("a number stands where bytes belong")
    return value


def merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """The merge list that makes rank-ordered BPE choose as SentencePiece's scores do.

    Each piece is reached from every pair of pieces that spells it; higher scores merge first.
    """
    scores = {text: score for text, score, kind in pieces if kind in (NORMAL, USER_DEFINED, UNUSED)}
    index = {text: i for i, (text, _, _) in enumerate(pieces)}
    found = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                found.append((-score, index[left], index[right], left, right))
    found.sort()
    return [(left, right) for _, _, _, left, right in found]

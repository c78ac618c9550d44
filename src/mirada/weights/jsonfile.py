"""Strict JSON from strangers: bounded, shallow, without duplicate keys or numbers that are none."""

import json
import math
import os
import re
from array import array
from collections import Counter
from itertools import accumulate
from pathlib import Path

from mirada.errors import UntrustedInputError
from mirada.weights.paths import open_regular

DEPTH = 100
CONTAINERS = 1_000_000  # an empty list costs 64 bytes of memory for 2 in the file

# An unterminated string runs to the end of the file: the scan stays linear whatever it holds.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(c for c in range(256) if c not in b"[]{}")
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_SURROGATE = re.compile(rb"\\u[dD][89abAB]")


def read(path: str | os.PathLike, *, limit: int = 8 << 20) -> dict | list:
    """The object or array in the JSON file `path`, of at most `limit` bytes.

    The file must be regular and is opened once; its size is checked before it is read.
    Raises UntrustedInputError.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UntrustedInputError(path, "size", f"is {size:,} bytes, more than {limit:,}")
        data = file.read(size)
    return parse(data, path, limit)


def parse(data: bytes, path: str | os.PathLike, limit: int = 8 << 20) -> dict | list:
    """The object or array that `data` holds; `path` names it in errors.

    Beyond what `json` refuses: a byte order mark, bytes that are not UTF-8, duplicate keys,
    NaN, Infinity and numbers too large for a float, lone surrogates, more than 100 levels.
    Raises UntrustedInputError.
    """
    if len(data) > limit:
        raise UntrustedInputError(path, "size", f"is more than {limit:,} bytes")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise UntrustedInputError(path, "start", "must be UTF-8 without a byte order mark")
    _check_nesting(data, path)

    def pairs(items: list) -> dict:
        mapping = dict(items)
        if len(mapping) < len(items):
            twice = Counter(key for key, _ in items).most_common(1)[0][0]
            raise UntrustedInputError(path, f"key {twice!r}", "must not occur twice")
        return mapping

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise UntrustedInputError(path, f"number {text}", "is too large")
        return value

    def constant(text: str):
        raise UntrustedInputError(path, f"number {text}", "must be finite")

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs, parse_float=number, parse_constant=constant,
        )
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise UntrustedInputError(path, "text", f"must be UTF-8: {error.reason}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise UntrustedInputError(path, where, f"is not JSON: {error.msg}") from None
    except ValueError:  # an integer beyond Python's limit of digits
        raise UntrustedInputError(path, "number", "has too many digits") from None
    if not isinstance(value, dict | list):
        raise UntrustedInputError(path, "root", "must be a JSON object or array")
    return value


def write(path: str | os.PathLike, value: dict | list) -> None:
    """Write `value` as JSON: two spaces, keys in their own order, a final newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _check_nesting(data: bytes, path: str | os.PathLike) -> None:
    """Refuse deep or endless nesting before the recursive parser meets it."""
    opened = data.count(b"[") + data.count(b"{")
    if opened <= DEPTH:
        return
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    if len(brackets) > 2 * CONTAINERS:
        raise UntrustedInputError(path, "root", f"holds more than {CONTAINERS:,} lists and objects")
    depths = accumulate(array("b", brackets.translate(_STEPS)))
    if max(depths, default=0) > DEPTH:
        raise UntrustedInputError(path, "root", f"is nested deeper than {DEPTH} levels")

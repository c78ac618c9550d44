"""Text as one long row of token ids on disk, mapped and never loaded whole."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mirada.errors import MiradaError, UntrustedInputError

from .disk import forced

BUFFER = 1 << 20  # tokens that are held before they are written


class Corpus:
    """tokens (N,): all documents, one behind the other; ends (D,): where each one ends.

    Both are mapped files, or arrays: len(corpus.tokens) may exceed the memory.
    """

    def __init__(self, tokens: np.ndarray, ends: np.ndarray):
        self.tokens, self.ends = tokens, ends

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Corpus:
        """A folder that `write` made. Raises UntrustedInputError where its files do not agree."""
        folder = Path(folder)
        try:
            said = json.loads((folder / "corpus.json").read_text())
            kind, count, documents = said["dtype"], said["tokens"], said["documents"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UntrustedInputError(folder, "corpus.json", f"cannot be read: {error}") from None
        if kind not in ("uint16", "uint32") or not count or not documents:
            raise UntrustedInputError(folder, "corpus.json", "names no tokens")
        parts = []
        for name, dtype, length in (("tokens.bin", kind, count), ("ends.bin", "uint64", documents)):
            file = folder / name
            if not file.is_file() or file.stat().st_size != length * np.dtype(dtype).itemsize:
                raise UntrustedInputError(file, "size", "is not what corpus.json says")
            parts.append(np.memmap(file, dtype=dtype, mode="r"))
        if int(parts[1][-1]) != count:
            raise UntrustedInputError(folder, "ends.bin", "do not end where the tokens do")
        return cls(*parts)

    @classmethod
    def of(cls, documents: Iterable[list[int]]) -> Corpus:
        """From ids in memory."""
        documents = [ids for ids in documents if ids]
        flat = np.array([i for ids in documents for i in ids], dtype=np.uint32)
        return cls(flat, np.cumsum([len(ids) for ids in documents], dtype=np.uint64))

    def document(self, place: int) -> np.ndarray:
        """(T,) the ids of one document."""
        start = int(self.ends[place - 1]) if place else 0
        return np.asarray(self.tokens[start : int(self.ends[place])], dtype=np.int64)

    def segments(self, start: int, stop: int) -> np.ndarray:
        """(T,) which document each token of a stretch belongs to."""
        places = np.arange(start, stop)
        return np.asarray(np.searchsorted(self.ends, places, side="right"))


def write(texts: Iterable[str], tokenizer, folder: str | os.PathLike, *,
          end: int | None = None, every: bool = False) -> Corpus:
    """Tokenise documents once, to be mapped by every later run.

    end: an id put behind each document; None: the tokenizer's own end token, where it has one.
    every: a text of no token is refused, not left out (where texts stand in pairs).
    Memory is bounded, whatever the texts are. Raises MiradaError where there is no text.
    """
    folder = Path(folder)
    if folder.exists():
        raise MiradaError(f"{folder} exists already: open it, or choose another folder")
    if end is None:
        end = min(tokenizer.eos_ids, default=None)
    kind = "uint16" if tokenizer.size <= 1 << 16 else "uint32"
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    aside.mkdir(parents=True)
    try:
        count = documents = 0
        held: list[int] = []
        ends: list[int] = []
        with (aside / "tokens.bin").open("wb") as tokens, (aside / "ends.bin").open("wb") as stops:

            def flush() -> None:
                tokens.write(np.array(held, dtype=kind).tobytes())
                stops.write(np.array(ends, dtype="uint64").tobytes())
                held.clear()
                ends.clear()

            for number, text in enumerate(texts, 1):
                ids = tokenizer.encode(text, special=False).ids
                if not ids and every:
                    raise MiradaError(f"text {number} of the data is empty, and each belongs to a "
                                      "pair: mend it, or leave the pair out")
                if not ids:
                    continue
                ids = ids if end is None else [*ids, end]
                held += ids
                count, documents = count + len(ids), documents + 1
                ends.append(count)
                if len(held) > BUFFER:
                    flush()
            flush()
        if not count:
            raise MiradaError("there is no text to train on: every document is empty")
        (aside / "corpus.json").write_text(json.dumps(
            {"dtype": kind, "tokens": count, "documents": documents}))
        for path in (*aside.iterdir(), aside):
            forced(path)
        os.rename(aside, folder)
        forced(folder.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return Corpus.open(folder)

"""Semantic search: the passages of a text whose vectors are nearest to a question's (Reimers and
Gurevych, 1908.10084)."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mirada.errors import MiradaError, UntrustedInputError, WorkFailed
from mirada.generate.text import needed
from mirada.model import Model
from mirada.weights import tensorfile
from mirada.weights.paths import open_regular

from . import long
from .features import embed, prompted, read
from .identity import fingerprint

UNITS = ("paragraph", "line")
CHUNK = 512  # passages that are encoded at a time


@dataclass(frozen=True)
class Passage:
    """A piece of a text, and the line that it begins in, counted from 1."""

    line: int
    text: str


@dataclass(frozen=True)
class Hit:
    """A passage that was found. score: the cosine of its vector and the question's."""

    score: float
    line: int
    text: str


def passages(path: str | Path, by: str | None = None) -> list[Passage]:
    """The passages of a UTF-8 text file. by: "line", or "paragraph" (between empty lines); None:
    paragraphs where the file has empty lines inside, else lines. Raises MiradaError."""
    if by not in (None, *UNITS):
        raise MiradaError(f"by is {by!r}; it can be {', '.join(UNITS)}")
    with open_regular(path) as file:
        lines = [_decoded(line, path, n) for n, line in enumerate(file.read().splitlines(), 1)]
    by = by or ("paragraph" if "" in "\n".join(lines).strip().split("\n") else "line")
    found: list[Passage] = []
    goes_on = False
    for number, line in enumerate(lines, 1):
        if line and by == "paragraph" and goes_on:
            found[-1] = Passage(found[-1].line, f"{found[-1].text}\n{line}")
        elif line:
            found.append(Passage(number, line))
        goes_on = bool(line)
    if not found:
        raise MiradaError(f"{path} has no text to search")
    return found


def _decoded(line: bytes, path, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError:
        raise UntrustedInputError(path, f"line {number}", "is not valid UTF-8: convert the "
                                  "file") from None


class Index:
    """The vectors of passages, ready to be searched.

    texts: passages, or texts (whose lines are then 1, 2 ...). model: a sentence encoder. One
    longer than the encoder reads is held as several pieces, and found by the nearest of them.
    prompt: a text or the name of one of the model's, put before each passage. vectors (N, D): of
    length one; owner (N,): the passage that each belongs to. Raises MiradaError.
    """

    def __init__(self, texts: Sequence[str | Passage], model: Model, *,
                 prompt: str | None = None, batch_size: int = 32, vectors: Tensor | None = None,
                 owner: Tensor | None = None):
        self.passages = [text if isinstance(text, Passage) else Passage(n, text)
                         for n, text in enumerate(texts, 1)]
        self.model, self.prompt = model, prompt
        if vectors is None:
            vectors, owner = self._encoded(batch_size)
        self.vectors, self.owner = vectors, owner

    def _encoded(self, batch_size: int) -> tuple[Tensor, Tensor]:
        needed(self.model)
        if not self.passages:
            raise MiradaError("there is nothing to search: give a text or more")
        recipe, vectors, owner = read(self.model), [], []
        before = prompted(recipe, self.prompt)
        with tqdm(total=len(self.passages), unit="passage", file=sys.stderr,
                  disable=not sys.stderr.isatty()) as bar:
            for start in range(0, len(self.passages), CHUNK):
                some = self.passages[start : start + CHUNK]
                parts = [long.pieces(self.model, before, one.text, recipe.most)
                         for one in some]
                vectors.append(embed(self.model, [piece for each in parts for piece in each],
                                     normalize=True, prompt=self.prompt, batch_size=batch_size))
                owner += [start + n for n, each in enumerate(parts) for _ in each]
                bar.update(len(some))
        return torch.cat(vectors), torch.tensor(owner)

    def search(self, query: str, k: int = 5, *, prompt: str | None = None) -> list[Hit]:
        """The k passages nearest to the query, best first. prompt: before the query, where the
        encoder wants another there."""
        if type(k) is not int or k < 1:
            raise MiradaError(f"k is {k!r}; it must be a whole number from 1")
        if not query.strip():
            raise MiradaError("the query is empty: say what to look for")
        asked = embed(self.model, query, normalize=True, prompt=prompt, truncation=True)
        nearest = torch.full((len(self.passages),), -torch.inf).scatter_reduce(
            0, self.owner, self.vectors @ asked, "amax")  # of a passage's pieces
        best = nearest.topk(min(k, len(nearest)))
        return [Hit(score, self.passages[n].line, self.passages[n].text)
                for score, n in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def save(self, path: str | Path) -> None:
        """Write the vectors as safetensors, with digests of the passages and the model."""
        path = Path(path)
        aside = path.with_name(path.name + f".{os.getpid()}.new")
        made = _made(self.passages, self.model, self.prompt)
        try:
            tensorfile.write_file(aside, [("vectors", self.vectors), ("owner", self.owner)], made)
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise WorkFailed(f"{path}: the index could not be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | Path, texts: Sequence[str | Passage], model: Model, *,
             prompt: str | None = None) -> Index:
        """The index that `save` wrote of the same texts and model. Raises MiradaError where it is
        of others: what it found would be wrong."""
        empty = torch.empty(0)
        index = cls(texts, model, prompt=prompt, vectors=empty, owner=empty)
        file = tensorfile.open_file(path)
        try:
            found = file.metadata
            for name, value in _made(index.passages, model, prompt).items():
                if found.get(name) != value:
                    raise MiradaError(f"the index {path} was made of another {name}: remove it, "
                                      "or name another")
            if not {"vectors", "owner"} <= set(file.names()):
                raise UntrustedInputError(path, "tensors", "an index has vectors and owner")
            index.vectors, index.owner = file.get("vectors"), file.get("owner")
        finally:
            file.close()
        _check(index, path)
        return index


def _made(found: list[Passage], model: Model, prompt: str | None) -> dict[str, str]:
    digest = hashlib.sha256()
    for one in found:
        digest.update(f"{one.line} {len(one.text)} {one.text}".encode())
    return {"text": digest.hexdigest(), "model": fingerprint(model), "prompt": repr(prompt)}


def _check(index: Index, path) -> None:
    """What a file says can be used as it stands."""
    vectors, owner, count = index.vectors, index.owner, len(index.passages)
    fits = (vectors.dtype == torch.float32 and vectors.ndim == 2 and owner.dtype == torch.int64
            and owner.shape == vectors.shape[:1] and len(owner) >= count
            and bool(((0 <= owner) & (owner < count)).all()) and bool(vectors.isfinite().all()))
    if not fits:
        raise UntrustedInputError(path, "vectors", "do not belong to the passages: remove the "
                                  "index and make it anew")


@dataclass(frozen=True)
class Found:
    """What a search came to, to be shown."""

    hits: list[Hit]

    def data(self) -> list[dict]:
        return [vars(hit) for hit in self.hits]

    def __str__(self) -> str:
        return "\n".join(f"{hit.score:7.4f}  line {hit.line}: " + hit.text.replace("\n", " ")
                         for hit in self.hits)

"""Run files (.xrun): a run's attention in a zip, to be opened later without its model.

They come from strangers: every name, size, shape and number is checked before it is used.
"""

from __future__ import annotations

import datetime
import io
import json
import re
import secrets
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from mirada.errors import UntrustedInputError
from mirada.look import reduce

from . import schema
from .errors import Refused
from .packing import packed
from .runs import Run

MOST = 256 << 20  # bytes of a file, and of the numbers in it
MANIFEST = 8 << 20
ENTRIES = 2000
NAME = re.compile(r"manifest\.json|resid/(?:encoder|decoder)\.safetensors"
                  r"|attn/(?:encoder|decoder|cross)/[0-9]{1,4}\.safetensors")
SLACK = 2e-3  # of a row's sum: half floats of many small weights
FILE = "the run file"


@dataclass
class Patterns:
    """Attention read from a file, asked like a Tape: weights (H, T, S) by stack and layer."""

    maps: dict[tuple[str, int], Tensor]
    windowed = False  # a run is of texts

    @property
    def stacks(self) -> list[str]:
        return list(dict.fromkeys(stack for stack, _ in self.maps))

    def layers(self, stack: str) -> list[int]:
        return sorted(layer for name, layer in self.maps if name == stack)

    def heads(self, layer: int, stack: str) -> int:
        return len(self.maps[stack, layer])

    def site(self, layer: int, stack: str) -> tuple[str, int]:
        return stack, layer

    def shape(self, layer: int, stack: str, run: int = -1) -> tuple[int, ...]:
        return (1, *self.maps[stack, layer].shape)

    def pattern(self, layer: int, heads, rows, stack: str, run: int = -1) -> Tensor:
        whole = self.maps[stack, layer]
        some = whole if heads is None else whole[heads]
        return (some if rows is None else some[:, rows.start : rows.stop])[None].float()

    def blocks(self, layer: int, heads, stack: str, run: int = -1) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.pattern(layer, heads, None, stack)

    def topk(self, layer: int, k: int, heads, rows, stack: str):
        return reduce.largest(self.pattern(layer, heads, rows, stack), k)


@dataclass
class Opened:
    """A run that came from a file: what it shows needs no model."""

    id: str
    manifest: dict
    tape: Patterns
    streams: dict[str, dict[str, Tensor]]
    bytes: int
    made: str
    served = None
    state = "kept"

    @property
    def tokens(self) -> dict:
        return self.manifest["tokens"]

    @property
    def inputs(self) -> dict:
        return self.manifest["inputs"]

    @property
    def main(self) -> str:
        return "decoder" if "decoder" in self.tokens else "encoder"

    def kept(self) -> Patterns:
        return self.tape

    def lengths(self) -> dict[str, dict[str, Tensor]]:
        if not self.streams:
            raise Refused(409, "conflict", "this run file holds no lengths")
        return self.streams

    def data(self) -> dict:
        return self.manifest


def pack(run: Run) -> bytes:
    """The bytes of a run file: weights as half floats. Raises Refused where they are too many."""
    tape = run.kept()
    sites = [(stack, layer) for stack in tape.stacks for layer in tape.layers(stack)]
    count = sum(numpy.prod(tape.shape(layer, stack)) for stack, layer in sites)
    if 2 * count > MOST:
        raise Refused(413, "too_large", f"this run's attention has {2 * count / 2**20:,.0f} MiB as "
                      f"half floats and a run file may have {MOST >> 20}",
                      advice="export a shorter text")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("manifest.json", json.dumps(run.data(), ensure_ascii=False))
        for stack, layer in sites:
            weights = tape.pattern(layer, None, None, stack)[0]
            file.writestr(f"attn/{stack}/{layer}.safetensors",
                          packed({"pattern": weights.half().numpy()}))
        for stack, of in run.lengths().items():
            file.writestr(f"resid/{stack}.safetensors",
                          packed({name: x.numpy() for name, x in of.items()}))
    return out.getvalue()


def unpack(content: bytes) -> Opened:
    """The run in a file. Raises UntrustedInputError."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            parts = _parts(file)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise UntrustedInputError(FILE, "zip", f"is no readable zip: {error}") from None
    manifest = _manifest(parts.pop("manifest.json", None))
    maps, lengths = {}, {}
    for name, body in parts.items():
        kind, stack, *layer = name.removesuffix(".safetensors").split("/")
        if kind == "attn":
            maps[stack, int(layer[0])] = _pattern(body, name, manifest, stack, int(layer[0]))
        else:
            lengths[stack] = _lengths(body, name, manifest, stack)
    if not maps:
        raise UntrustedInputError(FILE, "attn", "holds no attention")
    id = f"r_{secrets.token_hex(6)}"
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    manifest |= {"run": id, "state": "kept", "caps": ["attn", *["resid"] * bool(lengths)]}
    manifest["model"]["live"] = False
    manifest["numerics"]["stored"] = "f16"
    return Opened(id, manifest, Patterns(dict(sorted(maps.items()))), lengths,
                  sum(x.nbytes for x in maps.values()), now)


def _parts(file: zipfile.ZipFile) -> dict[str, bytes]:
    """Every entry's bytes by name: few, known, each once, and no more than they say."""
    entries = file.infolist()
    if len(entries) > ENTRIES:
        raise UntrustedInputError(FILE, "entries", f"has {len(entries)}; at most {ENTRIES}")
    if len({e.filename for e in entries}) != len(entries):
        raise UntrustedInputError(FILE, "entries", "two have one name")
    parts, left = {}, MOST
    for entry in entries:
        if not NAME.fullmatch(entry.filename):
            raise UntrustedInputError(FILE, entry.filename, "is no part of a run file")
        limit = min(left, MANIFEST) if entry.filename == "manifest.json" else left
        with file.open(entry) as part:  # what the header says of its size is not believed
            body = part.read(limit + 1)
        if len(body) > limit:
            raise UntrustedInputError(FILE, entry.filename, f"unpacks to more than {limit:,} bytes")
        left -= len(body)
        parts[entry.filename] = body
    return parts


def _manifest(body: bytes | None) -> dict:
    if body is None:
        raise UntrustedInputError(FILE, "manifest.json", "is missing")
    try:
        manifest = json.loads(body)
        schema.check(manifest, "run")
    except (ValueError, RecursionError):
        raise UntrustedInputError(FILE, "manifest.json", "is not JSON") from None
    except Refused as refused:
        raise UntrustedInputError(FILE, "manifest.json", str(refused)) from None
    if not manifest["tokens"].keys() <= {"encoder", "decoder"} or not manifest["tokens"]:
        raise UntrustedInputError(FILE, "tokens", "must be of encoder or decoder")
    return manifest


def _pattern(body: bytes, name: str, manifest: dict, stack: str, layer: int) -> Tensor:
    told = next((s for s in manifest["model"]["stacks"] if s["id"] == stack), None)
    if told is None or layer >= len(told["layers"]) or not {told["queries"], told["keys"]} <= (
            manifest["tokens"].keys()):
        raise UntrustedInputError(FILE, name, "the manifest knows no such layer")
    shape = (told["layers"][layer]["heads"], len(manifest["tokens"][told["queries"]]),
             len(manifest["tokens"][told["keys"]]))
    x = _tensors(body, name).get("pattern")
    if x is None or x.shape != shape or x.dtype != numpy.float16:
        raise UntrustedInputError(FILE, name, f"must hold pattern, half floats of shape {shape}")
    x = torch.from_numpy(x)
    sums = x.float().sum(-1)
    if not bool((x >= 0).all()) or not bool((sums <= 1 + SLACK * max(1, shape[2] / 512)).all()):
        raise UntrustedInputError(FILE, name, "must hold weights, whose rows sum to 1 or less")
    return x


def _lengths(body: bytes, name: str, manifest: dict, stack: str) -> dict[str, Tensor]:
    T = len(manifest["tokens"].get(stack, ()))
    found = {}
    for part, x in _tensors(body, name).items():
        if part not in ("x", "attn", "cross", "mlp") or x.ndim != 2 or x.shape[1] != T or (
                x.dtype != numpy.float32):
            raise UntrustedInputError(FILE, name, f"must hold lengths of {T} tokens")
        found[part] = torch.from_numpy(x)
    return found


def _tensors(body: bytes, name: str) -> dict[str, numpy.ndarray]:
    try:
        return safetensors.numpy.load(body)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError):
        raise UntrustedInputError(FILE, name, "is no safetensors") from None

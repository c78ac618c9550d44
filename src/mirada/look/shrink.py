"""Quantize a model into a new file or folder, and say what that cost."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mirada import registry
from mirada.edit.small import quantize, type_of
from mirada.errors import MiradaError
from mirada.kernels.blocks import GGML
from mirada.look.describe import size
from mirada.look.quality import Quality, quality
from mirada.weights.packed import OURS

TABLES = "Q6_K"  # of a GGUF file, where nobody says: as llama.cpp's own files have them


@dataclass(frozen=True)
class Shrunk:
    """What was written, how large it is, and its loss where a text was given."""

    path: str
    nbytes: int
    loss: Quality | None

    def data(self) -> dict:
        """For programs."""
        return {"path": self.path, "bytes": self.nbytes, "loss": self.loss and self.loss.data()}

    def __str__(self) -> str:
        written = f"{'written':16} {self.path}, {size(self.nbytes)}"
        return written if self.loss is None else f"{written}\n{self.loss}"


def shrink(model, to: str, out, *, tables: str | None = None, skip: Iterable[str] = (),
           text: str | None = None, calibrate: str | None = None) -> Shrunk:
    """Quantize `model` and write it: to a .gguf, or to a folder as bitsandbytes keeps weights.

    The types of a folder are int8, nf4 and fp4; those of a .gguf are GGUF's own (int8: Q8_0).
    text: to compare both models on. For the rest see edit.quantize. Raises MiradaError before any
    work where `out` cannot be.
    """
    out, type = Path(out), type_of(to)
    if os.path.lexists(out):
        raise MiradaError(f"{out} is there already; nothing was written. Choose another name")
    if out.suffix == ".gguf":
        to, tables = ("Q8_0" if type == "I8" else to), tables or TABLES
        if type != "I8" and type not in GGML:
            raise MiradaError(f"GGUF has no {to}: take int4 or a type of GGUF's, or let the output "
                              "be a folder")
    elif type not in OURS:
        raise MiradaError(f"a folder of safetensors has no {type}: take int8 or nf4, or let the "
                          "output's name end in .gguf")
    small = quantize(model, to, tables=tables, skip=skip, calibrate=calibrate)
    loss = None if text is None else quality(model, small, text)
    written = registry.save(small, out)
    files = [written] if written.is_file() else [p for p in written.rglob("*") if p.is_file()]
    return Shrunk(str(written), sum(p.stat().st_size for p in files), loss)

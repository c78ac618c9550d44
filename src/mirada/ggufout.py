"""A model as one GGUF file, which llama.cpp and its many children read."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mirada.core.linear import KEPT
from mirada.errors import MiradaError
from mirada.kernels.blocks import GGML, fitting
from mirada.kernels.pack import pack
from mirada.model import Model
from mirada.models import gguf
from mirada.models.dialect import Dialect
from mirada.models.dialects import DIALECTS
from mirada.weights import jsonfile
from mirada.weights.ggufwrite import FILE_TYPES, Entry, write
from mirada.weights.rows import Step

PLAIN = {torch.float32: "F32", torch.float64: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
WIDE = ("F32", "F16", "BF16")
TABLES = "Q6_K"  # what token tables and heads get in files of fewer bits, as in llama.cpp's own
POOLINGS = {1: "mean_tokens", 2: "cls_token", 3: "lasttoken"}  # GGUF's, sentence-transformers'
NO_TOKENIZER = "no_vocab"  # llama.cpp's word for a file without one
# llama.cpp adds these, and only to F32; a router's and a bias table's few numbers stay as exact
ALWAYS_WIDE = ("position_embd", "token_types", "rope_freqs", "ffn_gate_inp", "attn_rel_b")


def save(model: Model, paths: dict, state: dict, path, raw: dict, type: str | None = None) -> Path:
    """Write a model as GGUF. paths, state: as registry.held has them; raw: its config.json; type:
    of its matrices, what they are when None.

    Norms, biases and learned positions are F32 in every file. Rows of no whole 256 get a type of 32
    (kernels.blocks.SHORTER), rows that no block fits F16; token tables and heads at least TABLES.
    Raises MiradaError for what llama.cpp has no words for, or what would be rounded twice.
    """
    name, dialect = dialect_of(model)
    type = type and type.upper()
    if type not in (None, *GGML):
        raise MiradaError(f"{type!r} is no type of GGUF; there are {', '.join(GGML)}")
    entries = list(_entries(dialect.weights(model.config).bind(paths, False), paths, state, type))
    factors = gguf.factors(model.config, model.decoder.blocks[0].attn.f.q.out_features
                           // model.config.heads)
    if factors is not None:
        entries.append(_entry(gguf.FACTORS, "F32", tuple(factors.shape), lambda: factors))
    return write(path, _metadata(model, dialect, name, raw, entries), entries)


def dialect_of(model: Model) -> tuple[str, Dialect]:
    """The architecture's name in GGUF and what it means. Raises MiradaError where there is none."""
    for name, dialect in DIALECTS.items():
        if model.architecture in (dialect.head, *dialect.also):
            return name.partition(":")[0], dialect
    raise MiradaError(f"llama.cpp has no {model.architecture}; to GGUF go "
                      f"{', '.join(d.head for d in DIALECTS.values())}")


def _metadata(model: Model, dialect: Dialect, name: str, raw: dict, entries: list[Entry]) -> dict:
    sizes: dict[str, int] = {}
    for entry in entries:
        sizes[entry.type] = sizes.get(entry.type, 0) + math.prod(entry.shape)
    if "pooling_type" in dialect.keys:
        raw = raw | _pooled(model)
    most = max(sizes, key=sizes.get)
    count = sum(sizes.values())
    found = {
        "general.architecture": name, "general.type": "model",
        "general.name": Path(model.origin.path or model.family).stem,
        "general.size_label": f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M",
        "general.file_type": FILE_TYPES[most], "general.quantization_version": 2,
        **dialect.metadata(raw, name),
    }
    words = {"tokenizer.ggml.model": NO_TOKENIZER}
    if model.tokenizer is not None:
        from mirada.text.asgguf import metadata
        words = metadata(model.tokenizer, raw["vocab_size"])
    if name == "bert":  # of its table of segments, though it stands among the tokenizer's keys
        words["tokenizer.ggml.token_type_count"] = raw["type_vocab_size"]
    return found | words


def _pooled(model: Model) -> dict:
    """How a sentence encoder's folder says that tokens become one vector."""
    where = Path(model.origin.path or ".") / "1_Pooling" / "config.json"
    if model.origin.path is None or not where.is_file():
        return {}
    said = jsonfile.read(where)
    modes = [n for n, word in POOLINGS.items()
             if isinstance(said, dict) and said.get(f"pooling_mode_{word}")]
    if len(modes) != 1:
        raise MiradaError(f"{where}: llama.cpp pools in one way, {', '.join(POOLINGS.values())}")
    return {"pooling_type": modes[0]}


def _entries(steps: list[Step], paths: dict, state: dict, type: str | None):
    """Each tensor of the file, its numbers made only when they are written."""
    for step in steps:
        if any(paths[ours] == ours for ours in step.ours):  # else the other end of a tie
            yield from _made(step, [state[paths[ours]] for ours in step.ours], type)


def _made(step: Step, held: list, type: str | None):
    kinds = {h.type if isinstance(h, KEPT) else None for h in held}
    kept = kinds.pop() if len(kinds) == 1 else None
    shapes = step.op.save([torch.empty(h.shape, device="meta") for h in held])
    for n, (name, meta) in enumerate(zip(step.files, shapes, strict=True)):
        shape = tuple(meta.shape)
        wanted = _type(name, shape, type, _own(held[0]))
        if kept == wanted and step.op.rowwise:
            yield Entry(name, wanted, shape, partial(_blocks, step, held, n))
            continue
        if kept not in (None, *WIDE) and wanted not in WIDE:
            raise MiradaError(f"{name} is in {kept} blocks, and rounding twice loses twice: give "
                              "the file no type, or load the model with dtype=torch.float32")
        yield _entry(name, wanted, shape, partial(_numbers, step, held, n))


def _blocks(step: Step, held: list, n: int) -> Tensor:
    return step.op.save([h.blocks for h in held])[n]


def _numbers(step: Step, held: list, n: int) -> Tensor:
    return step.op.save([h.expand() if isinstance(h, KEPT) else h for h in held])[n]


def _own(held) -> str:
    """The type of a file that is told none; blocks that GGUF lacks become the next it has."""
    if isinstance(held, KEPT):
        return held.type if held.type in GGML else "F16"
    return PLAIN[held.dtype] if held.dtype in PLAIN else "F32"


def _entry(name: str, type: str, shape: tuple[int, ...], numbers) -> Entry:
    return Entry(name, type, shape, lambda: pack(numbers(), type))


def _type(name: str, shape: tuple[int, ...], asked: str | None, own: str) -> str:
    if len(shape) < 2 or any(word in name for word in ALWAYS_WIDE):
        return "F32"
    type = asked or own
    table = name in ("token_embd.weight", "output.weight")
    if asked and table and asked.startswith(("Q4", "Q5")):
        type = TABLES
    return fitting(type, shape[-1]) or "F16"

"""Quantized safetensors as people publish them: GPTQ (2210.17323), AWQ (2306.00978), bitsandbytes
(LLM.int8 2208.07339, QLoRA 2305.14314). Each weight is the number its format defines, exactly.

A `Packed` stands before a checkpoint and shows each weight under its plain name: in blocks where
one of kernels.blocks holds the same numbers, else expanded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mirada.errors import UntrustedInputError
from mirada.kernels.blocks import FP4, NF4, expand
from mirada.weights import jsonfile

METHODS = ("gptq", "awq", "bitsandbytes")
FLAVOURS = {"gptq": ("checkpoint_format", ("gptq", "gptq_v2")), "awq": ("version", ("gemm",))}
STATE = "quant_state.bitsandbytes__"
ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where AWQ keeps eight neighbours in a word
SIDE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


class Packed:
    """A checkpoint whose quantized weights are shown under their plain names.

    method: quantization_config of config.json. Raises UntrustedInputError for a method that is not
    read here, and for parts that do not fit together.
    """

    def __init__(self, inner, method: dict, where: Path):
        self.inner, self.where = inner, where
        self.metadata, self.files = inner.metadata, inner.files
        kind = method.get("quant_method") if isinstance(method, dict) else None
        if kind not in METHODS:
            raise UntrustedInputError(where, "quantization_config", f"the method {kind!r} is not "
                                      f"one that mirada reads: {', '.join(METHODS)}")
        key, known = FLAVOURS.get(kind, ("", ()))
        flavour = str(method.get(key) or known[0]).lower() if known else None
        bits = method.get("bits", 4) if known else None
        if known and (flavour not in known or bits not in ((4, 8) if kind == "gptq" else (4,))):
            raise UntrustedInputError(where, "quantization_config", f"{kind} with {bits!r} bits in "
                                      f"the form {flavour!r} is not read here")
        self.weights: dict[str, _Words | _Book | _Rows] = {}
        hidden: set[str] = set()
        for weight in _found(self, kind, flavour, bits):
            self.weights[weight.name + ".weight"] = weight
            hidden.update(weight.parts())
        self._plain = [n for n in inner.names() if n not in hidden]
        kinds = (inner.dtype(n) for n in self._plain)
        self._wide = next((k for k in kinds if k.is_floating_point), torch.float32)

    def names(self) -> list[str]:
        return [*self._plain, *self.weights]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.weights[name].shape if name in self.weights else self.inner.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's own; of an expanded weight, that of the tensors beside it."""
        return self._wide if name in self.weights else self.inner.dtype(name)

    def form(self, name: str) -> str | None:
        """The block type in which a tensor may stay, or None."""
        return self.weights[name].form() if name in self.weights else None

    def blocks(self, name: str) -> Tensor:
        """A weight in blocks of `form`: (out, bytes per row) uint8."""
        return self.weights[name].blocks()

    def get(self, name: str) -> Tensor:
        return self.weights[name].numbers() if name in self.weights else self.inner.get(name)

    def fail(self, name: str, limit: str) -> UntrustedInputError:
        return UntrustedInputError(self.where, f"tensor {name!r}", limit)


@dataclass
class _Weight:
    """One quantized projection: `name` without its last part."""

    reader: Packed
    name: str

    def part(self, end: str) -> Tensor:
        return self.reader.inner.get(self.name + end)

    def fail(self, end: str, limit: str) -> UntrustedInputError:
        return self.reader.fail(self.name + end, limit)


def _found(reader: Packed, kind: str, flavour, bits) -> Iterator[_Words | _Book | _Rows]:
    names = set(reader.inner.names())
    for name in reader.inner.names():
        base, _, last = name.rpartition(".")
        if kind != "bitsandbytes" and last == "qweight":
            yield _Words(reader, base, kind, flavour, bits)
        elif kind == "bitsandbytes" and f".weight.{STATE}" in name:
            yield _Book(reader, name.partition(".weight.")[0], name)
        elif kind == "bitsandbytes" and last == "SCB" and base + ".weight" in names:
            yield _Rows(reader, base)


class _Words(_Weight):
    """GPTQ and AWQ: codes of 4 or 8 bits in 32-bit words, a scale and a zero for each group of
    inputs: w = scale * (code - zero)."""

    def __init__(self, reader: Packed, name: str, kind: str, flavour: str, bits: int):
        super().__init__(reader, name)
        self.kind, self.bits, per = kind, bits, 32 // bits
        self.later = 1 if (kind, flavour) == ("gptq", "gptq") else 0  # v1 files keep zero - 1
        words, scales, zeros = (self._shape(end) for end in (".qweight", ".scales", ".qzeros"))
        rows, columns = (words[0] * per, words[1]) if kind == "gptq" else (words[0], words[1] * per)
        groups = scales[0]
        if scales[1] != columns or zeros != (groups, columns // per) or not groups or (
                rows % groups and not self._ordered()):
            raise self.fail(".qweight", f"{list(words)} does not fit scales {list(scales)} and "
                            f"qzeros {list(zeros)}")
        self.shape = (columns, rows)  # (out, in)

    def parts(self) -> list[str]:
        ends = [".qweight", ".qzeros", ".scales", *[".g_idx"] * self._ordered()]
        return [self.name + end for end in ends]

    def form(self) -> str | None:
        """Where groups follow each other, blocks hold the same numbers: ggml's own where zero is
        the middle."""
        size = self.shape[1] // len(self.part(".scales"))
        if size % 32 or (self._groups() != torch.arange(self.shape[1]) // size).any() or (
                self.part(".scales").dtype != torch.float16):
            return None
        middle = bool((self._zeros() == 1 << self.bits - 1).all())
        return {4: "Q4_0" if middle else "U4", 8: "Q8_0" if middle else None}[self.bits]

    def blocks(self) -> Tensor:
        codes = self._codes().view(self.shape[0], -1, 32)  # (out, in / 32, 32)
        heads = [self.part(".scales"), self._zeros().half()][: 1 + (self.form() == "U4")]
        wide = [h.T.repeat_interleave(codes.shape[1] // len(h), 1)[..., None] for h in heads]
        held = codes ^ 128  # as signed
        if self.bits == 4:
            held = codes[..., :16] | codes[..., 16:] << 4
        packed = [h.contiguous().view(torch.uint8) for h in wide]
        return torch.cat([*packed, held], -1).flatten(1)

    def numbers(self) -> Tensor:
        group = self._groups()
        zeros, scales = self._zeros().T[:, group], self.part(".scales").T[:, group]
        return (self._codes().int() - zeros).float() * scales.float()

    def _shape(self, end: str) -> tuple[int, ...]:
        name = self.name + end
        if name not in self.reader.inner:
            raise self.fail(end, "is missing")
        shape, dtype = self.reader.inner.shape(name), self.reader.inner.dtype(name)
        if len(shape) != 2 or dtype.is_floating_point != (end == ".scales") or (
                end != ".scales" and dtype != torch.int32):
            raise self.fail(end, f"is {dtype} of shape {list(shape)}")
        return tuple(shape)

    def _ordered(self) -> bool:
        return self.name + ".g_idx" in self.reader.inner

    def _groups(self) -> Tensor:
        """The group of each input; GPTQ's desc_act leaves them in no order."""
        rows, groups = self.shape[1], self.reader.inner.shape(self.name + ".scales")[0]
        if not self._ordered():
            return torch.arange(rows) // (rows // groups)
        found = self.part(".g_idx").long()
        if found.shape != (rows,) or not 0 <= int(found.min()) <= int(found.max()) < groups:
            raise self.fail(".g_idx", f"must name one of {groups} groups for each of {rows} inputs")
        return found

    def _zeros(self) -> Tensor:
        """(groups, out)"""
        return self._unpacked(self.part(".qzeros")).int() + self.later

    def _codes(self) -> Tensor:
        """(out, in) uint8"""
        words = self.part(".qweight")
        if self.kind == "gptq":
            return self._unpacked(words.T)
        return self._unpacked(words).T.contiguous()

    def _unpacked(self, words: Tensor) -> Tensor:
        """(n, m) words -> (n, m * 32 / bits) codes, the lowest first."""
        apart = words[..., None] >> torch.arange(0, 32, self.bits, dtype=torch.int32)
        apart = apart & ((1 << self.bits) - 1)
        if self.kind == "awq":
            apart = apart[..., ORDER]
        return apart.to(torch.uint8).flatten(1)


class _Book(_Weight):
    """bitsandbytes in 4 bits: codes into a book of 16 numbers, a scale for each `blocksize`."""

    def __init__(self, reader: Packed, name: str, state: str):
        super().__init__(reader, name)
        self.file = state
        data = reader.inner.get(state)
        found = jsonfile.parse(data.numpy().tobytes(), reader.where, limit=1 << 16)
        found = found if isinstance(found, dict) else {}
        shape, size = found.get("shape"), found.get("blocksize")
        if not isinstance(shape, list) or len(shape) != 2 or not all(
                type(n) is int and n > 0 for n in shape) or type(size) is not int or size < 1:
            raise reader.fail(state, "must say the weight's shape and its blocksize")
        self.shape, self.size, self.state = tuple(shape), size, found
        count = shape[0] * shape[1]
        held = reader.inner.shape(name + ".weight")
        if count != 2 * held[0] or self._shape(".weight.absmax") != (-(-count // size),) or (
                self._shape(".weight.quant_map") != (16,)):
            raise self.fail(".weight", f"{list(held)} bytes do not fit the shape {shape}")

    def parts(self) -> list[str]:
        ends = [end for end in SIDE if f"{self.name}.weight{end}" in self.reader.inner]
        return [self.file, *(f"{self.name}.weight{end}" for end in ("", *ends))]

    def form(self) -> str | None:
        """Where its book is one of ours and no block crosses from row to row."""
        book = self.part(".weight.quant_map").float()
        named = [name for name, ours in (("NF4", NF4), ("FP4", FP4)) if torch.equal(book, ours)]
        return named[0] if named and self.size == 64 and self.shape[1] % 64 == 0 else None

    def blocks(self) -> Tensor:
        codes = self.part(".weight").view(self.shape[0], -1, 32)
        scales = self._scales().view(*codes.shape[:2], 1)
        return torch.cat([scales.view(torch.uint8), codes], -1).flatten(1)

    def numbers(self) -> Tensor:
        packed = self.part(".weight").flatten()
        codes = torch.stack([packed >> 4, packed & 15], -1).flatten()
        scales = self._scales().repeat_interleave(self.size)[: len(codes)]
        return (self.part(".weight.quant_map").float()[codes.int()] * scales).view(self.shape)

    def _scales(self) -> Tensor:
        """A float32 a block; rounded to 8 bits themselves where the quantization is double."""
        scales = self.part(".weight.absmax")
        if scales.dtype.is_floating_point:
            return scales.float()
        size = self.state.get("nested_blocksize")
        book, tops = (self.part(f".weight.nested_{end}").float() for end in ("quant_map", "absmax"))
        if scales.dtype != torch.uint8 or type(size) is not int or len(book) != 256 or (
                len(tops) != -(-len(scales) // max(size, 1))):
            raise self.fail(".weight.nested_absmax", "does not fit the blocks it scales")
        wide = book[scales.int()] * tops.repeat_interleave(size)[: len(scales)]
        return wide + float(self.state.get("nested_offset", 0.0))

    def _shape(self, end: str) -> tuple[int, ...]:
        if self.name + end not in self.reader.inner:
            raise self.fail(end, "is missing")
        return tuple(self.reader.inner.shape(self.name + end))


class _Rows(_Weight):
    """bitsandbytes in 8 bits: int8 codes and each row's largest magnitude."""

    def __init__(self, reader: Packed, name: str):
        super().__init__(reader, name)
        self.shape = tuple(reader.inner.shape(name + ".weight"))
        scales = reader.inner.shape(name + ".SCB"), reader.inner.dtype(name + ".SCB")
        codes = reader.inner.dtype(name + ".weight")
        if len(self.shape) != 2 or scales != ((self.shape[0],), torch.float32) or (
                codes != torch.int8):
            raise self.fail(".SCB", f"does not fit {codes} weights of shape {list(self.shape)}")

    def parts(self) -> list[str]:
        ends = [".weight", ".SCB", *[".weight_format"] * (
            self.name + ".weight_format" in self.reader.inner)]
        return [self.name + end for end in ends]

    def form(self) -> str:
        return "I8"

    def blocks(self) -> Tensor:
        scales = self.part(".SCB")[:, None].view(torch.uint8)
        return torch.cat([scales, self.part(".weight").view(torch.uint8)], 1)

    def numbers(self) -> Tensor:
        return expand(self.blocks(), "I8")


OURS = ("I8", "NF4", "FP4")  # block types that bitsandbytes' files hold as they are


def written(name: str, blocks: Tensor, type: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors that bitsandbytes keeps of one weight, `name` (its `.weight`) among them.

    blocks: (out, bytes per row) of a type of OURS. dtype: what readers expand it to.
    """
    if type == "I8":
        base = name.removesuffix(".weight")
        return {name: blocks[:, 4:].contiguous().view(torch.int8),
                base + ".SCB": blocks[:, :4].contiguous().view(torch.float32)[:, 0],
                base + ".weight_format": torch.zeros((), dtype=torch.uint8)}
    apart = blocks.view(len(blocks), -1, 36)
    shape = [len(blocks), apart.shape[1] * 64]
    state = {"quant_type": type.lower(), "blocksize": 64, "shape": shape,
             "dtype": str(dtype).removeprefix("torch.")}
    text = json.dumps(state).encode()
    return {name: apart[..., 4:].reshape(-1, 1),
            name + ".absmax": apart[..., :4].contiguous().view(torch.float32).flatten(),
            name + ".quant_map": (NF4 if type == "NF4" else FP4).clone(),
            f"{name}.{STATE}{type.lower()}": torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def config(names: Iterable[str], dtype: torch.dtype) -> dict:
    """What config.json adds for a file of these tensors: nothing where none is quantized."""
    eight = any(name.endswith(".SCB") for name in names)
    four = {name.rpartition("__")[2] for name in names if STATE in name}
    if not eight and not four:
        return {}
    found = {"quant_method": "bitsandbytes", "load_in_8bit": eight, "load_in_4bit": not eight}
    if four:
        found |= {"bnb_4bit_quant_type": four.pop(), "bnb_4bit_use_double_quant": False,
                  "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
    return {"quantization_config": found}

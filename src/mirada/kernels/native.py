"""The native runtime: runtime.c built where a compiler is, and programs of its operators run."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from threading import Lock

import numpy
import torch
from torch import Tensor

from mirada.errors import MiradaError

SOURCE = Path(__file__).with_name("runtime.c")
FLAGS = ("-O2", "-march=native", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread",
         "-Wno-psabi")
PAGE = 32  # tokens in a page of the pool, as in runtime.c
CHUNK = 512  # tokens that one step of the runtime takes: bounds its buffers
BUFFERS = 16
REUSE, OPEN, ADD, INTERLEAVED, BOTH, MEMORY = 1, 2, 4, 8, 16, 32  # flags of an operator
RMS, LAYER = 1, 2
OPERATORS = ("embed", "norm", "linear", "turn", "attend", "gather", "scale", "cap",
             "route", "experts", "weigh", "take")
KINDS = {"F32": 0, "F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
         "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "I8": 256, "NF4": 257,
         "FP4": 258}  # what a weight may be, by ggml's numbers and, from 256 on, the runtime's own
CACHES = {"float32": (0, 4, 0), "float16": (1, 2, 0),
          "int8": (2, 1, 4)}  # how keys may be kept: its number, bytes a number, bytes of a scale
FLOATS = ("F32", "F16", "BF16", "NF4", "FP4")  # those that meet activations as they are
REFUSALS = {1: "a token id is not of the vocabulary", 2: "a token's row has no table",
            3: "a position lies beyond its row's table or the model's positions",
            4: "a table names a page that the pool lacks",
            5: "a scored token is not one of the step's", 6: "there is no memory for the step",
            7: "a token's segment is none of the model's",
            8: "the step needs states, or the length of each row's source, and was given none"}


class Matrix(ctypes.Structure):
    _fields_ = [("kind", c_int32), ("rows", c_int32), ("cols", c_int32), ("unused", c_int32),
                ("data", c_void_p), ("bias", c_void_p)]


class Operator(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in (
        "op", "flags", "src", "dst", "width", "kind", "act", "norm", "heads", "kv_heads", "head",
        "value", "turning", "window", "extra", "unused")]
    _fields_ += [(name, c_float) for name in ("eps", "scale", "cap", "eps_k")]
    _fields_ += [(name, c_int32) for name in ("experts", "top")]
    _fields_ += [("at_k", c_int64), ("at_v", c_int64), ("p", c_void_p * 4), ("a", Matrix),
                 ("gate", Matrix)]


class Program(ctypes.Structure):
    _fields_ = [("ops", ctypes.POINTER(Operator))]
    _fields_ += [(name, c_int32) for name in (
        "count", "buffers", "cache", "group", "vocab", "positions", "out", "types")]
    _fields_ += [("width", c_int32 * BUFFERS), ("page_bytes", c_int64)]


class Packing(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in ("type", "rows", "cols", "stays")]
    _fields_ += [("source", c_void_p), ("target", c_void_p)]


class Batch(ctypes.Structure):
    _fields_ = [(name, c_int32) for name in (
        "tokens", "sequences", "pages", "scored", "pool_pages", "unused")]
    _fields_ += [(name, c_void_p) for name in (
        "ids", "positions", "rows", "tables", "score", "pool", "out", "types", "memory", "given")]


class Unbuilt(MiradaError):
    """The runtime cannot be had on this machine; the message says why."""


@cache
def library(*more: str) -> ctypes.CDLL:
    """The runtime, compiled at first use (a few seconds) and kept in the user's cache folder.

    more: further flags of the compiler. Raises Unbuilt.
    """
    if os.environ.get("MIRADA_NATIVE") == "0":
        raise Unbuilt("MIRADA_NATIVE=0 turns the native runtime off")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise Unbuilt("the native runtime needs a C compiler (cc, gcc or clang), and there is none")
    if platform.system() == "Windows":
        raise Unbuilt("the native runtime is for Linux and macOS")
    target = _folder() / f"runtime-{_key(compiler, more)}.so"
    if not target.exists():
        _compile(compiler, more, target)
    try:
        lib = ctypes.CDLL(str(target))
    except OSError as error:
        raise Unbuilt(f"the native runtime was built and cannot be loaded: {error}") from None
    lib.mirada_packed_bytes.restype = c_int64
    lib.mirada_memory.restype = c_void_p
    lib.mirada_memory.argtypes = [c_int64]
    lib.mirada_release.argtypes = lib.mirada_forget.argtypes = [c_void_p, c_int64]
    lib.mirada_pack.argtypes = [ctypes.POINTER(Packing), c_int32, c_int32]
    lib.mirada_expand.argtypes = [c_int32] * 2 + [c_void_p] * 2
    return lib


def way(codes: int) -> tuple[str, ...]:
    """The flags of a runtime whose activations have 16 bits or 8. Raises MiradaError."""
    if codes not in (8, 16):
        raise MiradaError(f"codes is {codes}; activations have 8 bits or 16")
    return () if codes == 16 else ("-DDEEP=0",)


def missing() -> str | None:
    """Why there is no native runtime here, or None where there is one (building it if need be)."""
    try:
        library()
    except Unbuilt as error:
        return str(error)
    return None


def _folder() -> Path:
    """The cache folder, this user's alone: what lies in it is run."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "mirada"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = folder.stat()
    except (OSError, RuntimeError) as error:
        raise Unbuilt(f"{folder} cannot be made for the native runtime: {error}") from None
    if stat.st_uid != os.getuid() or stat.st_mode & 0o022:
        raise Unbuilt(f"{folder} may be written by others: chmod 700 {folder}, or set "
                      "XDG_CACHE_HOME to a folder of your own")
    return folder


def _key(compiler: str, more: tuple[str, ...]) -> str:
    """Of the source, the compiler and the processor: a cache may be shared by several machines."""
    found = hashlib.sha256(SOURCE.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    able = next((x for x in lines if x.startswith(("flags", "Features"))), lines[0])
    for part in (*FLAGS, *more, version.stdout, platform.machine(), able):
        found.update(part.encode() + b"\0")
    return found.hexdigest()[:20]


def _compile(compiler: str, more: tuple[str, ...], target: Path) -> None:
    if sys.stderr.isatty():
        print("building the native runtime (once, a few seconds)", file=sys.stderr)
    handle, aside = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(handle)
    try:
        done = subprocess.run([compiler, *FLAGS, *more, "-o", aside, str(SOURCE), "-lm"],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            line = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
            raise Unbuilt(f"{compiler} could not build the native runtime: {line}")
        os.rename(aside, target)  # two processes may build at once: each renames a whole file
    finally:
        Path(aside).unlink(missing_ok=True)


class Memory:
    """Bytes outside torch's allocator, in huge pages where there are such; freed with this."""

    def __init__(self, lib: ctypes.CDLL, size: int):
        self.lib, self.size, self.used = lib, size, 0
        self.start = lib.mirada_memory(max(size, 1))
        if not self.start:
            raise MiradaError(f"there is no memory for {size:,} bytes of weights")

    def take(self, size: int) -> int:
        """The address of the next `size` bytes."""
        at = self.start + self.used
        self.used += size
        return at

    def __del__(self):
        if getattr(self, "start", None):
            self.lib.mirada_release(self.start, max(self.size, 1))


def laid_out(program: Program, cache: str, source: Program | None = None) -> tuple:
    """The programs with keys and values kept as one of CACHES: each operator told where in a page.

    Layers that see both ways share one place, for what one keeps no step reads after it. A source's
    keys and values, which MEMORY looks at, lie before the text's own.
    """
    if cache not in CACHES:
        raise MiradaError(f"no cache is kept in {cache!r}; there are {', '.join(CACHES)}")
    number, size, scale = CACHES[cache]
    end, there = 0, []

    def spots(op: Operator, start: int) -> tuple[int, int, int]:
        """Where its keys begin, its values, and what lies behind them."""
        slots, wide = op.kv_heads * PAGE, -(-op.value // 16) * 16
        at_v = start + slots * (op.head * size + scale)
        return start, at_v, at_v + slots * (wide * size + scale)

    new: list[Program | None] = []
    for old in (source, program):
        if old is None:
            new.append(None)
            continue
        ops = (Operator * old.count)()
        ctypes.memmove(ops, old.ops, ctypes.sizeof(ops))
        other, at_k, at_v = iter(there), 0, 0
        for op in ops:
            if op.op == OPERATORS.index("turn"):
                at_k, at_v, last = spots(op, 0 if op.flags & BOTH else end)
                end = max(end, last)
                there.append((at_k, at_v))
            op.at_k, op.at_v = next(other) if op.flags & MEMORY else (at_k, at_v)
        new.append(Program.from_buffer_copy(old))
        new[-1].ops, new[-1].cache = ops, number
    for one in filter(None, new):
        one.page_bytes = end
    return new[1], new[0]


def available() -> int:
    """Bytes of memory that could be had now; what swapping would add is not counted."""
    known = Path("/proc/meminfo")
    if not known.exists():
        return 1 << 62
    line = next(x for x in known.read_text().splitlines() if x.startswith("MemAvailable"))
    return int(line.split()[1]) << 10


class Native:
    """A program, its weights, and a pool of pages that hold keys and values.

    block: tokens in a page. block_bytes: its size, over all layers. cache: how the pool keeps keys
    and values, one of CACHES; int8 has a scale for each token and head, and rounds to 1/254 of the
    largest of its numbers. A step is over a flat list of tokens of any sequences; a page belongs to
    whoever names it in its table.
    """

    block = PAGE

    def __init__(self, lib: ctypes.CDLL, program: Program, cache: str, keep: list, grow=None,
                 source: Program | None = None):
        """keep: what the program points at. grow(program, positions): called before positions that
        the program has no tables for; it must raise program.positions. source: what writes the keys
        and values of a text that the program's tokens look at, beside their own."""
        self.lib, self.cache, self.keep, self.grow = lib, cache, keep, grow
        self.program, self.source = laid_out(program, cache, source)
        self.block_bytes, self.width = int(self.program.page_bytes), int(self.program.out)
        self.pool = torch.empty(0, self.block_bytes, dtype=torch.uint8)
        self.threads: int | None = None  # that work on a step; torch's own number when None
        self.stamp: list = []  # the tensors that it was made of, and how; see edit.lower
        self.options: dict = {}
        self.encoder: Native | None = None  # of an encoder-decoder, where that has a program
        self.one = Lock()  # for texts that are read whole, in the pool from its first page on

    def fork(self, cache: str | None = None, codes: int | None = None) -> Native:
        """The same program and weights with an empty pool of its own, of another kind if asked,
        and with activations of other bits."""
        lib = self.lib if codes is None else library(*way(codes), *self.options["flags"])
        new = Native(lib, self.program, cache or self.cache, self.keep, self.grow, self.source)
        new.threads, new.stamp, new.options = self.threads, self.stamp, self.options
        new.encoder = self.encoder if codes is None else self.encoder and self.encoder.fork(
            codes=codes)
        return new

    def __deepcopy__(self, memo) -> None:
        """A copied model lowers itself anew: its weights are others."""

    def reserve(self, blocks: int) -> None:
        """Room for so many pages; what the first of them hold stays. Raises MiradaError where the
        memory is not there."""
        needed, there = blocks * self.block_bytes, available()
        if needed > there:
            small = self.block_bytes // self.block
            smaller = "" if self.cache == "int8" else ', give cache="int8"'
            raise MiradaError(
                f"keys and values of {blocks * self.block:,} tokens need {needed / 1e6:,.2f} MB "
                f"({small:,} bytes a token in {self.cache}) and {there / 1e6:,.2f} are free: ask "
                f"for fewer tokens or rows{smaller}, or shorten the text to a window "
                "(mirada.generate.window.fit)")
        old, self.pool = self.pool, torch.empty(blocks, self.block_bytes, dtype=torch.uint8)
        kept = min(len(old), blocks)
        self.pool[:kept] = old[:kept]

    def step(self, ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor,
             score: Tensor, memory: Tensor | None = None) -> Tensor:
        """(R, V) float32: scores of what follows the tokens listed in score (R,).

        Token m, ids (M,), stands at positions (M,) of sequence rows (M,), whose pages are
        tables[rows[m]] (B, n); it sees its sequence up to itself. Tokens of one sequence come in
        order. memory (B,): tokens of each sequence's source, which `remember` wrote to its pages.
        Raises MiradaError.
        """
        ids, positions, rows, score, tables = (
            t.to(torch.int32).contiguous() for t in (ids, positions, rows, score, tables))
        sources = {} if memory is None else {"memory": memory.to(torch.int32).contiguous()}
        out = torch.empty(len(score), self.width)
        if len(ids) <= CHUNK:
            self._run(self.program, ids, positions, rows, tables, score, out, **sources)
            return out
        for start in range(0, len(ids), CHUNK):
            here = ((score >= start) & (score < start + CHUNK)).nonzero()[:, 0]
            part = torch.empty(len(here), self.width)
            piece = slice(start, start + CHUNK)
            self._run(self.program, ids[piece], positions[piece], rows[piece], tables,
                      score[here] - start, part, **sources)
            out[here] = part
        return out

    def remember(self, states: Tensor, lengths: list[int], tables: Tensor) -> None:
        """Write the keys and values of sources to their pages, tables (B, n): states (M, D) of
        texts that lie one behind the other, lengths (B) tokens each."""
        rows, positions = _places(lengths)
        states, tables = states.float().contiguous(), tables.to(torch.int32).contiguous()
        none = torch.empty(0, dtype=torch.int32)
        for start in range(0, len(rows), CHUNK):
            piece = slice(start, start + CHUNK)
            self._run(self.source, torch.zeros_like(rows[piece]), positions[piece], rows[piece],
                      tables, none, torch.empty(0), given=states[piece])

    def states(self, lengths: list[int], ids: Tensor | None = None, types: Tensor | None = None,
               given: Tensor | None = None) -> Tensor:
        """(M, D) float32: the last states of whole texts that lie one behind the other, lengths
        (B) tokens each, of which none is a pad. ids (M,) and types (M,), their segments, 0 when
        None; or given (M, D), what the blocks read. Raises MiradaError.
        """
        rows, positions = _places(lengths)
        ids = torch.zeros_like(rows) if ids is None else ids.to(torch.int32).contiguous()
        more = {"types": types.to(torch.int32).contiguous()} if types is not None else {}
        more |= {"given": given.float().contiguous()} if given is not None else {}
        out = torch.empty(len(rows), self.width)
        pages = -(-torch.tensor(lengths) // PAGE)
        with self.one:
            for r0, r1, m0, m1 in _parts(lengths):
                need, here = pages[r0:r1], slice(m0, m1)
                if int(need.sum()) > len(self.pool):
                    self.pool = torch.empty(0, self.block_bytes, dtype=torch.uint8)
                    self.reserve(int(need.sum()))
                first = need.cumsum(0) - need
                tables = first[:, None] + torch.arange(int(need.max()))
                tables = tables.clamp(max=len(self.pool) - 1).to(torch.int32)
                self._run(self.program, ids[here], positions[here], rows[here] - r0, tables,
                          torch.arange(m1 - m0, dtype=torch.int32), out[here],
                          **{name: t[here] for name, t in more.items()})
        return out

    def _run(self, program, ids, positions, rows, tables, score, out, **more) -> None:
        longest = int(positions.max()) + 1
        if longest > program.positions and self.grow is not None:
            self.grow(program, longest)
        if not len(ids) == len(positions) == len(rows):
            raise MiradaError("ids, positions and rows of a step must be of one length")
        batch = Batch(len(ids), len(tables), tables.shape[1], len(score), len(self.pool), 0,
                      ids.data_ptr(), positions.data_ptr(), rows.data_ptr(), tables.data_ptr(),
                      score.data_ptr(), self.pool.data_ptr(), out.data_ptr(),
                      **{name: t.data_ptr() for name, t in more.items()})
        threads = self.threads or torch.get_num_threads()
        failed = self.lib.mirada_step(ctypes.byref(program), ctypes.byref(batch), threads)
        if failed:
            raise MiradaError(REFUSALS[failed])


def _places(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Row and position of each token of texts that lie one behind the other. By numpy: torch would
    wake its threads for it."""
    rows = numpy.repeat(numpy.arange(len(lengths), dtype=numpy.int32), lengths)
    places = [numpy.arange(n, dtype=numpy.int32) for n in lengths]
    return torch.from_numpy(rows), torch.from_numpy(numpy.concatenate(places))


def _parts(lengths: list[int]) -> Iterator[tuple[int, int, int, int]]:
    """Rows r0 .. r1 and tokens m0 .. m1 of each step: CHUNK tokens, or one text longer than it."""
    r0 = m0 = m1 = 0
    for row, length in enumerate(lengths):
        if m1 > m0 and m1 - m0 + length > CHUNK:
            yield r0, row, m0, m1
            r0, m0 = row, m1
        m1 += length
    yield r0, len(lengths), m0, m1

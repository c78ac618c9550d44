"""Where a native step's time goes: SmolLM2 by operator, against what this machine can do at most.

Run: python benchmarks/decode.py [--threads N] [--rounds N] [--codes 8|16] [--json FILE]
A token of one row reads every weight and every key once, so its limit is memory: bytes / (GB/s).
Rows and prompts are products of 8-bit codes: their figure is operations a second. Rounds of all
works follow each other in turn with torch's path in float32 beside them, and medians are shown;
`mirada bench` sets other engines beside it. Needs what real-packages.txt names, and a C compiler.
"""

import argparse
import ctypes
import json
import statistics
import time
from collections import Counter

import torch

import mirada
from mirada.bench.limits import limits
from mirada.edit import lower
from mirada.generate.rows import Rows
from mirada.kernels import native

# name -> (tokens of context, rows, new tokens of each row at a time)
WORKS = {"decode after 16": (16, 1, 1), "decode after 512": (512, 1, 1),
         "8 rows after 16": (16, 8, 1), "32 rows after 16": (16, 32, 1), "prefill 512": (0, 1, 512)}
TORCH = ("decode after 16", "prefill 512")  # what its path does beside us; the others take minutes


def named(operator) -> str:
    name = native.OPERATORS[operator.op]
    if name != "linear":
        return name
    return f"{operator.a.rows} x {operator.a.cols}" + (", gated" if operator.gate.data else "")


class Spent:
    """Nanoseconds by operator since the last look."""

    def __init__(self, program):
        program.lib.mirada_spent.restype = ctypes.POINTER(ctypes.c_int64)
        self.clock = program.lib.mirada_spent()
        self.names = [named(program.program.ops[n]) for n in range(program.program.count)]
        self.before = [0] * len(self.names)

    def look(self) -> Counter:
        found: Counter = Counter()
        for n, name in enumerate(self.names):
            found[name] += self.clock[n] - self.before[n]
            self.before[n] = self.clock[n]
        return found


def weights(program) -> int:
    """Bytes that a step reads of the runtime's copy of the weights."""
    return next(kept.size for kept in program.keep if isinstance(kept, native.Memory))


def multiplied(program) -> int:
    """Multiplications of one token through all projections but the head's."""
    ops = [program.program.ops[n] for n in range(program.program.count)]
    sizes = [o.a.rows * o.a.cols * (2 if o.gate.data else 1) for o in ops if o.a.data]
    return sum(sizes[:-1])


def native_seconds(program, spent: Spent, work: str) -> float:
    context, rows, new = WORKS[work]
    state, ids = Rows(program), list(range(1000, 1000 + max(context, new)))
    if context:
        state([ids[:context]] * rows)
    spent.look()
    began = time.perf_counter()
    times = 1 if new > 1 else 24 // rows + 1
    for _ in range(times):
        state([ids[:new]] * rows)
    return (time.perf_counter() - began) / times


@torch.inference_mode()
def torch_seconds(model, work: str) -> float:
    context, _, new = WORKS[work]
    cache, ids = model.new_cache(), torch.arange(1000, 1000 + max(context, new))[None]
    if context:
        model(ids[:, :context], cache=cache)
    began = time.perf_counter()
    model(ids[:, :new], cache=cache, logits_to_keep=1)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codes", type=int, choices=(8, 16), default=16)
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    wide = mirada.load("smollm2", dtype=torch.float32)
    program = lower.lower(mirada.load("smollm2"), codes=asked.codes, flags=("-DPROFILE",))
    spent, seconds, shares = Spent(program), {w: [] for w in WORKS}, {w: Counter() for w in WORKS}
    plain: dict[str, list] = {w: [] for w in TORCH}
    for _ in range(asked.rounds):
        for work in WORKS:
            seconds[work].append(native_seconds(program, spent, work))
            shares[work] += spent.look()
            if work in TORCH:
                plain[work].append(torch_seconds(wide, work))
    most, out = limits(asked.threads), {}
    print(f"{asked.threads} threads, {asked.codes}-bit activations; memory {most['read']:.1f} GB/s,"
          f" products {most['float32']:.0f} GFLOP/s in float32, {most['bfloat16']:.0f} in bfloat16")
    for work, (context, rows, new) in WORKS.items():
        took = statistics.median(seconds[work])
        line = {"tokens/s": rows * new / took, "GFLOP/s": 2e-9 * multiplied(program) * rows * new
                / took, "share": {n: t / shares[work].total()
                                  for n, t in shares[work].most_common(5)}}
        if new == 1 and rows == 1:
            read = weights(program) + context // 32 * program.block_bytes
            line["of memory's limit"] = read / 1e9 / took / most["read"]
        if work in TORCH:
            line["times torch"] = statistics.median(plain[work]) / took
        out[work] = line
        figures = ", ".join(f"{v:,.2f} {n}" for n, v in line.items() if n != "share")
        parts = ", ".join(f"{n} {v:.0%}" for n, v in line["share"].items())
        print(f"{work:17} {figures}\n{'':17} {parts}")
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump({"limits": most, "works": out}, file, indent=1)


if __name__ == "__main__":
    main()

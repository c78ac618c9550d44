"""mirada beside every engine that is installed: decoding, batches, prefill, sentence vectors.

Run: python benchmarks/engines.py [--only llama-1.1b,smollm2,minilm] [--rounds N] [--engines NAMES]
                                  [--threads N] [--tiny] [--processor] [--json FILE]
It needs what real-packages.txt names; `make peers` installs the engines. Each engine has a process
of its own and the file that it reads best, made before anything is timed; all are asked the same in
turns, so that what else the machine does falls on all alike. Figures are medians over rounds, each
a median over steps. Under each table stand mirada's ratio to the best other engine and its share of
what this machine can do at most, measured in the same run: a token of one row reads every weight
once, a token of a long prompt or of a large batch takes two operations a weight. mirada reads
activations in 15 bits; its rows with 8-bit codes do what every other engine does.
The table goes to stdout as Markdown, progress to stderr. --tiny: small shapes, to try the script.
--processor: sentence vectors by processor time, with --threads 1 for a machine that others use too.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import mirada
from mirada import shelf
from mirada.bench.limits import limits, reading
from mirada.bench.measure import ENGINES, Child, installed, ready
from mirada.errors import MiradaError
from mirada.text.tokenizer import Tokenizer

ENCODERS = (str(Path(__file__).with_name("encoders.py")),)
DECODING = {"after 16": (1, 16, 32), "after 512": (1, 512, 16), "batch 8": (8, 16, 12),
            "batch 32": (32, 16, 6)}  # rows, tokens of the prompt, new tokens
PREFILL = ("prefill 512", "after 512")  # a column, and the one whose prompt it times
EMBEDDING = {f"{rows} x {length}": (rows, length) for rows in (1, 32) for length in (32, 128)}


@dataclass
class Engine:
    """One line of a table. name: of mirada.bench.engines, or of encoders.py with its precision;
    file: which of the section's files it is given."""

    label: str
    name: str
    file: str

    @property
    def ours(self) -> bool:
        return self.name.startswith("mirada")


@dataclass
class Section:
    """One table. files(folder, tiny): what engines are given, by name. program: who serves them.
    first: whether the seconds to a first answer are a column."""

    name: str
    title: str
    files: Callable[[Path, bool], dict[str, str]]
    engines: list[Engine]
    columns: list[str]
    program: tuple[str, ...] = Child.PROGRAM
    first: bool = False


@dataclass
class Found:
    """rates: label -> column -> tokens or sentences a second; first: label -> seconds; most: our
    label -> column -> what the limits allow; failed: label -> why."""

    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    most: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def letters(vocab: int) -> Tokenizer:
    """A byte-level tokenizer of so many tokens, most of which no text uses: OpenVINO reads no GGUF
    file without one."""
    from tokenizers.pre_tokenizers import ByteLevel
    tokens = ["<s>", "</s>", *sorted(ByteLevel.alphabet()), "ab"]
    tokens += [f"word{n}" for n in range(vocab - len(tokens))]
    return Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["a b"],
        "token_type": [3, 3] + [1] * (vocab - 2), "bos_token_id": 0, "eos_token_id": 1}.items()})


def shapes(model, folder: Path) -> dict[str, str]:
    """A model as GGUF in 8 and 4 bits, and as a folder in bfloat16."""
    found = {}
    for type in ("Q8_0", "Q4_0"):
        say(f"writing {type}")
        found[type] = str(mirada.save(model, folder / f"{type}.gguf", type=type))
    say("writing bfloat16")
    return found | {"folder": str(mirada.save(model.to(torch.bfloat16), folder / "folder"))}


def billion(folder: Path, tiny: bool) -> dict[str, str]:
    """Random weights, drawn as the family draws them."""
    say("drawing weights")
    size = dict(d=64, layers=2, heads=4, kv_heads=2, hidden=128, vocab=1024) if tiny else dict(
        d=2048, layers=22, heads=32, kv_heads=4, hidden=5632, vocab=32000)
    model = mirada.build("llama", seed=0, context=2048, dtype=torch.bfloat16, **size)
    model.tokenizer = letters(size["vocab"])
    return shapes(model, folder)


def smollm2(folder: Path, tiny: bool) -> dict[str, str]:
    return shapes(mirada.load("smollm2", dtype=torch.float32), folder)


def minilm(folder: Path, tiny: bool) -> dict[str, str]:
    return {"folder": str(shelf.find("minilm"))}


DECODERS = [
    Engine("mirada int8", "mirada", "Q8_0"), Engine("mirada int4", "mirada", "Q4_0"),
    Engine("mirada int8, 8-bit codes", "mirada-8", "Q8_0"),
    Engine("mirada int4, 8-bit codes", "mirada-8", "Q4_0"),
    Engine("llama.cpp Q8_0", "llama.cpp", "Q8_0"), Engine("llama.cpp Q4_0", "llama.cpp", "Q4_0"),
    Engine("OpenVINO int8", "openvino", "Q8_0"), Engine("OpenVINO int4", "openvino", "Q4_0"),
    Engine("CTranslate2 int8", "ctranslate2", "folder"),
    Engine("onnxruntime-genai int4", "onnxruntime", "folder"),
    Engine("transformers bf16", "transformers", "folder"),
]
SECTIONS = [  # one entry a table
    Section("llama-1.1b", "LLaMA shape of 1.1 B parameters, random weights: tokens a second",
            billion, DECODERS, [*DECODING, PREFILL[0]]),
    Section("smollm2", "SmolLM2-135M: tokens a second", smollm2, DECODERS,
            [*DECODING, PREFILL[0]], first=True),
    Section("minilm", "MiniLM, sentence vectors from ids: sentences a second", minilm, [
        Engine(f"{name} {short}", f"{name.lower()}:{dtype}", "folder") for name, short, dtype in (
            ("mirada", "fp32", "float32"), ("mirada", "bf16", "bfloat16"),
            ("mirada", "int8", "int8"), ("mirada", "int8, 8-bit codes", "codes8"),
            ("transformers", "fp32", "float32"), ("transformers", "bf16", "bfloat16"),
            ("OpenVINO", "bf16", "bfloat16"), ("onnxruntime", "fp32", "float32"),
            ("CTranslate2", "int8", "int8"))], list(EMBEDDING), ENCODERS),
]


def say(words: str) -> None:
    print(f"\r\033[K{words} ..." if sys.stderr.isatty() else words,
          end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


def started(section: Section, engines: list[Engine], files: dict[str, str], folder: Path,
            threads: int, found: Found) -> dict[str, Child]:
    """The children by label. Files are all made before the first one starts."""
    sources: dict[str, str] = {}
    children: dict[str, Child] = {}
    for make in (True, False):
        for engine in [e for e in engines if e.label not in found.failed]:
            say(f"{section.name}: {engine.label} {'gets its file' if make else 'starts'}")
            try:
                if make and section.program == Child.PROGRAM:
                    (folder / engine.name).mkdir(exist_ok=True)
                    sources[engine.label] = ready(engine.name, files[engine.file],
                                                  str(folder / engine.name))
                elif not make:
                    source = sources.get(engine.label, files[engine.file])
                    children[engine.label] = Child(engine.name, source, threads, section.program)
                    found.first[engine.label] = children[engine.label].first
                    found.rates[engine.label] = {}
            except MiradaError as error:
                found.failed[engine.label] = str(error)
    return children


def asked(section: Section, child: Child, tiny: bool, processor: bool) -> dict[str, float]:
    """One engine once through all columns: column -> what it reaches a second."""
    if section.program == ENCODERS:
        found = {}
        for column, (rows, length) in EMBEDDING.items():
            times = 1 if tiny else max(2, 640 // (rows * length))
            seconds = child.ask(rows=rows, length=length, times=times,
                                processor=processor)["seconds"]
            found[column] = rows / statistics.median(seconds)
        return found
    found = {}
    for column, (rows, context, new) in DECODING.items():
        context = min(context, 64) if tiny else context
        read, *steps = child.ask(rows=rows, context=context, new=new)["seconds"]
        found[column] = rows / statistics.median(steps)
        if column == PREFILL[1]:
            found[PREFILL[0]] = context / read
    return found


def measured(section: Section, args, machine: dict[str, float]) -> Found:
    """A section's table: every engine `args.rounds` times through all columns, in turns."""
    found, times = Found(), {}
    engines = [e for e in section.engines if e.ours or wanted(e, args.engines)]
    with tempfile.TemporaryDirectory(prefix="mirada-engines-") as name:
        files = section.files(Path(name), args.tiny)
        children = started(section, engines, files, Path(name), args.threads, found)
        try:
            for turn in range(args.rounds + 1):  # the first is to warm up
                for label, child in list(children.items()):
                    say(f"{section.name}: {label}, "
                        + (f"round {turn} of {args.rounds}" if turn else "warming up"))
                    try:
                        rates = warm(section, child) if not turn else asked(
                            section, child, args.tiny, args.processor)
                    except MiradaError as error:
                        found.failed[label] = str(error)
                        children.pop(label).close()
                        continue
                    for column, rate in rates.items():
                        times.setdefault((label, column), []).append(rate)
        finally:
            for child in children.values():
                child.close()
        for (label, column), rates in times.items():
            found.rates[label][column] = statistics.median(rates)
        for engine in engines:
            if engine.ours and engine.label in found.rates:
                found.most[engine.label] = allowed(section, files[engine.file], machine)
    return found


def warm(section: Section, child: Child) -> dict:
    """What packs weights or compiles on first use does it now."""
    if section.program == ENCODERS:
        child.ask(rows=32, length=32, times=2)
    else:
        child.ask(rows=1, context=64, new=2)
        child.ask(rows=8, context=16, new=2)
    return {}


def wanted(engine: Engine, names: str | None) -> bool:
    return names is None or engine.name.partition(":")[0] in names.split(",")


def allowed(section: Section, path: str, machine: dict[str, float]) -> dict[str, float]:
    """Column -> tokens (sentences) a second that reading and products allow."""
    fastest = max(rate for name, rate in machine.items() if name != "read") * 1e9
    model = mirada.load(path)
    blocks, every = (sum(m.out_features * m.in_features for m in part.modules()
                         if hasattr(m, "in_features")) for part in (model.body, model))
    if section.program == ENCODERS:
        return {column: fastest / (2 * blocks * length)
                for column, (_, length) in EMBEDDING.items()}
    size = Path(path).stat().st_size
    speed = reading(size) * 1e9 / size  # passes over this file a second
    found = {column: min(rows * speed, fastest / (2 * every))
             for column, (rows, _, _) in DECODING.items()}
    return found | {PREFILL[0]: fastest / (2 * blocks)}  # only the last token meets the head


def table(section: Section, found: Found) -> str:
    """Markdown: engines, then our ratios and shares."""
    columns = [*section.columns, *["first answer, s"] * section.first]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label, rates in found.rates.items():
        cells = [_number(rates.get(column)) for column in section.columns]
        cells += [f"{found.first[label]:.2f}"] * section.first
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for label, most in found.most.items():
        ratios, shares = [], []
        for column in section.columns:
            others = [r[column] for name, r in found.rates.items()
                      if name not in found.most and column in r]
            own = found.rates[label].get(column)
            ratios.append(f"{own / max(others):.2f}" if own and others else "-")
            shares.append(f"{own / most[column]:.0%}" if own else "-")
        if section.first:  # as above: more than 1 is faster
            others = [s for name, s in found.first.items() if name not in found.most]
            ratios.append(f"{min(others) / found.first[label]:.2f}" if others else "-")
            shares.append("-")
        lines.append(f"| **{label} / best other** | " + " | ".join(ratios) + " |")
        lines.append(f"| **{label} / limit** | " + " | ".join(shares) + " |")
    return "\n".join([f"## {section.title}", "", *lines, "",
                      *(f"- {label}: {why}" for label, why in found.failed.items())])


def _number(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", metavar="NAMES", help=", ".join(s.name for s in SECTIONS))
    parser.add_argument("--engines", metavar="NAMES", help="others than mirada: those installed")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", action="store_true",
                        help="sentence vectors: count processor time, not the clock's")
    parser.add_argument("--tiny", action="store_true", help="small shapes, to try the script")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.engines is None:
        args.engines = ",".join(name for name in ENGINES if _there(name))
    say("limits")
    machine = limits(args.threads)
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads; " + ", ".join(
        f"{name} {rate:,.0f} {'GB/s' if name == 'read' else 'GFLOP/s'}"
        for name, rate in machine.items()) + f"; medians of {args.rounds} rounds\n", flush=True)
    every = {}
    for section in SECTIONS:
        if args.only is None or section.name in args.only.split(","):
            found = measured(section, args, machine)
            print(table(section, found) + "\n", flush=True)
            every[section.name] = vars(found)
    if args.json:
        Path(args.json).write_text(json.dumps(
            {"threads": args.threads, "rounds": args.rounds, "limits": machine,
             "sections": every}, indent=2))


def _there(name: str) -> bool:
    try:
        installed(name)
    except MiradaError:
        return False
    return True


if __name__ == "__main__":
    main()

"""benchmarks/engines.py: what is asked, what stands in its tables, and the limits beside it."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import mirada
from mirada.bench.limits import reading
from mirada.errors import MiradaError

PATH = Path(__file__).parents[2] / "benchmarks" / "engines.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmarks_engines", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Child:
    """An engine whose every step takes a tenth of a second."""

    def __init__(self, name, path, threads, program=()):
        if name == "broken":
            raise MiradaError("broken could not run: no such file")
        self.name, self.first, self.asked = name, 1.5, []

    def ask(self, rows, context, new):
        self.asked.append((rows, context, new))
        if self.name == "weak" and rows > 8:
            raise MiradaError("weak could not run: out of memory")
        return {"seconds": [2.0] + [0.1] * new}

    def close(self):
        pass


def test_engines_are_asked_in_turns_and_failures_are_named(script, monkeypatch, tmp_path):
    torch.manual_seed(0)
    path = str(mirada.save(mirada.build("llama:tiny"), tmp_path / "m.gguf", type="Q8_0"))
    monkeypatch.setattr(script, "Child", Child)
    Child.PROGRAM = ()
    monkeypatch.setattr(script, "ready", lambda name, path, folder: path)
    section = script.Section("s", "A title", lambda folder, tiny: {"gguf": path}, [
        script.Engine("ours", "mirada", "gguf"), script.Engine("theirs", "other", "gguf"),
        script.Engine("theirs too", "weak", "gguf"), script.Engine("gone", "broken", "gguf")],
        [*script.DECODING, script.PREFILL[0]], program=(), first=True)

    class Args:
        engines, rounds, tiny, threads = "other,weak,broken", 1, False, 1
        processor = False

    found = script.measured(section, Args, {"read": 10.0, "bfloat16": 100.0})
    assert found.rates["ours"]["batch 8"] == pytest.approx(80)
    assert found.rates["theirs"]["prefill 512"] == 256 and found.first["theirs"] == 1.5
    assert found.failed == {"gone": "broken could not run: no such file",
                            "theirs too": "weak could not run: out of memory"}
    lines = script.table(section, found).splitlines()
    assert lines[0] == "## A title" and "- gone: broken could not run: no such file" in lines
    (ratios,) = [line for line in lines if line.startswith("| **ours / best other**")]
    assert ratios.count("1.00") == 6  # the seconds to a first answer among them
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    weights = sum(m.weight.numel() for m in mirada.build("llama:tiny").body.modules()
                  if isinstance(m, torch.nn.Linear))
    assert found.most["ours"]["prefill 512"] == pytest.approx(100e9 / (2 * weights))
    assert found.most["ours"]["after 16"] < found.most["ours"]["batch 8"]


def test_only_what_is_named_stands_beside_us(script):
    engine = script.Engine("OpenVINO bf16", "openvino:bfloat16", "folder")
    assert script.wanted(engine, "openvino,llama.cpp") and not script.wanted(engine, "llama.cpp")
    assert script.wanted(engine, None) and not engine.ours
    assert {s.name for s in script.SECTIONS} >= {"llama-1.1b", "smollm2", "minilm"}


def test_a_tokenizer_of_letters(script):
    tokenizer = script.letters(1024)
    assert tokenizer.size == 1024
    assert tokenizer.decode(tokenizer.encode("cabbage, ñ").ids) == "cabbage, ñ"


def test_reading_is_measured():
    assert 0.1 < reading(1 << 20, rounds=2) < 10_000

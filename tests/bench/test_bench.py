"""Engines are asked the same, in turns; what they answer is put side by side."""

import json

import pytest
import torch

import mirada
from mirada import cli
from mirada.bench import ask, engines, measure
from mirada.errors import MiradaError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    return str(mirada.save(mirada.build("llama:tiny"), tmp_path_factory.mktemp("bench") / "m"))


def test_two_engines_side_by_side(saved, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure, "WORKS", {"decode after 16": (16, 1, 4), "8 rows": (8, 8, 2),
                                           "prefill 64": (64, 1, 0)})
    monkeypatch.setattr(measure, "limits", lambda threads: {"read": 10.0, "bfloat16": 100.0})
    said = []
    found = measure.bench(saved, ("mirada-torch",), threads=1, rounds=2, works=("decode after 16",
                          "8 rows", "prefill 64"), progress=said.append)
    assert set(found.rates) == {"mirada", "mirada-torch"} and not found.failed
    assert all(rate > 0 for rates in found.rates.values() for rate in rates.values())
    assert found.first["mirada"] > 0.5 and found.peak["mirada"] > 50 << 20  # torch alone is more
    assert said.index("round 1 of 2: decode after 16, mirada-torch") == said.index(
        "round 1 of 2: decode after 16, mirada") + 1
    found.rates["mirada"]["decode after 16"] = 30.0
    found.rates["llama.cpp"] = {"decode after 16": 20.0, "8 rows": 1.0}
    found.first["llama.cpp"], found.peak["llama.cpp"] = 1.0, 1 << 20
    assert found.ratio("decode after 16") == 1.5 and found.ratio("prefill 64") is None
    assert found.share("decode after 16") == pytest.approx(30 * found.weights / 1e10)
    assert "1.50" in str(found) and json.dumps(found.data())
    found.plot(str(tmp_path / "bench.png"))
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_an_engine_that_fails_is_named(saved, monkeypatch):
    monkeypatch.setattr(measure, "WORKS", {"decode after 16": (16, 1, 1)})
    monkeypatch.setattr(measure, "limits", lambda threads: {"read": 10.0})
    monkeypatch.setattr(engines.LlamaCpp, "NEEDS", ())
    found = measure.bench(saved, ("llama.cpp",), threads=1, rounds=1, works=("decode after 16",))
    assert "llama.cpp could not run" in found.failed["llama.cpp"]
    assert found.rates["mirada"]["decode after 16"] > 0


def test_eight_bits_are_set_beside_the_others(tmp_path, monkeypatch):
    model = mirada.edit.quantize(mirada.build("llama:tiny", vocab=1024), "int8")
    mirada.save(model, tmp_path / "m.gguf")
    monkeypatch.setattr(measure, "WORKS", {"decode after 16": (16, 1, 1)})
    monkeypatch.setattr(measure, "limits", lambda threads: {"read": 10.0})
    found = measure.bench(str(tmp_path / "m.gguf"), threads=1, rounds=1, codes=8,
                          works=("decode after 16",))
    assert set(found.rates) == {"mirada-8"} and found.own == "mirada-8" and not found.failed
    found.rates["llama.cpp"] = {"decode after 16": 2.0}
    found.rates["mirada-8"]["decode after 16"] = 3.0
    assert found.ratio("decode after 16") == 1.5


def test_engines_that_are_not_there(saved):
    with pytest.raises(MiradaError, match="no engine is called 'vllm'"):
        measure.bench(saved, ("vllm",))


def test_prompts_differ_by_row_and_never_by_engine():
    assert ask.prompt(20, 1000) == ask.prompt(20, 1000) != ask.prompt(20, 1000, row=1)
    assert all(200 <= i < 900 for i in ask.prompt(5000, 1000))


def test_the_command(saved, monkeypatch, capsys):
    seen = {}

    def bench(path, against, **given):
        seen.update(path=path, against=against, **given)
        return measure.Bench("m", 1, 10, {"read": 1.0})

    monkeypatch.setattr(measure, "bench", bench)
    assert cli.main(["bench", saved, "--against", "transformers,llama.cpp", "--threads", "3",
                     "--json"]) == 0
    assert seen["against"] == ("transformers", "llama.cpp") and seen["threads"] == 3
    assert seen["codes"] == 16
    assert json.loads(capsys.readouterr().out)["model"] == "m"

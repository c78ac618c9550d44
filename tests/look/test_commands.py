"""The commands that look: each prints what its function returns, and draws where it is told to."""

import json

import pytest

from mirada.cli import main

COMMANDS = {
    "trace": ["Diego eats pizza"], "neighbors": ["cat", "-k", "3"],
    "senses": ["bank", "The bank lends money.", "They sat on the river bank."],
    "permute": ["Diego eats pizza", "pizza eats Diego"], "gradients": ["Diego eats pizza"],
}
SAYS = {"trace": "1. Tokenizer: 5 tokens", "neighbors": "nearest to 'cat', cat (4937)",
        "senses": "the axes hold 100%", "permute": "outputs move with tokens",
        "gradients": "gradient of a random direction"}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command(name, real, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([name, str(real("minilm")), *COMMANDS[name], "-o", "x.png"]) == 0
    out, err = capsys.readouterr()
    assert SAYS[name] in out and err == "x.png\n"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert main([name, str(real("minilm")), *COMMANDS[name], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main([name, "no model yet", *COMMANDS[name], "-o", "x.gif"]) == 2
    assert "a picture is a file ending in .png" in capsys.readouterr().err, "said before the work"


def test_several_words_make_a_map(real, capsys):
    assert main(["neighbors", str(real("minilm")), "cat", "dog", "france"]) == 0
    assert "the axes hold" in capsys.readouterr().out


def test_a_trace_is_sampled_as_asked(real, capsys, tmp_path):
    words = ["trace", "smollm2", "The", "--temperature", "1", "--seed", "3"]
    real("smollm2")
    assert main([*words, "-o", str(tmp_path / "t.json")]) == 0
    assert "Decoding: temperature=1.0, seed=3" in capsys.readouterr().out
    stages = json.loads((tmp_path / "t.json").read_text())["stages"]
    assert stages[-1]["about"] == "temperature=1.0, seed=3"

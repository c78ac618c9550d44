"""mirada run and chat with somebody who guesses ahead: the same words, and how many were right."""

import json

import pytest

from generate.words import speaker
from mirada import cli, registry
from mirada.commands import chat as chat_command
from mirada.commands import run as run_command
from mirada.generate.speculate import Pace


@pytest.fixture
def models(monkeypatch):
    """Names that both commands load; guessing goes on whatever the clock says."""
    known = {"large": speaker().double(), "small": speaker().double()}
    known["small"].get_submodule("body.blocks.0.mlp.f.up").weight.data.mul_(1.1)
    monkeypatch.setattr(Pace, "tokens", lambda self: self.most)
    for command in (run_command, chat_command):
        monkeypatch.setattr(command, "load", lambda args: known[args.model])
    monkeypatch.setattr(registry, "load", lambda name, **given: known[name])
    return known


def answer(capsys, *words: str):
    assert cli.main(["run", "large", "Say it again, again, again", "-n", "24", *words]) == 0
    return capsys.readouterr()


@pytest.mark.parametrize("words", [
    ("--assistant", "small"), ("--assistant", "large"), ("--lookup",), ("--lookup", "3")])
def test_the_same_words_and_the_rate(words, models, capsys):
    plain = answer(capsys)
    shown = answer(capsys, *words)
    assert shown.out == plain.out and "guesses" not in plain.err
    assert "guesses were right (" in shown.err and "times as fast" not in plain.err
    if words == ("--assistant", "large"):
        assert "(100%)" in shown.err


def test_json_says_it_too(models, capsys):
    found = json.loads(answer(capsys, "--assistant", "large", "--json").out)
    assert found["accepted"] == found["drafted"] > 10
    assert "drafted" not in json.loads(answer(capsys, "--json").out)


def test_in_a_conversation(models, capsys, monkeypatch):
    lines = iter(["Hi", "And?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert cli.main(["chat", "large", "-n", "12", "--assistant", "large"]) == 0
    assert capsys.readouterr().err.count("guesses were right (100%)") == 2


def test_another_vocabulary_is_one_sentence(models, capsys):
    models["small"].config = models["small"].config.__class__(vocab=300)
    assert cli.main(["run", "large", "Hi", "--assistant", "small"]) != 0
    said = capsys.readouterr().err
    assert "another vocabulary than the model it would guess for" in said
    assert said.count("\n") == 1


def test_one_of_the_two(models, capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "large", "Hi", "--assistant", "small", "--lookup"])
    assert "not allowed with" in capsys.readouterr().err
    assert cli.main(["run", "large", "Hi", "--lookup", "-3"]) != 0

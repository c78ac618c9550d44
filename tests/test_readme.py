"""What the READMEs show is run, and what they say is there, is there. What both languages show is
run once."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mirada
from mirada.cli import main

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "README.es.md")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands(page: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def code(source: str) -> str:
    """A program without its comments."""
    return ast.dump(ast.parse(source))


@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page, real, tmp_path):
    real("smollm2"), real("minilm")
    sources = blocks(page, "python")
    assert len(sources) >= 3
    ran = {code(source) for source in blocks(PAGES[0], "python")} if page != PAGES[0] else set()
    for source in sources:
        if code(source) in ran:
            continue
        done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True,
                              text=True, timeout=300)
        assert done.returncode == 0, (source, done.stderr)
        assert done.stdout.strip(), source


NOTES = """The stock market fell sharply today.
She plays the violin in an orchestra.
A man is playing a guitar on the stage.
Rain is expected over the weekend.
"""
PAIR = '{"source_sentence": "It rains.", "sentences": ["Rain is expected.", "I play."]}'


def made(command: list[str], folder: Path) -> bool:
    """Whether a command that says nothing on stdout wrote the file that it names last."""
    files = [folder / word for word in command if word.endswith((".jsonl", ".gguf"))]
    return bool(files) and files[-1].stat().st_size > 0


@pytest.mark.parametrize("page", PAGES)
def test_commands_run(page, real, tmp_path, monkeypatch, capsys):
    real("smollm2"), real("minilm")
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text(NOTES)
    Path("pairs.jsonl").write_text(PAIR + "\n")
    shown, ran = commands(page), commands(PAGES[0]) if page != PAGES[0] else []
    assert len(shown) >= 5
    for command in shown:
        if command[0] == "make":
            assert f"\n{command[1]}:" in (ROOT / "Makefile").read_text()
        elif command not in ran:
            assert command[0] == "mirada" and main(command[1:]) == 0, command
            assert capsys.readouterr().out.strip() or made(command, tmp_path), command


@pytest.mark.parametrize("page", PAGES)
def test_the_family_table_is_the_registry(page):
    named = set(re.findall(r"^\| `(\w+)` \|", (ROOT / page).read_text(), re.M))
    assert named == set(mirada.families())


def test_both_languages_show_the_same_code():
    for language in ("python", "sh"):
        first, second = (blocks(page, language) for page in PAGES)
        assert len(first) == len(second)

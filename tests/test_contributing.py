"""The walk-through of CONTRIBUTING.md, built from its own text and put through the parity table."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from mirada import models

TEXT = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()


def block(first_line: str) -> str:
    """The code block that begins with this comment."""
    found = [b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if b.startswith(first_line)]
    assert len(found) == 1, first_line
    return found[0]


def module(name: str, source: str, path: Path):
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """The family and its rows, registered as the text says, and gone afterwards."""
    folder = tmp_path_factory.mktemp("stranger")
    entry = re.search(r'`"(\w+)": "(\w+)",` in `src/mirada/models/__init__.py`', TEXT).groups()
    models.FAMILIES[entry[0]] = entry[1]
    try:
        module("mirada.models.opt", block("# src/mirada/models/opt.py"), folder / "opt.py")
        yield module("test_opt_rows", block("# tests/parity/test_opt.py"), folder / "rows.py")
    finally:
        del models.FAMILIES[entry[0]]
        sys.modules.pop("mirada.models.opt", None)
        sys.modules.pop("test_opt_rows", None)


def test_the_walk_through_builds_an_exact_family(stranger, tmp_path):
    from parity.harness import CHECKS, pair, wanted
    ran = 0
    for n, row in enumerate(stranger.ROWS):
        for check in wanted(row):
            folder = tmp_path / f"{n}-{check}"
            folder.mkdir()
            CHECKS[check](pair(row), folder)
            ran += 1
    assert ran > 20


def test_its_size_is_what_a_family_may_cost():
    assert len(block("# src/mirada/models/opt.py").splitlines()) <= 100

"""docs/tuning.md: every snippet runs, in order, and prints what stands under it."""

import contextlib
import io
import tomllib
from dataclasses import fields
from pathlib import Path

from look.test_concepts import BLOCK, differences
from mirada.train.config import Run

PAGE = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text()


def test_each_snippet_prints_what_is_shown():
    names: dict = {}
    snippets = BLOCK.findall(PAGE)
    assert len(snippets) == 8
    for source, shown in snippets:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(source, "tuning.md", "exec"), names)
        assert bool(shown) == bool(said.getvalue()), source
        assert not differences(shown, said.getvalue()), (shown, said.getvalue())


def test_the_run_is_one():
    said = tomllib.loads(PAGE.split("```toml\n")[1].split("```")[0])
    assert said.keys() <= {field.name for field in fields(Run)}
    assert Run(said.pop("model"), (said.pop("data"),), **said).whole_plan().parts == 4

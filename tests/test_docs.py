"""The pages of docs/ are what the families' files say, their examples run, closed systems are
named with what can be loaded."""

import contextlib
import io
import re

import pytest

from mirada import registry
from tools import docs

FAMILIES = registry.families()
CHEAP = 12  # layers: larger sizes are counted by the families' own tests
CLOSED = (docs.ROOT / "docs" / "closed.md").read_text()
SYSTEMS = (  # section 1.20 of the checklist
    "GPT-3", "GPT-4", "GPT-4V", "GPT-4 Code", "ChatGPT", "Codex", "GitHub Copilot", "Claude",
    "Gemini", "PaLM", "PaLM 2", "Bard", "Flamingo", "DALL-E 2", "DALL-E 3", "Midjourney")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_page_is_what_the_file_says(name):
    """`make docs` writes them. Parameters of sizes with many layers are taken from the page."""
    text = (docs.PAGES / f"{name}.md").read_text()
    module = registry.family(name)
    large = {size: count for size, count in docs.counted(text).items()
             if size in module.SIZES and module.SIZES[size].layers > CHEAP}
    assert docs.page(name, large) == text, f"docs/families/{name}.md is old: run make docs"


def test_every_family_has_a_page_and_no_other_has():
    assert (docs.PAGES / "README.md").read_text() == docs.index(), "run make docs"
    assert {path.stem for path in docs.PAGES.glob("*.md")} == {*FAMILIES, "README"}
    assert set(docs.counted((docs.PAGES / "gpt2.md").read_text())) == {*registry.sizes("gpt2")}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pages_example_runs(name):
    (source,) = re.findall(r"```python\n(.*?)```", (docs.PAGES / f"{name}.md").read_text(), re.S)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(source, name, "exec"), {})
    assert len(source.strip().splitlines()) == 3 and said.getvalue().strip()


def test_cousins_are_the_ones_that_are_built_alike():
    cousins = {name: docs.cousin(name) for name in ("roberta", "mixtral", "gpt3", "gemma3")}
    assert cousins == {"roberta": "bert", "mixtral": "llama", "gpt3": "gpt2", "gemma3": "gemma2"}


def sections() -> dict[str, str]:
    """heading -> its text."""
    parts = re.split(r"^## (.+)$", CLOSED, flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_closed_system_is_named_with_what_is_published_loads_and_is_not_claimed():
    named = [system for heading in sections() for system in heading.split(", ")]
    assert sorted(named) == sorted(SYSTEMS)
    for heading, text in sections().items():
        for part in ("Published", "Loads", "Not claimed"):
            assert len(re.findall(rf"^\*\*{part}\.\*\* \S", text, re.M)) == 1, (heading, part)


def test_what_closed_systems_point_to_is_there():
    """Families in backticks after `Loads` can be built; a page they link to exists."""
    for heading, text in sections().items():
        loads = text.partition("**Loads.**")[2].partition("**Not claimed.**")[0]
        names = re.findall(r"\[`([\w.-]+)`\]\(families/([\w.-]+)\.md\)", loads)
        assert names or loads.strip().startswith("Nothing yet"), heading
        assert all(shown == page and page in FAMILIES for shown, page in names), heading

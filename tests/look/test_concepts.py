"""docs/concepts.md: every snippet runs, in order, and prints what stands under it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "concepts.md"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:```text\n(.*?)```)?", re.S)


def differences(shown: str, printed: str) -> list[tuple[str, str]]:
    """Lines that differ, by more than the last place of a number (machines add up differently)."""
    pairs = list(zip(shown.splitlines(), printed.splitlines(), strict=True))
    return [(a, b) for a, b in pairs if not alike(a.split(), b.split())]


def alike(shown: list[str], printed: list[str]) -> bool:
    return len(shown) == len(printed) and all(
        a == b or close(*(re.sub(r"[%(),]", "", x) for x in (a, b)))
        for a, b in zip(shown, printed, strict=True))


def close(a: str, b: str) -> bool:
    try:
        return float(b) == pytest.approx(float(a), rel=0.03, abs=2e-3 if "e-" not in a else 1e-4)
    except ValueError:
        return False


@pytest.mark.scope("1.1.2", "1.1.3", "1.1.9", "1.1.10", "1.2.2", "1.2.8", "1.3.4", "1.3.12",
                   "1.3.13", "1.4.3", "1.4.4", "1.4.5")
def test_each_snippet_prints_what_is_shown(real):
    real("minilm"), real("smollm2")
    names: dict = {}
    snippets = BLOCK.findall(PAGE.read_text())
    assert len(snippets) > 15
    for source, shown in snippets:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(source, str(PAGE), "exec"), names)
        assert bool(shown) == bool(said.getvalue()), source
        assert not differences(shown, said.getvalue()), source


def test_the_comparison_can_fail():
    assert not differences("a 0.50 (12%)", "a 0.501 (12%)")
    assert differences("a 0.50", "a 0.53") and differences("a 0.50", "b 0.50")
    assert differences("a 0.50", "a 0.50 more") and differences("order", "no")

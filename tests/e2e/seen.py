"""What a page is to those who do not see it, and to a stylesheet; held against kept texts."""

import os
import re
from pathlib import Path

import pytest

AXE = Path(__file__).parents[2] / "explorer" / "node_modules" / "axe-core" / "axe.min.js"
KEPT = Path(__file__).parent / "kept"
OUTLINE = """root => {
  const name = e => e.tagName.toLowerCase() + [...e.classList].map(c => "." + c).join("");
  const lines = (e, depth) => {
    const parts = [];
    for (const child of e.children) {
      const text = lines(child, depth + 1);
      const last = parts.at(-1);
      if (last && last.text === text && last.name === name(child)) last.n++;
      else parts.push({ name: name(child), text, n: 1 });
    }
    return parts.map(p => "  ".repeat(depth) + p.name + (p.n > 1 ? " (several)" : "") + "\\n"
                          + p.text).join("");
  };
  return lines(root, 0);
}"""


def until(page, holds) -> None:
    """Waits for what a call says (the page's CSP forbids scripts made of text)."""
    for _ in range(200):
        if holds():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it did not come")


def serious(page) -> list[str]:
    """What axe calls serious or critical."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci in explorer")
    page.evaluate(AXE.read_text())
    return page.evaluate("axe.run().then(r => r.violations.filter(v => "
                         "['serious', 'critical'].includes(v.impact))"
                         ".map(v => v.id + ' ' + v.nodes.slice(0, 3).map(n => n.html)))")


def outline(page, root: str = "body") -> str:
    """The tree of tags and classes; equal neighbours are one line, for counts depend on texts."""
    return page.locator(root).evaluate(OUTLINE)


def aria(page, root: str = "body") -> str:
    """The tree that a screen reader has, numbers left out: they are other tests' business."""
    text = page.locator(root).aria_snapshot()
    text = re.sub(r"(< )?[-+−]?\d[\d.,\u00a0]*(e[-+]?\d+)?(\s?%)?", "#", text)
    return re.sub(r"r_[0-9a-f]{12}", "RUN", text) + "\n"


def held(name: str, text: str) -> None:
    """Fails unless the text is the kept one; with MIRADA_KEEP=1 it becomes the kept one."""
    path = KEPT / f"{name}.txt"
    if os.environ.get("MIRADA_KEEP") == "1":
        KEPT.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is not kept yet: run with MIRADA_KEEP=1 and read it"
    assert text == path.read_text(encoding="utf-8"), (
        f"{path.name} is another page: if it should be, run with MIRADA_KEEP=1 and read the diff")

"""What a view costs: bytes, time to make and to draw, nodes, one hover; beside bertviz's own.

Run: python benchmarks/views.py [--bertviz] [--scripts FOLDER]
bertviz: pip install --no-deps bertviz==1.4.1, and ipython. Its pages load scripts from a network;
--scripts names a folder with d3.min.js, jquery.min.js and require.min.js to answer with instead, so
that both are drawn by the same browser without one. Weights are random and dense, 12 layers of 12
heads. Times are of this machine, software rendering; bytes and nodes are exact.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from mirada import look

HOVER = """async (found) => {
  const item = document.querySelector(found), began = performance.now();
  for (const kind of ["mouseover", "mouseenter", "pointermove"])
    item.dispatchEvent(new PointerEvent(kind, { bubbles: kind !== "mouseenter" }));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - began;
}"""


def attention(layers: int, tokens: int) -> list[torch.Tensor]:
    scores = torch.randn(layers, 1, 12, tokens, tokens, generator=torch.Generator().manual_seed(0))
    return list(scores.softmax(-1))


def ours(kind: str, weights, words) -> str:
    return getattr(look, f"{kind}_view")(weights, words, html_action="return").html()


def theirs(kind: str, weights, words) -> str:
    import bertviz
    made = getattr(bertviz, f"{kind}_view")(weights, words, html_action="return")
    return f"<!doctype html><meta charset=utf-8><body>{made.data}"


def drawn(browser, path: Path, ready: str, hovered: str, scripts: Path | None) -> list[str]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    page.set_default_timeout(180_000)
    if scripts:
        page.route("**/*.js", lambda route: route.fulfill(
            path=scripts / Path(route.request.url).name, content_type="text/javascript"))
    began = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector(ready, state="attached")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    taken = time.perf_counter() - began
    nodes = page.evaluate("document.querySelectorAll('*').length")
    hover = f"{page.evaluate(HOVER, hovered):7.0f}" if hovered else "      -"
    context.close()
    return [f"{taken:8.2f}", f"{nodes:10,}", hover]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bertviz", action="store_true", help="measure it too")
    parser.add_argument("--scripts", type=Path, help="its three scripts, to draw its pages")
    parser.add_argument("--most", type=int, default=128, help="tokens up to which it is drawn")
    args = parser.parse_args()
    rows = [("head", 12, 16), ("head", 12, 64), ("head", 12, 128), ("head", 1, 512),
            ("model", 12, 32), ("model", 12, 64), ("model", 12, 128)]
    print(f"{'view':34}{'bytes':>13}{'made s':>8}{'drawn s':>9}{'nodes':>11}{'hover ms':>9}")
    with sync_playwright() as play, tempfile.TemporaryDirectory() as folder:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"),
                                       args=["--no-sandbox"])
        for kind, layers, count in rows:
            weights, words = attention(layers, count), [f"token{n}" for n in range(count)]
            for name, make in (("mirada", ours), ("bertviz", theirs))[: 1 + args.bertviz]:
                began = time.perf_counter()
                page = make(kind, weights, words)
                made, path = time.perf_counter() - began, Path(folder) / "view.html"
                path.write_text(page, encoding="utf-8")
                cells = []
                if name == "mirada":
                    hovered = "ol li:nth-child(4)" if kind == "head" else ""
                    cells = drawn(browser, path, "html[data-ready]", hovered, None)
                elif args.scripts and count <= args.most:
                    hovered = "#left text" if kind == "head" else ""
                    cells = drawn(browser, path, "svg line", hovered, args.scripts)
                print(f"{name:8}{kind:6} {layers:2} x 12, {count:4} tokens   {len(page):13,}"
                      f"{made:8.2f} {' '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()

"""Draw the pictures of docs/explorer.md: the Explorer on a real model, in headless Chromium.

Run: make gallery. It takes some minutes; the pictures of one machine are not those of another to
the last pixel, for fonts differ.
"""

from __future__ import annotations

import io
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_plus

import torch
from PIL import Image
from playwright.sync_api import Page, sync_playwright

import mirada
from mirada.serve.explorer import Explorer

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
SIZE, MOST = {"width": 1240, "height": 780}, 120_000  # pixels; bytes of a picture
IOI = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and John went to the store, Mary gave a drink to"
CAT = "The+cat+drank+the+milk+because+it+was+thirsty"
BANK = "I went to the bank to get money and then sat on the bank of the river"


def settled(page: Page) -> None:
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(600)


def write(page: Page, text: str) -> None:
    page.locator(".ask input").fill(text)
    page.locator(".ask button").click()
    page.wait_for_url(lambda url: quote_plus(text) in url)
    settled(page)


def brushed(page: Page) -> None:
    write(page, BANK)
    box = page.locator(".grid canvas").bounding_box()
    page.mouse.move(box["x"] + 90, box["y"] + 120)
    page.mouse.down()
    page.mouse.move(box["x"] + 330, box["y"] + 200, steps=5)
    page.mouse.up()


def played(page: Page) -> None:
    page.get_by_role("button", name="Play the strongest path").click()


def paired(page: Page) -> None:
    write(page, IOI)
    page.locator(".choice").get_by_label("take from another text").first.check()
    page.get_by_label("Other text", exact=True).fill(OTHER)
    page.get_by_role("button", name="Run it").click()
    page.wait_for_selector(".diff p.fine")
    settled(page)


def patched(page: Page) -> None:
    paired(page)
    page.get_by_role("button", name="Test", exact=True).click()
    page.wait_for_selector(".figures")


def swept(page: Page) -> None:
    paired(page)
    page.get_by_label("positions × layers").check()
    page.locator(".sweep").get_by_label("take from another text").check()
    page.get_by_role("button", name="Test every place").click()
    page.locator(".sweep .plain").first.wait_for(timeout=600_000)
    page.locator(".sweep h2").evaluate("e => e.scrollIntoView()")


def sampled(page: Page) -> None:
    write(page, IOI)


def nothing(page: Page) -> None:
    settled(page)


SHOTS: dict[str, tuple[str, Callable[[Page], None]]] = {
    "heads": ("lang=es&theme=light&screen=heads&layer=10&text=" + CAT, nothing),
    "model": ("lang=en&theme=dark&screen=model", brushed),
    "flow": ("lang=en&theme=light&screen=flow&part=routes", played),
    "next": ("lang=es&theme=dark&screen=next", sampled),
    "lens": ("lang=en&theme=light&screen=lens&text=The+capital+of+France+is+the+city+of", nothing),
    "neurons": ("lang=es&theme=dark&screen=neurons&layer=3&heads=4", nothing),
    "lab": ("lang=en&theme=light&screen=lab&part=head_out&layer=20", patched),
    "places": ("lang=en&theme=light&screen=lab&part=resid&layer=14", swept),
}


def saved(name: str, shot: bytes) -> None:
    """A picture of as many colours as fit into MOST bytes, written aside and renamed."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    for colours in (192, 128, 64):
        out = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MOST:
            break
    else:
        raise SystemExit(f"{name} has {out.tell():,} bytes and may have {MOST:,}: show less on it")
    path = PICTURES / f"explorer-{name}.png"
    aside = path.with_suffix(".part")
    aside.write_bytes(out.getvalue())
    aside.replace(path)
    print(f"{path.name}: {out.tell():,} bytes", file=sys.stderr)


def main(wanted: list[str]) -> None:
    unknown = set(wanted) - set(SHOTS)
    if unknown:
        raise SystemExit(f"no picture is called {', '.join(sorted(unknown))}; there are "
                         f"{', '.join(SHOTS)}")
    PICTURES.mkdir(parents=True, exist_ok=True)
    explorer = Explorer({"smollm2": mirada.load("smollm2", dtype=torch.float32)})
    server = explorer.listen()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"),
                                       args=["--no-sandbox"])
        for name in wanted or SHOTS:
            state, act = SHOTS[name]
            context = browser.new_context(viewport=SIZE, reduced_motion="reduce")
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.goto(f"http://127.0.0.1:{explorer.port}/?token={explorer.token}#{state}")
            page.wait_for_selector(".chip")
            settled(page)
            act(page)
            settled(page)
            saved(name, page.screenshot())
            context.close()
        browser.close()
    explorer.stop()


if __name__ == "__main__":
    main(sys.argv[1:])

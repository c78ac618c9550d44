"""The Explorer's page in a real browser, against the real server: every screen, both languages."""

import re

import pytest
import torch

from mirada.generate.options import Options
from mirada.generate.sampling import process
from serve.caller import HOSTILE, TEXT

from .seen import aria, held, outline, serious, until
from .words import words

pytestmark = pytest.mark.e2e
SCREENS = {  # screen -> what stands there when it works
    "heads": ".column.k .tok", "model": ".grid canvas", "next": "table.next tbody tr",
    "lab": ".work .main", "flow": "table.flow tbody tr", "lens": "table.lens td",
    "neurons": "table.qk tbody tr", "roles": ".work .main", "pass": ".box.attn",
    "input": ".tokens tbody tr"}
CROSS = {"cross": ".scroller canvas"}  # in the menu where a run has a source and a target


def whole(server, screen: str) -> dict:
    """A run that the screen can show."""
    if screen in CROSS:
        return server.run([5, 6, 7, 8, 1], model="m2", target_ids=[0, 9, 10])
    return server.run(TEXT)


@pytest.mark.parametrize("lang", ["en", "es"])
@pytest.mark.parametrize("screen", SCREENS | CROSS)
def test_every_screen_works_and_can_be_read_aloud(tab, server, lang, screen):
    run = whole(server, screen)["run"]
    page = tab(reduced_motion="reduce").open(f"lang={lang}&theme=light&run={run}&screen={screen}")
    page.wait_for_selector((SCREENS | CROSS)[screen])
    page.wait_for_load_state("networkidle")
    assert page.locator(".oops").count() == 0
    assert page.locator("html").get_attribute("lang") == lang
    assert len(page.query_selector_all("*")) <= 1500
    said = set(page.evaluate("[...document.querySelectorAll('button, label, h1, h2, th, p')]"
                             ".map(e => e.textContent.trim())"))
    other = words("es" if lang == "en" else "en")
    mine = set(words(lang).values())
    assert said & {text for text in other.values() if len(text) > 4 and text not in mine} == set()
    held(f"{screen}.aria.{lang}", aria(page, "main"))
    held(f"{screen}.dom", outline(page, "main"))
    assert serious(page) == []
    page.get_by_label(words(lang)["theme"], exact=True).select_option("dark")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert serious(page) == []


def test_the_exact_row_is_pythons(tab, server):
    page = tab().open("screen=heads&layer=1&heads=2&lang=en")
    page.wait_for_selector(".exact td")
    run, q = re.search(r"run=(r_\w+).*?&q=(\d+)", page.url).groups()
    row = server.get(f"runs/{run}/attn/decoder/1/2/row/{q}")["row"]
    shown = [float(x) for x in page.locator(".exact td").all_inner_texts()]
    assert shown == pytest.approx(sorted(row.tolist(), reverse=True)[:len(shown)], abs=1e-6)
    assert "looks most at" in page.locator(".says").inner_text()


def test_heads_toggle_and_solo_and_a_word_is_locked(tab, server):
    run = server.run(TEXT)["run"]
    page = tab().open(f"run={run}&screen=heads&lang=en")
    page.locator(".heads .head").nth(1).click()
    assert "heads=0%2C2%2C3" in page.url
    page.locator(".heads .head").nth(3).dblclick()
    assert "heads=3" in page.url
    word = page.locator(".column.q .tok").nth(5)
    word.hover()
    assert "looks most at" in page.locator(".says").inner_text()
    word.click()
    assert "q=5" in page.url
    page.wait_for_timeout(400)
    before = page.locator(".exact td").all_inner_texts()
    assert before
    page.reload()
    until(page, lambda: page.locator(".exact td").all_inner_texts() == before)
    assert "heads=3" in page.url
    page.keyboard.press("Escape")
    assert not re.search(r"[#&]q=", page.url)


def slide(page, n: int, value: float) -> None:
    page.locator(".sliders input").nth(n).evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})) }", value)


def test_sliders_are_the_python_sampler_over_the_whole_vocabulary(tab, server):
    page = tab().open("screen=next&lang=en")
    page.wait_for_selector("table.next tbody tr")
    run = re.search(r"run=(r_\w+)", page.url)[1]
    ids = [t["id"] for t in server.get(f"runs/{run}")["tokens"]["decoder"]]
    scores = torch.from_numpy(server.get(f"runs/{run}/logits/{len(ids) - 1}?enc=f32")["logits"])
    for _ in range(5):
        page.get_by_role("button", name="Show more").click()
    asked = []
    page.on("request", lambda r: "/logits/" in r.url and asked.append(r.url))
    for temperature in (0, 0.2, 0.7, 1, 2, 5):
        for p in (0.1, 0.5, 0.9, 1):
            slide(page, 0, temperature)
            slide(page, 2, p)
            page.wait_for_timeout(30)
            shown = {int(i): float(x) for i, x in page.evaluate(
                "[...document.querySelectorAll('table.next tbody tr')].map(r => "
                "[r.cells[0].textContent, r.querySelector('[data-p]').dataset.p])")}
            options = Options(do_sample=temperature > 0, temperature=temperature or 1.0, top_p=p)
            want = process(scores[None], torch.tensor([ids]), options, 0)[0].softmax(-1)
            if temperature == 0:
                want = torch.nn.functional.one_hot(scores.argmax(), len(scores)).float()
            assert len(shown) >= 200
            assert max(abs(want[i] - x) for i, x in shown.items()) <= 1e-4
    assert asked == []  # no call while sliding


def test_steps_branch_and_are_undone(tab):
    page = tab().open("screen=next&lang=en")
    page.wait_for_selector("table.next tbody tr")
    n = page.locator(".chip").count()
    page.get_by_role("button", name="Take the likeliest").click()
    until(page, lambda: page.locator(".chip").count() == n + 1)
    page.get_by_role("button", name="Undo").click()
    until(page, lambda: page.locator(".chip").count() == n)


def test_markup_in_the_vocabulary_is_text(tab, server):
    ids = server.run(TEXT)["tokens"]["decoder"]
    vocab = server.get("models/m0/vocab?from=0&to=329")["tokens"]
    hostile = next(int(i) for i, s in vocab.items() if "onerror" in s)
    run = server.run([ids[0]["id"], hostile, ids[1]["id"]])["run"]
    page = tab().open(f"run={run}&screen=heads")
    assert HOSTILE in page.locator(".chip").nth(1).inner_text().replace("·", " ")
    for screen in ("next", "input", "model"):
        page.locator(".menu button").nth(list(SCREENS).index(screen)).click()
        page.wait_for_selector(SCREENS[screen])
        assert page.locator("img").count() == 0


def test_a_part_is_switched_off(tab, server):
    page = tab().open("screen=lab&layer=0&heads=1&lang=en")
    page.get_by_role("button", name="Test", exact=True).click()
    page.wait_for_selector(".figures")
    snippet = page.locator(".snippet code").text_content()
    assert "mirada" in snippet and page.locator(".result table").count() == 2
    page.get_by_role("button", name="Test every place").click()
    page.wait_for_selector(".cells td button")
    page.locator(".cells td button").nth(2).click()
    assert "heads=2" in page.url


def test_roles_are_searched_and_shown(tab):
    page = tab().open("screen=roles&lang=en")
    page.get_by_role("button", name="Find roles").click()
    page.wait_for_selector(".cells.roles button", timeout=120_000)
    page.locator(".cells.roles button").first.click()
    assert page.locator(".cells.roles button[aria-pressed=true]").count() == 1


def test_masked_models_and_pairs(tab):
    page = tab().open("model=m1&screen=next&lang=en")
    page.wait_for_selector("table.next tbody tr")
    page.locator(".menu button").nth(list(SCREENS).index("input")).click()
    page.locator(".tokens .chip").nth(2).click()
    page.get_by_role("button", name="Mask").click()
    page.locator(".menu button").nth(2).click()
    until(page, lambda: "[MASK]" in page.locator("h1").inner_text())
    until(page, lambda: page.locator("table.next tbody tr").count() == 20)


def test_an_encoder_decoder_shows_which_source_each_target_saw(tab, server):
    run = whole(server, "cross")["run"]
    page = tab().open(f"run={run}&screen=cross&lang=en")
    page.wait_for_selector(".scroller canvas")
    pattern = server.get(f"runs/{run}/attn/cross/0?enc=f32")["pattern"].mean(0)
    for step in (2, 0):
        page.get_by_label("Step").fill(str(step))
        row = pytest.approx(sorted(pattern[step].tolist(), reverse=True), abs=1e-6)
        until(page, lambda row=row: row == [
            float(x) for x in page.locator(".exact td").all_inner_texts()])


@pytest.mark.parametrize("lang", ["en", "es"])
def test_the_tour_ends(tab, lang):
    page = tab().open(f"lang={lang}")
    page.locator(".learn").click()
    seen = []
    for _ in range(20):
        page.wait_for_selector(".tour .main:not([disabled])")
        seen.append(page.locator(".tour h2").inner_text())
        onward = page.locator(".tour .main")
        last = onward.inner_text() == words(lang)["endTour"]
        onward.click()
        if last:
            break
        until(page, lambda: page.locator(".tour h2").inner_text() != seen[-1])
    assert len(seen) == 14 and page.locator(".tour").count() == 0


def test_a_killed_server_is_said(tab, server):
    one = tab()
    page = one.open("lang=en")
    page.route("**/x/v1/runs", lambda route: route.abort())
    page.get_by_label("Text", exact=True).first.fill("Diego eats pizza")
    page.keyboard.press("Enter")
    page.wait_for_selector(".oops")
    assert "mirada explore" in page.locator(".oops").inner_text()
    one.wrong.clear()  # the browser itself reports the failed call

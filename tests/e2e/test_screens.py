"""What single screens can do, each figure against the server's or Python's own."""

import re
import xml.etree.ElementTree as ElementTree

import numpy
import pytest
import torch

import mirada
from serve.caller import TEXT, Caller

from .conftest import Tab
from .seen import until
from .test_page import SCREENS

pytestmark = pytest.mark.e2e
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("screen", [s for s in SCREENS if s not in ("pass", "input", "roles")])
def test_every_view_is_exported(tab, server, screen):
    run = server.run("Diego eats pizza")["run"]
    page = tab().open(f"run={run}&screen={screen}&lang=en&lock=off")
    page.wait_for_selector(SCREENS[screen])
    page.wait_for_load_state("networkidle")
    if screen == "lab":
        page.get_by_role("button", name="Test", exact=True).click()
        page.wait_for_selector(".figures")
    kept = {}
    for kind in page.locator(".exports button").all_inner_texts():
        with page.expect_download() as found:
            page.locator(".exports").get_by_role("button", name=kind).click()
        assert found.value.suggested_filename.endswith("." + kind.lower())
        kept[kind] = open(found.value.path(), "rb").read()
    assert kept["PNG"].startswith(b"\x89PNG") and len(kept["PNG"]) > 5000
    root = ElementTree.fromstring(kept["SVG"])
    said = " ".join(text.text or "" for text in root.iter(f"{SVG}text"))
    drawn = sum(1 for e in root.iter() if e.tag.removeprefix(SVG) in ("path", "rect", "image"))
    assert drawn > 5 and "Diego eats" in said and "mirada" in said, "what it is of stands below"
    assert not re.search(rb'(href|src)="(?!data:)', kept["SVG"]), "it asks nothing"
    assert len(kept["CSV"].splitlines()) > 3
    if screen == "heads":
        assert len(list(root.iter(f"{SVG}path"))) == int(
            page.locator(".rest").get_attribute("data-edges")), "every line, and no other"


def test_pictures_are_brushed_and_compared(tab):
    page = tab().open("screen=model&lang=en")
    page.wait_for_selector(".grid canvas")
    page.wait_for_load_state("networkidle")
    box = page.locator(".grid canvas").bounding_box()
    page.mouse.move(box["x"] + 80, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 60, steps=4)
    page.mouse.up()
    assert page.locator(".compared .pictures button").count() == 2
    page.locator(".grid").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    names = page.locator(".compared .pictures small").all_inner_texts()
    assert names == ["0.0", "0.1", "1.0"]
    page.locator(".compared .pictures button").first.click()
    page.wait_for_selector(".column.k .tok")
    assert "heads=0" in page.url


def test_heads_are_sorted_by_their_effect(tab):
    page = tab().open("screen=lab&lang=en")
    page.get_by_role("button", name="Test every place").click()
    page.wait_for_selector(".cells td button")
    page.locator(".menu button").nth(1).click()
    page.get_by_label("by effect").check()
    assert "part=effect" in page.url
    with page.expect_download() as found:
        page.get_by_role("button", name="CSV").click()
    rows = [line.split(",") for line in open(found.value.path()).read().splitlines()]
    assert rows[0][-1] == '"effect"' and all(float(row[-1]) for row in rows[1:]) and len(rows) == 9


def test_the_entropy_of_every_answer(tab, server):
    page = tab().open("screen=next&lang=en&q=3")
    page.wait_for_selector(".entropy canvas")
    run = re.search(r"run=(r_\w+)", page.url)[1]
    told = server.get(f"runs/{run}/surprise")
    ids = [t["id"] for t in server.get(f"runs/{run}")["tokens"]["decoder"]]
    for pos in (0, 3, len(ids) - 1):
        chances = torch.from_numpy(server.get(f"runs/{run}/logits/{pos}?enc=f32")[
            "logits"]).double().softmax(-1)
        assert told["entropy"][pos] == pytest.approx(
            -(chances * chances.log2()).sum().item(), abs=1e-4)
        if pos + 1 < len(ids):
            assert told["came"][pos] == pytest.approx(chances[ids[pos + 1]].item(), rel=1e-4)
    assert numpy.isnan(told["came"][-1])
    assert f"{told['entropy'][3]:.2f} bits" in page.locator(".entropy p").inner_text()
    page.locator(".entropy canvas").click(position=dict(x=5, y=20))
    assert "q=0" in page.url


def test_raw_attention_stands_beside_the_rollout(tab, server):
    page = tab().open("screen=flow&lang=en&q=5&layer=1&sinks=true")
    page.wait_for_selector("table.flow .raw")
    run = re.search(r"run=(r_\w+)", page.url)[1]
    raw = server.get(f"runs/{run}/attn/decoder/1?rows=5:6&enc=f32")["pattern"].mean(0)[0]
    spread = server.get(f"runs/{run}/flow?from=5")["rollout"][0]
    rows = page.locator("table.flow tbody tr")
    order = (-spread).argsort(kind="stable")[:rows.count()]
    for n in range(3):
        cells = rows.nth(n).locator(".num").all_inner_texts()
        share, weight = (float(x.rstrip("%")) for x in cells)
        assert abs(share / 100 - spread[order[n]]) < 0.006
        assert abs(weight / 100 - raw[order[n]]) < 0.006


def test_a_long_text_is_fetched_by_the_rows_in_sight(chromium, loopback):
    server = Caller({"long": mirada.build("gpt2", size="tiny", seed=3, context=1024)})
    loopback(server.explorer.port)
    run = server.run([n % 90 + 5 for n in range(700)])["run"]
    one, asked = Tab(chromium, server), []
    one.page.on("request", lambda r: "/topk" in r.url and asked.append(r.url.partition("rows=")[2]))
    page = one.open(f"run={run}&screen=heads&layer=1&lock=off&sinks=true&least=0&lang=en")
    page.wait_for_selector(".rest[data-edges]")
    assert asked == ["0:512"] and len(page.query_selector_all("*")) <= 1500
    edges = int(page.locator(".rest").get_attribute("data-edges"))
    assert 0 < edges <= 6000
    page.goto(page.url.replace("lock=off", "q=650"))
    page.locator(".column.q .tok.locked").wait_for()
    until(page, lambda: asked[-1] == "512:700")
    until(page, lambda: "looks most at" in page.locator(".says").inner_text())
    row = server.get(f"runs/{run}/attn/decoder/1?rows=650:651&enc=f32")["pattern"].mean(0)[0]
    page.locator(".exact td").first.wait_for()
    assert float(page.locator(".exact td").first.inner_text()) == pytest.approx(row.max(), abs=1e-6)
    one.context.close()
    server.explorer.stop()
    assert one.wrong == []


def test_the_strongest_path_is_played(tab):
    page = tab(reduced_motion="reduce").open("screen=flow&part=maxflow&lang=en&q=6")
    page.get_by_role("button", name="Play the strongest path").click()
    said = page.locator(".bar [aria-live]").inner_text()
    assert said.count("←") >= 1
    page.get_by_role("button", name="Close").click()
    assert page.locator(".bar [aria-live]").count() == 0


def test_neurons_fire_over_a_users_texts(tab, server):
    page = tab().open("screen=neurons&part=mlp&layer=1&lang=en")
    page.wait_for_selector(".mlp tbody tr")
    page.get_by_label("Texts").fill("Diego eats pizza\nEl perro grande corrió rápido")
    page.get_by_role("button", name="Read 2 texts").click()
    page.wait_for_selector(".hits .hit")
    neuron = int(page.locator(".hits tbody th").first.inner_text())
    model, best = server.explorer.models["m0"].model, []
    for text in ("Diego eats pizza", "El perro grande corrió rápido"):
        ids = torch.tensor([model.tokenizer.encode(text).ids])
        with torch.no_grad(), model.record(keep=None, mlp=True) as tape:
            model(input_ids=ids)
        best += tape.mlp(1)[0, :, neuron].tolist()
    first = float(page.locator(".hits .hit small").first.inner_text())
    assert first == pytest.approx(max(best), abs=0.006)
    page.get_by_label("or a text file").set_input_files(
        dict(name="a.txt", mimeType="text/plain", buffer=b"Pizza eats Diego"))
    until(page, lambda: page.get_by_role("button", name="Read 1 texts").count() == 1)


def test_a_model_writes_and_the_alignment_has_a_row_a_token(tab, server):
    run = server.run(TEXT)
    page = tab().open(f"run={run['run']}&screen=input&lang=en")
    page.get_by_role("button", name="Let the model write").click()
    until(page, lambda: f"run={run['run']}" not in page.url)
    told = server.get("runs/" + re.search(r"run=(r_\w+)", page.url)[1])
    assert told["inputs"]["write"] == 24
    model = server.explorer.models["m0"].model
    ids = model.tokenizer.encode(TEXT).ids
    want = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0].tolist()
    assert [t["id"] for t in told["tokens"]["decoder"]] == want
    cross = server.run([5, 6, 7, 8, 1], model="m2", write=6)
    written = [t["id"] for t in cross["tokens"]["decoder"]]
    t5 = server.explorer.models["m2"].model
    assert written == t5.generate(torch.tensor([[5, 6, 7, 8, 1]]), max_new_tokens=6,
                                  do_sample=False)[0].tolist()
    shape = server.get(f"runs/{cross['run']}/attn/cross/0?enc=f32")["pattern"].shape
    assert shape[1:] == (len(written), 5)


@pytest.mark.parametrize("lang", ["en", "es"])
def test_every_screen_fits_a_narrow_window(tab, lang):
    page = tab(viewport=dict(width=360, height=800)).open(f"lang={lang}")
    for n, screen in enumerate(SCREENS):
        page.locator(".menu button").nth(n).click()
        page.wait_for_selector(SCREENS[screen])
        assert page.evaluate("document.documentElement.scrollWidth") == 360, screen
        small = page.locator("main").evaluate(
            "m => [...m.querySelectorAll('button')].filter(b => b.offsetHeight && "
            "b.offsetHeight < 24).map(b => b.className + ' ' + b.textContent)")
        assert small == [], f"{screen}: WCAG 2.2 asks for targets of 24 pixels"

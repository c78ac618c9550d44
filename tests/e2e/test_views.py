"""The views in a real browser, without a network: what a reader points at, clicks and reads."""

import html
import re
import time

import numpy as np
import pytest
import torch

import mirada
from mirada import look

from .seen import aria, held, outline, serious

pytestmark = pytest.mark.e2e
TOKENS = ["[CLS]", "El", "Ġgato", "Ġbebió", "[SEP]", "Ġtenía", "Ġsed", "[SEP]"]


def weights(L=3, H=4, T=8) -> list[torch.Tensor]:
    scores = torch.randn(L, 1, H, T, T, generator=torch.Generator().manual_seed(0)) * 2
    return list(scores.softmax(-1))


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens a view from a file, offline; its page must ask for nothing and report nothing."""
    context = chromium.new_context(viewport=dict(width=1150, height=760), offline=True,
                                  accept_downloads=True)
    said, asked = [], []

    def open_(made, kind="ready"):
        page = context.new_page()
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: asked.append(r.url))
        page.on("dialog", lambda d: said.append("dialog"))
        path = tmp_path / f"{len(asked)}.html"
        if isinstance(made, str):
            path.write_text(made, encoding="utf-8")
        else:
            made.save_html(path)
        page.goto(path.as_uri())
        if kind:
            page.wait_for_selector(f"html[data-{kind}]")
        return page

    yield open_
    context.close()
    assert not said
    assert all(url.startswith(("file:", "about:", "data:", "blob:")) for url in asked), asked


def lines(page) -> int:
    return int(page.evaluate("document.documentElement.dataset.lines"))


def query(page, n):
    return page.locator("ol").first.locator("li").nth(n)


@pytest.mark.scope("1.18.2")
def test_head_view_answers_the_mouse(opened):
    attention = weights()
    page = opened(look.head_view(attention, TOKENS, 5, lang="en"))
    assert lines(page) > 150 and query(page, 2).text_content() == " gato"
    query(page, 2).hover()
    assert lines(page) <= 4 * 8
    rows = page.locator(".side tbody tr").all_inner_texts()
    mean = attention[0][0].mean(0)[2]
    best = int(mean.argmax())
    assert rows[0].split("\t")[1] == str(best)
    assert abs(float(rows[0].split("\t")[2].rstrip("%")) / 100 - mean[best]) < 0.005
    query(page, 2).click()
    query(page, 5).hover()
    assert "gato" in page.locator(".side h1").text_content(), "a click holds a token"
    page.keyboard.press("Escape")
    page.mouse.move(1, 1)
    assert lines(page) > 150
    page.locator("ol").last.locator("li").nth(0).hover()
    assert "is looked at by" in page.locator(".side h1").text_content()


@pytest.mark.scope("1.18.2")
def test_heads_layers_and_sentences_are_chosen(opened):
    page = opened(look.head_view(weights(), TOKENS, 5))
    whole = lines(page)
    head = page.locator(".squares button")
    head.nth(1).click()
    assert head.nth(1).get_attribute("aria-pressed") == "false" and lines(page) < whole
    head.nth(1).dblclick()
    pressed = [head.nth(n).get_attribute("aria-pressed") for n in range(4)]
    assert pressed == ["false", "true", "false", "false"] and lines(page) <= 64
    head.last.click()
    assert lines(page) == whole
    page.keyboard.press("]")
    assert page.locator("#layer").input_value() == "1"
    page.select_option("#part", "ab")
    shown = [page.locator(f"ol:nth-of-type({n}) li:not(.away)").all_inner_texts() for n in (1, 2)]
    assert [[t.strip() for t in side] for side in shown] == [
        ["[CLS]", "El", "gato", "bebió", "[SEP]"], ["tenía", "sed", "[SEP]"]]
    assert lines(page) <= 4 * 5 * 3
    page.select_option("#part", "all")
    page.check("#hide")
    assert page.locator("ol").first.locator("li:not(.away)").count() == 5
    page.locator("#least").fill("0.5")
    assert lines(page) < 40
    page.get_by_role("button", name="Map").click()
    assert page.locator(".labelled canvas").count() == 1
    with page.expect_download() as found:
        page.get_by_role("button", name="Save PNG").click()
    assert open(found.value.path(), "rb").read(4) == b"\x89PNG"


@pytest.mark.scope("1.18.2")
def test_lines_of_what_is_really_brought(opened):
    """The mean share of each key by weight times the length of its values, beside Python's."""
    m = mirada.build("gpt2", size="tiny", seed=3)
    with m.record(v=True) as tape, torch.inference_mode():
        m(input_ids=torch.randint(5, 100, (1, 8), generator=torch.Generator().manual_seed(1)))
    page = opened(look.head_view(tape, layer=1, lang="en"))
    query(page, 6).click()
    plain = page.locator(".side tbody tr").all_inner_texts()
    page.get_by_role("button", name="Weight × value").click()
    rows = [row.split("\t") for row in page.locator(".side tbody tr").all_inner_texts()]
    assert rows != [row.split("\t") for row in plain]
    brought = tape.values_norm(1)[0, :, 6]
    shares = (brought / brought.sum(-1, keepdim=True)).mean(0)
    for _, place, said in rows:
        assert abs(float(said.rstrip("%")) / 100 - shares[int(place)]) < 0.005
    assert "Brought" in page.inner_text(".side") and "‖v Wₒ‖" in page.inner_text("body")
    page.get_by_role("button", name="Weight", exact=True).click()
    assert page.locator(".side tbody tr").all_inner_texts() == plain
    page = opened(look.head_view(weights(), TOKENS))
    assert page.get_by_role("button", name="Weight × value").count() == 0


@pytest.mark.scope("1.18.2")
def test_512_tokens_stay_usable(opened):
    page = opened(look.head_view(weights(1, 12, 512), [f"t{n}" for n in range(512)]))
    assert lines(page) == 6000 and page.evaluate("document.querySelectorAll('*').length") < 1500
    said = page.locator("p.note").last.text_content() + page.inner_text("body")
    assert re.search(r"6,000 lines drawn; [\d,]+ weaker ones, [\d.]+% of the weight, are not", said)
    began = time.monotonic()
    query(page, 3).hover()
    page.wait_for_function("document.querySelector('.side table')")
    assert time.monotonic() - began < 5  # bertviz: 4.8 s at half the tokens; here about 0.1 s
    assert "t3" in page.locator(".side h1").text_content()


@pytest.mark.scope("1.18.3")
def test_model_view_opens_a_head_of_any_stack(opened):
    m = mirada.build("t5", size="tiny", seed=3)
    ids = torch.randint(5, 100, (1, 9), generator=torch.Generator().manual_seed(1))
    with m.record() as tape, torch.inference_mode():
        m(input_ids=ids, decoder_input_ids=ids[:, :5])
    page = opened(look.model_view(tape, lang="es"))
    maps = page.locator(".thumbs button")
    assert maps.count() == len(tape.layers("encoder")) * tape.heads(0, "encoder")
    page.select_option("#stack", "2")
    maps.nth(5).click()
    title = page.locator(".side h1").text_content()
    assert title == "Capa 1, Cabeza 1"
    pattern = tape.pattern(1, 1, stack="cross")[0, 0]
    row = page.locator(".side tbody tr").first.inner_text().split("\t")
    assert abs(float(row[2].replace("%", "").replace(",", ".")) / 100 - pattern.max()) < 0.005
    page.locator(".side canvas").hover(position=dict(x=5, y=5))
    assert "(0)" in page.locator(".side > p").nth(1).text_content()


def test_pooled_cells_name_their_tokens(opened):
    page = opened(look.model_view(weights(1, 2, 300), [f"t{n}" for n in range(300)]))
    page.locator(".thumbs button").first.click()
    row = page.locator(".side tbody tr").first.inner_text().split("\t")
    largest = weights(1, 2, 300)[0][0, 0]
    query_, key = divmod(int(largest.argmax()), 300)
    for said, n in zip(row, (query_, key), strict=False):
        first, last = (int(x) for x in said.split("–"))
        assert first <= n <= last <= first + 3
    assert "largest weight of up to 4 queries by 4 keys" in page.inner_text("body")


@pytest.mark.scope("1.18.4")
def test_neuron_view_shows_the_scores(opened):
    m = mirada.build("bloom", size="tiny", seed=3)
    ids = torch.randint(5, 100, (1, 7), generator=torch.Generator().manual_seed(1))
    with m.record() as tape, torch.inference_mode():
        m(input_ids=ids)
    made = look.neuron_view(tape, 1, 2)
    page = opened(made)
    page.select_option("#query", "4")
    rows = [row.split("\t") for row in page.locator("tbody tr").all_inner_texts()]
    for j in range(5):
        sums, bias, score, weight = rows[j][3:7]
        assert abs(float(sums) - made.products(4, j).sum()) < 0.006
        assert abs(float(bias) - made.bias[4, j]) < 0.006
        assert abs(float(score) - made.scores[4, j]) < 0.006
        assert abs(float(weight.rstrip("%")) / 100 - made.weights[4, j]) < 0.001
    assert rows[5][5] == rows[6][5] == "hidden by the mask"


def test_hostile_tokens_are_only_text(opened):
    tokens = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\u202eabc",
              "javascript:alert(1)", "${alert(1)}", "\x00", "'\"", "&amp;"]
    page = opened(look.head_view(weights(), tokens))
    assert [query(page, n).text_content() for n in (0, 1, 7)] == [tokens[0], tokens[1], "&amp;"]
    query(page, 0).hover()
    assert page.locator("img").count() == 0 and page.locator("script").count() == 2


def test_several_views_live_in_one_notebook(opened):
    frames = [look.head_view(weights(), TOKENS), look.model_view(weights(), TOKENS)]
    page = opened("<!doctype html><body>" + "".join(v._repr_html_() for v in frames), kind="")
    for n, found in enumerate(("li", ".thumbs button")):
        frame = page.frame_locator("iframe").nth(n)
        frame.locator("html[data-ready]").wait_for(state="attached")
        assert frame.locator(found).count() > 10
    assert html.escape(frames[0].html()) in frames[0]._repr_html_()


@pytest.fixture(scope="module")
def tape():
    m = mirada.build("gpt2", size="tiny", seed=3)
    ids = torch.randint(5, 100, (1, 7), generator=torch.Generator().manual_seed(1))
    with m.record(v=True, resid="sublayers", z=True) as tape, torch.inference_mode():
        m(input_ids=ids)
    return tape


@pytest.mark.parametrize("lang", ["en", "es"])
@pytest.mark.parametrize("name, draw", [
    ("head_view", lambda tape, lang: look.head_view(tape, lang=lang)),
    ("model_view", lambda tape, lang: look.model_view(tape, lang=lang)),
    ("neuron_view", lambda tape, lang: look.neuron_view(tape, 1, 2, lang=lang)),
    ("rollout", lambda tape, lang: look.flow(tape).html(lang)),
    ("routes", lambda tape, lang: look.flow(tape, "routes").html(lang)),
    ("lens", lambda tape, lang: look.lens(tape).html(lang)),
    ("dla", lambda tape, lang: look.dla(tape).html(lang)),
    ("next_token", lambda tape, lang: look.next_token(tape).html(lang))])
def test_every_view_can_be_read_by_all(opened, tape, name, draw, lang):
    page = opened(draw(tape, lang))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious(page) == [], f"{name} in {lang}, {scheme}"
    held(f"view.{name}.dom", outline(page))
    held(f"view.{name}.aria.{lang}", aria(page))


def test_a_picture_answers_the_mouse_and_the_keys(opened):
    vit = mirada.build("vit:tiny", image=(32, 48), seed=0)
    seen = torch.randint(0, 256, (32, 48, 3), dtype=torch.uint8)
    with torch.inference_mode(), vit.record() as tape:
        vit(**vit.processor(seen))
    page = opened(look.over_picture(tape, seen))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert serious(page) == []
    shown = "document.documentElement.dataset.shown"
    assert page.evaluate(shown) == "Layer 1 · Mean · Seen from: [CLS]"
    large = page.locator("canvas.mapped").first
    box = large.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(1.5, abs=0.02)
    at = {"x": box["width"] * 4.5 / 6, "y": box["height"] * 1.5 / 4}  # row 1, column 4
    page.get_by_role("button", name="Head 2").click()
    page.locator("#layer").select_option("0")
    large.click(position=at)
    assert page.evaluate(shown) == "Layer 0 · Head 2 · Seen from: patch 1, 4"
    large.hover(position=at)
    weight = tape.pattern(0)[0, 2, 1 + 6 + 4, 1 + 6 + 4].item()
    said = page.locator("p").first.text_content()
    assert said.startswith("patch 1, 4: ")
    assert float(said.split()[-1].rstrip("%")) == pytest.approx(100 * weight, abs=0.45)
    large.press("ArrowDown")
    assert page.evaluate(shown).endswith("patch 2, 4")
    large.press("Escape")
    assert page.evaluate(shown).endswith("[CLS]")
    page.get_by_role("button", name="Rollout").click()
    rolled = look.over_picture(tape, seen).rolled
    large.hover(position=at)
    said = page.locator("p").first.text_content()
    assert float(said.split()[-1].rstrip("%")) == pytest.approx(100 * rolled[10].item(), abs=0.45)


def test_the_other_views_draw(opened):
    m = mirada.build("gpt2", size="tiny", seed=3)
    ids = torch.randint(5, 100, (1, 7), generator=torch.Generator().manual_seed(1))
    with m.record(v=True, resid="sublayers", z=True) as tape, torch.inference_mode():
        m(input_ids=ids)
    flow = look.flow(tape, "maxflow")
    page = opened(flow)
    depths, T = flow.shares.shape
    assert page.locator("svg circle").count() == depths * T
    whole = page.locator("svg line").count()
    page.locator("#least").fill(str(max(e.weight for e in flow.edges)))
    assert 0 < page.locator("svg line").count() < whole == len(flow.edges)
    lens = look.lens(tape)
    page = opened(lens)
    assert page.locator(".grid td").count() == len(lens.ids) * T
    page.locator(".grid td").first.hover()
    assert page.locator(".side tbody tr").count() == lens.ids.shape[2]
    found = look.dla(tape)
    page = opened(found)
    assert page.locator("tbody th").nth(1).text_content() == f"{found.total:+.3f}"


@pytest.mark.parametrize("t, k, p", [(1, 0, 1), (0, 0, 1), (0.7, 0, 0.9), (5, 20, 1), (2, 50, 0.5)])
def test_next_token_is_exact_at_any_setting(opened, t, k, p):
    m = mirada.build("gpt2", size="tiny", seed=3)
    ids = torch.randint(5, 100, (1, 7), generator=torch.Generator().manual_seed(1))
    with m.record(resid=True), torch.inference_mode():
        m(input_ids=ids)
        made = look.next_token(m.tape)
    page = opened(made)
    for id_, value in (("t", t), ("k", k), ("p", p)):
        page.locator(f"#{id_}").fill(str(value))
    logits = np.sort(made.logits.astype(np.float64))[::-1]
    probs = np.exp((logits - logits[0]) / t) if t else (np.arange(len(logits)) == 0) * 1.0
    probs = probs[:k] if k else probs
    probs /= probs.sum()
    if p < 1:
        probs = probs[: int((probs.cumsum() < p).sum()) + 1]
        probs /= probs.sum()
    first = float(page.evaluate("document.documentElement.dataset.first"))
    assert abs(first - probs[0]) < 1e-6

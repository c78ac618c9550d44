"""The causal lab in the page: the numbers it shows are what the same changes do in Python."""

import pytest
import torch

from mirada.look import redundant
from serve.caller import TEXT

from .seen import until

pytestmark = pytest.mark.e2e
CLEAN, OTHER = "Diego eats pizza", "Pizza eats Diego"


def number(text: str) -> float:
    return float(text.strip("() ").replace(",", "").replace("+", ""))


def model(server):
    return server.explorer.models["m0"].model


def read(server, run: dict, changes=()) -> torch.Tensor:
    """(V,) what Python's own pass answers at the last token, with some changes."""
    ids = torch.tensor([[t["id"] for t in run["tokens"]["decoder"]]])
    with torch.no_grad(), model(server).intervene(*changes):
        return model(server)(input_ids=ids).logits[0, -1]


def shown(page) -> float:
    """The change of the logit difference, once a test has ended."""
    page.wait_for_selector(".figures")
    until(page, lambda: page.locator(".bar > .main").first.inner_text() == "Test")
    return number(page.locator(".figures dd strong").first.inner_text())


def change(page, before: float | None = None) -> float:
    page.get_by_role("button", name="Test", exact=True).click()
    if before is not None:
        until(page, lambda: shown(page) != before)
    return shown(page)


def paired(page, text: str) -> None:
    page.get_by_label("Other text", exact=True).fill(text)
    page.get_by_role("button", name="Run it").click()
    page.wait_for_selector(".diff")


@pytest.mark.parametrize("part, site", [
    ("head_out", dict(site="head_out", heads=[1])), ("resid", dict(site="resid")),
    ("mlp", dict(site="mlp")), ("neuron", dict(site="neuron", neurons=[3, 5])),
    ("attn", dict(site="attn")), ("pattern", dict(site="pattern", heads=[1]))])
def test_patches_both_ways_are_pythons(tab, server, part, site):
    run, other = server.run(CLEAN), server.run(OTHER)
    page = tab().open(f"run={run['run']}&screen=lab&part={part}&layer=1&heads=1&lang=en")
    if part == "neuron":
        page.get_by_label("Numbers").fill("3, 5")
    if part != "pattern":
        page.locator(".choice").get_by_label("take from another text").first.check()
    assert page.get_by_role("button", name="Test", exact=True).is_disabled(), "no other text yet"
    paired(page, OTHER)
    assert "Both have 3 tokens" in page.locator(".diff p").inner_text()
    assert page.locator(".diff .apart").count() == 4
    until(page, lambda: page.get_by_label("against B").input_value())
    if part == "resid":
        page.get_by_label("only at the chosen token").uncheck()
    a, b = (int(page.get_by_label(name).input_value()) for name in ("Answer A", "against B"))
    last = None
    for target, source in ((run, other), (other, run)):
        ids = torch.tensor([[t["id"] for t in source["tokens"]["decoder"]]])
        with torch.no_grad(), model(server).record(z=True, resid="sublayers", mlp=True) as tape:
            model(server)(input_ids=ids)
        made = {**site, "layer": 1, "op": "freeze" if part == "pattern" else "patch",
                "source": tape}
        before, after = read(server, target), read(server, target, [made])
        want = ((after[a] - after[b]) - (before[a] - before[b])).item()
        assert change(page, last) == pytest.approx(want, abs=6e-4)
        last = shown(page)
        page.locator(".choice").get_by_label("this → other").check()
    if part == "resid":
        assert "100%" in page.locator(".figures").inner_text(), "a whole stream brings its answer"


def test_misaligned_texts_are_refused_with_their_difference(tab, server):
    run = server.run(CLEAN)["run"]
    page = tab().open(f"run={run}&screen=lab&part=resid&layer=1&lang=en")
    page.locator(".choice").get_by_label("take from another text").first.check()
    paired(page, "Diego eats rica pizza")
    said = page.locator(".diff [role=alert]").inner_text()
    assert "3 tokens" in said and "refused" in said
    row = page.locator(".tokenrows tr").nth(1)
    assert "rica" in row.locator(".apart").all_inner_texts()[0].replace("·", "")
    assert page.get_by_role("button", name="Test", exact=True).is_disabled()


def test_a_look_and_a_value_at_a_position(tab, server):
    run = server.run(CLEAN)
    page = tab().open(f"run={run['run']}&screen=lab&part=edge&layer=0&heads=1&q=2&k=0&lang=en")
    found = change(page)
    want = read(server, run, [dict(site="edge", layer=0, op="knockout", heads=[1], pos=[2],
                                   keys=[0])])
    base = read(server, run)
    a, b = base.topk(2).indices.tolist()
    assert found == pytest.approx(((want[a] - want[b]) - (base[a] - base[b])).item(), abs=6e-4)
    page.locator(".choice").get_by_label("values", exact=True).check()
    assert page.get_by_label("set to its mean").count() == 1, "of the sweep only"
    found = change(page, found)
    want = read(server, run, [dict(site="value", layer=0, op="zero", heads=[1], keys=[0])])
    assert found == pytest.approx(((want[a] - want[b]) - (base[a] - base[b])).item(), abs=6e-4)


def test_a_cluster_is_switched_off_together(tab, server):
    run = server.run([5, 5, 5, 5])
    ids = torch.tensor([[5, 5, 5, 5]])
    with torch.no_grad(), model(server).record(z=True) as tape:
        model(server)(input_ids=ids)
    first = [tape_head for tape_head in redundant(tape).clusters][0]
    page = tab().open(f"run={run['run']}&screen=roles&part=clusters&lang=en")
    page.wait_for_selector(".cluster")
    heads = page.locator(".cluster").first.locator(".word").all_inner_texts()
    assert heads == [f"{n // 4}.{n % 4}" for n in first]
    page.get_by_role("button", name="Switch them off together").first.click()
    assert page.locator(".plan li").count() == len(first)
    page.get_by_role("button", name="Test them together").click()
    page.wait_for_selector("table.apart")
    rows = [number(x) for x in page.locator("table.apart .num").all_inner_texts()[1:]]
    *alone, total, together = rows
    assert len(alone) == len(first) and sum(alone) == pytest.approx(total, abs=2e-3)
    changes = [dict(site="head_out", layer=n // 4, heads=[n % 4], op="mean") for n in first]
    base, after = read(server, run), read(server, run, changes)
    a, b = base.topk(2).indices.tolist()
    assert together == pytest.approx(((after[a] - after[b]) - (base[a] - base[b])).item(),
                                     abs=6e-4)


def test_an_effect_is_held_against_random_heads(tab, server):
    run = server.run(TEXT)["run"]
    page = tab().open(f"run={run}&screen=lab&layer=0&heads=1&lang=en")
    page.get_by_label("compare with 32 random heads").check()
    change(page)
    assert "random heads (32 draws)" in page.locator(".figures").inner_text()


def test_patches_of_every_position(tab, server):
    run = server.run(CLEAN)["run"]
    page = tab().open(f"run={run}&screen=lab&part=resid&layer=1&lang=en")
    page.locator(".choice").get_by_label("take from another text").first.check()
    paired(page, OTHER)
    page.get_by_label("positions × layers").check()
    page.locator(".sweep").get_by_label("take from another text").check()
    page.get_by_role("button", name="Test every place").click()
    page.wait_for_selector(".cells td button")
    assert page.locator(".cells td button").count() == 2 * 3
    same = page.locator(".cells td button").nth(1).get_attribute("aria-label")
    assert same.endswith(": 0"), "both texts hold the same word there, and nothing above it yet"
    page.locator(".cells td button").nth(5).click()
    assert "q=2" in page.url and "layer=1" in page.url

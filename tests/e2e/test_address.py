"""The address holds what is seen: put over an open page it means the same as in a fresh one."""

import re

import pytest

from serve.caller import TEXT

from .seen import until

pytestmark = pytest.mark.e2e


def test_an_address_over_an_open_page_is_kept_by_a_reload(tab, server):
    one = tab()
    page = one.open("lang=en")
    run = server.run("Pizza eats Diego")["run"]
    base = page.url.partition("#")[0]
    for state, part in ((f"run={run}&screen=flow&part=routes&q=1", "routes"),
                        (f"run={run}&screen=lens&part=dla&layer=1", "dla"),
                        (f"run={run}&screen=heads&lock=off", None)):
        page.goto(f"{base}#{state}")
        until(page, lambda: "text=Pizza+eats+Diego" in page.url and f"run={run}" in page.url)
        page.wait_for_selector(".snippet code", state="attached")
        page.wait_for_load_state("networkidle")
        until(page, lambda: page.locator(".snippet code").first.text_content() != "")
        url, code = page.url, page.locator(".snippet code").first.text_content()
        assert (f"part={part}" in page.url) == (part is not None)
        page.reload()
        page.wait_for_selector(".snippet code", state="attached")
        page.wait_for_load_state("networkidle")
        page.locator(".snippet code", has_text=code).first.wait_for(state="attached")
        assert page.url == url
    assert not re.search(r"[#&]q=", page.url) and page.locator(".chip.locked").count() == 0


def test_another_models_run_opens_over_a_page_and_back_returns(tab, server):
    page = tab().open("lang=en&screen=flow")
    page.wait_for_selector("table.flow tbody tr")
    base, first = page.url.split("#")
    cross = server.run([5, 6, 7, 8, 1], model="m2", target_ids=[0, 9, 10])["run"]
    page.goto(f"{base}#run={cross}&screen=flow&stack=encoder")
    until(page, lambda: page.locator(".chip").count() == 5)
    assert page.locator(".oops").count() == 0
    page.go_back()
    until(page, lambda: page.locator(".brand select").input_value() == "m0")
    until(page, lambda: page.url.split("#")[1] == first)


def test_a_text_outlives_its_run(tab, server):
    page = tab().open("run=r_000000000000&text=Diego+eats+pizza&lang=en")
    until(page, lambda: page.locator(".ask input").input_value() == "Diego eats pizza")
    assert TEXT not in page.url

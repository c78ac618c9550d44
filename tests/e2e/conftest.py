"""A headless Chromium, cut off from every network but one server of tiny models."""

import shutil

import pytest

from serve.caller import Caller, models


@pytest.fixture(scope="session")
def started(tmp_path_factory):
    caller = Caller(models(tmp_path_factory.mktemp("models")))
    yield caller
    caller.explorer.stop()


@pytest.fixture
def server(started, loopback):
    loopback(started.explorer.port)
    return started


@pytest.fixture(scope="session")
def chromium():
    sync = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[
            "--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])
        yield browser
        browser.close()


SIZE = {"width": 1360, "height": 860}


class Tab:
    """A page of the Explorer, and all that went wrong in it."""

    def __init__(self, browser, server, **options):
        self.server, self.wrong = server, []
        self.context = browser.new_context(**{"viewport": SIZE, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: said.type == "error" and self.wrong.append(said.text))
        self.page.on("request", self._asked)

    def _asked(self, request):
        if not request.url.startswith((f"http://127.0.0.1:{self.server.explorer.port}/", "blob:")):
            self.wrong.append(f"asked {request.url}")

    def open(self, state: str = ""):
        explorer = self.server.explorer
        self.page.goto(f"http://127.0.0.1:{explorer.port}/?token={explorer.token}#{state}")
        self.page.wait_for_selector(".chip")
        return self.page


@pytest.fixture
def tab(chromium, server):
    """tab(lang="es") -> a fresh browser context; at the end nothing may have gone wrong in it."""
    made = []

    def new(**options):
        made.append(Tab(chromium, server, **options))
        return made[-1]

    yield new
    wrong = [line for one in made for line in one.wrong]
    for one in made:
        one.context.close()
    assert wrong == []

"""One server for all tests of a file."""

import pytest

from serve.caller import TEXT, Caller, models


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    caller = Caller(models(tmp_path_factory.mktemp("models")), lang="es")
    yield caller
    caller.explorer.stop()


@pytest.fixture
def caller(started, loopback):
    loopback(started.explorer.port)
    return started


@pytest.fixture
def run(caller) -> dict:
    """The guides' cat in the decoder."""
    return caller.run(TEXT)

"""What every test runs under: one thread, fixed seeds, no network, and skips that count."""

import os

# Read when torch and transformers are first imported, so they stand before every other import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

import random
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

from mirada import shelf
from mirada.errors import UntrustedInputError

hypothesis.settings.register_profile(
    "fixed", derandomize=True, deadline=None, database=None, print_blob=False
)
hypothesis.settings.load_profile("fixed")


def _abandoned(folder: Path) -> bool:
    """Whether the session that made it was killed."""
    try:
        os.kill(int(folder.name.split("-")[2]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's, and alive
        pass
    return False


# What tests and their processes put aside lies in one folder, which goes with the session: even
# where they are killed; where it is killed itself, with the next one. tmp_path stays where pytest
# keeps it (of tests that failed).
if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker has its folder from the one that began it
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    for left in filter(_abandoned, Path(tempfile.gettempdir()).glob("mirada-pytest-*")):
        shutil.rmtree(left, ignore_errors=True)
    ASIDE = tempfile.TemporaryDirectory(prefix=f"mirada-pytest-{os.getpid()}-",
                                        ignore_cleanup_errors=True)
    os.environ["TMPDIR"] = tempfile.tempdir = ASIDE.name

NO_SKIP = os.environ.get("MIRADA_NO_SKIP") == "1"
CORE = Path(__file__).parent / "core"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what mutants are run against: the core's own tests (and some parity rows, which mark
    themselves)."""
    for item in items:
        if CORE in item.path.parents:
            item.add_marker(pytest.mark.fast)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return _no_skip(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _no_skip(report)


def _no_skip(report):
    """Under MIRADA_NO_SKIP=1 a skip, and likewise an expected failure, is a failure."""
    expected = getattr(report, "wasxfail", None)
    if NO_SKIP and (report.skipped or expected is not None):
        reason = f"expected to fail {expected}" if expected is not None else report.longrepr[-1]
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: MIRADA_NO_SKIP=1 allows no skip: {reason}"
        if expected is not None:
            del report.wasxfail
    return report


_attempts: list[str] = []
_own_ports: set[int] = set()  # of 127.0.0.1, on which the test itself listens


def _refuse_network(event, args):
    if event == "socket.connect" or event == "socket.sendto":
        if args[0].family == getattr(socket, "AF_UNIX", None) or _own(*args[1][:2]):
            return
        _attempts.append(f"{event} {args[1]}")
    elif event == "socket.getaddrinfo" and _own(*args[:2]):
        return
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        _attempts.append(f"{event} {args[0]}")
    else:
        return
    raise RuntimeError(f"a test may not use the network: {_attempts[-1]}")


def _own(host, port) -> bool:
    return host == "127.0.0.1" and port in _own_ports


sys.addaudithook(_refuse_network)  # stays for the life of the process; nothing can remove it


@pytest.fixture(autouse=True)
def network():
    """The refused attempts of this test; any left at its end fail it, even if its code hid them."""
    _attempts.clear()
    yield _attempts
    assert not _attempts, f"the network was tried: {_attempts}"


@pytest.fixture
def loopback():
    """loopback(port): what this test started on 127.0.0.1 may be spoken to until its end."""
    yield _own_ports.add
    _own_ports.clear()


@pytest.fixture(autouse=True)
def _seeds():
    """The same numbers in every run, alone or among others."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def real():
    """real("smollm2") -> the path of a real model that a package carries.

    Skips where the package is absent; fails where its weight file is not the published one.
    """

    def path(name: str) -> Path:
        if not shelf.installed(name):
            pytest.skip(f"{name} is not installed: {shelf.ENTRIES[name].command}")
        try:
            return shelf.find(name)
        except UntrustedInputError as error:
            pytest.fail(str(error))

    return path

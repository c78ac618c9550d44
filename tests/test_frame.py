"""The frame of the suite itself: the shelf of real models, the network guard, skips that fail."""

import getpass
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mirada import shelf
from mirada.errors import MiradaError, UntrustedInputError

TESTS = Path(__file__).parent


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A model on the shelf whose package is written here: fake(contents) installs it."""
    entry = shelf.Entry(
        package="mirada-fake",
        version="1.0",
        path="model",
        weights="model/w.bin",
        sha256="2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",  # of "foo"
        license="MIT",
        about="three letters",
    )
    monkeypatch.setitem(shelf.ENTRIES, "fake", entry)
    monkeypatch.syspath_prepend(tmp_path)

    def install(contents: str) -> Path:
        folder = tmp_path / "mirada_fake"
        (folder / "model").mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("raise SystemExit('the package was imported')")
        (folder / "model" / "w.bin").write_text(contents)
        return folder / "model"

    return install


def test_shelf_finds_a_package_without_importing_it(fake):
    folder = fake("foo")
    assert shelf.find("fake") == folder
    assert "mirada_fake" not in sys.modules


def test_shelf_names_the_command_of_an_absent_package(fake):
    with pytest.raises(MiradaError, match="pip install --no-deps mirada-fake==1.0"):
        shelf.find("fake")
    assert not shelf.installed("fake")


def test_shelf_checks_ahead_and_find_waits_for_it(fake, monkeypatch, capfd):
    shelf.ahead("fake"), shelf.ahead("nothing of ours")  # absent, unknown: nothing happens
    folder = fake("foo")
    hashed, began = [], threading.Event()

    def sha256():
        hashed.append(threading.current_thread())
        began.set()
        time.sleep(0.05)
        return hashlib.sha256()

    monkeypatch.setattr(shelf, "hashlib", SimpleNamespace(sha256=sha256))
    shelf.ahead("fake")
    assert began.wait(10)
    assert shelf.find("fake") == folder
    assert len(hashed) == 1 and hashed[0] is not threading.current_thread()
    (folder / "w.bin").write_text("fop")
    os.utime(folder / "w.bin", ns=(2, 2))
    shelf.ahead("fake")
    with pytest.raises(UntrustedInputError, match="sha256"):
        shelf.find("fake")
    assert capfd.readouterr().err == ""


def test_shelf_refuses_other_bytes_even_after_right_ones(fake):
    folder = fake("foo")
    shelf.find("fake")
    fake("fop")
    os.utime(folder / "w.bin", ns=(1, 1))  # a clock too coarse to tell the two writes apart
    with pytest.raises(UntrustedInputError, match="sha256"):
        shelf.find("fake")


def test_shelf_lists_what_it_knows():
    with pytest.raises(MiradaError, match="smollm2, minilm, rxnmapper, antiberty"):
        shelf.find("bert-base")
    assert shelf.names() == ["smollm2", "minilm", "rxnmapper", "antiberty"]


@pytest.mark.parametrize("name", ["smollm2", "minilm", "rxnmapper", "antiberty"])
def test_real_package_is_the_published_one(real, name):
    assert real(name).exists()


def test_real_fails_on_other_bytes(real, fake):
    fake("fop")
    with pytest.raises(pytest.fail.Exception, match="sha256"):
        real("fake")


def test_pins_agree_with_the_shelf():
    pins = (TESTS.parent / "demo-packages.txt").read_text()
    pins += (TESTS.parent / "real-packages.txt").read_text()
    for entry in shelf.ENTRIES.values():
        assert f"{entry.package}=={entry.version} --hash=sha256:" in pins


def test_network_is_refused(network):
    with pytest.raises(RuntimeError, match="network"):
        socket.create_connection(("127.0.0.1", 9))
    with socket.socket() as plain, pytest.raises(RuntimeError, match="network"):
        plain.connect(("127.0.0.1", 9))
    assert len(network) == 2
    network.clear()


def test_sockets_between_processes_are_allowed(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)


INNER = """
import socket
import pytest

def test_skipped(): pytest.skip("no such thing here")

@pytest.mark.xfail
def test_expected_to_fail(): assert False

@pytest.mark.xfail
def test_unexpectedly_passing(): pass

def test_hidden_network():
    try:
        socket.create_connection(("127.0.0.1", 9))
    except RuntimeError:
        pass
"""


@pytest.mark.parametrize(
    ("no_skip", "outcome"),
    [
        ("0", "1 passed, 2 skipped, 1 xfailed, 1 xpassed, 1 error"),
        ("1", "3 failed, 1 passed, 2 errors"),
    ],
)
def test_skips_fail_where_nothing_may_be_skipped(tmp_path, no_skip, outcome):
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_inner.py").write_text(INNER)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such')\n")
    environment = {**os.environ, "MIRADA_NO_SKIP": no_skip}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path]
    command += ["--rootdir", tmp_path, "-c", os.devnull, "--continue-on-collection-errors"]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert outcome in run.stdout, run.stdout


LEFT = """
import subprocess
import sys
import tempfile

import pytest

@pytest.mark.parametrize("turn", range(2))
def test_leaves_things(turn, tmp_path):
    tempfile.mkdtemp(prefix="left-")
    program = "import os, tempfile; open(tempfile.mkdtemp() + '/x', 'w'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    (tmp_path / "y").touch()
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_a_session_leaves_nothing_behind(tmp_path, workers):
    """Not even what its tests, or processes of theirs that were killed, never removed; and not
    what a session left that was killed itself."""
    aside, inner = tmp_path / "aside", tmp_path / "inner"
    dead = subprocess.Popen(["true"])
    dead.wait()
    (aside / f"mirada-pytest-{dead.pid}-x" / "y").mkdir(parents=True), inner.mkdir()
    shutil.copy(TESTS / "conftest.py", inner)
    (inner / "test_left.py").write_text(LEFT)
    own = ("PYTEST_XDIST_WORKER", "PYTEST_DEBUG_TEMPROOT")
    environment = {k: v for k, v in os.environ.items() if k not in own} | {"TMPDIR": str(aside)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, inner]
    command += ["--rootdir", inner, "-c", TESTS.parent / "pyproject.toml"]
    run = subprocess.run(command, env=environment, cwd=inner, capture_output=True, text=True)
    assert "2 passed" in run.stdout, run.stdout
    assert not [path for path in aside.rglob("*") if path.is_file()]
    assert [path.name for path in aside.iterdir()] == [f"pytest-of-{getpass.getuser()}"]

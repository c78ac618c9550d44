"""mirada explore: the link it prints, the page behind it, and its end."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from urllib.request import HTTPCookieProcessor, ProxyHandler, build_opener

import pytest

import mirada
from mirada.cli import main
from mirada.serve.explorer import Explorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt") / "<b>gpt"
    mirada.save(mirada.build("gpt2", size="tiny", seed=3), path)
    return str(path)


def test_the_command_serves_until_interrupted(folder, loopback):
    child = subprocess.Popen([sys.executable, "-m", "mirada.cli", "explore", folder, "--no-open",
                              "--lang", "es"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True)
    url = child.stdout.readline().strip()
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=[\w-]{43}&lang=es", url)
    port = int(found[1])
    loopback(port)
    tab = build_opener(ProxyHandler({}), HTTPCookieProcessor())
    page = tab.open(url, timeout=10)
    assert page.status == 200 and page.url == f"http://127.0.0.1:{port}/?lang=es"
    told = json.loads(tab.open(f"http://127.0.0.1:{port}/x/v1/models", timeout=10).read())
    assert told["models"][0]["name"] == folder and told["lang"] == "es"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=10)
    assert child.returncode == 130 and out == ""
    assert "works on this computer only" in err and "Traceback" not in err


def test_a_port_that_is_taken_or_none(folder, capsys):
    first = Explorer({})
    server = first.listen()
    assert main(["explore", folder, "--no-open", "--port", str(first.port)]) == 2
    assert f"port {first.port} of this machine cannot be used" in capsys.readouterr().err
    assert main(["explore", folder, "--no-open", "--port", "70000"]) == 2
    assert "from 0 to 65535" in capsys.readouterr().err
    server.server_close()


def test_a_model_opens_its_own_explorer(monkeypatch):
    from mirada.serve import explorer
    told = []
    monkeypatch.setattr(explorer.Server, "serve_forever", lambda self, poll_interval: None)
    model = mirada.build("gpt2", size="tiny")
    model.explore(open_page=False, told=told.append, lang="en")
    assert told[0].startswith("http://127.0.0.1:") and told[0].endswith("&lang=en")


def test_ctrl_c_as_a_connection_begins_is_not_lost(loopback, monkeypatch):
    """The connection's thread has ended, and given its slot back, when Ctrl-C reaches start()."""
    server = Explorer({}).listen()
    loopback(server.server_address[1])
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        thread.join()
        raise KeyboardInterrupt

    with socket.create_connection(server.server_address[:2]) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        monkeypatch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.01)
    monkeypatch.undo()
    server.server_close()

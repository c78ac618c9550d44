"""Who may speak to the server, how much and for how long."""

import http.client
import json
import socket
import time

import pytest

from mirada.serve import wire
from mirada.serve.explorer import Explorer
from serve.caller import fulfils

PORT = 8765
HOSTS = {
    "127.0.0.1": True, "127.0.0.1:{port}": True, "localhost:{port}": True, "LOCALHOST:80": True,
    "localhost.": True, "[::1]:{port}": True, "127.0.0.1:9000": True,  # a tunnel's port
    "evil.com": False, "localhost.evil.com": False, "127.0.0.1.nip.io": False, "0.0.0.0": False,
    "[::ffff:127.0.0.1]": False, "2130706433": False, "127.1": False, "0x7f000001": False,
    "": False, "a.local": False, "10.0.0.1": False, "127.0.0.1@evil.com": False,
    "evil.com:{port}": False, "127.0.0.1:80:80": False, "localhost:x": False, "::1": False,
}


def raw(caller, text: bytes) -> bytes:
    """What comes back for bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", caller.explorer.port), timeout=10) as line:
        line.sendall(text)
        found = b""
        while part := line.recv(65536):
            found += part
    return found


@pytest.mark.parametrize("host", HOSTS)
def test_hosts(caller, host):
    told = host.format(port=caller.explorer.port)
    status, _, content = caller.send("GET", "/x/v1/models", Host=told or None) if told else (
        int(raw(caller, b"GET /x/v1/models HTTP/1.1\r\n\r\n").split()[1]), None, b"")
    assert status == (200 if HOSTS[host] else 403)
    if content and status == 403:
        fulfils(json.loads(content), "error")


def test_odd_requests(caller):
    port, token = caller.explorer.port, caller.explorer.token
    known = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
    for line, status in (
            (f"GET /x/v1/models HTTP/1.1\r\nHost: evil.com\r\n{known}\r\n", 403),  # two hosts
            (f"GET http://evil.com/x/v1/models HTTP/1.1\r\n{known}\r\n", 400),
            (f"GET /{'a' * 70_000} HTTP/1.1\r\n{known}\r\n", 414),
            (f"GET /x/v1/models HTTP/1.1\r\n{known}X: {'a' * 40_000}\r\n\r\n", 431),
            (f"GET /x/v1/models HTTP/1.1\r\n{known}" + "a: b\r\n" * 150 + "\r\n", 431),
            ("\x00\x01\x02\r\n\r\n", 400), (f"BREW / HTTP/1.1\r\n{known}\r\n", 501),
            (f"POST /x/v1/runs HTTP/1.1\r\n{known}Transfer-Encoding: chunked\r\n\r\n", 411),
            (f"POST /x/v1/runs HTTP/1.1\r\n{known}Content-Length: -4\r\n\r\n", 400),
            (f"POST /x/v1/runs HTTP/1.1\r\n{known}Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
             411),
            (f"GET /x/v1/models HTTP/1.1\r\n{known}\r\n", 200)):
        found = raw(caller, line.encode("latin-1"))
        assert found.split(b" ", 2)[1] == str(status).encode(), (line[:60], found[:200])
        assert b"a" * 100 not in found, "nothing is repeated"


def test_origins(caller):
    own = f"http://127.0.0.1:{caller.explorer.port}"
    before = len(caller.explorer.runs.runs)
    body = json.dumps({"inputs": {"ids": [1, 2]}}).encode()
    for origin in ("http://evil.com", "null", own.replace("http", "https"), "http://127.0.0.1:1",
                   f"{own}.evil.com", f"http://localhost:{caller.explorer.port}"):
        status, headers, _ = caller.send("POST", "/x/v1/runs", body, Origin=origin,
                                         Content_Type="application/json")
        assert status == 403 and "Access-Control-Allow-Origin" not in headers
    for site in ("cross-site", "same-site"):
        assert caller.send("GET", "/x/v1/models", Sec_Fetch_Site=site)[0] == 403
    assert len(caller.explorer.runs.runs) == before, "a refused call is not carried out"
    assert caller.send("POST", "/x/v1/runs", body, Origin=own,
                       Content_Type="application/json")[0] == 201
    assert caller.send("POST", "/x/v1/runs", body, Content_Type="text/plain")[0] == 415


def test_the_token(caller):
    token, port = caller.explorer.token, caller.explorer.port
    assert len(token) >= 43, "256 bits"
    for given in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {token}"},
                  {"Authorization": f"Bearer {token}x"}, {"Cookie": f"mirada-1={token}"},
                  {"Cookie": f"mirada-{port}="}):
        for path in ("/x/v1/models", "/x/v1/runs", "/x/v1/nothing"):
            given = {"Authorization": None, **given}
            status, _, content = caller.send("GET", path, **given)
            assert status == 401 and token.encode() not in content
            fulfils(json.loads(content), "error")
    assert caller.send("GET", "/x/v1/models", Authorization=None,
                       Cookie=f"a=b; mirada-{port}={token}")[0] == 200
    status, headers, _ = caller.send("GET", f"/?token={token}&lang=es", Authorization=None)
    assert status == 303 and headers["Location"] == "/?lang=es", "the token leaves the address"
    cookie = headers["Set-Cookie"]
    assert cookie.startswith(f"mirada-{port}={token};")
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    status, headers, _ = caller.send("GET", "/?token=wrong", Authorization=None)
    assert status != 303 and "Set-Cookie" not in headers
    assert Explorer({}).token != Explorer({}).token


def test_every_answer_is_guarded(caller):
    for path in ("/", "/x/v1/models", "/nothing", "/x/v1/nothing"):
        _, headers, _ = caller.send("GET", path)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'") and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers and "Python" not in headers["Server"]


@pytest.mark.parametrize("path", [
    "/../explorer.py", "/..%2fexplorer.py", "/%2e%2e/explorer.py", "/....//explorer.py",
    "//etc/passwd", "/static/../../errors.py", "/index.html/../../wire.py", "/\\..\\wire.py",
    "/x/v1/../../explorer.py", "/assets/%00", "/x/v1/runs/../models", "/%c0%ae%c0%ae/wire.py",
])
def test_no_path_leaves_the_page(caller, path):
    status, _, content = caller.send("GET", path)
    assert status == 404 and b"import" not in content


def test_oversized_bodies_are_refused_unread(caller):
    line = http.client.HTTPConnection("127.0.0.1", caller.explorer.port, timeout=10)
    line.putrequest("POST", "/x/v1/runs")
    line.putheader("Authorization", f"Bearer {caller.explorer.token}")
    line.putheader("Content-Type", "application/json")
    line.putheader("Content-Length", str(wire.BODY + 1))
    line.endheaders()
    answer = line.getresponse()  # not one byte of the body was sent
    assert answer.status == 413 and json.loads(answer.read())["error"]["type"] == "too_large"
    assert answer.getheader("Connection") == "close"
    line.close()


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"inputs": NaN}', b"\xff", b"null",
                                  b'{"inputs": {"ids": [1e999]}}', b"1" * 5000])
def test_bodies_that_are_no_request(caller, body):
    status, _, content = caller.send("POST", "/x/v1/runs", body, Content_Type="application/json")
    assert status == 400
    fulfils(json.loads(content), "error")


def test_a_slow_client_holds_no_thread(caller, monkeypatch):
    monkeypatch.setattr(wire, "HEADER_SECONDS", 0.4)
    with socket.create_connection(("127.0.0.1", caller.explorer.port), timeout=5) as line:
        began = time.monotonic()
        line.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises(OSError):  # a byte now and then does not prolong it
            while time.monotonic() - began < 4:
                time.sleep(0.05)
                line.sendall(b"a")
                line.settimeout(0.001)
                try:
                    assert line.recv(1) == b""
                    raise ConnectionResetError
                except TimeoutError:
                    pass
        assert time.monotonic() - began < 3
    monkeypatch.setattr(wire, "HEADER_SECONDS", 10.0)
    monkeypatch.setattr(wire, "BODY_SECONDS", 0.4)
    with socket.create_connection(("127.0.0.1", caller.explorer.port), timeout=5) as line:
        began = time.monotonic()
        line.sendall(b"POST /x/v1/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
                     b"Content-Type: application/json\r\nAuthorization: Bearer "
                     + caller.explorer.token.encode() + b"\r\n\r\n{")
        assert line.recv(100) == b"" and time.monotonic() - began < 3


def test_a_flood_of_connections_is_cut_off(caller):
    held = [socket.create_connection(("127.0.0.1", caller.explorer.port), timeout=5)
            for _ in range(wire.CONNECTIONS + 5)]
    try:
        time.sleep(0.3)
        held[-1].settimeout(3)
        assert held[-1].recv(1) == b"", "one too many"
    finally:
        for line in held:
            line.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert caller.send("GET", "/x/v1/models")[0] == 200
            return
        except (ConnectionError, http.client.HTTPException):
            time.sleep(0.05)
    pytest.fail("the server did not come back")

"""One connection to the page: who may speak, how much, for how long; then the call, then the bytes.

The server listens on this machine only. That alone does not keep other pages of the browser out:
a name that points here (DNS rebinding) fails at Host, a foreign page at Origin, and whoever lacks
the launch's token at the door.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlencode, urlunsplit

from mirada.errors import MiradaError

from .errors import Refused

HEADERS = 32 << 10  # bytes of all headers
BODY = 8 << 20
HEADER_SECONDS, BODY_SECONDS, SEND_SECONDS = 10.0, 30.0, 60.0
CONNECTIONS = 64
NAMES = ("127.0.0.1", "localhost", "[::1]")
WORTH_PACKING = 1024  # bytes
SAFE = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
}
JSON = "application/json; charset=utf-8"
NUMBERS = "application/octet-stream"
FOREVER, NEVER = "private, max-age=31536000, immutable", "no-store"


@dataclass
class Answer:
    """What goes back: bytes or, of a stream, an iterator of bytes; for how long it may be kept."""

    body: bytes | Iterator[bytes]
    type: str = JSON
    status: int = 200
    cache: str = NEVER
    headers: dict[str, str] = field(default_factory=dict)


def as_json(data: dict, status: int = 200) -> Answer:
    """The answer in JSON."""
    return Answer(json_bytes(data), status=status)


def json_bytes(data: dict) -> bytes:
    """JSON with no bare < or &, so that no reader can take it for markup."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "replace")


class _Until(io.RawIOBase):
    """A socket read with a deadline for all of it: a byte now and then keeps no thread."""

    def __init__(self, sock: socket.socket):
        self.sock, self.end = sock, time.monotonic() + HEADER_SECONDS

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)
        return self.sock.recv_into(buffer)


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1; `explorer` answers."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, explorer, port: int = 0):
        self.explorer, self.slots = explorer, threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(("127.0.0.1", port), Connection)
        explorer.port = self.server_address[1]

    def process_request(self, request, client_address):
        if not self.slots.acquire(blocking=False):  # a page opens a handful; this is a flood
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be had; one that runs gives the slot back itself,
            self.slots.release()  # also where Ctrl-C came while it began
            raise

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

    def handle_error(self, request, client_address):
        """A client that hung up is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Connection(BaseHTTPRequestHandler):
    """Reads calls, asks the explorer, writes answers."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mirada", ""

    def setup(self):
        super().setup()
        self.until = _Until(self.connection)
        self.rfile = io.BufferedReader(self.until)

    def handle_one_request(self):
        self.until.end = time.monotonic() + HEADER_SECONDS
        try:
            super().handle_one_request()
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def do_GET(self):
        self._serve()

    do_POST = do_DELETE = do_PUT = do_PATCH = do_OPTIONS = do_HEAD = do_GET

    def _serve(self) -> None:
        self.close_connection = self.close_connection or self.command not in ("GET", "POST",
                                                                              "DELETE")
        try:
            self._admit()
            answer = self._answer()
        except Refused as refused:
            answer = as_json(refused.data(), refused.status)
        except (TimeoutError, ConnectionError):
            raise
        except MiradaError as error:
            answer = as_json({"error": {"type": "input", "message": str(error)}}, 400)
        except Exception:
            traceback.print_exc()
            answer = as_json({"error": {"type": "failed", "message": "the server failed at this "
                              "call; its own window says where"}}, 500)
        self._send(answer)

    def _admit(self) -> None:
        """Raises Refused unless the call comes from this machine's own page, and is small."""
        headers = self.headers
        if sum(len(k) + len(v) for k, v in headers.items()) > HEADERS:
            raise self._refused(431, "too_large", "the headers are too long")
        if not self.path.startswith("/") or len(self.path) > 60_000:
            raise self._refused(400, "input", "the address must begin with /")
        hosts = headers.get_all("Host") or []
        if len(hosts) != 1 or not _ours(hosts[0]):
            raise self._refused(403, "forbidden", "this server answers only to 127.0.0.1")
        origins = headers.get_all("Origin") or []
        if origins and origins != [urlunsplit(("http", hosts[0], "", "", ""))]:
            raise self._refused(403, "forbidden", "this server answers only its own page")
        if headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and not (
                self.path.partition("?")[0] == "/" and headers.get("Sec-Fetch-Mode") == "navigate"):
            raise self._refused(403, "forbidden", "this server answers only its own page")
        if self.command not in ("GET", "POST", "DELETE"):
            raise self._refused(405, "method", "this server knows GET, POST and DELETE")

    def _answer(self) -> Answer:
        path, _, query = self.path.partition("?")
        explorer = self.server.explorer
        if not path.startswith("/x/"):
            return self._page(path, query)
        if not self._known():
            raise self._refused(401, "token", "open the Explorer by the link that `mirada explore` "
                                "printed: it carries this launch's token")
        mark = f'"{hashlib.sha256(self.path.encode()).hexdigest()[:24]}"'
        if self.command == "GET" and explorer.unchanging(path):
            if mark in (self.headers.get("If-None-Match") or ""):
                return Answer(b"", status=304, cache=FOREVER, headers={"ETag": mark})
            answer = explorer.call(self.command, path, query, None, "")
            answer.cache, answer.headers = FOREVER, {**answer.headers, "ETag": mark}
            return answer
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        limit = explorer.body_limit(path)
        return explorer.call(self.command, path, query, self._body(limit), kind)

    def _page(self, path: str, query: str) -> Answer:
        """A file of the page; the door at / takes the token once and keeps it in a cookie."""
        if self.command != "GET":
            raise self._refused(405, "method", "a file is read with GET")
        words = dict(parse_qsl(query, max_num_fields=20)) if len(query) < 2000 else {}
        if path == "/" and self._fits(words.pop("token", "")):
            cookie = (f"{self._cookie}={self.server.explorer.token}; Path=/; HttpOnly; "
                      "SameSite=Strict")
            to = "/" + ("?" + urlencode(words) if words else "")
            return Answer(b"", "text/plain", 303, headers={"Location": to, "Set-Cookie": cookie})
        return self.server.explorer.file(path)

    @property
    def _cookie(self) -> str:
        """A name for each port: cookies do not tell the ports of one host apart."""
        return f"mirada-{self.server.explorer.port}"

    def _known(self) -> bool:
        """Whether the call carries this launch's token, in its cookie or as a bearer's."""
        scheme, _, bearer = (self.headers.get("Authorization") or "").partition(" ")
        if scheme.lower() == "bearer" and self._fits(bearer):
            return True
        pairs = (pair.strip().partition("=") for pair in
                 (self.headers.get("Cookie") or "").split(";"))
        return any(name == self._cookie and self._fits(value) for name, _, value in pairs)

    def _fits(self, token: str) -> bool:
        told, own = (hashlib.sha256(t.encode()).digest()
                     for t in (token, self.server.explorer.token))
        return hmac.compare_digest(told, own)

    def _body(self, limit: int) -> bytes | None:
        """The bytes that came along, refused before they are read where they are too many."""
        lengths = self.headers.get_all("Content-Length") or []
        if self.headers.get("Transfer-Encoding") or len(lengths) > 1:
            raise self._refused(411, "input", "a body needs one Content-Length")
        if not lengths:
            return None
        if not (lengths[0].isascii() and lengths[0].isdigit()) or len(lengths[0]) > 12:
            raise self._refused(400, "input", "Content-Length is no number")
        size = int(lengths[0])
        if size > limit:
            raise self._refused(413, "too_large", f"this body has {size:,} bytes and one may have "
                                f"{limit:,}")
        self.until.end = time.monotonic() + BODY_SECONDS
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError
        return body

    def _refused(self, *words) -> Refused:
        """Refused before the body was read: what is left of it must not be taken for a call."""
        self.close_connection = True
        return Refused(*words)

    def _send(self, answer: Answer) -> None:
        self.connection.settimeout(SEND_SECONDS)
        headers = {**SAFE, "Content-Type": answer.type, "Cache-Control": answer.cache,
                   **answer.headers}
        streams = not isinstance(answer.body, bytes)
        parts = answer.body
        if isinstance(parts, bytes):
            parts = iter([self._packed(parts, headers)])
        self.close_connection = self.close_connection or streams
        if self.close_connection:
            headers["Connection"] = "close"
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        for part in parts:
            self.wfile.write(part)

    def _packed(self, body: bytes, headers: dict[str, str]) -> bytes:
        """The body, smaller where the page can unpack it and it pays; the headers say so."""
        if len(body) >= WORTH_PACKING and "gzip" in (self.headers.get("Accept-Encoding") or ""):
            packer = zlib.compressobj(1, wbits=31)
            smaller = packer.compress(body) + packer.flush()
            if len(smaller) < 0.9 * len(body):
                body = smaller
                headers["Content-Encoding"] = "gzip"
        headers |= {"Vary": "Accept-Encoding", "Content-Length": str(len(body))}
        return body

    def send_error(self, code, message=None, explain=None):
        """A request that is not even HTTP: the reason in the schema's words, nothing repeated."""
        self.close_connection, self.request_version = True, self.protocol_version
        self.command = getattr(self, "command", None) or "GET"
        self.headers = getattr(self, "headers", None) or Message()
        kind = "too_large" if code in (414, 431) else "method" if code == 501 else "input"
        self._send(as_json({"error": {"type": kind, "message": HTTPStatus(code).phrase}}, code))

    def log_message(self, format, *args):
        """Calls are not logged: an address may hold a text, and the token once."""


def _ours(host: str) -> bool:
    """Whether a Host header names this machine, whatever the port (it may come by a tunnel)."""
    host = host.strip().lower()
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name, port = host, "0"
    return name.removesuffix(".") in NAMES and port.isascii() and port.isdigit()

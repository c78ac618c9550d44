"""The Explorer: a launch's models, runs and jobs, and which function answers which call."""

from __future__ import annotations

import json
import mimetypes
import re
import secrets
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode, urlunsplit

import torch

from mirada import __version__
from mirada.errors import MiradaError
from mirada.look.paths import FLOWED

from . import answers, causal, heads, runfile, schema
from .errors import Refused, missing
from .jobs import Jobs
from .packing import ANSWER
from .query import Query
from .reading import TOKENS
from .runs import KEPT, Runs, make
from .served import Served
from .wire import BODY, FOREVER, NEVER, NUMBERS, Answer, Server, as_json, json_bytes

STATIC = Path(__file__).parent / "static"
HASHED = re.compile(r"-[0-9a-f]{10}\.(?:js|css)$")  # a name that changes with the bytes
API = "/x/v1/"


class Explorer:
    """What one launch holds. `call` answers; `serve` listens until it is stopped.

    models: Model by name; lang: "en", "es" or None for the browser's; kept: bytes of recordings
    held at a time.
    """

    def __init__(self, models: dict, lang: str | None = None, kept: int = KEPT):
        self.models = {f"m{n}": Served(f"m{n}", model, name)
                       for n, (name, model) in enumerate(models.items())}
        self.lang, self.runs, self.jobs = lang, Runs(kept), Jobs()
        self.token, self.port = secrets.token_urlsafe(32), 0
        self.files = _files()
        self.server: Server | None = None

    @property
    def url(self) -> str:
        """The link that opens the page; it carries the token."""
        words = {"token": self.token, **({"lang": self.lang} if self.lang else {})}
        return urlunsplit(("http", f"127.0.0.1:{self.port}", "/", urlencode(words), ""))

    def listen(self, port: int = 0) -> Server:
        """Bind to the port (0: a free one). Raises MiradaError where it is taken."""
        try:
            self.server = Server(self, port)
        except OSError as error:
            raise MiradaError(f"port {port} of this machine cannot be used "
                              f"({error.strerror}); choose another, or 0 for a free one") from None
        return self.server

    def stop(self) -> None:
        """Stop listening and cancel what runs."""
        self.jobs.cancel_all()
        self.server.shutdown()
        self.server.server_close()

    def file(self, path: str) -> Answer:
        """A file of the page, from the list made at the start: no path is ever opened."""
        found = self.files.get("/index.html" if path == "/" else path)
        if found is None:
            raise missing("there is no such file")
        body, kind = found
        return Answer(body, kind, cache=FOREVER if HASHED.search(path) else NEVER)

    def body_limit(self, path: str) -> int:
        """Bytes that a body may have."""
        return runfile.MOST if path == f"{API}runs/import" else BODY

    def unchanging(self, path: str) -> bool:
        """Whether a call's answer never changes: what a run shows of itself."""
        parts = path.removeprefix(API).split("/")
        return parts[0] == "runs" and len(parts) > 2 and parts[2] != "export"

    @torch.no_grad()
    def call(self, method: str, path: str, query: str, body: bytes | None, kind: str) -> Answer:
        """The answer to a call. Raises Refused or another MiradaError."""
        known = False
        for verb, pattern, function in ROUTES:
            found = re.fullmatch(API + pattern, unquote(path))
            known = known or found is not None
            if found and verb == method:
                asked = Query(query)
                words = [int(w) if w.isdigit() else w for w in found.groups()]
                given = () if method != "POST" else (_given(path, body, kind),)
                made: Any = function(self, *words, asked, *given)
                asked.done()
                return made if isinstance(made, Answer) else (
                    Answer(made, NUMBERS) if isinstance(made, bytes) else as_json(made))
        if known:
            raise Refused(405, "method", f"this call is not made with {method}")
        raise missing("there is no such call")

    # Models

    def list_models(self, query: Query) -> dict:
        return {"schema": "explorer/1", "version": __version__, "lang": self.lang,
                "models": [served.data for served in self.models.values()],
                "limits": {"answer_bytes": ANSWER, "kept_bytes": self.runs.room, "tokens": TOKENS,
                           "body_bytes": BODY, "maxflow_tokens": FLOWED}}

    def served(self, id: str) -> Served:
        if id not in self.models:
            raise missing("there is no such model")
        return self.models[id]

    def card(self, id: str, query: Query) -> dict:
        return self.served(id).card()

    def vocab(self, id: str, query: Query) -> dict:
        return answers.vocab(self.served(id), query)

    def find_roles(self, id: str, query: Query, given: dict) -> Answer:
        schema.check(given, "roles_request")
        served = self.served(id)
        if "lang" not in given and self.lang:
            given = {**given, "lang": self.lang}
        job = self.jobs.start("roles", lambda job: heads.roles(served, given, job))
        return as_json(job.data(), 202)

    def find_firing(self, id: str, query: Query, given: dict) -> Answer:
        schema.check(given, "firing_request")
        served = self.served(id)
        job = self.jobs.start("firing", lambda job: answers.fires(served, given, job))
        return as_json(job.data(), 202)

    # Runs

    def list_runs(self, query: Query) -> dict:
        return self.runs.data()

    def new_run(self, query: Query, given: dict) -> Answer:
        schema.check(given, "run_request")
        served = self.served(given.get("model", next(iter(self.models))))
        qk = given.get("record", {}).get("qk", True)
        run = make(served, given["inputs"], self.runs.room, qk)
        return as_json(self.runs.add(run).data(), 201)

    def read_run(self, id: str, query: Query) -> dict:
        return self.runs.find(id).data()

    def delete_run(self, id: str, query: Query) -> dict:
        self.runs.delete(id)
        return {"run": id, "state": "deleted"}

    def recompute(self, id: str, query: Query, given: dict) -> dict:
        run = self.runs.find(id)
        self.runs.restore(run)
        return run.data()

    def export(self, id: str, query: Query) -> Answer:
        run = self.runs.find(id)
        answers.live(run)
        return Answer(runfile.pack(run), "application/zip", headers={
            "Content-Disposition": f'attachment; filename="{id}.xrun"'})

    def import_run(self, query: Query, given: bytes) -> Answer:
        return as_json(self.runs.add(runfile.unpack(given)).data(), 201)

    # What can be tried on a run

    def intervene(self, id: str, query: Query, given: dict) -> dict:
        schema.check(given, "intervention_request")
        return causal.effect(self.runs.find(id), self.runs, given)

    def sweep(self, id: str, query: Query, given: dict) -> Answer:
        schema.check(given, "sweep_request")
        run = self.runs.find(id)
        answers.live(run)
        donor = causal.donor(run, self.runs, given)
        job = self.jobs.start("sweep", lambda job: causal.sweep(run, donor, given, job))
        return as_json(job.data(), 202)

    # Jobs

    def read_job(self, id: str, query: Query) -> dict:
        return self.jobs.find(id).data()

    def cancel_job(self, id: str, query: Query) -> dict:
        job = self.jobs.find(id)
        job.cancel()
        return job.data()

    def events(self, id: str, query: Query) -> Answer:
        job = self.jobs.find(id)

        def stream():
            for told in job.events():
                if told is None:
                    yield b": still at work\n\n"
                    continue
                name = "progress" if told["state"] == "running" else told["state"]
                yield f"event: {name}\n".encode() + b"data: " + json_bytes(told) + b"\n\n"
        return Answer(stream(), "text/event-stream")


def _of_run(function):
    """A call that reads one run."""
    def answer(explorer: Explorer, id: str, *words):
        *place, query = words
        return function(explorer.runs.find(id), query, *place)
    return answer


RUN, STACK = r"runs/(r_[0-9a-f]{12})", r"(encoder|decoder|cross)"
ROUTES: tuple[tuple[str, str, Callable[..., Any]], ...] = (
    ("GET", r"models", Explorer.list_models),
    ("GET", r"models/(m[0-9]{1,3})", Explorer.card),
    ("GET", r"models/(m[0-9]{1,3})/vocab", Explorer.vocab),
    ("POST", r"models/(m[0-9]{1,3})/roles", Explorer.find_roles),
    ("POST", r"models/(m[0-9]{1,3})/firing", Explorer.find_firing),
    ("GET", r"runs", Explorer.list_runs),
    ("POST", r"runs", Explorer.new_run),
    ("POST", r"runs/import", Explorer.import_run),
    ("GET", RUN, Explorer.read_run),
    ("DELETE", RUN, Explorer.delete_run),
    ("POST", RUN + r"/recompute", Explorer.recompute),
    ("GET", RUN + r"/export", Explorer.export),
    ("GET", RUN + rf"/attn/{STACK}/overview", _of_run(answers.overview)),
    ("GET", RUN + rf"/attn/{STACK}/([0-9]{{1,4}})", _of_run(answers.layer)),
    ("GET", RUN + rf"/attn/{STACK}/([0-9]{{1,4}})/topk", _of_run(answers.topk)),
    ("GET", RUN + rf"/attn/{STACK}/([0-9]{{1,4}})/([0-9]{{1,4}})/row/([0-9]{{1,6}})",
     _of_run(answers.row)),
    ("GET", RUN + rf"/qk/{STACK}/([0-9]{{1,4}})/([0-9]{{1,4}})", _of_run(answers.qk)),
    ("GET", RUN + r"/resid", _of_run(answers.resid)),
    ("GET", RUN + r"/node/([a-z0-9.]{1,100})", _of_run(answers.node)),
    ("GET", RUN + r"/logits/([0-9]{1,6})", _of_run(answers.logits)),
    ("GET", RUN + r"/surprise", _of_run(answers.surprise)),
    ("GET", RUN + r"/lens", _of_run(answers.lens)),
    ("GET", RUN + r"/flow", _of_run(answers.flow)),
    ("GET", RUN + r"/mlp/([0-9]{1,4})", _of_run(answers.mlp)),
    ("GET", RUN + r"/redundancy", _of_run(answers.redundancy)),
    ("GET", RUN + r"/dla", _of_run(answers.dla)),
    ("POST", RUN + r"/sweep", Explorer.sweep),
    ("POST", RUN + r"/interventions", Explorer.intervene),
    ("GET", r"jobs/(j_[0-9a-f]{12})", Explorer.read_job),
    ("DELETE", r"jobs/(j_[0-9a-f]{12})", Explorer.cancel_job),
    ("GET", r"jobs/(j_[0-9a-f]{12})/events", Explorer.events),
)


def _given(path: str, body: bytes | None, kind: str):
    """What a POST brought: JSON, or the bytes of a run file. Asking for a type that no form can
    send keeps foreign pages from posting blindly."""
    wanted = "application/zip" if path == f"{API}runs/import" else "application/json"
    if kind != wanted:
        raise Refused(415, "input", f"this call takes a body of type {wanted}")
    if wanted == "application/zip":
        return body or b""
    try:
        return json.loads(body or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refused(400, "input", "the body is not JSON") from None


def _no_constant(word: str):
    raise ValueError(word)  # NaN and Infinity are no JSON


def _files() -> dict[str, tuple[bytes, str]]:
    """Every file of the built page by its address."""
    found = {}
    for path in sorted(STATIC.rglob("*")) if STATIC.is_dir() else []:
        if path.is_file():
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            kind = "text/javascript" if path.suffix == ".js" else kind
            kind += "; charset=utf-8" if kind.startswith("text/") else ""
            found["/" + path.relative_to(STATIC).as_posix()] = path.read_bytes(), kind
    return found


def explore(models: dict, *, lang: str | None = None, port: int = 0, open_page: bool = True,
            told=print) -> None:
    """Serve the Explorer of some models, by name, until interrupted. told: what is given the link.

    Raises MiradaError where the port is taken.
    """
    explorer = Explorer(models, lang)
    server = explorer.listen(port)
    told(explorer.url)
    if open_page:
        threading.Thread(target=webbrowser.open, args=(explorer.url,), daemon=True).start()
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        explorer.jobs.cancel_all()
        server.server_close()

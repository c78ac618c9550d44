"""Long work: in a thread of its own, told about while it runs, stopped when no longer wanted."""

from __future__ import annotations

import secrets
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator

from mirada.errors import MiradaError

from .errors import Refused, missing

AT_ONCE = 2
REMEMBERED = 100
PING = 15.0  # seconds without news after which a stream says that it is alive


class Cancelled(Exception):
    """Raised inside the work when it is no longer wanted."""


class Job:
    """One piece of work: running, then done, failed or cancelled."""

    def __init__(self, kind: str):
        self.id, self.kind, self.state = f"j_{secrets.token_hex(6)}", kind, "running"
        self.done, self.total, self.words = 0, 0, ""
        self.result: dict | None = None
        self.error: dict | None = None
        self.wanted, self.thread = True, threading.current_thread()
        self.news = threading.Condition()

    def progress(self, done: int, total: int, words: str = "") -> None:
        """Called by the work at each step. Raises Cancelled."""
        if not self.wanted:
            raise Cancelled
        with self.news:
            self.done, self.total, self.words = done, total, words or self.words
            self.news.notify_all()

    def run(self, work: Callable[[Job], dict]) -> None:
        try:
            self._end("done", result=work(self))
        except Cancelled:
            self._end("cancelled")
        except MiradaError as error:
            self._end("failed", error={"type": "input", "message": str(error)})
        except Exception:
            traceback.print_exc()
            self._end("failed", error={"type": "failed", "message": "the work failed; the "
                                       "program's own window says where"})

    def _end(self, state: str, result: dict | None = None, error: dict | None = None) -> None:
        with self.news:
            self.state, self.result, self.error = state, result, error
            self.done = self.total or self.done if state == "done" else self.done
            self.news.notify_all()

    def cancel(self) -> None:
        self.wanted = False

    def data(self) -> dict:
        """The job of the schema."""
        found = {"job": self.id, "kind": self.kind, "state": self.state, "done": self.done,
                 "total": self.total, "events": f"/x/v1/jobs/{self.id}/events",
                 "words": self.words}
        if self.result is not None:
            found["result"] = self.result
        return found if self.error is None else {**found, "error": self.error}

    def events(self) -> Iterator[dict | None]:
        """The job at each change, its end the last; None where only time has passed."""
        seen = None
        while True:
            with self.news:
                if (self.state, self.done) == seen:
                    self.news.wait(PING)
                fresh, told = (self.state, self.done) != seen, self.data()
                seen = self.state, self.done
            yield told if fresh else None
            if self.state != "running":
                return


class Jobs:
    """The jobs of a launch."""

    def __init__(self):
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.lock = threading.Lock()

    def start(self, kind: str, work: Callable[[Job], dict]) -> Job:
        """Begin a job. Raises Refused when enough are running."""
        with self.lock:
            if sum(job.state == "running" for job in self.jobs.values()) >= AT_ONCE:
                raise Refused(429, "busy", f"{AT_ONCE} jobs are running: wait, or cancel one")
            job = Job(kind)
            self.jobs[job.id] = job
            while len(self.jobs) > REMEMBERED:
                self.jobs.popitem(last=False)
        job.thread = threading.Thread(target=job.run, args=(work,), name=job.id, daemon=True)
        job.thread.start()
        return job

    def find(self, id: str) -> Job:
        if id not in self.jobs:
            raise missing("there is no such job")
        return self.jobs[id]

    def cancel_all(self, patience: float = 10.0) -> None:
        """Cancel what runs, and wait for it: a thread that dies inside torch takes all down."""
        running = [job for job in self.jobs.values() if job.state == "running"]
        for job in running:
            job.cancel()
        for job in running:
            job.thread.join(patience)

"""Many prompts at once: continuous batching over a paged cache (Orca, OSDI 2022; 2309.06180).

    engine = Engine(model)
    for token in engine.submit(ids, max_new_tokens=50): ...   # one answer, as it is written
    answers = engine.generate(prompts, temperature=0.7)       # or all of many

Each step reads one token of every answer under way and a share of the prompts that wait, so that a
long prompt holds nobody up. A prompt that begins as an earlier one did is not read again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from mirada.errors import MiradaError, WorkFailed
from mirada.model import Model

from . import sampling, stop
from .options import Options
from .pool import Pool
from .runner import runner, state


class Request:
    """One prompt and its answer so far. Iterating gives the answer's token ids as they come.

    ids: the prompt. new: the answer's ids. reason: why it ended: "eos", "stop", "length",
    "context", "cancelled" or "failed"; None while it goes on. user: whose turn it takes.
    """

    def __init__(self, engine: Engine, ids: list[int], options: Options, room: int, user: str):
        self.engine, self.ids, self.options, self.room, self.user = (
            engine, ids, options, room, user)
        self.new: list[int] = []
        self.reason: str | None = None
        self.error: Exception | None = None
        self.table: list[int] = []  # its blocks
        self.done = 0  # tokens in the cache
        self.generator = sampling.generator(options.seed, engine.model.device)

    @property
    def tokens(self) -> list[int]:
        return self.ids + self.new

    @property
    def unread(self) -> int:
        """Tokens that the cache lacks: one while it writes, more while the prompt is read."""
        return len(self.ids) + len(self.new) - self.done

    def __iter__(self) -> Iterator[int]:
        given = 0
        while True:
            while given < len(self.new):
                given += 1
                yield self.new[given - 1]
            if self.error is not None:
                raise self.error
            if self.reason is not None:
                return
            self.engine.step()

    def cancel(self) -> None:
        """Stop here. What was written stays; the others do not notice."""
        with self.engine.lock:
            self.engine.finish(self, "cancelled")


class Engine:
    """Serves one decoder to many.

    tokens: keys that the cache holds in all. rows: most answers under way at a time. chunk: most
    tokens a step reads. block: keys in a block, where the native runtime does not say. cache,
    codes, threads: of the native runtime, as generation has them; torch's number of threads when
    None. One lock guards all: requests may come, be read and be cancelled from any thread.
    """

    def __init__(self, model: Model, *, tokens: int = 16384, rows: int = 32, chunk: int = 512,
                 block: int = 32, cache: str | None = None, threads: int | None = None,
                 codes: int | None = None):
        if model.encoder_decoder or not model.generates:
            raise MiradaError(f"the engine serves decoders, and {model.architecture} is none: "
                              "use model.generate")
        if min(tokens, rows, chunk, block) < 1 or tokens < block or chunk < rows:
            raise MiradaError(f"an engine of {tokens} tokens in blocks of {block}, {rows} rows and "
                              f"{chunk} tokens a step cannot be: tokens must hold a block, and a "
                              "step a token of each row")
        self.model, self.rows, self.chunk = model, rows, chunk
        self.sizes, self.native = (tokens, block), (cache, threads, codes)
        self.state: tuple = ()  # of the model, when what is kept was read
        self.waiting: dict[str, deque[Request]] = {}  # user -> requests; users take turns
        self.running: list[Request] = []
        self.lock = threading.RLock()
        self._settle()

    def submit(self, ids, *, user: str = "", **options) -> Request:
        """Queue one prompt, a list of ids. options: generate's, without beams. Raises MiradaError
        for what cannot be served."""
        ids = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        checked = Options.read(self.model, {"num_beams": 1, "num_return_sequences": 1} | options)
        if checked.num_beams > 1 or checked.num_return_sequences > 1:
            raise MiradaError("the engine writes one answer a prompt: num_beams and "
                              "num_return_sequences must be 1; generate() takes them")
        vocab = self.model.config.vocab
        if not ids or not all(isinstance(i, int) and 0 <= i < vocab for i in ids):
            raise MiradaError("a prompt is one token id or more, all below this model's vocabulary "
                              f"of {vocab}")
        checked = checked.sized(len(ids))
        room = checked.max_new_tokens or 1
        if checked.context is not None:
            room = min(room, checked.context - len(ids))
        if room < 1:
            raise MiradaError(f"the prompt has {len(ids)} tokens and the context is "
                              f"{checked.context}, which leaves no room for an answer: shorten it")
        with self.lock:
            self._settle()
        most = len(self.pool.holders) * self.pool.size
        if len(ids) + room > most:
            raise MiradaError(f"the prompt and its answer may take {len(ids) + room} tokens, and "
                              f"the engine's cache holds {most}: ask for fewer new tokens or give "
                              "the engine more")
        request = Request(self, ids, checked, room, user)
        with self.lock:
            self.waiting.setdefault(user, deque()).append(request)
        return request

    def _settle(self) -> None:
        """Where the model is not as it was (another program runs it, its weights are others,
        somebody began to listen to its modules or ceased to), what was read is read again."""
        now = state(self.model)
        if now == self.state:
            return
        while self.running:
            self._send_back()
        own: tuple = self.native
        if self.state and now[0] is None:  # torch stands in, which knows none of these
            own = ()
        self.state, self.runner = now, runner(self.model, *self.sizes, *own)
        self.sizes = self.sizes[0], self.runner.block  # who stands in holds as much
        self.pool = Pool(self.sizes[0] // self.runner.block, self.runner.block)

    def generate(self, prompts, **options) -> list[list[int]]:
        """The answers to many prompts, in their order."""
        requests = [self.submit(ids, **options) for ids in prompts]
        try:
            return [list(request) for request in requests]
        finally:
            for request in requests:
                request.cancel()

    def step(self) -> None:
        """Read what the budget allows, and write one token of every answer that is up to it."""
        with self.lock:
            self._admit()
            shares = self._shares()
            if not shares:
                return
            try:
                scores = self._read(shares)
            except Exception as error:  # whatever it is, nobody may wait for it for ever
                for request in list(self.running):
                    self.finish(request, "failed", error)
                raise
            up = [request for request, n in shares if n == request.unread]
            for request, n in shares:
                self._account(request, n)
            for request, line in zip(up, scores, strict=True):
                try:
                    self._write(request, line[None])
                except WorkFailed as error:
                    self.finish(request, "failed", error)

    @property
    def busy(self) -> bool:
        return bool(self.running) or any(self.waiting.values())

    def finish(self, request: Request, reason: str, error: Exception | None = None) -> None:
        """End a request and give its blocks back; of one that has ended, nothing changes."""
        if request.reason is not None:
            return
        request.reason, request.error = reason, error
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting.get(request.user, ()):
            self.waiting[request.user].remove(request)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        self.pool.release(request.table)
        request.table, request.done = [], 0

    def _admit(self) -> None:
        """Users take turns; who comes in must find room for the prompt and a block to write in."""
        while len(self.running) < self.rows:
            user = next((u for u, queue in self.waiting.items() if queue), None)
            if user is None:
                return
            request = self.waiting[user][0]
            tokens = request.tokens
            found = self.pool.find(tokens[:-1])  # one token is left to read
            unheld = sum(not self.pool.holders[b] for b in found)
            needed = len(tokens) // self.pool.size + 1 - len(found)
            if needed > self.pool.free - unheld:
                return
            for block in found:
                self.pool.hold(block)
            request.table, request.done = found, len(found) * self.pool.size
            self.waiting[user].popleft()
            queue = self.waiting.pop(user)
            if queue:
                self.waiting[user] = queue  # at the end of the line
            self.running.append(request)

    def _shares(self) -> list[tuple[Request, int]]:
        """How many tokens each may read: who writes, one; who reads, an equal part of the rest."""
        left = self.chunk - sum(r.unread == 1 for r in self.running)
        reading = sum(r.unread > 1 for r in self.running)
        shares = []
        for request in list(self.running):  # the longest there first: they give nothing up
            if request not in self.running:  # sent back to wait a moment ago
                continue
            n = 1
            if request.unread > 1:
                n = min(request.unread, max(1, left // reading))
                left, reading = left - n, reading - 1
            if self._make_room(request, n):
                shares.append((request, n))
        return [(request, n) for request, n in shares if request in self.running]

    def _make_room(self, request: Request, n: int) -> bool:
        """Blocks for n more tokens; where none is left, the newest answer gives its own back."""
        blocks = (request.done + n + self.pool.size - 1) // self.pool.size
        while len(request.table) < blocks:
            if self.pool.free:
                request.table.append(self.pool.take())
                continue
            if self._send_back() is request:
                return False
        return True

    def _send_back(self) -> Request:
        """The newest answer gives its blocks back and waits again, before all others."""
        newest = self.running.pop()
        self._forget(newest)
        self.waiting = {newest.user: deque([newest, *self.waiting.pop(newest.user, ())]),
                        **self.waiting}
        return newest

    def _read(self, shares: list[tuple[Request, int]]) -> Tensor:
        ids, positions, rows, score = [], [], [], []
        width = max(len(request.table) for request, _ in shares)
        tables = torch.zeros(len(shares), width, dtype=torch.int32)
        for row, (request, n) in enumerate(shares):
            tables[row, : len(request.table)] = torch.tensor(request.table)
            ids += request.tokens[request.done : request.done + n]
            positions += range(request.done, request.done + n)
            rows += [row] * n
            if n == request.unread:
                score.append(len(ids) - 1)
        return self.runner.step(torch.tensor(ids), torch.tensor(positions), torch.tensor(rows),
                                tables, torch.tensor(score, dtype=torch.long))

    def _account(self, request: Request, n: int) -> None:
        """n more tokens are in the cache; blocks that they filled can be found by others."""
        size, tokens = self.pool.size, request.tokens
        for block in range(request.done // size, (request.done + n) // size):
            self.pool.name(request.table, block, tokens[block * size : (block + 1) * size])
        request.done += n

    def _write(self, request: Request, scores: Tensor) -> None:
        o, new = request.options, len(request.new)
        ids = torch.tensor([request.tokens], device=scores.device)
        scores = sampling.process(scores, ids, o, new, None, new + 1 == request.room)
        token = int(sampling.choose(scores, o.do_sample, request.generator))
        request.new.append(token)
        reason = stop.reason(token, request.new, o, request.room,
                             self.model.tokenizer if o.stop else None)
        if reason is not None:
            self.finish(request, reason)

"""A conversation: turns, the context they share, and the cache that remembers them."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

from mirada.errors import MiradaError, UntrustedInputError, WorkFailed
from mirada.model import Caches, Model
from mirada.weights import jsonfile

from .rows import Rows
from .runner import weights
from .text import TextStream, needed

LENGTH = 512  # tokens of an answer at most, unless asked otherwise; a quarter of a small context


class Conversation:
    """Messages in turn, oldest forgotten first when the context is full.

    system: a message that stays. context: tokens the conversation may take, prompt and answer; the
    model's own when None. messages: dicts with role and content, as the model sees them next.
    budget: the context, None without limit. used: tokens of it that the last turn took; left: what
    remains, None without limit. reused: tokens of the last prompt that the cache still held, so
    that they were not read again.
    """

    def __init__(self, model: Model, system: str | None = None, context: int | None = None):
        needed(model)
        if context is not None and (context < 2 or context > (model.context or context)):
            raise MiradaError(f"a conversation's context of {context} tokens must be at least 2 "
                              f"and at most the model's {model.context}")
        self.model, self.budget = model, context or model.context
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.used, self.reused = 0, 0
        self._cache: Caches | Rows | None = None
        self._held: list[int] = []  # the ids that the cache holds
        self._weights: tuple = ()  # that read them
        self._reply: Reply | None = None

    @property
    def left(self) -> int | None:
        return None if self.budget is None else self.budget - self.used

    @property
    def system(self) -> str | None:
        """The message that stays; None for none. Set it, and the next reply follows it."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        self.close()
        rest = self.messages[0 if self.system is None else 1 :]
        self._become(([] if text is None else [{"role": "system", "content": text}]) + rest)

    def reset(self) -> None:
        """Begin anew, under the same system message."""
        self.close()
        self._become(self.messages[: 0 if self.system is None else 1])

    def _become(self, messages: list[dict]) -> None:
        """Other messages than those that the last turn left; what they take is counted."""
        self.messages, self._reply, self.used = messages, None, 0
        if any(m["role"] == "user" for m in messages):
            self.used = len(self.model.tokenizer.chat(messages, add_generation_prompt=False))

    def undo(self) -> str | None:
        """Take the last turn back; its message, or None where there is none to take back."""
        self.close()
        turns = [n for n, m in enumerate(self.messages) if m["role"] == "user"]
        if not turns:
            return None
        taken = self.messages[turns[-1]]["content"]
        self._become(self.messages[: turns[-1]])
        return taken

    def retry(self, **options) -> Reply:
        """Another reply to the last message; a seed or a temperature makes it a new one.

        Turns that were forgotten for the first reply stay forgotten. Raises MiradaError.
        """
        self.close()
        last, before = self._reply, self.messages
        silent = last is not None and not last.ids  # was ended early: its turn did not join
        text = last.messages[-1]["content"] if silent else self.undo()
        if text is None:
            raise MiradaError("there is no message yet to answer again")
        try:
            return self.send(text, **options)
        except MiradaError:
            self._become(before)
            raise

    def close(self) -> None:
        """End the reply that is under way, if one is; what it said stays."""
        if self._reply is not None:
            self._reply.close()

    def save(self, path: str | os.PathLike) -> None:
        """Write the messages as JSON: aside first, so that an older file is replaced as a whole.

        Raises WorkFailed.
        """
        self.close()
        path = Path(path)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            jsonfile.write(aside, {"messages": self.messages})
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise WorkFailed(f"{path} cannot be written: {error.strerror}") from None

    def load(self, path: str | os.PathLike) -> None:
        """Go on with the messages of a file, in place of those held. Raises MiradaError."""
        found = _messages(path)
        self.close()
        self._become(found)

    def send(self, text: str, *, max_new_tokens: int | None = None, **options) -> Reply:
        """The reply to a message: iterate over it for the pieces of its text.

        Oldest turns are dropped until the prompt and max_new_tokens (512, or a quarter of a small
        context) fit; reply.dropped holds their messages. The turn joins `messages` when the
        iteration ends or is left. Raises MiradaError where the message alone does not fit.
        """
        self.close()
        room = max_new_tokens
        if room is None:
            room = LENGTH if self.budget is None else max(1, min(LENGTH, self.budget // 4))
        asked = [*self.messages, {"role": "user", "content": text}]
        dropped, kept, ids = self._fitting(asked, room)
        self._reply = Reply(self, dropped, kept, ids, {"max_new_tokens": room, **options})
        return self._reply

    def _fitting(self, messages: list[dict], room) -> tuple[list[dict], list[dict], list[int]]:
        """The messages to drop so that an answer has room, those that stay, and their ids."""
        dropped: list[dict] = []
        ids = self.model.tokenizer.chat(messages)
        while self.budget is not None and isinstance(room, int) and len(ids) + room > self.budget:
            oldest, rest = _oldest(messages)
            if not oldest:
                break
            dropped, messages = dropped + oldest, rest
            ids = self.model.tokenizer.chat(messages)
        if self.budget is not None and len(ids) >= self.budget:
            raise MiradaError(f"the message makes a prompt of {len(ids)} tokens, and the context "
                              f"is {self.budget}: shorten it")
        return dropped, messages, ids

    def cache_for(self, ids: list[int], kind: str = "growing") -> Caches | Rows | str:
        """A cache that holds the beginning of ids: what the last turns left, else a new one's kind.
        What other weights have read is read again."""
        cache, self._cache = self._cache, None
        before, self._weights = self._weights, weights(self.model)
        cache = cache if before == self._weights else None
        shared = 0
        for mine, theirs in zip(ids[:-1], self._held, strict=False):  # one is left to be read
            if mine != theirs:
                break
            shared += 1
        self.reused = shared if cache is not None else 0
        if not self.reused:
            return kind
        cache.crop(self.reused)
        return cache

    def take(self, reply: Reply) -> None:
        """The turn that a reply ends becomes part of the conversation."""
        feed = reply.run.feed
        self._cache, self._held = feed.cache, reply.run.ids[0, : feed.fed].tolist()
        self.used = reply.prompt_tokens + reply.new_tokens
        if reply.ids:
            self.messages = [*reply.messages, {"role": "assistant", "content": reply.text}]


class Reply(TextStream):
    """The reply to one message; see TextStream. dropped: messages that were forgotten for it.

    close() ends it early; what was written until then stays in the conversation.
    """

    def __init__(self, conversation: Conversation, dropped: list[dict], messages: list[dict],
                 ids: list[int], options: dict):
        self.conversation, self.dropped, self.messages = conversation, dropped, messages
        cache = conversation.cache_for(ids, options.pop("cache", "growing"))
        super().__init__(conversation.model, ids, **options, context=conversation.budget,
                         cache=cache)

    def _write(self) -> Generator[str, None, None]:
        try:
            yield from super()._write()
        finally:
            self.conversation.take(self)


def _messages(path: str | os.PathLike) -> list[dict]:
    """Of a saved conversation; each has a role and content, and the user speaks first."""
    saved = jsonfile.read(path)
    found = saved.get("messages") if isinstance(saved, dict) else None
    if not isinstance(found, list):
        raise UntrustedInputError(path, "messages", "must be a list of them")
    roles = []
    for n, message in enumerate(found):
        if not isinstance(message, dict) or message.keys() != {"role", "content"} or not all(
                isinstance(value, str) for value in message.values()):
            raise UntrustedInputError(path, f"messages[{n}]", "must be a role and content, texts")
        roles.append(message["role"])
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if talk != ["user", "assistant"] * (len(talk) // 2):
        raise UntrustedInputError(path, "messages", "must be a system message or none, and turns "
                                  "of user and assistant")
    return found


def _oldest(messages: list[dict]) -> tuple[list[dict], list[dict]]:
    """The oldest turn, and the messages without it; nothing but a system message and the newest
    turn is no longer cut."""
    fixed = 1 if messages[0]["role"] == "system" else 0
    turns = [n for n, m in enumerate(messages) if m["role"] == "user" and n > fixed]
    if not turns:
        return [], messages
    return messages[fixed : turns[0]], messages[:fixed] + messages[turns[0] :]

"""A conversation: turns, the context they share, and the cache that remembers them."""

from __future__ import annotations

from collections.abc import Generator

from mirada.errors import MiradaError
from mirada.model import Caches, Model

from .text import TextStream, needed

LENGTH = 512  # tokens of an answer at most, unless asked otherwise; a quarter of a small context


class Conversation:
    """Messages in turn, oldest forgotten first when the context is full.

    system: a message that stays. context: tokens the conversation may take, prompt and answer; the
    model's own when None. messages: dicts with role and content, as the model sees them next.
    budget: the context, None without limit. used: tokens of it that the last turn took. reused:
    tokens of the last prompt that the cache still held, so that they were not read again.
    """

    def __init__(self, model: Model, system: str | None = None, context: int | None = None):
        needed(model)
        if context is not None and (context < 2 or context > (model.context or context)):
            raise MiradaError(f"a conversation's context of {context} tokens must be at least 2 "
                              f"and at most the model's {model.context}")
        self.model, self.budget = model, context or model.context
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.used, self.reused = 0, 0
        self._cache: Caches | None = None
        self._held: list[int] = []  # the ids that the cache holds
        self._reply: Reply | None = None

    def send(self, text: str, *, max_new_tokens: int | None = None, **options) -> Reply:
        """The reply to a message: iterate over it for the pieces of its text.

        Oldest turns are dropped until the prompt and max_new_tokens (512, or a quarter of a small
        context) fit; reply.dropped holds their messages. The turn joins `messages` when the
        iteration ends or is left. Raises MiradaError where the message alone does not fit.
        """
        if self._reply is not None:
            self._reply.close()
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

    def cache_for(self, ids: list[int]) -> Caches:
        """A cache that holds the beginning of ids: what the last turns left, else an empty one."""
        cache, self._cache = self._cache, None
        shared = 0
        for mine, theirs in zip(ids[:-1], self._held, strict=False):  # one is left to be read
            if mine != theirs:
                break
            shared += 1
        self.reused = shared if cache is not None else 0
        if not self.reused:
            return self.model.new_cache()
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
        super().__init__(conversation.model, ids, **options, context=conversation.budget,
                         cache=conversation.cache_for(ids))

    def _write(self) -> Generator[str, None, None]:
        try:
            yield from super()._write()
        finally:
            self.conversation.take(self)


def _oldest(messages: list[dict]) -> tuple[list[dict], list[dict]]:
    """The oldest turn, and the messages without it; nothing but a system message and the newest
    turn is no longer cut."""
    fixed = 1 if messages[0]["role"] == "system" else 0
    turns = [n for n, m in enumerate(messages) if m["role"] == "user" and n > fixed]
    if not turns:
        return [], messages
    return messages[fixed : turns[0]], messages[:fixed] + messages[turns[0] :]

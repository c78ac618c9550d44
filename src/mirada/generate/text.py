"""Text in, text out: an answer shown as it is written, never half a character or a stop string."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from itertools import islice

from mirada.errors import MiradaError
from mirada.model import Model

from . import stop
from .loop import single

LENGTH = 256  # tokens of an answer, unless asked otherwise


class TextStream:
    """Iterating yields the pieces of one answer; joined they are `text`.

    Final once the iteration ended: text; ids, the tokens written, an end token among them;
    new_tokens; seconds that they took, reading the prompt included; finish_reason: "eos", "stop",
    "length" or "context" (see loop.Run), None where the iteration was left early. goes_on: what is
    written goes on from the prompt's text, so that a space it begins with is kept.
    """

    def __init__(self, model: Model, ids, *, goes_on: bool = False, **options):
        self.tokenizer = needed(model)
        self._lead = lead(self.tokenizer, ids) if goes_on else []
        real = [[1] * len(ids)]  # nothing here is padding, not even a pad id
        self.run = single(model, ids, real, {"max_new_tokens": LENGTH, **options})
        self.stops = self.run.options.stop
        self.prompt_tokens = len(ids)
        self.text, self.ids, self.seconds = "", [], 0.0
        self.finish_reason: str | None = None
        self._pieces = self._write()

    @property
    def new_tokens(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Leave the iteration early."""
        self._pieces.close()

    def _write(self) -> Generator[str, None, None]:
        began, decoder = time.perf_counter(), self.tokenizer.stream()
        waiting = "".join(map(decoder.push, self._lead))
        told = len(self.tokenizer.decode(self._lead))  # characters of the prompt, not to be shown
        for token in map(int, self.run):
            self.ids.append(token)
            self.seconds += time.perf_counter() - began
            if self.run.reasons[0] != "eos":
                waiting += decoder.push(token)
            waiting, told = waiting[told:], max(0, told - len(waiting))
            if stop.cut(waiting, self.stops) is not None:
                break
            ready = len(waiting) - stop.held(waiting, self.stops)
            if ready:
                piece, waiting = waiting[:ready], waiting[ready:]
                self.text += piece
                yield piece
            began = time.perf_counter()
        waiting = (waiting + decoder.end())[told:]
        before = stop.cut(waiting, self.stops)
        self.finish_reason = self.run.reasons[0] if before is None else "stop"
        last = waiting if before is None else before
        self.text += last
        if last:
            yield last


def text_stream(model: Model, ids, **options) -> TextStream:
    """The answer to a prompt of ids as a stream of text; options: see generate.options.Options.

    max_new_tokens is 256 unless given. Raises MiradaError at the call.
    """
    return TextStream(model, ids, **options)


def text(model: Model, prompt: str | list[dict], *, on_text: Callable[[str], None] | None = None,
         **options) -> str:
    """The answer to a text, or to messages of a chat (dicts with role and content), as text.

    on_text is called with each piece as soon as it is certain. options: see text_stream.
    """
    goes_on = isinstance(prompt, str) and not model.encoder_decoder
    answer = text_stream(model, prompt_ids(model, prompt), goes_on=goes_on, **options)
    for piece in answer:
        if on_text is not None:
            on_text(piece)
    return answer.text


def prompt_ids(model: Model, prompt: str | list[dict]) -> list[int]:
    """The ids of a text, or of messages by the model's chat template."""
    tokenizer = needed(model)
    ids = tokenizer.encode(prompt).ids if isinstance(prompt, str) else tokenizer.chat(prompt)
    if not ids and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id]
    return ids


def lead(tokenizer, ids: list[int]) -> list[int]:
    """The last token of a prompt that is text, behind which decoders leave spaces as they are."""
    text = (int(i) for i in reversed(ids) if int(i) not in tokenizer.special_ids)
    return list(islice(text, 1))


def behind(tokenizer, given: list[int], ids: list[int]) -> str:
    """The text of ids that go on from others; a space they begin with is kept."""
    before = lead(tokenizer, given)
    return tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]


def needed(model: Model):
    """The model's tokenizer. Raises MiradaError where it has none."""
    if model.tokenizer is None:
        raise MiradaError("this model has no tokenizer, so it cannot read or write text: set "
                          "model.tokenizer, or use generate() with ids")
    return model.tokenizer

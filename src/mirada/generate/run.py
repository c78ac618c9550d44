"""`mirada run` and `mirada chat`: the answer as it is written, and what it took."""

from __future__ import annotations

import contextlib
import json
import sys

from mirada.errors import MiradaError
from mirada.model import Model

from .chat import Conversation
from .loop import generate
from .options import Options
from .text import TextStream, needed, prompt_ids, text_stream

QUIT = {"/exit", "/quit"}
HELP = "/reset begins anew, /exit (or Ctrl-D) leaves, Ctrl-C stops an answer"


def run(model: Model, prompt: str, *, system: str | None = None, raw: bool = False,
        as_json: bool = False, **options) -> None:
    """Print the answer to a prompt while it is written; figures go to stderr.

    system: the system message of a chat model. raw: write on from the text as it is, without the
    chat template. as_json: one object at the end instead. options: see Options. Raises MiradaError.
    """
    ids = prompt_ids(model, _asked(model, prompt, system, raw))
    if Options.read(model, options).num_beams > 1:
        return _beams(model, ids, as_json, options)
    answer = text_stream(model, ids, **options)
    for piece in answer:
        if not as_json:
            print(piece, end="", flush=True)
    if as_json:
        print(json.dumps({
            "text": answer.text, "ids": answer.ids, "prompt_tokens": answer.prompt_tokens,
            "seconds": answer.seconds, "finish_reason": answer.finish_reason}, ensure_ascii=False))
    else:
        print()
        print(figures(answer), file=sys.stderr)


def _asked(model: Model, prompt: str, system: str | None, raw: bool) -> str | list[dict]:
    """The prompt as text, or as messages where the model has a chat template."""
    chats = not raw and bool(needed(model).templates)
    if system is not None and not chats:
        raise MiradaError("a system message needs a chat template, and this model has none"
                          if not raw else "--raw leaves out the chat template, so there is no "
                          "place for a system message")
    if not prompt:
        raise MiradaError("the prompt is empty: give the model something to answer")
    if not chats:
        return prompt
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": prompt}]


def _beams(model: Model, ids: list[int], as_json: bool, options: dict) -> None:
    found = generate(model, [ids], **options)[0].tolist()
    new = found[1:] if model.encoder_decoder else found[len(ids):]
    text = model.tokenizer.decode(new)
    print(json.dumps({"text": text, "ids": new, "prompt_tokens": len(ids)}, ensure_ascii=False)
          if as_json else text)


def figures(answer: TextStream) -> str:
    """14 tokens in 0.6 s, 23.1 tokens/s; and why it ended, where that is news."""
    speed = answer.new_tokens / max(answer.seconds, 1e-9)
    why = {"length": "; cut off at --max-new-tokens", "context": "; the context is full"}
    return (f"[{answer.new_tokens} tokens in {answer.seconds:.1f} s, {speed:.1f} tokens/s"
            f"{why.get(answer.finish_reason, '')}]")


def talk(model: Model, *, system: str | None = None, max_new_tokens: int | None = None,
         **options) -> None:
    """A conversation in the terminal, with the context it takes shown at each turn."""
    conversation = Conversation(model, system)
    print(HELP, file=sys.stderr)
    with contextlib.suppress(EOFError):
        while True:
            asked = input(f"{_budget(conversation)} > ").strip()
            if asked in QUIT:
                break
            if asked == "/reset":
                conversation = Conversation(model, system)
            elif asked:
                _turn(conversation, asked, {"max_new_tokens": max_new_tokens, **options})


def _turn(conversation: Conversation, asked: str, options: dict) -> None:
    """One message and its reply; Ctrl-C ends the reply, not the conversation."""
    try:
        reply = conversation.send(asked, **options)
    except MiradaError as error:
        print(f"mirada: {error}", file=sys.stderr)
        return
    if reply.dropped:
        print(f"[the context is full: the oldest {len(reply.dropped)} messages are forgotten]",
              file=sys.stderr)
    try:
        for piece in reply:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        reply.close()
    print()
    print(figures(reply), file=sys.stderr)


def _budget(conversation: Conversation) -> str:
    if conversation.budget is None:
        return f"[{conversation.used} tokens]"
    return f"[{conversation.used}/{conversation.budget} tokens]"

"""`mirada run` and `mirada chat`: the answer as it is written, and what it took."""

from __future__ import annotations

import contextlib
import json
import sys

from mirada.errors import MiradaError
from mirada.model import Model

from . import stop
from .chat import Conversation, Reply
from .loop import Run, generate
from .options import Options
from .speculate import Speculative
from .text import TextStream, behind, needed, prompt_ids, text_stream

HELP = ("/system TEXT, /undo, /retry, /save FILE, /load FILE, /reset; /exit (or Ctrl-D) leaves, "
        "Ctrl-C stops an answer")


def run(model: Model, prompt: str, *, system: str | None = None, raw: bool = False,
        as_json: bool = False, **options) -> None:
    """Print the answer to a prompt while it is written; figures go to stderr.

    system: the system message of a chat model. raw: write on from the text as it is, without the
    chat template. as_json: one object at the end instead. options: see Options. Raises MiradaError.
    """
    asked = _asked(model, prompt, system, raw)
    ids = prompt_ids(model, asked)
    goes_on = isinstance(asked, str) and not model.encoder_decoder
    checked = Options.read(model, options)
    if checked.num_beams > 1:
        return _beams(model, ids, as_json, goes_on, checked.stop, options)
    answer = text_stream(model, ids, goes_on=goes_on, **options)
    for piece in answer:
        if not as_json:
            print(piece, end="", flush=True)
    if as_json:
        print(json.dumps({
            "text": answer.text, "ids": answer.ids, "prompt_tokens": answer.prompt_tokens,
            "seconds": answer.seconds, "finish_reason": answer.finish_reason,
            **(answer.run.report() if isinstance(answer.run, Speculative) else {})},
            ensure_ascii=False))
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


def _beams(model: Model, ids: list[int], as_json: bool, goes_on: bool, stops: tuple[str, ...],
           options: dict) -> None:
    found = generate(model, [ids], **options)[0].tolist()
    new = found[1:] if model.encoder_decoder else found[len(ids):]
    text = behind(model.tokenizer, ids if goes_on else [], new)
    before = stop.cut(text, stops)
    text = text if before is None else before
    print(json.dumps({"text": text, "ids": new, "prompt_tokens": len(ids)}, ensure_ascii=False)
          if as_json else text)


def figures(answer: TextStream, left: int | None = None) -> str:
    """14 tokens in 0.6 s, 23.1 tokens/s; why it ended, where that is news; how many guesses were
    right, where somebody guessed; and how many tokens of a conversation's context are left."""
    speed = answer.new_tokens / max(answer.seconds, 1e-9)
    why = {"length": "; cut off at --max-new-tokens", "context": "; the context is full"}
    rest = "" if left is None else f"; {left} tokens of the context are left"
    return (f"[{answer.new_tokens} tokens in {answer.seconds:.1f} s, {speed:.1f} tokens/s"
            f"{why.get(answer.finish_reason, '')}{_guesses(answer.run)}{rest}]")


def _guesses(run: Run) -> str:
    if not isinstance(run, Speculative):
        return ""
    if not run.drafted:
        return "; nothing was guessed"
    faster = run.report()["speed_up"]
    pace = f", {faster:.2f} times as fast" if faster else ""
    return (f"; {run.accepted} of {run.drafted} guesses were right "
            f"({run.accepted / run.drafted:.0%}){pace}")


def talk(model: Model, *, system: str | None = None, context: int | None = None,
         resume: str | None = None, max_new_tokens: int | None = None, **options) -> None:
    """A conversation in the terminal, with the context it takes shown at each turn.

    context: tokens it may take, the model's own when None. resume: a file that one was saved to.
    """
    conversation = Conversation(model, system, context)
    if resume is not None:
        conversation.load(resume)
        if system is not None:
            conversation.system = system
    told = {"max_new_tokens": max_new_tokens, **options}
    print(HELP, file=sys.stderr)
    with contextlib.suppress(EOFError):
        while (asked := input(f"{_budget(conversation)} > ").strip()) not in ("/exit", "/quit"):
            try:
                _turn(conversation, asked, told)
            except MiradaError as error:
                _say(f"mirada: {error}")


def _turn(conversation: Conversation, asked: str, told: dict) -> None:
    """One line that was typed: a message, or a word that begins with / and what it is about."""
    word, _, about = asked.partition(" ")
    about = about.strip()
    if not asked.startswith("/"):
        if asked:
            _show(conversation.send(asked, **told))
    elif word == "/retry":
        _show(conversation.retry(**told))
    elif word == "/undo":
        taken = conversation.undo()
        _say("[nothing to take back]" if taken is None else f"[taken back: {taken}]")
    elif word == "/system":
        conversation.system = about or None
        _say("[the system message is set]" if about else "[there is no system message now]")
    elif word in ("/save", "/load") and about:
        getattr(conversation, word[1:])(about)
        _say(f"[{len(conversation.messages)} messages {'saved' if word == '/save' else 'loaded'}]")
    elif word == "/reset":
        conversation.reset()
    else:
        _say(f"mirada: {asked} is no command; there are {HELP}")


def _show(reply: Reply) -> None:
    """A reply as it is written; Ctrl-C ends it, not the conversation."""
    if reply.dropped:
        first = next(m["content"] for m in reply.dropped if m["role"] == "user")
        turns = sum(m["role"] == "user" for m in reply.dropped)
        _say(f"[the context is full: the model forgets the oldest {turns} turn{'s' * (turns > 1)}, "
             f"from {_quoted(first)} on]")
    try:
        for piece in reply:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        reply.close()
    print()
    _say(figures(reply, reply.conversation.left))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _quoted(text: str, most: int = 40) -> str:
    return json.dumps(text if len(text) <= most else text[: most - 1] + "…", ensure_ascii=False)


def _budget(conversation: Conversation) -> str:
    if conversation.budget is None:
        return f"[{conversation.used} tokens]"
    return f"[{conversation.used}/{conversation.budget} tokens]"

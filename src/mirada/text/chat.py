"""Chat templates: messages to one text in a killable child, and its true control tokens.

A template is a stranger's program. It runs in the child of sandbox.py, which is killed when it
takes too long or too much. Content cannot forge control tokens; `plan` says how.
"""

import atexit
import json
import os
import re
import secrets
import select
import subprocess
import threading
import time
from collections.abc import Callable

from mirada.errors import MiradaError, UntrustedInputError
from mirada.text import child

SOURCE = 1 << 20  # characters of a template
REQUEST = 8 << 20  # characters of the messages and tools together, as JSON
WALL_SECONDS = 10  # the child's own limit is 1 s of processor time; this one is for a busy machine
STRUCTURE = {
    "system", "user", "assistant", "tool", "developer", "function", "ipython", "model",
    "observation", "environment",
}
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_lock = threading.Lock()
_child: tuple[int, subprocess.Popen] | None = None  # (the process it belongs to, it)


def render(source: str, variables: dict, path) -> str:
    """The text that the template `source` makes of `variables`; `path` is for messages.

    Raises UntrustedInputError where the template breaks a limit, MiradaError where it fails or
    refuses the messages.
    """
    if len(source) > SOURCE:
        raise UntrustedInputError(path, "chat template", f"has more than {SOURCE:,} characters")
    try:
        size = len(json.dumps(variables, ensure_ascii=False).encode())
        limit = 4 * size + (64 << 10)
        request = json.dumps({"source": source, "variables": variables, "limit": limit})
    except UnicodeEncodeError:
        raise MiradaError("messages: half of a surrogate pair is no text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise MiradaError(f"messages: must be plain data, as JSON has it: {error}") from None
    if size > REQUEST:
        raise MiradaError(f"messages: {size:,} bytes are more than the {REQUEST:,} allowed")
    answer = _ask(request, path)
    if "refused" in answer:
        raise MiradaError(f"the chat template refuses these messages: {answer['refused']}")
    if "error" in answer:
        raise MiradaError(f"{path}: the chat template fails: {answer['error']}")
    if "breach" in answer:
        raise UntrustedInputError(path, "chat template", answer["breach"])
    return answer["text"]


def _ask(request: str, path) -> dict:
    """One request to the warm child; after a breach the child is killed and the next is fresh."""
    global _child
    with _lock:
        if _child is None or _child[0] != os.getpid() or _child[1].poll() is not None:
            _child = (os.getpid(), _start())
        process = _child[1]
        answer = None
        try:
            answer = json.loads(_exchange(process, request.encode() + b"\n"))
            return answer
        except (TimeoutError, BrokenPipeError, ValueError):
            raise UntrustedInputError(
                path, "chat template", "takes more than 1 second or 256 MiB; it was stopped"
            ) from None
        finally:
            if answer is None or "breach" in answer:
                stop()


def warm() -> None:
    """Start the child, which takes a tenth of a second before it can draw."""
    global _child
    with _lock:
        if _child is None or _child[0] != os.getpid():
            _child = (os.getpid(), _start())


def _start() -> subprocess.Popen:
    process = subprocess.Popen(
        child.command("sandbox.py", "jinja2", "markupsafe"), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
    )
    os.set_blocking(process.stdin.fileno(), False)
    return process


def _exchange(process: subprocess.Popen, request: bytes) -> bytes:
    """Send one line and read one line, at most WALL_SECONDS in all."""
    deadline = time.monotonic() + WALL_SECONDS
    into, out = process.stdin.fileno(), process.stdout.fileno()
    sent, parts = 0, []
    while not (parts and parts[-1].endswith(b"\n")):
        left = deadline - time.monotonic()
        ready = select.select([out], [into] if sent < len(request) else [], [], max(left, 0))
        if ready[1]:
            sent += os.write(into, request[sent : sent + 65_536])
        elif ready[0]:
            parts.append(os.read(out, 1 << 20))
            if not parts[-1]:
                raise BrokenPipeError
        else:
            raise TimeoutError
    return b"".join(parts)


@atexit.register
def stop() -> None:
    """Kill the child that this process started, if there is one."""
    global _child
    if _child is not None and _child[0] == os.getpid():
        process = _child[1]
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    _child = None


class Control:
    """The control tokens of a tokenizer, as text: special ones and other marks such as <think>.

    Runs of spaces and words that were merely added to a vocabulary are ordinary text.
    """

    def __init__(self, special: list[str], others: list[str]):
        self.special = set(special)
        marks = [t for t in others if re.fullmatch(r"[^\w\s].*\w.*[^\w\s]", t, re.DOTALL)]
        self.all = self.special | set(marks)
        self.pattern = _any_of(self.all)
        self.special_pattern = _any_of(self.special)
        self.letters = sorted({c for token in self.all for c in token})
        self.marks = {c for c in self.letters if not c.isalnum() and not c.isspace()}
        self.joined = "\0".join(self.all)

    def spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in self.pattern.finditer(text)]


def _any_of(tokens: set[str]) -> re.Pattern:
    longest = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)", re.DOTALL)


def plan(
    draw: Callable[[list, object], str], messages: list, tools, control: Control
) -> tuple[str, list[tuple[int, int]]]:
    """The rendered text, and the spans in it that are control tokens of the template's own.

    draw(messages, tools) renders. Content is disguised before rendering by replacing characters
    one for one with private ones that occur nowhere in it, so positions stay. Two disguises:
    light, the first character of each control token that stands in content; full, every mark (<
    | > ...) a control token could be joined from, and every character of a text that is itself
    a part of one. After full, each control token in the text was written by the template. If
    both give the same text once the disguise is taken off, as they do unless the template looks
    into content for such marks, full decides. If not, light decides, provided that both show the
    same control tokens in the same order; else the messages are refused. Roles and types of the
    usual names are structure and stay; other marks (<think>) stay in what the assistant said,
    as templates look for them there.
    """
    letters = control.letters
    text = json.dumps([messages, tools], ensure_ascii=False)
    start = 0xF0000
    while any(chr(start + i) in text for i in range(len(letters))):
        start = 0xF0000 + secrets.randbelow(60_000)
    table = {ord(c): chr(start + i) for i, c in enumerate(letters)}
    back = {start + i: c for i, c in enumerate(letters)}
    marks = {ord(c): table[ord(c)] for c in control.marks}

    def light(text: str, said: bool) -> str:
        pattern = control.special_pattern if said else control.pattern
        return pattern.sub(lambda m: m[0][0].translate(table) + m[0][1:], text)

    def full(text: str, said: bool) -> str:
        if text in control.joined:
            return text.translate(table)
        if not said:
            return text.translate(marks)
        kept = control.pattern.split(text)
        found = control.pattern.findall(text)
        found = [t.translate(marks) if t in control.special else t for t in found] + [""]
        return "".join(k.translate(marks) + t for k, t in zip(kept, found, strict=True))

    lightly = (_disguise(messages, light), _disguise(tools, light))
    fully = (_disguise(messages, full), _disguise(tools, full))
    shown = draw(*lightly)
    if lightly == fully:
        return shown.translate(back), control.spans(shown)
    other = draw(*fully)
    if shown.translate(back) == other.translate(back):
        return other.translate(back), control.spans(other)
    if control.pattern.findall(shown) != control.pattern.findall(other):
        raise MiradaError(
            "messages: their content makes the chat template write other control tokens than it "
            "writes for plain text; remove the special-token text from it"
        )
    return shown.translate(back), control.spans(shown)


def _disguise(value, change: Callable[[str, bool], str], said: bool = False, key: str = ""):
    """`value` with `change` applied to each text in it; `said`: an assistant's message."""
    if isinstance(value, str):
        structure = (key == "role" and value in STRUCTURE) or (
            key == "type" and _IDENTIFIER.fullmatch(value)
        )
        return value if structure else change(value, said)
    if isinstance(value, dict):
        said = said or value.get("role") in ("assistant", "model")
        return {
            k if _IDENTIFIER.fullmatch(k) else change(k, False): _disguise(v, change, said, k)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_disguise(v, change, said, key) for v in value]
    return value

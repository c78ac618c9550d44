"""Code: going on from a cursor, or filling in what stands between two parts (Bavarian et al.,
2207.14255)."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, NamedTuple

from mirada.errors import MiradaError
from mirada.generate.options import Options
from mirada.generate.text import behind, text_stream

from .inputs import Row
from .write import GENERATION, Writer

CURSORS = ("<FILL>", "<FILL_ME>")  # the second is the reference's, of CodeLlama
TOP = tuple("\n" + word for word in ("def ", "class ", "@", "#", "if ", "print(", "import ",
                                     "from ", "assert "))
STOPS = {"line": ("\n",), "blank": ("\n\n",), "block": TOP}  # ends a row early; `ended` decides
ASK = {
    "explain": "Explain what this code does, step by step.\n\n```\n{}\n```",
    "debug": "Find the mistakes in this code, say what each one causes, and write the code "
             "without them.\n\n```\n{}\n```",
}


class Marks(NamedTuple):
    """What a family calls the parts of a text with a gap, and what else ends the missing one."""

    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...]


FAMILIES = (
    Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>",  # StarCoder 1 and 2, 2305.06161
          ("<fim_pad>", "<file_sep>", "<|endoftext|>")),
    Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>",  # SantaCoder, 2301.03988
          ("<fim-pad>", "<|endoftext|>")),
    Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",  # CodeGemma, Qwen2.5-Coder
          ("<|fim_pad|>", "<|file_separator|>", "<|file_sep|>", "<|repo_name|>", "<|endoftext|>")),
    Marks("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),  # CodeLlama, 2308.12950
)


class Cursor(NamedTuple):
    """Code on both sides of a cursor; the suffix is "" where nothing follows."""

    prefix: str
    suffix: str = ""


class Code(Writer):
    """Code -> [{"generated_text"}, ...], one for each of num_return_sequences: what the model
    writes at the cursor, without what stands around it.

    An input is a text, with <FILL> where the cursor is, else at its end; or a dict with prefix and
    suffix. Where something follows, the gap is filled in by the marks that the model was trained
    with. suffix_first: the suffix is shown before the prefix. until: "line", "blank" (a blank line)
    or "block" (less indentation) is where what is written ends, if the model has not ended it.
    return_full_text: with what stands around. ask: "explain" or "debug", a question about the code
    to a chat model, in place of going on. truncation=True: of code without room for an answer the
    parts far from the cursor go, with a warning. Stop strings are left out. It is greedy unless
    the caller or the model's files sample.
    """

    KIND = "decoder"
    DOES = "writes on from a text"
    OPTIONS = ("until", "suffix_first", "return_full_text", "ask", *GENERATION)

    def run(self, items: list, told: dict) -> list:
        cursors, options = [cursor(item) for item in items], self.settings(told)
        rows = [self._row(at, told, options) for at in cursors]
        options["stop"] += STOPS.get(told.get("until"), ())
        ends = options["eos_token_id"]  # which are no text, special in the file or not
        return [[{"generated_text": self._result(
            at, row.ids, list(takewhile(lambda i: i not in ends, ids)), told)} for ids in answers]
                for at, row, answers in zip(cursors, rows, self.write(rows, options), strict=True)]

    def stream(self, item: str | dict, **options) -> Iterator[str]:
        """The pieces of the answer to one input as they are certain. Raises MiradaError."""
        told = self.options | self.read(options)
        settings, at = self.settings(told), cursor(item)
        answer = text_stream(self.model, self._row(at, told, settings).ids, goes_on=True,
                             **settings)
        text, shown = "", 0
        for piece in answer:
            text += piece
            end = ended(at.prefix, text, told.get("until"))
            certain = len(text.rstrip()) if end is None else end  # all ends begin with a space
            yield text[shown:certain]
            shown = max(shown, certain)
            if end is not None:
                return answer.close()
        yield text[shown:]

    def settings(self, told: dict) -> dict:
        """What generate is given: the marks of a gap end an answer too."""
        until = told.get("until")
        if until not in (None, *STOPS):
            raise MiradaError(f"until is {until!r}; it must be {', '.join(STOPS)} or None")
        if until and told.get("ask"):
            raise MiradaError("until is for code that goes on, not for an answer about it")
        options = self.generation(told, {})
        checked, marks = Options.read(self.model, options), found(self.tokenizer)
        ends = [] if marks is None or "eos_token_id" in options else [*marks[:3], *marks.ends]
        ids = [self.tokenizer.id(mark) for mark in ends if has(self.tokenizer, mark)]
        return options | {"stop": checked.stop, "eos_token_id": (*checked.eos_token_id, *ids)}

    def _row(self, at: Cursor, told: dict, options: dict) -> Row:
        ids = self._ids(at, told)
        most, room = self.model.context, options.get("max_new_tokens") or 1
        if told.get("truncation") and most is not None and len(ids) + room > most:
            ids = self._ids(self._near(at, len(ids) + room - most), told)
        return Row(ids, [0] * len(ids))

    def _ids(self, at: Cursor, told: dict) -> list[int]:
        if told.get("ask"):
            return self._asked(at, told["ask"])
        return prompt(self.tokenizer, at, told.get("suffix_first", False))

    def _near(self, at: Cursor, excess: int) -> Cursor:
        """The code near the cursor, at least `excess` tokens less, half of them on each side."""
        before, after = (self.tokenizer.encode(part, special=False).offsets for part in at)
        excess += 2  # a word that is cut may take a token more on either side
        if excess >= len(before) + len(after):
            raise MiradaError("the context has no place for code beside an answer this long: ask "
                              "for a shorter answer")
        far = max(min(excess // 2, len(after)), excess - len(before))
        start = before[excess - far][0] if excess - far < len(before) else len(at.prefix)
        end = after[-far][0] if far else len(at.suffix)
        warnings.warn(f"{excess} tokens of code, those farthest from the cursor, were left out",
                      stacklevel=2)
        return Cursor(at.prefix[start:], at.suffix[:end])

    def _asked(self, at: Cursor, ask: str) -> list[int]:
        if ask not in ASK:
            raise MiradaError(f"ask is {ask!r}; it must be {' or '.join(ASK)}")
        if not self.tokenizer.templates:
            raise MiradaError(f"to {ask} code a chat model is needed, and this one has no chat "
                              "template: it can only go on writing")
        code = "".join(at)
        return self.tokenizer.chat([{"role": "user", "content": ASK[ask].format(code)}])

    def _result(self, at: Cursor, given: list[int], ids: list[int], told: dict) -> str:
        if told.get("ask"):
            return self.tokenizer.decode(ids)
        text = behind(self.tokenizer, given, ids)
        stops = told.get("stop") or ()
        for stop in (stops,) if isinstance(stops, str) else stops:
            text = text.split(stop)[0]
        text = text[: ended(at.prefix, text, told.get("until"))]
        return at.prefix + text + at.suffix if told.get("return_full_text") else text


def cursor(item: str | dict) -> Cursor:
    """The two sides of a text with a cursor, or of a dict. Raises MiradaError."""
    if isinstance(item, dict):
        sides = {"suffix": ""} | item
        if sides.keys() != {"prefix", "suffix"} or not all(map(_is_text, sides.values())):
            raise MiradaError('code is given as a text, or as {"prefix": ..., "suffix": ...}')
        found = Cursor(sides["prefix"], sides["suffix"])
    else:
        parts = re.split("|".join(CURSORS), item)
        if len(parts) > 2:
            raise MiradaError(f"the code has {len(parts) - 1} cursors; {CURSORS[0]} may stand in "
                              "it once")
        found = Cursor(*parts)
    if not any(found):
        raise MiradaError("there is no code to go on from")
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def has(tokenizer, token: str) -> bool:
    """Whether a token is in the vocabulary."""
    try:
        return tokenizer.id(token) is not None
    except MiradaError:
        return False


def found(tokenizer) -> Marks | None:
    """The marks that a tokenizer has for a gap, None where it has none."""
    return next((m for m in FAMILIES if all(has(tokenizer, mark) for mark in m[:3])), None)


def prompt(tokenizer, at: Cursor, suffix_first: bool = False) -> list[int]:
    """The ids a model reads before it writes at the cursor.

    With a suffix: mark, prefix, mark, suffix, mark; with suffix_first, as StarCoder and CodeLlama
    were trained for it, prefix mark, suffix mark, suffix, middle mark, prefix. Marks that stand in
    the code itself are ordinary text. Raises MiradaError where the tokenizer has no marks.
    """
    if not at.suffix:
        return tokenizer.encode(at.prefix, parse_special=False).ids
    marks = found(tokenizer)
    if marks is None:
        raise MiradaError("this model's tokenizer has no marks for code with a gap, so it cannot "
                          "fill one in: leave out what follows the cursor, or use a model trained "
                          "for it (StarCoder, CodeLlama, Qwen2.5-Coder, CodeGemma)")
    pre, suf, mid = (tokenizer.id(mark) for mark in marks[:3])
    opening = tokenizer.encode("x")
    front = opening.ids[: opening.sequence.index(0)]
    before, after = _pieces(tokenizer, at, marks)
    if suffix_first:
        return [*front, pre, suf, *after, mid, *before]
    return [*front, pre, *before, suf, *after, mid]


def _pieces(tokenizer, at: Cursor, marks: Marks) -> tuple[list[int], list[int]]:
    """The ids of both sides. CodeLlama's prefix begins with a space, as its texts do, and its
    suffix as it is.

    differs: the reference's fifth version puts a space before such a suffix, too; the model's
    authors and the fourth version do not.
    """
    if marks.prefix.startswith("▁"):
        return _within(tokenizer, " " + at.prefix), _within(tokenizer, at.suffix)
    before, after = (tokenizer.encode(part, special=False, parse_special=False) for part in at)
    return before.ids, after.ids


def _within(tokenizer, text: str) -> list[int]:
    """The ids of a text as it stands within another, so that no space is put before it: behind a
    line end, which is a byte of its own in such vocabularies."""
    row = tokenizer.encode("\n" + text, special=False, parse_special=False)
    return [i for i, (start, _) in zip(row.ids, row.offsets, strict=True) if start > 0]


def ended(prefix: str, text: str, until: str | None) -> int | None:
    """Where, in what was written behind a prefix, it should have ended; None if nowhere yet."""
    if until == "line":
        at = text.find("\n")
        return len(text[:at].rstrip()) if at >= 0 else None
    if until == "blank":
        blank = re.search(r"\n[ \t]*\n", text)
        return blank.start() if blank else None
    if until != "block":
        return None
    depth = _depth(prefix, text)
    for line in re.finditer(r"\n([ \t]*)(?=\S)", text):
        if depth is not None and _width(line[1]) < depth:
            return len(text[: line.start()].rstrip())
    return None


def _depth(prefix: str, text: str) -> int | None:
    """The indentation of the block that the cursor stands in: its line's, or, where that is empty
    or opens a block, that of the first line written; None before there is one."""
    line = prefix.rpartition("\n")[2]
    if line and not line.rstrip().endswith((":", "{", "(", "[")):
        return _width(re.match(r"[ \t]*", line)[0])
    first = re.search(r"\n([ \t]*)(?=\S)", ("" if line else "\n") + text)
    return _width(first[1]) if first else None


def _width(space: str) -> int:
    return len(space.expandtabs())


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k answers is right, where c of n were: 1 - C(n - c, k) / C(n, k).

    Unbiased for samples drawn alike (Chen et al., 2107.03374, eq. 1). Raises MiradaError.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise MiradaError(f"pass@{k} of {c} right answers among {n} cannot be: it takes at least "
                          "k answers, and no more right ones than there are")
    return 1 - math.comb(n - c, k) / math.comb(n, k)

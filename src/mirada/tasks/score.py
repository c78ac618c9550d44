"""How likely texts are to a language model: choices behind a prompt, with no or few examples in it
(Brown et al., 2005.14165), and whole documents."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mirada.errors import MiradaError
from mirada.generate.text import needed
from mirada.model import Model

from . import inputs
from .inputs import Cut, Row

WINDOW = 1024  # tokens that a document is read in, where the context is larger


@dataclass(frozen=True)
class Choice:
    """A text behind a prompt. logprob: of all its tokens, in nats; tokens: how many; greedy:
    whether each is the likeliest there, so that a greedy answer would begin with it."""

    text: str
    logprob: float
    tokens: int
    greedy: bool

    def by(self, norm: str | None) -> float:
        """logprob, or divided by the text's length in "tokens", "characters" or "bytes": a sum
        over more tokens is smaller, whatever they say. The space before the text is not counted."""
        if norm is None:
            return self.logprob
        text = self.text.strip()
        lengths = {"tokens": self.tokens, "characters": len(text), "bytes": len(text.encode())}
        if norm not in lengths:
            raise MiradaError(f"norm is {norm!r}; it can be {', '.join(lengths)} or None")
        return self.logprob / max(1, lengths[norm])


def score(model: Model, prompt: str, choices: Sequence[str], *, batch_size: int = 8,
          truncation: bool = False) -> list[Choice]:
    """How likely each choice is behind the prompt, in their order.

    A choice brings its own space (" yes"). Prompt and choice are encoded together, so that the
    choice is spelled as it would be in a text. truncation: of a prompt too long, the oldest tokens
    go, with a warning; otherwise it is refused. Raises MiradaError.
    """
    if not choices:
        raise MiradaError("there is no choice to score: give one or more")
    pairs = [encoded(model, prompt, choice) for choice in choices]
    if truncation:
        pairs = [fitting(model, *pair) for pair in pairs]
    found = continuations(model, pairs, batch_size)
    return [Choice(text, sum(each), len(each), greedy)
            for text, (each, greedy) in zip(choices, found, strict=True)]


def encoded(model: Model, prompt: str, choice: str) -> tuple[list[int], list[int]]:
    """The ids of a prompt and of what stands behind it. The prompt's last spaces go to the choice:
    a token begins with its space."""
    tokenizer = needed(model)
    if not choice:
        raise MiradaError("a choice is empty: give a text")
    if model.encoder_decoder:
        return tokenizer.encode(prompt).ids, tokenizer.encode(choice, special=False).ids
    bare = prompt.rstrip()
    choice, prompt = prompt[len(bare):] + choice, bare
    first = [] if start(model) is None else [start(model)]
    before = tokenizer.encode(prompt, special=False).ids
    whole = tokenizer.encode(prompt + choice, special=False).ids
    behind = whole[len(before):] or tokenizer.encode(choice, special=False).ids
    before = first + before
    if not before:  # something must stand before the first token
        before = [i for i in (tokenizer.bos_id, *sorted(tokenizer.eos_ids)) if i is not None][:1]
    if not before:
        raise MiradaError("the prompt is empty, and this tokenizer has no token for the beginning "
                          "of a text: give a prompt")
    return before, behind


def start(model: Model) -> int | None:
    """The id that this tokenizer puts before each text, where it does."""
    bos = needed(model).bos_id
    return bos if bos is not None and model.tokenizer.encode("a").ids[:1] == [bos] else None


def fitting(model: Model, prompt: list[int], behind: list[int]) -> tuple[list[int], list[int]]:
    """The prompt without its oldest tokens, as far as the context demands, with a warning."""
    over = 0 if model.context is None or model.encoder_decoder else (
        len(prompt) + len(behind) - 1 - model.context)
    if over > 0:
        warnings.warn(f"the oldest {over} tokens of a prompt of {len(prompt)} were left out", Cut,
                      stacklevel=3)
    return prompt[max(0, over):], behind


@torch.inference_mode()
def continuations(model: Model, pairs: list[tuple[list[int], list[int]]], batch_size: int = 8
                  ) -> list[tuple[list[float], bool]]:
    """Of each (prompt's ids, ids behind it): the log-probability of each of the latter, given all
    before, and whether each is the likeliest. Raises MiradaError where a pair does not fit."""
    if not model.generates:
        raise MiradaError(f"{model.architecture} does not write one token after another; scoring "
                          "needs a decoder or encoder-decoder with a language-model head")
    found: list = [None] * len(pairs)
    rows = [_row(model, *pair) for pair in pairs]
    same: dict[tuple, list[int]] = {}  # choices of one token behind one prompt are read at once
    for i, row in enumerate(rows):
        same.setdefault(tuple(row.ids) if not model.encoder_decoder else (i,), []).append(i)
    groups = list(same.values())
    for places in inputs.buckets([rows[some[0]] for some in groups], batch_size):
        batch = [groups[n] for n in places]
        longest = max(len(pairs[i][1]) for some in batch for i in some)
        behind = [pairs[some[0]][1] for some in batch]
        logits = _logits(model, [rows[some[0]] for some in batch], behind, longest)
        for some, own in zip(batch, logits, strict=True):
            for i in some:
                found[i] = _read(own, pairs[i][1])
    return found


def _row(model: Model, prompt: list[int], behind: list[int]) -> Row:
    if not prompt or not behind:
        raise MiradaError("both the prompt and what stands behind it need a token")
    ids = prompt if model.encoder_decoder else prompt + behind[:-1]  # the last is only predicted
    if model.context is not None and max(len(ids), len(behind)) > model.context:
        raise MiradaError(f"a prompt and choice have {len(ids) + 1} tokens, and the context of "
                          f"this model is {model.context}: shorten them, or ask for "
                          "truncation=True")
    return Row(ids, [0] * len(ids))


def _logits(model: Model, rows: list[Row], behind: list[list[int]], longest: int
            ) -> Iterable[Tensor]:
    """Of each row (T, V), whose last rows predict the tokens behind it."""
    if model.encoder_decoder:
        labels = torch.tensor([ids + [-100] * (longest - len(ids)) for ids in behind],
                              device=model.device)
        logits = model(**inputs.padded(model, rows), labels=labels).logits
        return [own[: len(ids)] for own, ids in zip(logits, behind, strict=True)]
    return model(**inputs.padded(model, rows, "left"), logits_to_keep=longest).logits


def _read(logits: Tensor, ids: list[int]) -> tuple[list[float], bool]:
    """logits: (len(ids) or more, V), the last ones predict the ids."""
    at, logits = torch.tensor(ids, device=logits.device), logits[-len(ids):].float()
    chances = logits.log_softmax(-1).gather(-1, at[:, None])[:, 0]
    return chances.tolist(), bool((logits.argmax(-1) == at).all())


# Documents


@dataclass(frozen=True)
class Perplexity:
    """nats: the negative log-probability of all tokens that were scored; tokens: how many; words,
    bytes: of the whole text, words between spaces."""

    nats: float
    tokens: int
    words: int
    bytes: int

    @property
    def token(self) -> float:
        """exp of the mean nats a token: comparable between models of one tokenizer only."""
        return math.exp(self.nats / self.tokens)

    @property
    def word(self) -> float:
        return math.exp(self.nats / max(1, self.words))

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / max(1, self.bytes)

    def data(self) -> dict:
        return {"perplexity": self.token, "word_perplexity": self.word,
                "bits_per_byte": self.bits_per_byte, "nats": self.nats, "tokens": self.tokens,
                "words": self.words, "bytes": self.bytes}


def perplexity(model: Model, text: str, *, window: int | None = None, stride: int | None = None,
               batch_size: int = 4) -> Perplexity:
    """exp(-1/N sum log p(token | what stands before it in its window)) of a text of any length.

    Each token is scored once. window: tokens that the model reads at a time (the context, 1,024 at
    most); stride: how many of them are scored (half a window), so that each but the first ones
    has window - stride tokens before it or more. The first token of a text is scored only where
    the tokenizer puts one before it. Raises MiradaError.
    """
    first = start(model)
    ids = ([] if first is None else [first]) + model.tokenizer.encode(text, special=False).ids
    if len(ids) < 2:
        raise MiradaError("a perplexity needs a text of two tokens or more")
    most = model.context
    window = window or min(WINDOW, most or WINDOW)
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window or (most is not None and window > most):
        raise MiradaError(f"window is {window} and stride {stride}: the stride must be from 1 to "
                          f"the window, and that at most the context, {most}")
    nats = count = 0
    for p, q in spans(len(ids), window, stride):
        pair = (ids[max(0, q - 1 - window) : p], ids[p:q])
        (each, _), = continuations(model, [pair], batch_size)
        nats, count = nats - sum(each), count + len(each)
    return Perplexity(nats, count, len(text.split()), len(text.encode()))


def spans(count: int, window: int, stride: int) -> Iterable[tuple[int, int]]:
    """(first, end) of the tokens that each pass over a text of `count` tokens scores."""
    p, q = 1, min(1 + window, count)
    while p < count:
        yield p, q
        p, q = q, min(q + stride, count)


# Prompts


@dataclass(frozen=True)
class Template:
    """How an example is written down: `question` and `answer` hold {field}s of it. The answer's
    own space belongs to it."""

    question: str
    answer: str
    instruction: str = ""
    between: str = "\n\n"

    def prompt(self, example: dict, shots: Iterable[dict] = ()) -> str:
        """The question, behind as many answered ones as there are shots: none is zero-shot."""
        told = [filled(self.question + self.answer, shot) for shot in shots]
        first = [self.instruction] if self.instruction else []
        return self.between.join([*first, *told, filled(self.question, example)])


TEMPLATES = {
    "sentiment": Template("Review: {text}\nSentiment:", " {label}"),
    "topic": Template("Text: {text}\nTopic:", " {label}"),
    "question": Template("Question: {question}\nAnswer:", " {answer}"),
}


def filled(text: str, example: dict) -> str:
    """text with each {field} replaced by the example's. Raises MiradaError for one it lacks."""
    def value(match: re.Match) -> str:
        if match[1] not in example:
            raise MiradaError(f"the template asks for {{{match[1]}}}, and an example has "
                              f"{', '.join(map(str, example)) or 'nothing'}")
        return str(example[match[1]])

    return re.sub(r"\{(\w+)\}", value, text)


def label(model: Model, template: Template | str, example: dict, labels: Sequence[str],
          shots: Iterable[dict] = (), *, norm: str | None = None, batch_size: int = 8
          ) -> list[tuple[str, float]]:
    """(label, its share of the chance) of an example, likeliest first, by what the model would
    write behind the prompt; it is not trained for that (in-context learning).

    template: or a name of TEMPLATES, whose answer has one field, the label's. norm: see Choice.by.
    """
    if isinstance(template, str):
        if template not in TEMPLATES:
            raise MiradaError(f"no template is called {template!r}; there are "
                              f"{', '.join(TEMPLATES)}")
        template = TEMPLATES[template]
    (own,) = re.findall(r"\{(\w+)\}", template.answer)
    found = score(model, template.prompt(example, shots),
                  [filled(template.answer, {own: one}) for one in labels], batch_size=batch_size)
    shares = torch.tensor([one.by(norm) for one in found]).softmax(0).tolist()
    return sorted(zip(labels, shares, strict=True), key=lambda one: -one[1])

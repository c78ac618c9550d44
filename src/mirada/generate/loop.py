"""The loop: a token is chosen, joins the input, and the next is chosen (autoregression)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mirada.errors import MiradaError
from mirada.model import Model

from . import beam, sampling, stop
from .feed import Feed
from .options import Options


def generate(model: Model, input_ids, attention_mask=None, **options) -> Tensor:
    """The prompts with their answers, (B, T + new); of an encoder-decoder the answers alone,
    beginning with its start id. Rows that end early are filled up with the pad id.

    input_ids (B, T), or a list of ids: prompts, padded on the left; attention_mask (B, T), 1 where
    real. options: see generate.options.Options. With num_return_sequences=n, n rows a prompt, the
    best first. Warns where the context ended an answer. Raises MiradaError.
    """
    checked = Options.read(model, options)
    if checked.num_beams > 1:
        feed = Feed(model, input_ids, attention_mask, checked)
        ids, cut = beam.search(feed)
    else:
        run = started(model, input_ids, attention_mask, checked)
        for _ in run:
            pass
        feed, ids, cut = run.feed, run.ids, "context" in run.reasons
    if cut:
        _warn(feed.options, 4)
    return ids.clone()  # made outside inference mode, so that it can be trained on


def stream(model: Model, input_ids, attention_mask=None, **options) -> Iterator[int]:
    """Yields each new token id of one prompt as soon as it is chosen.

    The arguments are those of generate, without beams. Raises MiradaError at the call.
    """
    run = single(model, input_ids, attention_mask, options)

    def tokens() -> Iterator[int]:
        for token in run:
            yield int(token)
        if "context" in run.reasons:
            _warn(run.options, 3)

    return tokens()


@dataclass(frozen=True)
class Step:
    """One step of a trace.

    id: the chosen token. probability: its chance, after the options had their say. top: the
    likeliest tokens and their chances, best first.
    """

    id: int
    probability: float
    top: list[tuple[int, float]]


def steps(model: Model, input_ids, attention_mask=None, *, top: int = 10,
          **options) -> Iterator[Step]:
    """A trace of the loop: yields a Step a token. The arguments are those of stream."""
    if top < 1:
        raise MiradaError(f"top is {top}; a table needs 1 token or more")
    run = single(model, input_ids, attention_mask, options)

    def traced() -> Iterator[Step]:
        for token in run:
            chances = run.scores[0].softmax(-1)
            best = chances.topk(min(top, len(chances)))
            table = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield Step(int(token), float(chances[token]), list(table))

    return traced()


def next_tokens(model: Model, input_ids, k: int = 10) -> list[tuple[int, float]]:
    """The k likeliest next tokens of one prompt and their probabilities, best first.

    The model's own chances: no option, of its files or of ours, has a say. Raises MiradaError.
    """
    if k < 1:
        raise MiradaError(f"k is {k}; a table needs 1 token or more")
    asked = {"max_new_tokens": 1, "cache": model.new_cache()}  # torch's: the exact numbers
    with torch.inference_mode():
        chances = single(model, input_ids, None, asked).feed.begin()[0].softmax(-1)
    best = chances.topk(min(k, len(chances)))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def single(model: Model, input_ids, attention_mask, options: dict) -> Run:
    """The run of one prompt, for those who watch it token by token. Where a model's files ask for
    beams, which nobody can watch, it is their greedy answer."""
    checked = Options.read(model, {"num_beams": 1, "num_return_sequences": 1} | options)
    if checked.num_beams > 1 or checked.num_return_sequences > 1:
        raise MiradaError("a stream shows one answer as it is written: num_beams and "
                          "num_return_sequences must be 1; generate() takes them")
    run = started(model, input_ids, attention_mask, checked)
    if len(run.ids) != 1:
        raise MiradaError(f"a stream follows one prompt, and {len(run.ids)} are given; "
                          "generate() takes them")
    return run


def started(model: Model, input_ids, attention_mask, options: Options) -> Run:
    """A run, with somebody who guesses ahead where the options name one."""
    if options.assistant_model is None and not options.prompt_lookup_num_tokens:
        return Run(model, input_ids, attention_mask, options)
    from .speculate import Speculative
    return Speculative(model, input_ids, attention_mask, options)


class Run:
    """One generation under way. Iterating gives each step's tokens, (B,), until all rows ended.

    ids (B, T + new): what stands so far. new: tokens written a row; written: those. scores (B, V):
    those the last token was chosen by. reasons: why each row ended: "eos", "stop", "length"
    (max_new_tokens) or "context" (its end); None while it goes on.
    """

    def __init__(self, model: Model, input_ids, attention_mask, options: Options):
        self.feed = Feed(model, input_ids, attention_mask, options)
        self.options = self.feed.options
        self.tokenizer = model.tokenizer if options.stop else None
        self.ids = self.feed.start.repeat_interleave(options.num_return_sequences, 0)
        self.reasons: list[str | None] = [None] * len(self.ids)
        self.written: list[list[int]] = [[] for _ in self.ids]
        self.scores: Tensor | None = None
        self.new = 0
        self.generator = sampling.generator(options.seed, model.device)

    def __iter__(self) -> Iterator[Tensor]:
        while None in self.reasons:
            yield self.step()

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Choose a token for each row, (B,), and append it; rows that ended get the pad id."""
        o = self.options
        if self.new == 0:
            scores = self.feed.begin(o.num_return_sequences)
        else:
            scores = self.feed(self.ids[:, -1:])
        self.scores = sampling.process(scores, self.ids, o, self.new, self.feed.first,
                                       self.new + 1 == self.feed.room)
        return self.append(sampling.choose(self.scores, o.do_sample, self.generator))

    def append(self, tokens: Tensor) -> Tensor:
        """These tokens, (B,), come next; the pad id where a row had ended."""
        o = self.options
        if any(self.reasons):
            ended = torch.tensor([r is not None for r in self.reasons], device=tokens.device)
            tokens = tokens.masked_fill(ended, o.pad_token_id or 0)
        self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        self.new += 1
        for row, token in enumerate(tokens.tolist()):
            self.written[row].append(token)
            self.reasons[row] = self.reasons[row] or stop.reason(
                token, self.written[row], o, self.feed.room, self.tokenizer)
        return tokens


def _warn(options: Options, frames: int) -> None:
    warnings.warn(f"an answer was cut short: the context of {options.context} tokens ended before "
                  f"max_new_tokens={options.max_new_tokens} were written; shorten the prompt or "
                  "ask for fewer", stacklevel=frames)

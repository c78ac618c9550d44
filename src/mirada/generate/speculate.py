"""Speculative decoding: a cheap guess, checked by one pass of the model (2211.17192, 2302.01318).

Greedy answers stay the model's own, and samples keep its distribution, whoever guesses. Guessing
goes on only while it pays: see Pace.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mirada.errors import MiradaError
from mirada.model import Model

from . import sampling
from .feed import Feed
from .loop import Run
from .options import Options


class Lookup:
    """Guesses that what followed the same few tokens before follows them again (prompt lookup).

    before: ids that stand ahead of the text without being of it: an encoder-decoder's source.
    """

    def __init__(self, longest: int = 3):
        self.longest = longest  # tokens that must be alike, at most
        self.before: list[int] = []

    def guess(self, ids: list[int], count: int, run: Run) -> tuple[list[int], None]:
        """Up to `count` tokens; none where the text does not repeat itself."""
        ids = self.before + ids
        for size in range(min(self.longest, len(ids) - 1), 0, -1):
            tail = ids[-size:]
            for at in range(len(ids) - size - 1, -1, -1):  # the nearest is the likeliest
                if ids[at : at + size] == tail:
                    return ids[at + size : at + size + count], None
        return [], None


class Assistant:
    """Guesses with a smaller model of the same kind and vocabulary."""

    def __init__(self, model: Model, assistant: Model):
        if not assistant.generates or assistant.encoder_decoder != model.encoder_decoder:
            raise MiradaError("an assistant model is a decoder that guesses for a decoder, or an "
                              "encoder-decoder for an encoder-decoder; "
                              f"{assistant.architecture} for {model.architecture} is not")
        a, b = model.tokenizer, assistant.tokenizer
        same = _vocabularies(model) == _vocabularies(assistant)
        if same and a is not None and b is not None:
            same = a.size == b.size and all(a.token(i) == b.token(i) for i in range(a.size))
        if not same:
            raise MiradaError(f"{assistant.architecture} has another vocabulary than the model it "
                              "would guess for: an assistant must share the tokenizer")
        self.model = assistant
        self.feed: Feed | None = None
        self.ids: list[int] = []  # what its cache holds

    def guess(self, ids: list[int], count: int, run: Run) -> tuple[list[int], Tensor]:
        """Up to `count` tokens, and the chances (count, V) that each was drawn with."""
        context, source = self.model.context, run.feed.prompt.shape[1]
        if context is not None:
            too_long = self.model.encoder_decoder and source > context
            count = 0 if too_long else min(count, context - len(ids))
        if count < 1:
            return [], torch.empty(0)
        self._go_back(ids, run.feed)
        assert self.feed is not None
        guesses: list[int] = []
        chances = []
        for _ in range(count):
            known = torch.tensor([ids + guesses], device=self.model.device)
            scores = self.feed(known[:, self.feed.fed :]).to(run.ids.device)
            scores = sampling.process(scores, known, run.options, run.new + len(guesses))
            token = int(sampling.choose(scores, run.options.do_sample, run.generator))
            guesses.append(token)
            chances.append(scores.softmax(-1)[0])
        self.ids = ids + guesses[:-1]
        return guesses, torch.stack(chances)

    def _go_back(self, ids: list[int], of: Feed) -> None:
        """Keep of the cache what is still so; one token of ids at least is left to read."""
        if self.feed is None:
            options = Options.read(self.model, {"max_new_tokens": 1, "do_sample": False,
                                                "num_beams": 1, "decoder_start_token_id": ids[0]})
            options = replace(options, context=None)
            if not self.model.encoder_decoder:
                self.feed = Feed(self.model, ids[:1], None, options)
                return
            self.feed = Feed(self.model, of.prompt, of.mask, options)
            self.feed.begin()  # reads the source, and ids[0]
            return
        same = 0
        while same < min(len(self.ids), len(ids) - 1) and self.ids[same] == ids[same]:
            same += 1
        self.feed.crop(same)


def _vocabularies(model: Model) -> tuple[int, int]:
    """How many tokens a model reads, and how many it writes."""
    return model.config.vocab, getattr(model.config, "target", None) or model.config.vocab


def _reads_as_it_writes(model: Model) -> bool:
    """Whether an encoder-decoder has one token table: its source's ids are the answer's too."""
    return any(path.startswith("decoder.embed.token.") and first.startswith("encoder.embed.token.")
               for path, first in model.paths().items())


class Pace:
    """Guesses only while it pays, by the seconds a token takes with and without.

    It begins with two tokens a guess, adds two when all were right and takes one when not. After a
    round of guesses that was slower than plain steps it rests, four times as long each time.
    """

    def __init__(self, most: int):
        self.most, self.count = most, min(2, most)
        self.plain: float | None = None  # seconds a token
        self.guessed: float | None = None  # since guessing began or began again
        self.last: float | None = None  # the same, kept through rests
        self.rest, self.pause = 2, 64  # two plain tokens first, to know their price

    def tokens(self) -> int:
        """How many to guess now."""
        self.rest = max(0, self.rest - 1)
        return 0 if self.rest else self.count

    def took(self, seconds: float, drafted: int, right: int) -> None:
        """A round is over: it guessed `drafted` tokens, of which `right` were."""
        if not drafted:
            self.plain = _mean(self.plain, seconds)
            return
        self.guessed = self.last = _mean(self.guessed, seconds / (right + 1))
        self.count = min(self.most, drafted + 2) if right == drafted else max(1, self.count - 1)
        if self.plain is not None and self.guessed > self.plain:
            self.rest, self.pause = self.pause, self.pause * 4
            self.guessed, self.count = None, min(2, self.most)


def _mean(old: float | None, new: float) -> float:
    """A running mean that forgets: a machine is not always as fast."""
    return new if old is None else 0.75 * old + 0.25 * new


def accept(guesses: list[int], chances: Tensor | None, scores: Tensor, sample: bool,
           generator: torch.Generator) -> list[int]:
    """The guesses that stand and one token more: 1 to k + 1 tokens.

    scores (k + 1, V): the model's after each. chances (k, V): how likely each token was to be
    guessed; None: the guess was certain. A guess x stands with probability min(1, p(x) / q(x));
    where it does not, the token is drawn from max(p - q, 0): so it is distributed as p
    (2211.17192, algorithm 1).
    """
    sampling.check(scores)
    if not sample:
        best = scores.argmax(-1).tolist()
        right = next((i for i, x in enumerate(guesses) if x != best[i]), len(guesses))
        return best[: right + 1]
    p = scores.softmax(-1)
    for i, x in enumerate(guesses):
        q = torch.zeros_like(p[i]) if chances is None else chances[i]
        if chances is None:
            q[x] = 1.0
        if torch.rand((), generator=generator, device=p.device) * q[x] < p[i, x]:
            continue
        left = (p[i] - q).clamp(min=0)
        return [*guesses[:i], int(torch.multinomial(left, 1, generator=generator))]
    return [*guesses, int(torch.multinomial(p[-1], 1, generator=generator))]


class Speculative(Run):
    """A run of one prompt that guesses ahead.

    drafted, accepted: tokens guessed, and how many stood; pace: what they cost and saved.
    """

    def __init__(self, model: Model, input_ids, attention_mask, options: Options,
                 clock: Callable[[], float] = time.perf_counter):
        if options.assistant_model is not None:
            self.guesser: Lookup | Assistant = Assistant(model, options.assistant_model)
            most = options.num_assistant_tokens
        else:
            self.guesser, most = Lookup(), options.prompt_lookup_num_tokens
        super().__init__(model, input_ids, attention_mask, options)
        if len(self.ids) != 1:
            raise MiradaError(f"guessing ahead follows one prompt, and {len(self.ids)} are asked "
                              "for: leave out assistant_model and prompt_lookup_num_tokens, or "
                              "give one")
        if isinstance(self.guesser, Lookup) and _reads_as_it_writes(model):
            self.guesser.before = self.feed.prompt[0].tolist()  # a summary repeats its source
        self.pace, self.clock = Pace(most), clock
        self.drafted = self.accepted = 0
        self.ahead: list[tuple[int, Tensor]] = []  # accepted and not yet given: token, its scores

    @torch.inference_mode()
    def step(self) -> Tensor:
        if self.new == 0:
            return super().step()
        if not self.ahead:
            self._round()
        token, self.scores = self.ahead.pop(0)
        tokens = self.append(torch.tensor([token], device=self.ids.device))
        if self.reasons[0] is not None:
            self.feed.crop(self.ids.shape[1] - 1)  # the cache is as a plain run leaves it
        return tokens

    def _round(self) -> None:
        began, ids = self.clock(), self.ids[0].tolist()
        count = min(self.pace.tokens(), self.feed.room - self.new - 1)
        guesses, chances = self.guesser.guess(ids, count, self) if count > 0 else ([], None)
        known = torch.tensor([ids + guesses], device=self.ids.device)
        raw = self.feed.scores(known[:, self.feed.fed :], len(guesses) + 1)[0]
        scores = torch.cat([
            sampling.process(raw[i : i + 1], known[:, : len(ids) + i], self.options, self.new + i,
                             self.feed.first, self.new + i + 1 == self.feed.room)
            for i in range(len(raw))])
        tokens = accept(guesses, chances, scores, self.options.do_sample, self.generator)
        self.feed.crop(len(ids) + len(tokens) - 1)
        self.ahead = [(token, scores[i : i + 1]) for i, token in enumerate(tokens)]
        self.drafted += len(guesses)
        self.accepted += len(tokens) - 1
        self.pace.took(self.clock() - began, len(guesses), len(tokens) - 1)

    def report(self) -> dict:
        """drafted, accepted: tokens; plain, guessed: seconds a token; speed_up: their ratio, None
        where one is not known; resting: guessing did not pay and waits."""
        plain, guessed = self.pace.plain, self.pace.last
        return {"drafted": self.drafted, "accepted": self.accepted, "plain": plain,
                "guessed": guessed, "speed_up": plain / guessed if plain and guessed else None,
                "resting": self.pace.rest > 0}

"""Beam search: the likeliest whole answers, k of them followed at a time (Graves, 1211.3711)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import sampling, stop
from .feed import Feed

DEAD = -1e9  # the score of a beam that must not be followed; finite, so that sums stay numbers


class Finished:
    """The best answers of one prompt that have ended, by score / length ** length_penalty: the
    score, the ids, and whether the model ended it, where else its room did."""

    def __init__(self, size: int):
        self.size, self.closed = size, False
        self.best: list[tuple[float, Tensor, bool]] = []

    @property
    def full(self) -> bool:
        return len(self.best) == self.size

    def add(self, score: float, ids: Tensor, done: bool) -> None:
        self.best = sorted([*self.best, (score, ids, done)], key=lambda one: -one[0])[: self.size]

    def close(self, hope: float) -> None:
        """Take no more once a running beam cannot hope to beat the worst that is kept."""
        self.closed = self.closed or (self.full and hope <= self.best[-1][0])


@torch.inference_mode()
def search(feed: Feed) -> tuple[Tensor, bool]:
    """Ids (B * num_return_sequences, T + new), best first, and whether the context cut one short.

    The 2k best continuations of k beams are looked at, more where there are several end tokens, so
    that k remain that go on; with do_sample as many are drawn, none twice. early_stopping: True
    ends a prompt once k answers are finished; False once the best running beam scores no better now
    than the worst of them; "never" once it could not at its full length. What follows an end is
    filled with the pad id.
    """
    o, room = feed.options, feed.room
    B, T = feed.start.shape
    k, wide = o.num_beams, max(2, 1 + len(o.eos_token_id)) * o.num_beams
    ends = torch.tensor(o.eos_token_id, dtype=torch.long, device=feed.start.device)
    chance = sampling.generator(o.seed, feed.start.device)
    scores, ids = feed.begin(k), feed.start.repeat_interleave(k, 0)  # (B * k, V), (B * k, T)
    totals = scores.new_full((B, k), DEAD)  # log-probability of each beam
    totals[:, 0] = 0  # the k beams begin alike: only one of them may be continued
    finished = [Finished(k) for _ in range(B)]
    first_row = torch.arange(B, device=ids.device)[:, None] * k
    for n in range(1, room + 1):
        logs = sampling.process(scores.log_softmax(-1), ids, o, n - 1, feed.first, n == room)
        sampling.check(logs)
        V = logs.shape[-1]
        both = (logs.view(B, k, V) + totals[..., None]).flatten(1)  # (B, k * V)
        best, where = _drawn(both, wide, chance) if o.do_sample else both.topk(wide)  # (B, wide)
        rows, tokens = where // V + first_row, where % V
        done = torch.isin(tokens, ends) | _stopped(feed, ids[rows, T:], tokens)
        ended = done | (n == room)
        open_now = [not f.closed and not (o.early_stopping is True and f.full) for f in finished]
        for b, j in ended[:, :k].nonzero().tolist():
            if open_now[b]:
                whole = torch.cat([ids[rows[b, j]], tokens[b, j, None]])
                finished[b].add(float(best[b, j]) / n**o.length_penalty, whole, bool(done[b, j]))
        totals, pick = (best + DEAD * ended).topk(k)  # (B, k)
        rows, tokens = rows.gather(1, pick).flatten(), tokens.gather(1, pick).flatten()
        ids = torch.cat([ids[rows], tokens[:, None]], 1)
        length = room if o.early_stopping == "never" and o.length_penalty > 0 else n
        for f, hope in zip(finished, (totals[:, 0] / length**o.length_penalty).tolist(),
                           strict=True):
            f.close(hope)
        settled = all(f.closed for f in finished)
        if settled or (o.early_stopping is True and all(f.full for f in finished)) or n == room:
            break
        feed.reorder(rows)
        scores = feed(tokens[:, None])
    answers = [one for f in finished for one in f.best[: o.num_return_sequences]]
    cut = room < o.max_new_tokens and not all(done for *_, done in answers)
    return _filled([ids for _, ids, _ in answers], o.pad_token_id or 0), cut


def _drawn(scores: Tensor, count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws `count` of each row, (B, count) scores and places, none twice."""
    where = torch.multinomial(scores.softmax(-1), count, generator=chance)
    return scores.gather(1, where), where


def _stopped(feed: Feed, written: Tensor, tokens: Tensor) -> Tensor:
    """(B, wide) bool, True where a token completes a stop string behind what is written,
    (B, wide, n)."""
    if not feed.options.stop:
        return torch.zeros_like(tokens, dtype=torch.bool)
    whole = torch.cat([written, tokens[..., None]], -1).tolist()
    return torch.tensor([[stop.hit(feed.model.tokenizer, ids, feed.options.stop) for ids in some]
                         for some in whole], device=tokens.device)


def _filled(answers: list[Tensor], pad: int) -> Tensor:
    """Answers of different lengths as one tensor, pads behind."""
    return torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=pad)

"""Beam search: the likeliest whole answers, k of them followed at a time (Graves, 1211.3711)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import sampling
from .feed import Feed

DEAD = -1e9  # the score of a beam that must not be followed; finite, so that sums stay numbers


class Finished:
    """The best answers of one prompt that have ended, by score / length ** length_penalty."""

    def __init__(self, size: int):
        self.size, self.closed = size, False
        self.best: list[tuple[float, Tensor]] = []

    @property
    def full(self) -> bool:
        return len(self.best) == self.size

    def add(self, score: float, ids: Tensor) -> None:
        self.best = sorted([*self.best, (score, ids)], key=lambda one: -one[0])[: self.size]

    def close(self, hope: float) -> None:
        """Take no more once a running beam cannot hope to beat the worst that is kept."""
        self.closed = self.closed or (self.full and hope <= self.best[-1][0])


@torch.inference_mode()
def search(feed: Feed) -> tuple[Tensor, bool]:
    """Ids (B * num_return_sequences, T + new), best first, and whether the context cut one short.

    The 2k best continuations of k beams are looked at, more where there are several end tokens, so
    that k remain that go on. early_stopping: True ends a prompt once k answers are finished; False
    once the best running beam scores no better now than the worst of them; "never" once it could
    not at its full length. What follows an end is filled with the pad id.
    """
    o, room = feed.options, feed.room
    B, T = feed.start.shape
    k, wide = o.num_beams, max(2, 1 + len(o.eos_token_id)) * o.num_beams
    ends = torch.tensor(o.eos_token_id, dtype=torch.long, device=feed.start.device)
    scores, ids = feed.begin(k), feed.start.repeat_interleave(k, 0)  # (B * k, V), (B * k, T)
    totals = scores.new_full((B, k), DEAD)  # log-probability of each beam
    totals[:, 0] = 0  # the k beams begin alike: only one of them may be continued
    finished = [Finished(k) for _ in range(B)]
    first_row = torch.arange(B, device=ids.device)[:, None] * k
    for n in range(1, room + 1):
        logs = sampling.process(scores.log_softmax(-1), ids, o, n - 1, feed.first,
                                n == room)
        sampling.check(logs)
        V = logs.shape[-1]
        best, where = (logs.view(B, k, V) + totals[..., None]).flatten(1).topk(wide)  # (B, wide)
        rows, tokens = where // V + first_row, where % V
        ended = torch.isin(tokens, ends) | (n == room)
        open_now = [not f.closed and not (o.early_stopping is True and f.full) for f in finished]
        for b, j in ended[:, :k].nonzero().tolist():
            if open_now[b]:
                whole = torch.cat([ids[rows[b, j]], tokens[b, j, None]])
                finished[b].add(float(best[b, j]) / n**o.length_penalty, whole)
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
    answers = [ids for f in finished for _, ids in f.best[: o.num_return_sequences]]
    cut = room < o.max_new_tokens and any(int(a[-1]) not in o.eos_token_id for a in answers)
    return _filled(answers, o.pad_token_id or 0), cut


def _filled(answers: list[Tensor], pad: int) -> Tensor:
    """Answers of different lengths as one tensor, pads behind."""
    return torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=pad)

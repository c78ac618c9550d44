"""From scores to a choice: processors in the reference's order, then greedy or by chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mirada.errors import WorkFailed

from .options import Options


def process(scores: Tensor, ids: Tensor, options: Options, new: int,
            first: Tensor | None = None, last: bool = False) -> Tensor:
    """Scores (B, V) of the next token after ids (B, T), by the options.

    new: tokens written so far. first: (B,) where each row's prompt begins, behind its pads. last:
    there is room for this token and no other.
    """
    o = options
    if o.repetition_penalty != 1:
        scores = repetition_penalty(scores, ids, o.repetition_penalty, first)
    if o.no_repeat_ngram_size:
        scores = no_repeat_ngram(scores, ids, o.no_repeat_ngram_size)
    if o.bad_words_ids:
        scores = bad_words(scores, ids, o.bad_words_ids)
    if new < (o.min_new_tokens or 0):
        scores = ban(scores, o.eos_token_id)
    if o.forced_bos_token_id and ids.shape[1] == 1:
        scores = only(scores, o.forced_bos_token_id)
    if o.forced_eos_token_id and last:
        scores = only(scores, o.forced_eos_token_id)
    if o.suppress_tokens:
        scores = ban(scores, o.suppress_tokens)
    begins = 1 if o.forced_bos_token_id and ids.shape[1] - new == 1 else 0  # behind what is forced
    if o.begin_suppress_tokens and new == begins:
        scores = ban(scores, o.begin_suppress_tokens)
    if o.do_sample:
        scores = warp(scores, o)
    return scores.log_softmax(-1) if o.renormalize_logits else scores


def warp(scores: Tensor, options: Options) -> Tensor:
    """What sampling alone asks: chances made more or less even, and unlikely tokens left out.

    Beams keep enough tokens each that one goes on where others end, as in the reference.
    """
    o, keep = options, 1
    if o.num_beams > 1:
        keep = max(2, 1 + len(o.eos_token_id))
    if o.temperature is not None:
        scores = scores / o.temperature
    if o.top_k is not None:
        scores = top_k(scores, max(o.top_k, keep))
    if o.top_p is not None and o.top_p < 1:
        scores = top_p(scores, o.top_p, keep)
    if o.min_p is not None:
        scores = min_p(scores, o.min_p, keep)
    return scores


def repetition_penalty(scores: Tensor, ids: Tensor, penalty: float,
                       first: Tensor | None = None) -> Tensor:
    """Divides positive scores of tokens in ids, multiplies negative ones (1909.05858, sec. 4.1)."""
    V = scores.shape[-1]
    if first is not None:
        steps = torch.arange(ids.shape[1], device=ids.device)
        ids = ids.masked_fill(steps < first[:, None], V)
    weaker = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(_marked(ids, V), weaker, scores)


def no_repeat_ngram(scores: Tensor, ids: Tensor, size: int) -> Tensor:
    """Forbids tokens that would complete `size` tokens which stand in ids already (1705.04304)."""
    T, V = ids.shape[1], scores.shape[-1]
    if T < size:
        return scores
    grams = ids.unfold(1, size, 1)  # (B, T - size + 1, size)
    tail = ids[:, T - size + 1 :]  # (B, size - 1)
    same = (grams[..., :-1] == tail[:, None]).all(-1)
    return scores.masked_fill(_marked(grams[..., -1].masked_fill(~same, V), V), -torch.inf)


def ban(scores: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Forbids some tokens."""
    return scores.index_fill(-1, torch.tensor(tokens, dtype=torch.long, device=scores.device),
                             -torch.inf)


def only(scores: Tensor, tokens: tuple[int, ...]) -> Tensor:
    """Leaves no choice but these tokens, all alike."""
    index = torch.tensor(tokens, device=scores.device)
    return torch.full_like(scores, -torch.inf).index_fill(-1, index, 0.0)


def bad_words(scores: Tensor, ids: Tensor, words: tuple[tuple[int, ...], ...]) -> Tensor:
    """Forbids tokens that would complete one of the words, which are tokens in a row."""
    scores, T = scores.clone(), ids.shape[1]
    for *head, end in words:
        if len(head) <= T:
            met = (ids[:, T - len(head) :] == ids.new_tensor(head)).all(1)  # (B,)
            scores[met, end] = -torch.inf
    return scores


def top_k(scores: Tensor, k: int) -> Tensor:
    """Keeps the k best tokens, and those equal to the last of them (1805.04833)."""
    least = scores.topk(min(k, scores.shape[-1])).values[..., -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def top_p(scores: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keeps the fewest best tokens whose mass reaches p, at least `keep` (nucleus, 1904.09751)."""
    left = int((scores > -torch.inf).sum(-1).max())
    if left < scores.shape[-1] // 8:  # behind top_k: to sort them all takes ten times as long
        ascending, order = (x.flip(-1) for x in scores.topk(left))
    else:
        ascending, order = scores.sort(-1)
    drop = ascending.softmax(-1).cumsum(-1) <= 1 - p
    drop[..., -keep:] = False
    none = torch.zeros_like(scores, dtype=torch.bool)
    return scores.masked_fill(none.scatter(-1, order, drop), -torch.inf)


def min_p(scores: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keeps tokens p times as likely as the likeliest, or more (2407.01082); `keep` at least."""
    probs = scores.softmax(-1)
    drop = probs < p * probs.amax(-1, keepdim=True)
    drop = drop.scatter(-1, scores.topk(min(keep, scores.shape[-1])).indices, False)
    return scores.masked_fill(drop, -torch.inf)


def choose(scores: Tensor, sample: bool, generator: torch.Generator) -> Tensor:
    """A token a row, (B,): the best, or one drawn with softmax(scores) as its chances.

    Raises WorkFailed where the scores are not numbers or every token is forbidden.
    """
    best = check(scores)
    if not sample:
        return best
    return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


def check(scores: Tensor) -> Tensor:
    """The best token a row, (B,). Raises WorkFailed unless its score is a finite number."""
    # row by row: for several torch wakes its threads, which then spin beside the native runtime
    best = [part.max(-1) for part in (scores.split(1) if scores.is_cpu else (scores,))]
    highest = [value for part in best for value in part.values.tolist()]
    if -math.inf in highest:
        raise WorkFailed("no token may come next: the options forbid all of them; relax "
                         "no_repeat_ngram_size, min_new_tokens, suppress_tokens or bad_words_ids")
    if not all(map(math.isfinite, highest)):
        raise WorkFailed("the model's scores are not finite numbers: its weights are broken, or "
                         "its dtype is too narrow (try dtype=torch.float32)")
    return torch.cat([part.indices for part in best])


def generator(seed: int | torch.Generator | None, device) -> torch.Generator:
    """A random generator of its own: torch's global one is neither read nor moved, unless given."""
    if isinstance(seed, torch.Generator):
        return seed
    own = torch.Generator(device=device)
    if seed is None:
        own.seed()
    else:
        own.manual_seed(seed)
    return own


def _marked(ids: Tensor, V: int) -> Tensor:
    """(B, V) bool, True where a row's ids hold the token; ids of V and above mark nothing."""
    marks = torch.zeros(len(ids), V + 1, dtype=torch.bool, device=ids.device)
    return marks.scatter_(1, ids.clamp(max=V), True)[:, :V]

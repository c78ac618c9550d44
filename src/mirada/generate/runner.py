"""One step of many sequences at once: a flat list of tokens goes in, scores come out."""

from __future__ import annotations

import torch
from torch import Tensor

from mirada.edit import lower
from mirada.errors import MiradaError
from mirada.model import Caches, Model

from .pages import Paged, Pages


def runner(model: Model, tokens: int, block: int, cache: str | None = None,
           threads: int | None = None, codes: int | None = None):
    """What steps a model: its native program where there is one, with blocks of its own size, else
    TorchRunner. Both hold `tokens` keys in all, `block` of them in a block."""
    native = lower.ready(model)
    if native is None and (cache, threads, codes) != (None, None, None):
        raise MiradaError("an engine's cache=, codes= and threads= are the native runtime's, and "
                          f"this model runs with {lower.path(model)}")
    if native is None:
        return TorchRunner(model, tokens // block, block)
    own = native.fork(cache, codes)
    own.threads = threads
    own.reserve(tokens // own.block)
    return own


def weights(model: Model) -> tuple:
    """Which tensors a model has, how often each was written to, and which adapters count."""
    return lower.stamp(model), model.adapters.active


def state(model: Model) -> tuple:
    """What kept keys depend on: the program that runs, the weights, who listens to the modules."""
    listeners = [key for m in model.modules()
                 for key in (*m._forward_hooks, *m._forward_pre_hooks)]  # no key comes twice
    return lower.ready(model), weights(model), listeners


class TorchRunner:
    """The modules of a model over a paged cache of `blocks` times `size` keys.

    The native runtime has the same `step`; this one is the reference and runs every decoder.
    """

    def __init__(self, model: Model, blocks: int, size: int):
        self.model, self.block, self.pages = model, size, Pages(blocks, size)
        self.cache = Caches(
            {name: Paged(self.pages) for name in place} for place in model.new_cache())

    @torch.inference_mode()
    def step(self, ids: Tensor, positions: Tensor, rows: Tensor, tables: Tensor,
             score: Tensor) -> Tensor:
        """Scores (R, V) of the tokens `score` (R,) of M.

        ids, positions, rows (M,): the tokens of a sequence are together and in order; rows names
        the line of tables (B, n) in which its blocks stand.
        """
        starts = torch.cat([rows.new_ones(1), rows.diff()]).nonzero()[:, 0]  # (B',)
        counts = torch.diff(starts, append=starts.new_tensor([len(ids)]))
        scores: list[Tensor | None] = [None] * len(ids)
        for T in counts.unique().tolist():  # sequences with as many new tokens go together
            first = starts[counts == T]
            at = first[:, None] + torch.arange(T)  # (B'', T)
            self.pages.turn(*self._used(tables[rows[first]], positions[first], T), T)
            # past what prefill reads, only each row's last token is ever scored
            out = self.model(input_ids=ids[at].to(self.model.device),
                             position_ids=positions[at].to(self.model.device),
                             cache=self.cache, logits_to_keep=1).logits[:, -1]
            for line, last in zip(out, at[:, -1].tolist(), strict=True):
                scores[last] = line
        missing = [m for m in score.tolist() if scores[m] is None]
        if missing:
            raise ValueError(f"only the last token of a sequence is scored, not token {missing[0]}")
        chosen = [scores[m] for m in score.tolist()]
        if not chosen:
            return torch.empty(0)
        together = torch.stack(chosen)  # type: ignore[arg-type]
        return together.to(torch.promote_types(together.dtype, torch.float32))

    def _used(self, tables: Tensor, length: Tensor, T: int) -> tuple[Tensor, Tensor]:
        """Only the columns of the tables that these rows have reached, on the model's device."""
        reached = (int(length.max()) + T + self.pages.size - 1) // self.pages.size
        return tables[:, :reached].to(self.model.device), length.to(self.model.device)

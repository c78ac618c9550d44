"""What a change costs: perplexity, logits, choices of two models on the same text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from mirada.errors import MiradaError
from mirada.look.describe import resolve, size, weights

WINDOW = 512  # tokens that are read at once


@dataclass(frozen=True)
class Quality:
    """Model b beside model a, over `tokens` places of a text.

    logit_mean, logit_max: |b - a| over all outputs; spread: standard deviation of a's, to compare.
    flips: share of places whose likeliest token changed. kl: mean KL(a || b), nats. These two and
    perplexity are None where the model writes no text: then the outputs are hidden states.
    """

    tokens: int
    nbytes: tuple[int, int]
    logit_mean: float
    logit_max: float
    spread: float
    perplexity: tuple[float, float] | None = None
    flips: float | None = None
    kl: float | None = None

    def data(self) -> dict:
        """For programs."""
        return dict(vars(self))

    def __str__(self) -> str:
        before, after = self.nbytes
        lines = [("weights", f"{size(before)} -> {size(after)}, {before / after:.2f} times less")]
        if self.perplexity is not None:
            a, b = self.perplexity
            lines += [("perplexity", f"{a:.3f} -> {b:.3f} ({b / a - 1:+.2%})"),
                      ("likeliest token", f"another in {self.flips:.2%} of {self.tokens:,} places"),
                      ("KL", f"{self.kl:.5f} nats on average")]
        lines.append(("outputs", f"change by {self.logit_mean:.4g} on average, at most "
                      f"{self.logit_max:.4g} (their spread is {self.spread:.4g})"))
        return "\n".join(f"{name:16} {words}" for name, words in lines)


def quality(a, b, text: str, *, tokens: int = 2048) -> Quality:
    """Compare model b with model a on the first `tokens` tokens of a text, in windows of WINDOW.

    Of an encoder-decoder the text is source and target. Raises MiradaError where the models have no
    tokenizer or differ in what they put out, or the text has fewer than two tokens.
    """
    a, b = resolve(a), resolve(b)
    if a.tokenizer is None:
        raise MiradaError("the model has no tokenizer, and without one no text can be read")
    ids = a.tokenizer.encode(text, special=False).ids[:tokens]
    if len(ids) < 2:
        raise MiradaError("the text has fewer than two tokens: nothing can be said about it")
    step = min(WINDOW, a.context or WINDOW)
    parts = [torch.tensor([ids[n : n + step]], device=a.device) for n in range(0, len(ids), step)]
    with torch.inference_mode():
        found = [_compared(_outputs(a, p), _outputs(b, p), p if a.generates else None)
                 for p in tqdm(parts, "compare", disable=None, leave=False)]
    total = {key: [f[key] for f in found] for key in found[0]}
    count = sum(total["places"])
    mean = {key: sum(values) / count for key, values in total.items()}
    texts = {}
    if a.generates:
        scored = max(sum(total["scored"]), 1)
        nats = [sum(total[key]) / scored for key in ("a", "b")]
        texts = dict(perplexity=tuple(math.exp(min(n, 60)) for n in nats),
                     flips=mean["flips"], kl=mean["kl"])
    return Quality(count, (_nbytes(a), _nbytes(b)), mean["change"], max(total["max"]),
                   math.sqrt(mean["square"]), **texts)


def _nbytes(model) -> int:
    return sum(nbytes for _, _, _, nbytes in weights(model))


def _outputs(model, ids: Tensor) -> Tensor:
    given = {"decoder_input_ids": ids} if model.encoder_decoder else {}
    out = model(input_ids=ids, **given)
    return next(v for k, v in out.items() if k != "encoder_last_hidden_state")[0].float()


def _compared(a: Tensor, b: Tensor, ids: Tensor | None) -> dict:
    """Sums over the places of one window; a, b (T, V)."""
    if a.shape != b.shape:
        raise MiradaError(f"the models put out {tuple(a.shape)} and {tuple(b.shape)}: they are not "
                          "two forms of one model")
    change, places = (b - a).abs(), a.shape[0] if a.ndim > 1 else 1
    sums = {"places": places, "change": change.mean().item() * places, "max": change.max().item(),
            "square": a.var(correction=0).item() * places}
    if ids is None:
        return sums
    p, q, then = a.log_softmax(-1), b.log_softmax(-1), ids[0, 1:, None]
    return sums | {
        "flips": (a.argmax(-1) != b.argmax(-1)).sum().item(), "scored": len(then),
        "kl": (p.exp() * (p - q)).sum().item(),
        "a": -p[:-1].gather(1, then).sum().item(), "b": -q[:-1].gather(1, then).sum().item()}

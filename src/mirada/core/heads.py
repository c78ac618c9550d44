"""What stands on a stack: language model, classifiers, span. A head maps x to named outputs.

forward(x, inputs, ctx) -> dict under the reference's output names. Model calls loss(outputs, ...)
with the labels it is given, under the names that the loss takes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.errors import MiradaError

from .context import Ctx, Inputs
from .mlp import activation
from .norm import LayerNorm

IGNORE = -100  # a label that does not count


def next_token(outputs: dict, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it (labels are not shifted)."""
    return token(dict(logits=outputs["logits"][:, :-1]), labels[:, 1:])


def token(outputs: dict, labels: Tensor) -> Tensor:
    """Mean cross-entropy of labels (B, T) that are not -100."""
    logits = outputs["logits"]
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE)


def label(outputs: dict, labels: Tensor) -> Tensor:
    """One label a row: regression for one output, several yes/no for float labels, else classes."""
    logits = outputs["logits"]
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.squeeze(-1), labels.to(logits.dtype).reshape(len(logits)))
    if labels.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels.flatten())


def span(outputs: dict, start_positions: Tensor, end_positions: Tensor) -> Tensor:
    """Mean of the two cross-entropies; positions (B,) past the end do not count."""
    T = outputs["start_logits"].shape[1]
    start, end = (F.cross_entropy(outputs[name], where.clamp(0, T).flatten(), ignore_index=T)
                  for name, where in (("start_logits", start_positions),
                                      ("end_logits", end_positions)))
    return (start + end) / 2


class Transform(nn.Module):
    """norm(act(dense(x))), before a vocabulary. out: another width than d."""

    def __init__(self, d: int, act: str, eps: float, out: int | None = None):
        super().__init__()
        self.dense, self.act = nn.Linear(d, out or d), activation(act)
        self.norm = LayerNorm(out or d, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.dense(x)))


class LMHead(nn.Module):
    """logits = out(transform(x)) over the vocabulary.

    tied: the token table to share, or None. transform: what BERT-like heads do first.
    scale: factor of x (T5 tied: d ** -0.5). cap: soft cap of the logits. shift: next-token loss.
    """

    def __init__(self, d: int, vocab: int, *, tied=None, bias=False, transform=None, scale=1.0,
                 cap=None, shift=True):
        super().__init__()
        self.transform = transform or nn.Identity()
        self.out = nn.Linear(d, vocab, bias=bias)
        if tied is not None:
            self.out.weight = tied
        self.scale, self.cap = scale, cap
        self.loss: Callable[..., Tensor] = next_token if shift else token

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        logits = self.out(self.transform(x) * self.scale)  # (B, T, V)
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return {"logits": logits}


class First(nn.Module):
    """x of the first token."""

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        return x[:, 0]


class Mean(nn.Module):
    """x averaged over the real tokens."""

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        if ctx.mask.padding is None:
            return x.mean(1)
        real = ctx.mask.padding[..., None]  # (B, T, 1)
        return (x * real).sum(1) / real.sum(1)


class LastOf(nn.Module):
    """x where the input has its last `id` (an encoder-decoder's classifier reads the end there)."""

    def __init__(self, id: int | None):
        super().__init__()
        self.id = id

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        if inputs.input_ids is None:
            raise MiradaError(f"this head looks for the token {self.id}: call it with input_ids")
        here = inputs.input_ids == self.id  # (B, T)
        if x.device.type == "cpu" and not bool(here.any(1).all()):
            raise MiradaError(f"this head reads the last token {self.id} of each row, and a row of "
                              "input_ids has none; end each text with it")
        at = (torch.arange(x.shape[1], device=x.device) * here).argmax(-1)  # (B,)
        return x[torch.arange(len(x), device=x.device), at]


class Pooler(nn.Module):
    """act(dense(x of one token)). pick: which one, the first when None."""

    def __init__(self, d: int, act: nn.Module, out: int | None = None, pick=None, *, bias=True):
        super().__init__()
        self.pick = pick or First()
        self.dense, self.act = nn.Linear(d, out or d, bias=bias), act

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        return self.act(self.dense(self.pick(x, inputs, ctx)))  # (B, D)


class Last(nn.Module):
    """x of the last real token: after it come only `pad` ids, or what the mask hides."""

    def __init__(self, pad: int | None):
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> Tensor:
        real = ctx.mask.padding
        if self.pad is not None and inputs.input_ids is not None:
            real = inputs.input_ids != self.pad
        if real is None:
            return x[:, -1]
        steps = torch.arange(x.shape[1], device=x.device)
        at = (steps * real).argmax(-1)  # (B,)
        return x[torch.arange(len(x), device=x.device), at]


class Classifier(nn.Module):
    """logits = score(pool(x)), one label a row."""

    loss = staticmethod(label)

    def __init__(self, d: int, labels: int, pool: nn.Module, *, bias=True):
        super().__init__()
        self.pool, self.score, self.dropout = pool, nn.Linear(d, labels, bias=bias), 0.0

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        pooled = F.dropout(self.pool(x, inputs, ctx), self.dropout, self.training)
        return {"logits": self.score(pooled)}  # (B, labels)


class TokenClassifier(nn.Module):
    """logits for each token, (B, T, labels)."""

    loss = staticmethod(token)

    def __init__(self, d: int, labels: int):
        super().__init__()
        self.tag, self.dropout = nn.Linear(d, labels), 0.0

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        return {"logits": self.tag(F.dropout(x, self.dropout, self.training))}


class Span(nn.Module):
    """Where an answer begins and ends: start_logits and end_logits, (B, T) each."""

    loss = staticmethod(span)

    def __init__(self, d: int):
        super().__init__()
        self.span = nn.Linear(d, 2)

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        start, end = self.span(x).unbind(-1)
        return {"start_logits": start, "end_logits": end}


class Pooled(nn.Module):
    """No task: the stream itself, and its pooled vector where the family has one."""

    def __init__(self, pool: nn.Module | None = None):
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor, inputs: Inputs, ctx: Ctx) -> dict[str, Tensor]:
        if self.pool is None:
            return {"last_hidden_state": x}
        return {"last_hidden_state": x, "pooler_output": self.pool(x, inputs, ctx)}

"""Cross-entropy of tokens; over a large vocabulary without holding its logits.

`told_loss` scores only the places that have a label. Their logits are made a stretch at a time,
turned into gradients where they lie, and forgotten: memory is never batch x vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mirada.core.heads import LMHead

IGNORED = -100
STRETCH = 1 << 27  # bytes of logits that are held at a time, in the dtype of the product
INNER = 1 << 19  # logits that are widened at a time: they stay in the cache


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider, as losses are taken."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def token_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum of cross-entropies, in float32 or wider, over labels that are not IGNORED.

    logits (B, T, V); labels (B, T); smoothing: the share of the target that all tokens divide
    (1706.03762, sec. 5.4: 0.1 leaves 0.9 + 0.1 / V for the right one).
    """
    return F.cross_entropy(wide(logits.flatten(0, 1)), labels.flatten(), ignore_index=IGNORED,
                           reduction="sum", label_smoothing=smoothing)


def told_loss(model, given: dict[str, Tensor], labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum of cross-entropies, in float32 or wider, of a model's tokens.

    given: what the model reads; labels (B, T): what is told at each place, IGNORED where nothing
    is; smoothing: see token_loss, which it equals.
    """
    head = model.head
    if (type(head) is not LMHead or head.cap is not None or type(head.out) is not nn.Linear
            or type(head.out.weight) is not nn.Parameter or head.out.weight.device.type == "meta"):
        return token_loss(model(**given).logits, labels, smoothing)
    told = labels != IGNORED
    x = head.transform(_states(model, given, told)) * head.scale  # (N, D)
    return linear_loss(x, head.out.weight, head.out.bias, labels[told], smoothing)


def told_logits(model, given: dict[str, Tensor], told: Tensor) -> Tensor:
    """Logits (N, V) of the places that are told, (B, T) of bools, in their order; no others are
    made where the head is a plain one."""
    head = model.head
    if type(head) is not LMHead or any(type(p) is not nn.Parameter for p in head.parameters()):
        return model(**given).logits[told]
    return head(_states(model, given, told)[None], None, None)["logits"][0]


def _states(model, given: dict[str, Tensor], told: Tensor) -> Tensor:
    """What the body gives the head at these places: (N, D)."""
    bodies = []
    hook = model.body.register_forward_hook(lambda module, args, x: bodies.append(x))
    try:
        model(**given, logits_to_keep=1)
    finally:
        hook.remove()
    return bodies[0][:, -told.shape[1] :][told]  # soft tokens come before, and are told nothing


def linear_loss(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
                smoothing: float = 0.0) -> Tensor:
    """The sum of cross-entropies of x (N, D) against weight (V, D), bias (V,), labels (N,)."""
    kind = x.device.type
    dtype = (torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind)
             else torch.promote_types(x.dtype, weight.dtype))
    return _Loss.apply(x, weight, bias, labels, smoothing, dtype)


class _Loss(torch.autograd.Function):
    """Gradients are made with the loss, for a factor of 1, and scaled in backward."""

    @staticmethod
    def forward(ctx, x, weight, bias, labels, smoothing, dtype):
        wider = torch.promote_types(dtype, torch.float32)
        V, wants = len(weight), ctx.needs_input_grad
        total = torch.zeros((), dtype=wider, device=x.device)
        dx = torch.empty_like(x) if wants[0] else None
        dw, db = None, None
        with torch.autocast(x.device.type, enabled=False):
            w = weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            size = max(1, STRETCH // (V * dtype.itemsize))
            for at in range(0, len(x), size):
                xs = x[at : at + size].to(dtype)
                z = F.linear(xs, w, b)  # (n, V)
                total += _gradients(z, labels[at : at + size], smoothing, wider)
                if wants[0]:
                    dx[at : at + size] = z @ w
                if wants[1]:
                    dw = _plus(dw, z.mT @ xs, wider)
                if wants[2]:
                    db = _plus(db, z.sum(0, dtype=wider), wider)
        ctx.save_for_backward(dx, None if dw is None else dw.to(weight.dtype),
                              None if db is None else db.to(bias.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *(None if g is None else g.mul_(grad) for g in ctx.saved_tensors), None, None, None


def _gradients(z: Tensor, labels: Tensor, smoothing: float, wider: torch.dtype) -> Tensor:
    """The sum of losses of logits z (n, V), which become their gradients in place."""
    V, total = z.shape[1], torch.zeros((), dtype=wider, device=z.device)
    for row in range(0, len(z), max(1, INNER // V)):
        part = z[row : row + max(1, INNER // V)]
        right = labels[row : row + len(part), None]
        p = part.to(wider)  # first, and then by itself: log_softmax(dtype=) is five times slower
        p.sub_(p.amax(-1, keepdim=True))
        total -= (1 - smoothing) * p.gather(1, right).sum()
        if smoothing:
            total -= smoothing * p.mean(-1).sum()
        sums = p.exp_().sum(-1, keepdim=True)
        total += sums.log().sum()
        p.mul_(1 / sums).scatter_add_(1, right, p.new_full(right.shape, smoothing - 1))
        part.copy_(p.sub_(smoothing / V) if smoothing else p)
    return total


def _plus(total: Tensor | None, more: Tensor, wider: torch.dtype) -> Tensor:
    return more.to(wider) if total is None else total.add_(more)

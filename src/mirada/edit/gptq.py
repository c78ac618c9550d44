"""Rounding that learns from a text: GPTQ (Frantar et al., 2210.17323).

A projection's weights are rounded input by input; those not yet rounded make up for each error, as
the inputs' second moments H = Σ x xᵀ say they can. Blocks are done in the order of the stream, each
on what the blocks before it, already rounded, hand on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirada.core.linear import kept, replaced
from mirada.errors import MiradaError
from mirada.kernels.pack import join
from mirada.model import Model

WINDOW, TOKENS = 512, 8192  # tokens of a pass, and of all
DAMP = 0.01  # of the mean of H's diagonal, added to it
LAZY = 128  # inputs whose corrections are applied to all later ones at once
GROUP = 32  # of Q4_0


@torch.no_grad()
def calibrated(model: Model, chosen: dict[nn.Module, str], text: str) -> None:
    """Put Q4_0 in the place of the chosen projections of a model's blocks, learned from `text`.

    Raises MiradaError where the model is no single stack of blocks with a tokenizer, another type
    is asked for, or the text is shorter than a window.
    """
    if set(chosen.values()) != {"Q4_0"}:
        raise MiradaError("calibration is for int4 (Q4_0); other types round without a text")
    if model.encoder_decoder or len(model.body.order) != len(model.body.blocks):
        raise MiradaError("calibration needs one stack whose blocks run once each")
    if model.tokenizer is None:
        raise MiradaError("the model has no tokenizer, and without one no text can be read")
    seen = _arrivals(model, model.tokenizer.encode(text, special=False).ids[:TOKENS])
    for block in tqdm(model.body.blocks, "calibrate", unit="block", disable=None, leave=False):
        moments: dict[nn.Module, Tensor] = {}
        hooks = [m.register_forward_pre_hook(_adding(moments)) for m in block.modules()
                 if m in chosen]
        for x, ctx in seen:
            block(x, ctx, None)
        for hook in hooks:
            hook.remove()
        replaced(block, {m: kept(m, rounded(m.weight.float(), H), "Q4_0")
                         for m, H in moments.items()})
        seen = [(block(x, ctx, None), ctx) for x, ctx in seen]


def _arrivals(model: Model, ids: list[int]) -> list:
    """What comes to the first block, window by window: (x, ctx)."""
    step = min(WINDOW, model.context or WINDOW)
    if len(ids) < step:
        raise MiradaError(f"the text to calibrate on has {len(ids)} tokens, fewer than {step}")
    found: list = []
    hook = model.body.blocks[0].register_forward_pre_hook(lambda m, args: found.append(args[:2]))
    for start in range(0, len(ids) - step + 1, step):
        model(torch.tensor([ids[start : start + step]], device=model.device))
    hook.remove()
    return found


def _adding(moments: dict):
    def add(module: nn.Module, args) -> None:
        x = args[0].flatten(0, -2).float()  # (N, in)
        moments[module] = moments.get(module, 0) + x.T @ x
    return add


def rounded(W: Tensor, H: Tensor) -> Tensor:
    """W (out, in) in Q4_0 blocks that keep W x for the x whose second moments are H (in, in)."""
    W, U = W.T.clone(), _factor(H)  # (in, out): an input's weights lie together
    weight = H.diagonal() + DAMP * H.diagonal().mean() + 1e-8
    codes, scales = torch.empty_like(W), W.new_empty(len(W) // GROUP, W.shape[1])
    for start in range(0, len(W), LAZY):
        end = min(start + LAZY, len(W))
        errors = torch.empty(end - start, W.shape[1])
        for j in range(start, end):
            if j % GROUP == 0:
                d = scales[j // GROUP] = _scale(W[j : j + GROUP], weight[j : j + GROUP, None])
                inverse = torch.where(d == 0, 0, 1 / d)
            codes[j] = (W[j] * inverse).round_().clamp_(-8, 7)
            errors[j - start] = error = (W[j] - codes[j] * d) / U[j, j]
            W[j + 1 : end].addr_(U[j, j + 1 : end], error, alpha=-1)  # eq. 2, row by row
        W[end:].addmm_(U[start:end, end:].T, errors, alpha=-1)  # eq. 4
    return join((codes + 8).to(torch.uint8).T.contiguous(), scales.T.contiguous())


def _factor(H: Tensor) -> Tensor:
    """The upper Cholesky factor of H's inverse, H damped until it has one."""
    for damp in (DAMP, 0.1, 1.0):
        damped = H.clone()
        damped.diagonal().add_(damp * H.diagonal().mean() + 1e-8)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            continue
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return upper
    raise MiradaError("the activations on this text are not finite: nothing can be learned from it")


def _scale(W: Tensor, weight: Tensor) -> Tensor:
    """The float16 scale of a group (GROUP, out), of some near the largest number's: (out,)."""
    largest = W.gather(0, W.abs().argmax(0, keepdim=True))[0]
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for part in torch.arange(0.7, 1.05, 0.05).tolist():
        d = (largest * part / -8).half().float()
        codes = (W * torch.where(d == 0, 0, 1 / d)).round_().clamp_(-8, 7)
        error = ((W - codes * d).square() * weight).sum(0)
        best = torch.where(error < least, d, best)
        least = torch.minimum(error, least)
    return best

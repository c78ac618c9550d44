"""A model whose encoder the native runtime runs: texts are read whole, and no pad is computed."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor, nn

from mirada.core.block import EncoderDecoder, Stack
from mirada.core.context import Ctx, Inputs
from mirada.kernels.native import Native
from mirada.model import Model

from . import lower


class Lowered(nn.Module):
    """Stands where a Stack stood: (inputs, ctx) -> its last states (B, T, D), zeros at pads.

    A pass with gradients, positions that do not count the real tokens or real tokens that do not
    stand together go the plain way. Tokens are chosen by numpy: torch would wake its threads for
    it, which then spin for 5 ms on a core that the runtime needs.
    """

    def __init__(self, stack: Stack, native: Native, dtype: torch.dtype):
        super().__init__()
        self.stack, self.native, self.dtype = stack, native, dtype
        self.embed, self.own = stack.embed, lower.embeds(stack.embed)

    def forward(self, inputs: Inputs, ctx: Ctx, cache=None) -> Tensor:
        if torch.is_grad_enabled() or not self._fits(inputs, ctx):
            return self.stack(inputs, ctx, cache)
        if not self.own:
            given = {"given": self.embed(inputs, ctx).float()}
        elif self.embed.segment is None or inputs.token_type_ids is None:
            given = {"ids": inputs.input_ids}
        else:
            given = {"ids": inputs.input_ids, "types": inputs.token_type_ids}
        B, T = next(iter(given.values())).shape[:2]
        real = _real(ctx, B, T)
        flat = {name: x.flatten(0, 1) for name, x in given.items()}
        if real.all():
            return self.native.states([T] * B, **flat).to(self.dtype).view(B, T, -1)
        at = numpy.flatnonzero(real)
        flat = {name: torch.from_numpy(x.numpy()[at]) for name, x in flat.items()}
        states = self.native.states(real.sum(1).tolist(), **flat)  # (M, D)
        out = numpy.zeros((B * T, states.shape[1]), numpy.float32)
        out[at] = states.numpy()
        return torch.from_numpy(out).to(self.dtype).view(B, T, -1)

    def _fits(self, inputs: Inputs, ctx: Ctx) -> bool:
        """True where each row's real tokens lie together, from position 0 on, within the context;
        of texts too long the modules say what to do."""
        if inputs.pixel_values is not None:
            return True
        if ctx.mask.segments or (self.own and inputs.input_ids is None):
            return False
        most = getattr(getattr(self.embed, "position", None), "context", None)
        if ctx.positions is None or (most is not None and int(ctx.positions.max()) >= most):
            return False
        at = ctx.positions.numpy()
        real = _real(ctx, *at.shape)
        begins = real[:, 0] + (real[:, 1:] & ~real[:, :-1]).sum(1)
        counted = real.cumsum(1) - 1
        return bool((begins == 1).all() and ((at == counted) | ~real).all())


def _real(ctx: Ctx, B: int, T: int) -> numpy.ndarray:
    """(B, T): which tokens are no pads."""
    real = ctx.mask.padding
    return numpy.ones((B, T), bool) if real is None else real.numpy()


def lowered(model: Model) -> Model:
    """The model with its encoder run natively, where it has a program: one that attach gave it, or
    whose weights are in blocks. Else the model itself, and so while somebody listens to its
    modules. The head stays torch's; weights that change afterwards need to be lowered anew."""
    if isinstance(model.body, Lowered) or not (lower.reads(model) or model.encoder_decoder):
        return model
    native = lower.ready(model)
    if native is None:
        return model
    body = model.body
    if model.encoder_decoder:
        encoder = Lowered(body.encoder, native.encoder, model.dtype)
        body = EncoderDecoder(encoder, body.decoder)  # type: ignore[arg-type]
    else:
        body = Lowered(body, native, model.dtype)
    other = Model(model.family, model.config, body, model.head, model.architecture)
    other.tokenizer, other.origin, other.training = model._tokenizer, model.origin, False
    return other

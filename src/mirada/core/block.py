"""Blocks write into the residual stream; a stack is an embedding, blocks in order and a norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .context import Ctx, Inputs
from .norm import drop_path


class Residual(nn.Module):
    """x -> out(x + post(f(pre(x)))). Pre-, post-, res-post- and sandwich norm are filled slots.

    pre-norm: pre (GPT-2); post-norm: out (Vaswani et al.); res-post-norm: post (Swin V2);
    sandwich: pre and post (Gemma 2); LayerScale, DropPath and gates stand in post.
    """

    def __init__(self, f: nn.Module, pre=None, post=None, out=None):
        super().__init__()
        self.pre, self.f = pre or nn.Identity(), f
        self.post, self.out = post or nn.Identity(), out or nn.Identity()
        self.dropout = self.drop_path = 0.0  # rates

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        y = self.post(self.f(self.pre(x), ctx, cache))
        y = F.dropout(y, self.dropout, self.training)
        return self.out(x + drop_path(y, self.drop_path, self.training))


class Block(nn.Module):
    """Sublayers by name, applied in the order they are given: attn, cross, mlp."""

    def __init__(self, **sublayers: nn.Module):
        super().__init__()
        for name, sublayer in sublayers.items():
            self.add_module(name, sublayer)

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        for name, sublayer in self.named_children():
            x = sublayer(x, ctx, cache.get(name) if cache else None)
        return x


class Branch(nn.Module):
    """f(pre(x)): what a residual adds, without the adding."""

    def __init__(self, f: nn.Module, pre=None):
        super().__init__()
        self.pre, self.f = pre or nn.Identity(), f
        self.dropout = 0.0

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        return F.dropout(self.f(self.pre(x), ctx, cache), self.dropout, self.training)


class ParallelBlock(nn.Module):
    """x + sum of branches of norm(x), all reading the same stream (Wang & Komatsuzaki, GPT-J).

    norm: shared by the branches, or None when each branch has its own.
    """

    def __init__(self, norm=None, **branches: Branch):
        super().__init__()
        self.norm = norm or nn.Identity()
        self.names = tuple(branches)
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor, ctx: Ctx, cache=None) -> Tensor:
        h, y = self.norm(x), x
        for name in self.names:
            y = y + getattr(self, name)(h, ctx, cache.get(name) if cache else None)
        return y


class Stack(nn.Module):
    """embed -> blocks in `order` -> norm. x is opaque here; a block never knows its index.

    order: indices into blocks; ALBERT's twelve passes through one block are [0] * 12.
    """

    def __init__(self, embed: nn.Module, blocks: list, norm=None, order=None):
        super().__init__()
        self.embed = embed
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()
        self.order = list(range(len(blocks)) if order is None else order)

    def forward(self, inputs: Inputs, ctx: Ctx, cache=None) -> Tensor:
        x = self.embed(inputs, ctx)  # (B, T, D)
        for n, index in enumerate(self.order):
            x = self.blocks[index](x, ctx, cache[n] if cache else None)
        return self.norm(x)


class EncoderDecoder(nn.Module):
    """Two stacks; the decoder's cross-attention looks at what the encoder made of the source."""

    def __init__(self, encoder: Stack, decoder: Stack):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, inputs: Inputs, ctx: Ctx) -> Tensor:
        """The memory, (B, S, D)."""
        return self.encoder(inputs, ctx)

    def forward(self, inputs: Inputs, ctx: Ctx, cache=None) -> Tensor:
        """inputs and ctx are the decoder's; ctx.memory holds the encoded source."""
        return self.decoder(inputs, ctx, cache)

"""Projections and token tables whose weights stay in blocks (see kernels.blocks)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.kernels.blocks import expand, row_elements


class Quantized(nn.Module):
    """Stands where an nn.Linear stood: y = x Wᵀ + bias, W expanded from its blocks in each pass.

    blocks: (out, bytes per row) uint8, maybe a view of a mapped file; a tied table is the same
    tensor. type: a name of kernels.blocks.LAYOUTS. bias: (out,) Parameter or None.
    This is the exact reference, in x's dtype; kernels may be put in its place. The gradient
    reaches x and bias; W is not kept for it, and does not train.
    dynamic: of type I8, without a gradient, multiply in eight bits: x is rounded row by row too.
    """

    type: str

    def __init__(self, blocks: Tensor, type: str, bias: Tensor | None = None, dynamic=False):
        super().__init__()
        self.register_buffer("blocks", blocks)
        self.register_parameter("bias", bias)
        self.dynamic = dynamic
        self.type, self.out_features = type, len(blocks)
        self.in_features = row_elements(type, blocks.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in): the weight's."""
        return self.out_features, self.in_features

    def expand(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in), in new memory."""
        return expand(self.blocks, self.type, dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.dynamic and not (torch.is_grad_enabled() and x.requires_grad):
            return _eight_bits(x, self.blocks, self.bias)
        return _Product.apply(x, self.blocks, self.type, self.bias)

    def extra_repr(self) -> str:
        bias = "" if self.bias is None else ", bias"
        return f"{self.in_features}, {self.out_features}, {self.type}{bias}"


class QuantizedEmbedding(nn.Module):
    """Stands where an nn.Embedding stood: only the rows that are asked for are expanded.

    dtype: of what it gives; it follows .to(dtype), .half() and the like.
    """

    type: str

    def __init__(self, blocks: Tensor, type: str, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.register_buffer("blocks", blocks)
        self.type, self.num_embeddings = type, len(blocks)
        self.embedding_dim, self.dtype = row_elements(type, blocks.shape[1]), dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(V, D): the table's."""
        return self.num_embeddings, self.embedding_dim

    def expand(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The table (V, D), in new memory."""
        return expand(self.blocks, self.type, dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return expand(F.embedding(ids, self.blocks), self.type, self.dtype)  # (B, T, D)

    def _apply(self, fn, recurse=True):
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.type}"


class _Product(torch.autograd.Function):
    """x Wᵀ + bias that keeps the blocks for its gradient, where F.linear would keep W."""

    @staticmethod
    def forward(ctx, x: Tensor, blocks: Tensor, type: str, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(blocks)
        ctx.type = type
        rows = _some(blocks, type)
        biases = [None] * len(rows) if bias is None else bias.split(len(rows[0]))
        return torch.cat([F.linear(x, expand(some, type, x.dtype), b)
                          for some, b in zip(rows, biases, strict=True)], -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (blocks,) = ctx.saved_tensors
        rows = _some(blocks, ctx.type)
        x = sum(g @ expand(some, ctx.type, g.dtype) for g, some in zip(
            grad.split(len(rows[0]), -1), rows, strict=True)) if ctx.needs_input_grad[0] else None
        bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return x, None, None, bias


LARGEST = 1 << 23  # numbers expanded at once: a vocabulary's head is many times that


def _some(blocks: Tensor, type: str) -> tuple[Tensor, ...]:
    return blocks.split(max(LARGEST // row_elements(type, blocks.shape[1]), 1))


OUTLIER = 6.0  # channels of x with a number beyond it are not rounded (LLM.int8, 2208.07339)


def _eight_bits(x: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + bias with integer products: x and W in int8, one scale for each of their rows."""
    rows = x.flatten(0, -2).float()  # (N, in)
    codes, scale = blocks[:, 4:].view(torch.int8), blocks[:, :4].clone().view(torch.float32)
    beyond = (rows.abs() > OUTLIER).any(0)
    inside = rows.masked_fill(beyond, 0)
    step = (inside.abs().amax(1, keepdim=True) / 127).clamp(min=1e-30)
    y = torch._int_mm((inside / step).round_().to(torch.int8), codes.T).float() * step
    if bool(beyond.any()):
        y += rows[:, beyond] @ codes[:, beyond].float().T
    y = (y * (scale.T / 127)).to(x.dtype).unflatten(0, x.shape[:-1])  # (..., out)
    return y if bias is None else y + bias


KEPT = (Quantized, QuantizedEmbedding)


def keeps(module: nn.Module) -> bool:
    """True where blocks can stand for the module's weight: a plain projection or table."""
    return type(module) in (nn.Linear, nn.Embedding)


def kept(module: nn.Module, blocks: Tensor, type: str) -> nn.Module:
    """What stands in the place of a projection or table, its weight in `blocks`."""
    if isinstance(module, nn.Embedding):
        new = QuantizedEmbedding(blocks, type)
    else:
        new = Quantized(blocks, type, module.bias, dynamic=type == "I8")
    return new.train(module.training)


def replaced(tree: nn.Module, table: dict[nn.Module, nn.Module]) -> None:
    """Put each module of the table, wherever it stands in the tree, out for its new one."""
    for parent in list(tree.modules()):
        for name, child in parent._modules.items():
            if child in table:
                parent._modules[name] = table[child]

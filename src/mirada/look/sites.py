"""Where things happen in a model: its stacks by name, places in their order, module boundaries.

Recording and intervening listen at the same boundaries, so both see every family alike.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention, CrossAttention
from mirada.core.block import Branch, Residual, Stack
from mirada.core.cache import Fixed
from mirada.core.context import Ctx
from mirada.core.mlp import MLP


@dataclass(eq=False)
class Spot:
    """Where the running pass of one stack stands.

    layer: place in the stack's order; start: tokens that its caches, where there are any, held
    before this pass; ids and real (B, T): what the pass reads, and True where that is no pad.
    tables (B, n): the pages of this pass's rows, where the cache serves many texts. after: start,
    or 0 where these are other texts than those of the pass before.
    """

    name: str
    layer: int = -1
    start: int = 0
    cached: bool = False
    ids: Tensor | None = None
    real: Tensor | None = None
    tables: Tensor | None = None
    after: int = 0


@contextmanager
def eager() -> Iterator[None]:
    """Within this context whatever was compiled runs as it is written, for compiled code passes the
    boundaries by; its graphs stay, and run again afterwards."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def stacks(model: nn.Module) -> dict[str, Stack]:
    """encoder and decoder, or the one of them that a model is; text and vision of two towers."""
    if model.encoder_decoder:
        return {"encoder": model.body.encoder, "decoder": model.body.decoder}
    if model.kind == "dual-encoder":
        return dict(model.body.named_children())
    return {"decoder" if model.kind == "decoder" else "encoder": model.body}


def follow(name: str, stack: Stack) -> tuple[Spot, list]:
    """A Spot that is right inside every block of `stack` while it runs, and its hooks' handles."""
    spot = Spot(name)

    def begin(module, args):
        spot.layer, spot.ids = -1, args[0].input_ids
        cache = args[2] if len(args) > 2 else None
        spot.start, spot.cached = _held(cache[0]) if cache else 0, bool(cache)
        spot.after = spot.start if _goes_on(spot.tables, cache) else 0
        spot.tables = next((c.tables for c in cache[0].values()), None) if _paged(cache) else None

    def step(module, args):
        spot.layer += 1
        if spot.layer == 0:
            spot.real = _real(args[1], args[0])

    handles = [stack.register_forward_pre_hook(begin)]
    return spot, handles + [b.register_forward_pre_hook(step) for b in stack.blocks]


def _paged(cache) -> bool:
    return bool(cache) and all(hasattr(c, "tables") for c in cache[0].values())


def _goes_on(before: Tensor | None, cache) -> bool:
    """Whether what the cache holds was read in the pass before: of pages, whether it had them."""
    if not _paged(cache):
        return True
    now = next(c.held for c in cache[0].values())
    return before is not None and len(before) == len(now) and torch.equal(
        before[:, : now.shape[1]], now)


def _held(caches: dict) -> int:
    lengths = [c.length for c in caches.values() if not isinstance(c, Fixed)]
    return int(lengths[0].max()) if lengths and lengths[0].numel() else 0


def _real(ctx: Ctx, x: Tensor) -> Tensor:
    if ctx.mask.padding is None:
        tokens = x.shape[1:-1].numel()  # of a grid: line by line
        return torch.ones(len(x), tokens, dtype=torch.bool, device=x.device)
    return ctx.mask.padding[:, -x.shape[1] :]


def sublayers(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """attn, cross, mlp: each Residual or Branch of a block by its name."""
    for name, part in block.named_children():
        if isinstance(part, Residual | Branch):
            yield name, part


def adder(part: nn.Module) -> nn.Module:
    """The module whose output a sublayer adds to the stream."""
    post = getattr(part, "post", None)  # a Branch has none; some residuals never call an empty one
    return part.f if post is None or isinstance(post, nn.Identity) else post


def attentions(name: str, block: nn.Module) -> Iterator[tuple[str, Attention]]:
    """Every attention of a block of the stack `name`, under the stack its pattern is shown as."""
    for module in block.modules():
        if isinstance(module, Attention):
            yield "cross" if isinstance(module, CrossAttention) else name, module


def network(block: nn.Module) -> MLP | None:
    """A block's MLP; None where it has none, or experts, of which each sees its own tokens."""
    for name, part in sublayers(block):
        if name == "mlp" and isinstance(part.f, MLP):
            return part.f
    return None


def places(stack: Stack, count: int) -> list[str]:
    """What the places of a pass without text are called: of a picture the class token and each
    patch by row and column, else their numbers."""
    rows, columns = getattr(stack.embed, "grid", (0, 0))
    before = count - rows * columns
    if not rows or not 0 <= before <= 2:
        return [str(n) for n in range(count)]
    return [*("[CLS]", "[DIST]")[:before],
            *(f"{r},{c}" for r in range(rows) for c in range(columns))]

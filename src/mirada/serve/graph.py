"""The boxes of a pass: which modules ran, in what order, and how far each moved the stream.

Drawn from the built tree, not from the family's name: a box is a slot of the house's own blocks
that holds a module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mirada.core.attention import Attention, CrossAttention
from mirada.core.block import ParallelBlock, Residual, Stack
from mirada.core.mlp import MLP
from mirada.look import sites

FEW = 64  # numbers of a vector that are shown


@dataclass
class Box:
    """One slot of the tree: id, module, and the boxes that it reads.

    into: the module whose input this box's output is, where the box's own module does more.
    """

    id: str
    kind: str
    module: nn.Module
    stack: str
    layer: int | None
    reads: list[str]
    into: nn.Module | None = None
    shape: list[int] = field(default_factory=list)


@dataclass
class Pass:
    """What one pass left behind: its boxes in order of execution, and lengths of vectors.

    lengths: (stack, part, layer) -> (T,); part "x" is the stream, layer -1 the embedding.
    """

    boxes: dict[str, Box]
    ran: list[str] = field(default_factory=list)
    lengths: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)

    def data(self, paths: dict[nn.Module, str]) -> dict:
        """The graph of the schema."""
        boxes = [self.boxes[name] for name in self.ran]
        known = set(self.ran)
        return {"nodes": [{
            "id": b.id, "kind": b.kind, "module": type(b.module).__name__,
            "path": paths.get(b.module, ""), "stack": b.stack, "layer": b.layer, "shape": b.shape,
            "about": b.module.extra_repr() if b.kind != "add" else ""} for b in boxes],
            "edges": [[a, b.id] for b in boxes for a in b.reads if a in known]}


def plan(model: nn.Module) -> dict[str, Box]:
    """Every box of a model by id, in the order of its tree."""
    boxes: dict[str, Box] = {}
    ends = {}
    for name, stack in sites.stacks(model).items():
        at = _box(boxes, f"{name}.embed", "embed", stack.embed, name, None, [])
        for layer, index in enumerate(stack.order):
            at = _block(boxes, stack.blocks[index], name, layer, at, ends.get("encoder"))
        ends[name] = at = _filled(boxes, f"{name}.norm", stack.norm, name, None, at)
    _box(boxes, "head", "head", model.head, "head", None, [at])
    return boxes


def _block(boxes, block: nn.Module, stack: str, layer: int, at: str, memory: str | None) -> str:
    before = f"{stack}.{layer}"
    if isinstance(block, ParallelBlock):
        shared = _filled(boxes, f"{before}.norm", block.norm, stack, layer, at)
        ends = [_sublayer(boxes, part, f"{before}.{name}", stack, layer, shared, memory)
                for name, part in sites.sublayers(block)]
        return _box(boxes, f"{before}.add", "add", block, stack, layer, [at, *ends])
    parts = list(sites.sublayers(block))
    if not parts:
        return _box(boxes, f"{before}.block", "other", block, stack, layer, [at])
    for name, part in parts:
        at = _sublayer(boxes, part, f"{before}.{name}", stack, layer, at, memory)
    return at


def _sublayer(boxes, part, before: str, stack: str, layer: int, at: str, memory) -> str:
    start, where = at, (stack, layer)
    at = _filled(boxes, f"{before}.pre", part.pre, *where, at)
    reads = [at, memory] if isinstance(part.f, CrossAttention) and memory else [at]
    at = _box(boxes, f"{before}.f", _kind(part.f), part.f, *where, reads)
    if not isinstance(part, Residual):
        return at
    at = _filled(boxes, f"{before}.post", part.post, *where, at)
    at = _box(boxes, f"{before}.add", "add", part, *where, [start, at])
    if not isinstance(part.out, nn.Identity):
        boxes[at].into = part.out
    return _filled(boxes, f"{before}.out", part.out, *where, at)


def _filled(boxes, name: str, module, stack: str, layer, at: str) -> str:
    """A box where a slot holds a module; an empty slot hands on what came in."""
    if isinstance(module, nn.Identity):
        return at
    return _box(boxes, name, _kind(module), module, stack, layer, [at])


def _box(boxes, name: str, kind: str, module, stack: str, layer, reads: list[str]) -> str:
    boxes[name] = Box(name, kind, module, stack, layer, reads)
    return name


def _kind(module: nn.Module) -> str:
    if isinstance(module, Attention):
        return "cross" if isinstance(module, CrossAttention) else "attn"
    if isinstance(module, MLP):
        return "mlp"
    name = type(module).__name__
    return "norm" if "Norm" in name else "moe" if name == "MoE" else "other"


@contextmanager
def watch(model: nn.Module) -> Iterator[Pass]:
    """Within this context a pass leaves its boxes and lengths on the Pass; no tensor is held."""
    found = Pass(plan(model))

    def told(box: Box, spot, x) -> None:
        box.shape = list(x.shape) if torch.is_tensor(x) else []
        found.ran.append(box.id)
        if box.kind == "embed":
            found.lengths[box.stack, "x", -1] = _lengths(x)

    handles = _listen(model, list(found.boxes.values()), told)
    for name, stack in sites.stacks(model).items():
        handles += _measure(found, name, stack)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _listen(model: nn.Module, boxes: list[Box], told) -> list:
    """Hooks that call told(box, spot, its output) whenever one of the boxes runs.

    Two stacks may share an embedding, and places of a stack a block: the stack and the place that
    are running tell whose box it is.
    """
    handles, running = [], [""]
    for name, stack in sites.stacks(model).items():
        spot, more = sites.follow(name, stack)
        begin = stack.register_forward_pre_hook(
            lambda module, args, name=name: running.__setitem__(0, name))
        handles += [begin, *more]
        handles += [_hear(box, spot, running, told) for box in boxes if box.stack == name]
    return handles + [box.module.register_forward_hook(
        lambda module, args, out, box=box: told(box, None, _first(out)))
        for box in boxes if box.stack == "head"]


def _hear(box: Box, spot, running: list[str], told):
    def here() -> bool:
        return running[0] == box.stack and box.layer in (None, spot.layer)

    def behind(module, args, output):
        if here():
            told(box, spot, output)

    def before(module, args):
        if here():
            told(box, spot, args[0])

    if box.into is not None:
        return box.into.register_forward_pre_hook(before)
    return box.module.register_forward_hook(behind)


def _measure(found: Pass, name: str, stack: Stack) -> list:
    """Hooks that measure the stream behind each block and what each sublayer adds to it."""
    spot, handles = sites.follow(name, stack)

    def length(part: str):
        def take(module, args, output):
            found.lengths[name, part, spot.layer] = _lengths(output)
        return take

    for block in stack.blocks:
        handles.append(block.register_forward_hook(length("x")))
        handles += [sites.adder(part).register_forward_hook(length(part_name))
                    for part_name, part in sites.sublayers(block)]
    return handles


def _first(output) -> Tensor | None:
    return next(iter(output.values()), None) if isinstance(output, dict) else output


def _lengths(x: Tensor) -> Tensor:
    return x[0].detach().float().norm(dim=-1).cpu()


def node(model: nn.Module, batch: dict, name: str, pos: int | None, paths: dict) -> dict:
    """What the page shows of one box: its weights, and its output at a token (a pass is run)."""
    box, kept = plan(model)[name], []
    handles = _listen(model, [box], lambda box, spot, x: kept.append(x.detach()))
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    whole = kept[-1]
    row = None if pos is None or whole.ndim != 3 else whole[0, pos].float()
    weights = [] if box.kind == "add" else [
        {"name": n, "shape": list(p.shape), "mean": p.float().mean().item(),
         "std": p.float().std(correction=0).item()} for n, p in box.module.named_parameters()]
    return {"id": name, "module": type(box.module).__name__, "path": paths.get(box.module, ""),
            "shape": list(whole.shape), "weights": weights, "pos": None if row is None else pos,
            "values": [] if row is None else row[:FEW].tolist(),
            "length": None if row is None else row.norm().item()}

"""A built model lowered to a flat program for the native runtime: its tree is walked once.

A decoder's program takes tokens one after another and gives scores; an encoder's reads whole texts
and gives their last states; an encoder-decoder has both, and one that notes the source.

Each class of module has a function here that writes its operators; a module that has none makes
the whole model stay with torch, and `Unlowered` names it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.attend import Attend, pinned
from mirada.core.attention import Absent, Attention, CrossAttention, NoBias, NoGate
from mirada.core.bias import Alibi, Buckets
from mirada.core.block import Block, Branch, ParallelBlock, Residual, Stack
from mirada.core.embed import Tokens
from mirada.core.heads import LMHead
from mirada.core.linear import KEPT, Quantized, QuantizedEmbedding
from mirada.core.mlp import MLP, MoE
from mirada.core.norm import LayerNorm, QKNorm, RMSNorm
from mirada.core.position import ByChannel, Dynamic, Learned, Rotary, Sinusoid
from mirada.errors import MiradaError
from mirada.kernels import native as rt
from mirada.kernels.blocks import offset
from mirada.kernels.native import (
    Memory,
    Native,
    Operator,
    Packing,
    Program,
    Unbuilt,
    library,
)
from mirada.model import Model

ACTS: dict[int, Callable[[Tensor], Tensor]] = {  # the runtime's activations, by its numbers
    1: F.silu, 2: F.gelu, 3: lambda x: F.gelu(x, approximate="tanh"), 4: F.relu,
    5: lambda x: F.relu(x).square()}
TABLE = 1024  # positions that the rotary tables hold at first; they double
CACHES = tuple(rt.CACHES)  # how the runtime may keep keys and values
LOGITS = -1  # stands for the buffer behind the last: the caller's
FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Unlowered(MiradaError):
    """This model has no native program; the message names the first module that lacks one."""


def attach(model, **options) -> Native:
    """Lower a model and let generation run it natively: sets and gives model.native.

    options: see lower. A model whose weights are kept in blocks is attached at its first generation
    without being asked. Raises Unlowered, or Unbuilt where this machine cannot build the runtime.
    """
    model.native = lower(model, **options)
    return model.native


def lower(model, *, cache: str | None = None, codes: int | None = None,
          flags=()) -> Native:
    """A model's native program, with its weights copied into the runtime's layout.

    cache: what keys and values are kept in where a generation does not say: "float32", "float16" or
    "int8" (a 135 M model's logits change by 0.1 in the mean, its loss by 0.001 nats); None:
    "float16" where any weight is quantized, else "float32". An encoder keeps none: "float32".
    codes: bits of the activations that quantized weights meet. With 16 the logits are the modules'
    to a few parts in ten thousand; 8, as other engines have it, reads prompts and batches half
    as fast again, and its rounding shows: 0.2 in a logit, 0.005 nats, of a 135 M model. None: 16,
    but 8 for an encoder in int8, whose own modules round as much and are farther off (1 - cosine
    of MiniLM's vectors with the same weights: 3.5e-4 by its modules, 2.3e-4 by 8 bits here).
    flags: for the compiler. Raises Unlowered and Unbuilt.
    """
    lowering = Lowering()
    lowering.model(model)
    if codes is None:
        rounds = any(getattr(m, "dynamic", False) for m in model.modules())
        codes = 8 if rounds and not model.generates else 16
    lib = library(*rt.way(codes), *flags)
    native = lowering.native(lib, cache)
    if model.encoder_decoder:
        native.encoder = _encoder(model).native(lib, cache)
        native.encoder.options = dict(codes=codes, flags=flags)
    native.stamp = stamp(model)
    native.options = dict(cache=cache, codes=codes, flags=flags)
    return native


def _encoder(model) -> Lowering:
    """The encoder of an encoder-decoder, as its own program."""
    lowering = Lowering()
    lowering.encoder(model.body.encoder, "encoder.")
    return lowering


def ready(model) -> Native | None:
    """The program that generation, or the pass of an encoder, may run now; None where torch must:
    see `path`."""
    if _watched(model):
        return None
    own = model.native
    changed = isinstance(own, Native) and own.stamp != stamp(model)  # its weights are others now
    if changed or (own is None and _kept(model)):
        try:
            attach(model, **(own.options if changed else {}))
        except Unlowered as error:
            model.native = str(error)
        except Unbuilt as error:
            model.native = str(error)
            if os.environ.get("MIRADA_NATIVE") != "0":
                warnings.warn(f"{_work(model)} runs with torch, which is slower: {error}",
                              stacklevel=2)
    return model.native if isinstance(model.native, Native) else None


def path(model) -> str:
    """What generation, or the pass of an encoder, runs, and why, in a sentence."""
    watched = _watched(model)
    if watched:
        return f"torch: {watched}"
    if isinstance(model.native, str):
        return f"torch: {model.native}"
    try:
        lowering = Lowering()
        lowering.model(model)
    except Unlowered as error:
        return f"torch: {error}"
    if model.native is None and not _kept(model):
        return "torch; mirada.edit.lower.attach(model) gives it a native program"
    made = f"native runtime, {len(lowering.ops)} operators"
    if model.native is None:
        return f"{made}, made at the first {_work(model)}"
    own = model.native
    made += ", activations in 8 bits" if own.options["codes"] == 8 else ""
    if not model.generates:
        return f"{made}; no pad is computed"
    return f"{made}, keys and values in {own.cache}: {own.block_bytes // own.block:,} bytes a token"


def _work(model) -> str:
    return "generation" if model.generates else "pass"


def _watched(model) -> str | None:
    """Why the modules themselves must run, or None."""
    if model.training:
        return "the model is in training mode"
    if pinned() is not None:
        return f"the attention kernel {pinned()!r} is asked for"
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return "a recording or an intervention listens to its modules"
    return None


def _kept(model) -> bool:
    return any(isinstance(m, KEPT) for m in model.modules())


def stamp(model) -> list[tuple[int, int]]:
    """Which tensors a model has and how often each was written to: what a program depends on."""
    tensors = [*model.parameters(), *model.buffers()]
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


class Lowering:
    """The operators of a program as they are written, and what they point at."""

    def __init__(self):
        self.ops: list[Operator] = []
        self.widths: list[int] = []  # of each buffer, in numbers a token
        self.names: dict[str, int] = {}  # buffers that all layers share
        self.keep: list[Tensor] = []  # whose addresses the operators hold
        # a matrix's place, its rows, and whether their zeros become offsets
        self.packs: list[tuple[Operator, str, Tensor, bool]] = []
        # what a table of positions or distances is computed from, and where an operator has it
        self.tables: list[tuple[Operator, int, nn.Module]] = []
        self.source: Lowering | None = None  # what reads the text that MEMORY looks at
        self.shares: dict[int, int] = {}  # what experts wrote -> how much of each counts: buffers
        self.group, self.positions = 1, 1 << 30
        self.vocab, self.types = 1, 1
        self.out: int | None = None  # numbers that a token gives; vocab when None
        self.path = "the model"  # what is lowered now, for messages

    def fail(self, module: nn.Module, why: str = "has no native operator") -> Unlowered:
        return Unlowered(f"{self.path}: {type(module).__name__} {why}")

    def buffer(self, name: str, width: int) -> int:
        """The buffer of this name, as wide as its widest use."""
        index = self.names.setdefault(name, len(self.names))
        self.widths += [0] * (index + 1 - len(self.widths))
        self.widths[index] = max(self.widths[index], width)
        return index

    def op(self, name: str, *pointers: int | None, **fields) -> Operator:
        op = Operator(op=rt.OPERATORS.index(name), **fields)
        for n, pointer in enumerate(pointers):
            op.p[n] = pointer
        self.ops.append(op)
        return op

    def held(self, tensor: Tensor | None, dtype: torch.dtype | None = torch.float32) -> int | None:
        """The address of a tensor's numbers, which live as long as the program."""
        if tensor is None:
            return None
        self.keep.append(tensor.detach().to("cpu", dtype).contiguous())
        return self.keep[-1].data_ptr()

    def model(self, model) -> None:
        if type(model) is not Model:
            raise Unlowered(f"{type(model).__name__} has no native program")
        if model.device.type != "cpu":
            raise Unlowered(f"its weights are on {model.device}, and the native runtime is a CPU's")
        if any(p.dtype == torch.float64 for p in model.parameters()):
            raise Unlowered("float64 weights are computed by torch alone")
        if model.kind in ("encoder", "vision", "dual-encoder") or reads(model):
            self.encoder(model.body)
            return
        if not model.generates or not (type(model.head) is LMHead or _asked(model.head)):
            raise Unlowered(f"{model.architecture} does not write one token after another")
        if model.encoder_decoder:
            self.source = Lowering()
            self.source.take(_width(model.body.encoder))
            _encoder(model)
        self.vocab = model.head.out.out_features
        x = self.stack(model.decoder)
        self.head(model.head, x, model.decoder.norm)

    def encoder(self, stack: nn.Module, path: str = "") -> None:
        """The stack's last states of every token."""
        self.path = path + "body"
        x = self.stack(stack, path, given=True)
        self.out = self.widths[x]
        self.path = "norm"
        self.norm(stack.norm, x, x)
        self.op("gather", src=x, dst=LOGITS, width=self.out)

    def take(self, width: int) -> int:
        x = self.buffer("stream", width)
        self.op("take", dst=x, width=width)
        return x

    def stack(self, stack: nn.Module, path: str = "", given=False) -> int:
        """given: the first states may be the caller's, whose stack's own module makes them."""
        if type(stack) is not Stack:
            raise self.fail(stack)
        self.path, given = path + "embed", given and not embeds(stack.embed)
        if not given and not embeds(stack.embed):
            raise self.fail(stack.embed)
        x = self.take(_width(stack)) if given else self.embed(stack.embed)
        for place, index in enumerate(stack.order):
            block = stack.blocks[index]
            self.path = f"{path}blocks.{place}"
            if type(block) not in BLOCKS:
                raise self.fail(block)
            BLOCKS[type(block)](self, block, x)
        return x

    def embed(self, embed: Tokens) -> int:
        table, places, kinds = embed.token, embed.position, embed.segment
        rows, kind = self.rows(table)
        width, narrow = table.embedding_dim, not _empty(embed.project)
        x = self.buffer("narrow" if narrow else "stream", width)
        op = self.op("embed", self.held(rows, None), dst=x, width=width, kind=kind,
                     scale=embed.scale * _widening(table))
        self.vocab = table.num_embeddings
        if isinstance(places, Learned):
            self.positions = places.context
            op.p[1], op.extra = self.held(places.weight), places.num_embeddings - places.context
        elif places is not None:
            self.tables.append((op, 1, places))
        if kinds is not None:
            op.p[2], self.types = self.held(kinds.weight), kinds.num_embeddings
        self.norm(embed.norm, x, x)
        if narrow:
            last = self.buffer("stream", embed.project.out_features)
            self.linears([(embed.project, last)], x)
            return last
        return x

    def block(self, block: Block, x: int) -> None:
        path = self.path
        for name, sublayer in block.named_children():
            self.path = f"{path}.{name}"
            if type(sublayer) is not Residual:
                raise self.fail(sublayer)
            inner = self.begin(sublayer.f, x, sublayer.pre)
            if _empty(sublayer.post):
                self.end(sublayer.f, inner, x, rt.ADD)
            else:
                y = self.buffer("aside", self.widths[x])
                self.end(sublayer.f, inner, y)
                self.norm(sublayer.post, y, x, rt.ADD)
            self.norm(sublayer.out, x, x)

    def parallel(self, block: ParallelBlock, x: int) -> None:
        """All branches read the stream before one of them writes to it."""
        path, begun = self.path, []
        for name in block.names:
            branch = getattr(block, name)
            self.path = f"{path}.{name}"
            if type(branch) is not Branch:
                raise self.fail(branch)
            if not _empty(block.norm) and not _empty(branch.pre):
                raise self.fail(block, "with one norm behind another has no native operator")
            pre = block.norm if _empty(branch.pre) else branch.pre
            begun.append((branch.f, self.begin(branch.f, x, pre, name)))
        for f, inner in begun:
            self.end(f, inner, x, rt.ADD)

    def begin(self, f: nn.Module, x: int, pre: nn.Module, own: str = "") -> int:
        """A sublayer up to its last projection; gives the buffer which that reads."""
        if type(f) not in SUBLAYERS:
            raise self.fail(f)
        return SUBLAYERS[type(f)](self, f, x, pre, own)

    def end(self, f: nn.Module, inner: int, y: int, flags: int = 0) -> None:
        if type(f) is MoE:
            self.op("weigh", src=inner, dst=y, extra=self.shares[inner], width=self.widths[y],
                    top=f.top, flags=flags)
            return
        last = f.o if isinstance(f, Attention) else f.down
        self.linears([(last, y)], inner, flags=flags)

    def attention(self, a: Attention, x: int, pre: nn.Module, own: str) -> int:
        mask, H, G = a.mask, a.heads, a.kv_heads
        self.plain(a)
        both = 0 if mask.causal else rt.BOTH
        K, V = a.q.out_features // H, a.v.out_features // G
        q, k, v = (self.buffer(name, n) for name, n in (("q", H * K), ("k", G * K), ("v", G * V)))
        z = self.buffer("z" + own, H * V)
        self.linears([(a.q, q), (a.k, k), (a.v, v)], x, pre)
        shape = dict(heads=H, kv_heads=G, head=K, value=V)
        turn = self.op("turn", src=q, dst=k, extra=v, flags=both, **shape)
        if not _empty(a.qk_norm):
            self.qk_norm(a.qk_norm, turn)
        if not _empty(a.rotary):
            self.rotary(a.rotary, turn)
        attend = self.op("attend", src=q, dst=z, scale=a.scale, cap=a.cap or 0.0, flags=both,
                         window=mask.window or 0, **shape)
        self.bias(a.score_bias, attend)
        self.group = max(self.group, H // G)
        return z

    def plain(self, a: Attention) -> None:
        """Refuse what no operator knows of an attention."""
        if not _empty(a.gate) or a.sinks is not None:
            raise self.fail(a, "with a gate or sinks has no native operator")
        other = (a.mask.prefix, a.mask.everywhere, a.mask.padding, a.mask.slots)
        if a.mask.segments or a.mask.patterns or any(x is not None for x in other):
            raise self.fail(a, "whose mask is more than causal has no native operator")
        if type(a.attend) is not Attend:
            raise self.fail(a.attend)

    def cross(self, a: CrossAttention, x: int, pre: nn.Module, own: str) -> int:
        """Queries from the stream; the source's program writes keys and values once."""
        H, G, source = a.heads, a.kv_heads, self.source
        self.plain(a)
        if source is None or a.mask.causal or a.mask.window or not (
                _empty(a.qk_norm) and _empty(a.score_bias)):
            raise self.fail(a)
        K, V = a.q.out_features // H, a.v.out_features // G
        shape = dict(heads=H, kv_heads=G, head=K, value=V)
        q, z = self.buffer("q", H * K), self.buffer("z" + own, H * V)
        self.linears([(a.q, q)], x, pre)
        self.op("attend", src=q, dst=z, scale=a.scale, cap=a.cap or 0.0, flags=rt.MEMORY, **shape)
        self.group = max(self.group, H // G)
        k, v = source.buffer("k", G * K), source.buffer("v", G * V)
        source.linears([(a.k, k), (a.v, v)], source.names["stream"])
        source.op("turn", dst=k, extra=v, **shape | {"heads": 0})
        return z

    def bias(self, bias: nn.Module, attend: Operator) -> None:
        if type(bias) is Alibi and not attend.flags & rt.BOTH:
            attend.p[0] = self.held(torch.tensor(bias.slopes))
        elif type(bias) is Buckets:
            self.tables.append((attend, 1, bias))
        elif not _empty(bias):
            raise self.fail(bias)

    def qk_norm(self, norms: nn.Module, turn: Operator) -> None:
        if type(norms) is not QKNorm or not type(norms.q) is type(norms.k) is RMSNorm:
            raise self.fail(norms)
        turn.norm, turn.eps, turn.eps_k = rt.RMS, norms.q.eps, norms.k.eps
        turn.p[0], turn.p[1] = (self.held(n.weight + n.offset) for n in (norms.q, norms.k))

    def rotary(self, rotary: nn.Module, turn: Operator) -> None:
        if type(rotary) is not Rotary:
            raise self.fail(rotary)
        by = rotary.scaling
        if isinstance(by, Dynamic) or (isinstance(by, ByChannel) and by.short != by.long):
            raise self.fail(by, "turns earlier keys otherwise as the text grows: no native "
                            "operator")
        turn.turning = rotary.dim
        turn.flags |= rt.INTERLEAVED if rotary.interleaved else 0
        self.tables.append((turn, 2, rotary))

    def mlp(self, mlp: MLP, x: int, pre: nn.Module, own: str) -> int:
        hidden = self.buffer("hidden" + own, mlp.up.out_features)
        self.linears([(mlp.up, hidden)], x, pre, gate=mlp.gate, act=self.activation(mlp.act))
        return hidden

    def experts(self, moe: MoE, x: int, pre: nn.Module, own: str) -> int:
        """What the chosen experts of each token write: `top` lines to a token."""
        kinds = set()
        for expert in moe.experts:
            if type(expert) is not MLP:
                raise self.fail(expert)
            kinds.add((self.activation(expert.act), expert.gate is None))
        if len(kinds) > 1:
            raise self.fail(moe, "whose experts differ has no native operator")
        first, top, several = moe.experts[0], moe.top, dict(experts=len(moe.experts), top=moe.top)
        d, width = self.widths[x], first.up.out_features
        router = self.buffer("router" + own, len(moe.experts))
        hidden = self.buffer("hidden" + own, top * width)
        shares, out = self.buffer("shares" + own, top), self.buffer("experts" + own, top * d)
        self.shares[out] = shares
        self.linears([(moe.router, router)], x, pre)
        self.op("route", src=router, dst=shares, **several)
        pointers, fields = self.normed(pre)
        up = self.op("experts", *pointers, src=x, dst=hidden, extra=1,
                     act=kinds.pop()[0], **several, **fields)
        down = self.op("experts", src=hidden, dst=out, extra=top, **several)
        self.alike(up, "a", [e.up for e in moe.experts])
        if first.gate is not None:
            self.alike(up, "gate", [e.gate for e in moe.experts])
        self.alike(down, "a", [e.down for e in moe.experts])
        return out

    def alike(self, op: Operator, place: str, modules: list[nn.Module]) -> None:
        """Matrices of one kind and shape, to be packed one behind the other."""
        biases, kinds = [], set()
        for module in modules:
            self.matrix(op, place, module)
            at = getattr(op, place)
            kinds.add((at.kind, at.rows, at.cols, module.bias is None))
            biases.append(module.bias)
        if len(kinds) > 1:
            raise self.fail(modules[0], "among experts of other kinds has no native operator")
        if biases[0] is not None:
            padded = [F.pad(b.detach().float(), (0, -len(b) % 16)) for b in biases]
            getattr(op, place).bias = self.held(torch.cat(padded))

    def activation(self, act: nn.Module) -> int:
        """The runtime's function with the same values: there are more names than functions."""
        x = torch.linspace(-12, 12, 4801)
        with torch.no_grad():
            y = act(x)
        same = (n for n, f in ACTS.items() if torch.allclose(y, f(x), rtol=0, atol=2e-6))
        found = next(same, None)
        if found is None:
            raise self.fail(act)
        return found

    def head(self, head: LMHead, x: int, norm: nn.Module) -> None:
        self.path = "head"
        if not _empty(head.transform):
            raise self.fail(head.transform)
        width = self.widths[x]
        last = self.buffer("aside", width)
        self.op("gather", src=x, dst=last, width=width)
        if head.scale != 1.0:
            self.norm(norm, last, last)
            self.op("scale", dst=last, width=width, scale=head.scale)
            norm = None
        bias = getattr(head, "bias", None)  # BART's, beside the projection
        self.linears([(head.out, LOGITS)], last, norm, bias=bias)
        if head.cap is not None:
            self.op("cap", dst=LOGITS, width=self.vocab, cap=head.cap)

    def normed(self, norm: nn.Module | None) -> tuple[list, dict]:
        """Pointers and fields with which an operator norms its input."""
        if norm is None or _empty(norm):
            return [None, None], {}
        if type(norm) is RMSNorm:
            return [self.held(norm.weight + norm.offset), None], dict(norm=rt.RMS, eps=norm.eps)
        if type(norm) is LayerNorm:
            return [self.held(norm.weight), self.held(norm.bias)], dict(norm=rt.LAYER, eps=norm.eps)
        raise self.fail(norm)

    def norm(self, norm: nn.Module, src: int, dst: int, flags: int = 0) -> None:
        pointers, fields = self.normed(norm)
        if fields:
            self.op("norm", *pointers, src=src, dst=dst, width=self.widths[src], flags=flags,
                    **fields)

    def linears(self, parts: list, src: int, norm: nn.Module | None = None, *, flags: int = 0,
                gate: nn.Module | None = None, act: int = 0, bias: Tensor | None = None) -> None:
        """Projections of one input, which is normed and made codes once while all read the same."""
        pointers, fields = self.normed(norm)
        before = None
        for module, dst in parts:
            op = self.op("linear", *pointers, src=src, dst=dst, flags=flags, act=act, **fields)
            wide = self.matrix(op, "a", module, bias)
            if gate is not None and self.matrix(op, "gate", gate) != wide:
                raise self.fail(gate, "is quantized and its neighbour is not, or the reverse")
            if wide == before:
                op.flags |= rt.REUSE
                self.ops[-2].flags |= rt.OPEN
            before = wide

    def matrix(self, op: Operator, place: str, module: nn.Module,
               more: Tensor | None = None) -> bool:
        """Note a matrix to be packed, its bias and `more` of it; True where it meets floats."""
        rows, kind = self.rows(module)
        bias = module.bias
        if more is not None:
            bias = more.detach().flatten() + (0 if bias is None else bias)
        if bias is not None:
            bias = self.held(F.pad(bias.detach().float(), (0, -len(bias) % 16)))
        where = getattr(op, place)
        where.kind, where.rows, where.cols = kind, module.out_features, module.in_features
        where.bias = bias
        self.packs.append((op, place, rows, getattr(module, "type", None) == "U4"))
        return kind in [rt.KINDS[name] for name in rt.FLOATS]

    def rows(self, module: nn.Module) -> tuple[Tensor, int]:
        """A weight's rows as they lie, and their kind."""
        if type(module) in (Quantized, QuantizedEmbedding):
            if module.type == "U4":  # turned into it when it is packed
                return module.blocks.contiguous(), rt.KINDS["Q4_1"]
            if module.type not in rt.KINDS:
                raise self.fail(module, f"of type {module.type} has no native operator")
            if module.type == "I8" and getattr(module, "in_features", 0) % 32:
                raise self.fail(module, "with rows that are no multiple of 32 has no native "
                                "operator")
            return module.blocks.contiguous(), rt.KINDS[module.type]
        if type(module) is not nn.Linear and not isinstance(module, nn.Embedding):
            raise self.fail(module)
        weight = module.weight.detach()
        return weight.contiguous(), rt.KINDS[FLOATS[weight.dtype]]

    def native(self, lib, cache: str | None = None) -> Native:
        wide = [rt.KINDS[name] for name in FLOATS.values()]
        floats = all(op.a.kind in wide for op in self.ops) or self.out is not None
        cache = cache or ("float32" if floats else "float16")
        tables = [(self.ops.index(op), slot, module) for op, slot, module in self.tables]
        program, source = self.program(lib), None
        grow = None
        if tables:
            grow, program.positions = _Tables(tables, self.positions), 0
        if self.source is not None:
            source = self.source.program(lib)
            source.out = 0
            self.keep += self.source.keep
        return Native(lib, program, cache, self.keep, grow, source)

    def program(self, lib) -> Program:
        if len(self.widths) >= rt.BUFFERS:
            raise Unlowered(f"its blocks need more than {rt.BUFFERS - 1} buffers")
        self.pack(lib)
        for op in self.ops:
            op.dst = len(self.widths) if op.dst == LOGITS else op.dst
        ops = (Operator * len(self.ops))(*self.ops)
        program = Program(ops, len(ops), len(self.widths), 0, self.group, self.vocab,
                          self.positions, self.out or self.vocab, self.types)
        program.width[: len(self.widths)] = self.widths
        return program

    def pack(self, lib) -> None:
        """Copy every matrix into the runtime's layout, and let go of the file's pages after it."""
        ends = [getattr(op, place) for op, place, *_ in self.packs]
        sizes = [lib.mirada_packed_bytes(at.kind, at.rows, at.cols) for at in ends]
        lib.mirada_tidy()
        memory = Memory(lib, sum(sizes))
        self.keep.append(memory)
        jobs = (Packing * len(ends))()
        for n, ((_, _, rows, zeros), at, size) in enumerate(zip(self.packs, ends, sizes,
                                                                strict=True)):
            start = memory.take(size)
            at.data = at.data or start  # experts lie one behind the other
            jobs[n] = Packing(at.kind, at.rows, at.cols, 0, rows.data_ptr(), start)
            if zeros:  # a copy that lives no longer than its own packing
                copy = offset(rows)
                jobs[n].source = copy.data_ptr()
                lib.mirada_pack(jobs[n], 1, torch.get_num_threads())
                jobs[n].rows = 0
        lib.mirada_pack(jobs, len(jobs), torch.get_num_threads())
        for at in (at for op in self.ops for at in (op.a, op.gate) if at.data):
            at.kind = lib.mirada_kind(at.kind)


class _Tables:
    """Tables of a program and its forks that grow with the longest text: of angles, of sinusoids,
    of what distances add to scores."""

    def __init__(self, places: list[tuple[int, int, nn.Module]], most: int):
        self.places, self.most = places, most
        self.tables: dict[tuple[nn.Module, int], Tensor] = {}  # all that any fork may point at

    def __call__(self, program: Program, positions: int) -> None:
        length = min(max(TABLE, 1 << (positions - 1).bit_length()), self.most)
        for n, slot, module in self.places:
            if (module, length) not in self.tables:
                self.tables[module, length] = _table(module, length).contiguous()
            table, op = self.tables[module, length], program.ops[n]
            op.p[slot] = table.data_ptr()
            if type(module) is Buckets:  # rows of a head each, distance 0 in their middle
                op.width, op.extra = table.shape[1], table.shape[1] // 2
        program.positions = length


@torch.no_grad()
def _table(module: nn.Module, length: int) -> Tensor:
    """What a module adds at positions, or distances, up to `length`: float32, in the runtime's
    order; the operator's vectors of distances may reach a page farther."""
    steps = torch.arange(length)
    if isinstance(module, Rotary):
        return torch.cat(module.table(steps[None], torch.float32), -1)[0, 0]  # (N, dim)
    if isinstance(module, Buckets):
        far = length + rt.PAGE
        return module.table(module.bucket(torch.arange(-far, far + 1))).T.float()  # (H, 2 far + 1)
    return module(steps, dtype=torch.float32)  # (N, D)


def reads(model) -> bool:
    """True for a model whose one stack reads whole texts or pictures."""
    return type(model.body) is Stack and (model.kind in ("encoder", "vision") or not any(
        isinstance(m, Attention) and m.mask.causal for m in model.body.modules()))


def embeds(embed: nn.Module) -> bool:
    """True where the operators make a stack's first states; else its own module does."""
    places = getattr(embed, "position", None)
    known = places is None or type(places) is Sinusoid or (
        isinstance(places, Learned) and type(places).forward is Learned.forward)
    return type(embed) is Tokens and known


def _width(stack: nn.Module) -> int:
    """D, of a stack's stream."""
    return next(m.q.in_features for m in stack.modules() if isinstance(m, Attention))


def _asked(head: nn.Module) -> bool:
    """True for a head that gives what an LMHead does with at most a bias beside; found by asking
    it."""
    if not isinstance(head, LMHead):
        return False
    some = torch.linspace(-2, 2, 2 * head.out.in_features).view(1, 2, -1)
    some = some.to(next((p.dtype for p in head.parameters()), torch.float32))
    with torch.no_grad():
        plain = LMHead.forward(head, some, None, None)["logits"]  # type: ignore[arg-type]
        return torch.equal(head(some, None, None)["logits"], plain + getattr(head, "bias", 0))


def _empty(module: nn.Module) -> bool:
    """True for what stands in a slot and does nothing."""
    return type(module) in (Absent, NoBias, NoGate, nn.Identity)


def _widening(table: nn.Module) -> float:
    """By how much a table multiplies its rows, which a subclass may; found by asking it."""
    if type(table) in (nn.Embedding, QuantizedEmbedding):
        return 1.0
    with torch.no_grad():
        rows = table.weight[:8].flatten()
        given = table(torch.arange(min(8, table.num_embeddings))).flatten()
        top = rows.abs().argmax()
        factor = float(given[top] / rows[top])
        if not torch.allclose(given.float(), rows.float() * factor, rtol=0.02, atol=1e-6):
            raise Unlowered(f"embed: {type(table).__name__} has no native operator")
    return factor


BLOCKS: dict[type, Callable] = {Block: Lowering.block, ParallelBlock: Lowering.parallel}
SUBLAYERS: dict[type, Callable] = {
    Attention: Lowering.attention, CrossAttention: Lowering.cross, MLP: Lowering.mlp,
    MoE: Lowering.experts}

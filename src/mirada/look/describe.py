"""What a model is: its built tree drawn, its parameters by part, and what it costs to run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from mirada.core.attention import Absent, Attention, CrossAttention, NoBias, NoGate
from mirada.core.bias import ScoreBias
from mirada.core.block import Block, ParallelBlock, Residual, Stack
from mirada.core.embed import Patches, Tokens
from mirada.core.heads import Classifier, Pooler
from mirada.core.linear import KEPT, Quantized, QuantizedEmbedding
from mirada.core.mlp import MLP, Activation, MoE
from mirada.core.norm import LayerNorm, RMSNorm
from mirada.core.position import Learned, Rotary, Sinusoid
from mirada.kernels.blocks import row_elements

EMPTY = (Absent, NoBias, NoGate, nn.Identity)
SHARED = (Rotary, ScoreBias)  # one module for all layers of a stack: drawn where it is used


@dataclass(frozen=True)
class Description:
    """facts: aspect -> words; tree: lines; parts: part -> parameters. Printed, it is a page."""

    name: str
    facts: dict[str, str]
    tree: list[str]
    parts: dict[str, int]
    memory: dict[str, int]  # dtype -> bytes
    parameters: int
    cache_bytes: int  # per token of context
    flops: int  # of one token through each stack and its head, forward; attention's own apart
    flops_attention: int  # per token and token it looks at: scores and values, no score bias
    notes: list[str]

    def data(self) -> dict:
        """For programs."""
        return dict(vars(self))

    def __str__(self) -> str:
        width = max(map(len, [*self.facts, *self.parts]))
        lines = [f"{self.name}: {self.parameters:,} parameters", "", *self.tree, ""]
        lines += [f"{aspect:{width}}  {words}" for aspect, words in self.facts.items()]
        lines += ["", "parameters by part"]
        lines += [f"{part:{width}}  {count:>15,}  {count / max(self.parameters, 1):6.1%}"
                  for part, count in self.parts.items()]
        sizes = ", ".join(f"{size(n)} in {dtype}" for dtype, n in self.memory.items())
        lines += ["", f"{'memory':{width}}  {sizes}"]
        if self.cache_bytes:
            lines.append(f"{'cache':{width}}  {size(self.cache_bytes)} for each token of context")
        lines.append(f"{'work':{width}}  {count_words(self.flops)}FLOP a token, and "
                     f"{count_words(self.flops_attention)}FLOP for each token it looks back at")
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def describe(model) -> Description:
    """A Description of a model, or of "family:size" (built without memory) or a path."""
    model = resolve(model)
    counted, memory = list(weights(model)), Counter()
    for _, _, kind, nbytes in counted:
        memory[kind] += nbytes
    flops, seen = flops_of(stacks(model).values(), model.head)
    origin = model.origin
    notes = [f"config key {k!r}: {why}" for k, why in origin.ignored.items()]
    if origin.carried:
        notes.append(f"tensors kept but not used: {', '.join(origin.carried)}")
    notes += [f"edited: {what}" for what in origin.edits]
    return Description(
        f"{model.family} {model.architecture}", facts(model), draw(model), _parts(model),
        dict(memory), sum(numbers for _, numbers, _, _ in counted), _cache_bytes(model), flops,
        seen, notes)


def weights(model):
    """(path, numbers, dtype or block type, bytes) of each trained tensor, shared ones once."""
    for path, p in model.named_parameters():
        yield path, p.numel(), str(p.dtype).removeprefix("torch."), p.nbytes
    seen = set()
    for path, module in model.named_modules():
        if isinstance(module, KEPT) and id(module.blocks) not in seen:
            seen.add(id(module.blocks))
            numbers = len(module.blocks) * row_elements(module.type, module.blocks.shape[1])
            yield f"{path}.blocks", numbers, module.type, module.blocks.nbytes


def resolve(model):
    """The model that a word means: itself, "family:size" on the meta device, or a path."""
    from mirada import registry
    if isinstance(model, nn.Module):
        return model
    return registry.build(str(model), device="meta") if is_built(model) else registry.load(model)


def is_built(model) -> bool:
    """True for "family" and "family:size", which are built without weights."""
    from mirada import registry
    name = registry.ALIASES.get(str(model), str(model)).partition(":")[0]
    return name in registry.families() or name in registry.FAMILIES


def facts(model) -> dict[str, str]:
    """aspect -> how this model does it, read from the modules that were built."""
    found: dict[str, str] = {"kind": model.kind}
    for name, stack in stacks(model).items():
        own = {"layers": f"{len(stack.order)}" + _sharing(stack) + _stages(stack),
               **_embedding(stack.embed)}
        if stack.blocks:
            own |= _block(stack.blocks[0])
            own["attends"] = _sees(stack)
        label = f"{name} " if model.encoder_decoder or model.kind == "dual-encoder" else ""
        found |= {label + aspect: words for aspect, words in own.items() if words}
    paths = model.paths()
    tied = any(paths.get(out, out) != out for out in ("head.out.weight", "head.out.blocks"))
    found["head"] = type(model.head).__name__ + (", tied to the token table" if tied else "")
    if model.generates:
        found["runs"] = model.path()
    return found


def stacks(model) -> dict[str, Stack]:
    """The stacks of a model by name."""
    if model.encoder_decoder:
        return {"encoder": model.body.encoder, "decoder": model.body.decoder}
    if model.kind == "dual-encoder":
        return dict(model.body.named_children())
    return {"stack": model.body}


def _sharing(stack: Stack) -> str:
    passes = len(stack.order) // max(len(stack.blocks), 1)
    return f" passes through {len(stack.blocks)} shared" if passes > 1 else ""


def _stages(stack: Stack) -> str:
    """Where a stream grows wider on its way, how: `width` and `heads` are those of the first."""
    attentions = [next(m for m in b.modules() if isinstance(m, Attention)) for b in stack.blocks]
    stages = Counter((a.q.in_features, a.heads) for a in attentions)
    each = [f"{n} of width {d} with {heads} heads" for (d, heads), n in stages.items()]
    return ": " + ", ".join(each) if len({d for d, _ in stages}) > 1 else ""


def _embedding(embed: nn.Module) -> dict[str, str]:
    if isinstance(embed, Patches):
        grid, table = f"{embed.grid[0]} x {embed.grid[1]}", embed.position
        places = "" if table is None else "learned, " if table.requires_grad else "fixed, "
        return {"input": f"{grid} patches of {embed.patch[0]} x {embed.patch[1]} pixels",
                "positions": places and places + "one a patch"}
    if not isinstance(embed, Tokens):
        return {"input": type(embed).__name__}
    words = [f"{embed.token.num_embeddings:,} tokens of {embed.token.embedding_dim}"]
    if embed.segment is not None:
        words.append(f"{embed.segment.num_embeddings} segment kinds")
    if not isinstance(embed.norm, nn.Identity):
        words.append(f"{type(embed.norm).__name__} after the sum")
    if embed.scale != 1.0:
        words.append(f"scaled by {embed.scale:g}")
    kinds = {Learned: "learned, up to {0.context}", Sinusoid: "sinusoids"}
    where = kinds.get(type(embed.position), "").format(embed.position)
    return {"input": ", ".join(words), "positions": where}


def _block(block: nn.Module) -> dict[str, str]:
    attention = next(m for m in block.modules() if isinstance(m, Attention))
    mlp = next((m for m in block.modules() if isinstance(m, MLP)), None)
    K = attention.q.out_features // attention.heads
    heads = f"{attention.heads} of {K}"
    if attention.kv_heads != attention.heads:
        heads += f", sharing {attention.kv_heads} of keys and values"
    biased = [n for n in "qkvo" if getattr(attention, n).bias is not None]
    found = {"width": f"{attention.q.in_features}", "heads": heads,
             "attention biases": "".join(biased) or "none", "score scale": f"{attention.scale:.4g}"}
    if isinstance(attention.rotary, Rotary):
        found["positions"] = _rotation(attention.rotary, K)
    if isinstance(attention.score_bias, ScoreBias):
        found["positions"] = f"{type(attention.score_bias).__name__} added to scores"
    found["norm"] = _norms(block)
    if mlp is not None:
        gate = "gated " if mlp.gate is not None else ""
        bias = "" if mlp.down.bias is not None else ", no biases"
        act = mlp.act.name if isinstance(mlp.act, Activation) else type(mlp.act).__name__
        found["network"] = f"{gate}{act}, {mlp.up.out_features} wide{bias}"
    return found


def _rotation(rotary: Rotary, K: int) -> str:
    words = [f"rotary, base {rotary.base:g}"]
    if rotary.dim != K:
        words.append(f"{rotary.dim} of {K} channels")
    if rotary.interleaved:
        words.append("in neighbouring pairs")
    if rotary.scaling is not None:
        words.append(str(rotary.scaling))
    return ", ".join(words)


def _norms(block: nn.Module) -> str:
    kinds = {type(m).__name__: m.eps for m in block.modules() if isinstance(m, LayerNorm | RMSNorm)}
    kind = ", ".join(f"{k} (eps {eps:g})" for k, eps in kinds.items())
    if isinstance(block, ParallelBlock):
        return f"{kind}, before; attention and network in parallel"
    first = next((m for m in block.modules() if isinstance(m, Residual)), None)
    if first is None:
        return kind
    filled = [slot for slot in ("pre", "post", "out")
              if not isinstance(getattr(first, slot), nn.Identity)]
    names = {("pre",): "before each sublayer (pre-norm)", ("out",): "after the sum (post-norm)",
             ("post",): "on what is added (res-post-norm)", ("pre", "post"): "before and after"}
    return f"{kind}, {names.get(tuple(filled), 'nowhere')}"


def _sees(stack: Stack) -> str:
    masks = [next(m for m in b.modules() if isinstance(m, Attention)).mask for b in stack.blocks]
    windows = Counter(m.window for m in masks)
    words = "what lies before (causal)" if masks[0].causal else "both ways"
    if any(isinstance(m, CrossAttention) for m in stack.blocks[0].modules()):
        words += " and the encoder's memory"
    if set(windows) != {None}:
        words += "; windows " + ", ".join(f"{w or 'none'} in {n} layers"
                                          for w, n in windows.items())
    for found, n in Counter(m.patterns for m in masks).items():
        words += "".join(f"; {p} in {n} layers" for p in found)
    for around, n in Counter(around.extra_repr() for around in _wrappers(stack)).items():
        words += f"; windows of {around} in {n} layers"
    return words


def _wrappers(stack: Stack) -> list[nn.Module]:
    """Of each place in the stack what cuts its tokens into windows, where something does."""
    return [m for index in stack.order for m in stack.blocks[index].modules()
            if hasattr(m, "reach")]


def reach(model) -> int | None:
    """How many tokens each one looks at, however long the input; None: all of them."""
    found = [m.reach for stack in stacks(model).values() for m in _wrappers(stack)]
    return max(found, default=None)


def draw(model) -> list[str]:
    """The built tree as lines; equal neighbours are drawn once with their number."""
    lines = [model.architecture]
    children = list(_children(model))
    for n, (name, child, times) in enumerate(children):
        _draw(name, child, times, "", n == len(children) - 1, lines)
    return lines


def _draw(name: str, module: nn.Module, times: int, indent: str, last: bool, lines: list) -> None:
    label = f"{name} × {times}" if times > 1 else name
    words = _words(module)
    lines.append(f"{indent}{'└─' if last else '├─'} {label}{': ' if words else ''}{words}")
    children = list(_children(module))
    for n, (child_name, child, count) in enumerate(children):
        _draw(child_name, child, count, indent + ("   " if last else "│  "),
              n == len(children) - 1, lines)


def _words(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        bias = " + bias" if module.bias is not None else ""
        return f"{module.in_features} → {module.out_features}{bias}"
    if isinstance(module, Quantized):
        bias = " + bias" if module.bias is not None else ""
        return f"{module.in_features} → {module.out_features}{bias}, {module.type}"
    if isinstance(module, QuantizedEmbedding):
        return f"Embedding {module.num_embeddings} × {module.embedding_dim}, {module.type}"
    if isinstance(module, nn.Embedding):
        return f"{kind} {tuple(module.weight.shape)[0]} × {module.embedding_dim}"
    if isinstance(module, nn.ModuleList | Block) or kind == "Attend":
        return "" if kind != "Attend" else "softmax(q kᵀ) v"
    inner = module.extra_repr()
    return f"{kind} ({inner})" if inner else kind


def _children(module: nn.Module):
    """(name, child, how often in a row): empty seams are left out, equal blocks counted."""
    if isinstance(module, Activation):
        return
    held = [(n, c) for n, c in module.named_children() if not isinstance(c, EMPTY)]
    if not isinstance(module, nn.ModuleList):
        for name, child in held:
            if isinstance(child, nn.ModuleList):
                yield from _runs(name, child)
            else:
                yield name, child, 1


def _runs(name: str, blocks: nn.ModuleList):
    start, forms = 0, [repr(b) for b in blocks]
    for n in range(1, len(forms) + 1):
        if n == len(forms) or forms[n] != forms[start]:
            whole = start == 0 and n == len(forms)
            label = name if whole else f"{name}[{start}" + (f"–{n - 1}]" if n - start > 1 else "]")
            yield label, blocks[start], n - start
            start = n


def _parts(model) -> dict[str, int]:
    """part -> parameters, each tensor counted once, where it first stands."""
    counted: Counter[str] = Counter()
    owners = dict(model.named_modules())
    for path, numbers, _, _ in weights(model):
        counted[_part(path, owners)] += numbers
    return dict(counted.most_common())


def _part(path: str, owners: dict) -> str:
    if path.startswith("head."):
        return "head"
    parts = path.split(".")
    for n in range(len(parts) - 1, 0, -1):
        owner = owners[".".join(parts[:n])]
        for kind, name in ((CrossAttention, "cross-attention"), (Attention, "attention"),
                           (MLP, "network"), ((LayerNorm, RMSNorm), "norms"),
                           ((Tokens, Patches), "embedding")):
            if isinstance(owner, kind):
                return name
    return "other"


def flops_of(held: Collection[Stack], head: nn.Module) -> tuple[int, int]:
    """(per token, per token and token looked at): 2 for each weight of each projection. Of a token
    that enters: where several are merged on the way, later blocks count for their share of it."""
    passes = [stack.blocks[index] for stack in held for index in stack.order]
    linear: float = sum(_read(stack.embed) for stack in held)
    seen, share = 0.0, 1.0
    for part in (part for block in passes for part in block.children()):
        share /= getattr(part, "joins", 1)
        linear += share * _read(part)
        seen += share * sum(m.q.out_features + m.o.in_features for m in part.modules()
                            if isinstance(m, Attention))
    return round(2 * (linear + share * _read(head))), round(2 * seen)


def _read(module: nn.Module) -> int:
    """Weights that each token is multiplied with. Others work once a row, or once a distance."""
    if isinstance(module, (ScoreBias, Pooler, Classifier)):
        return 0
    if isinstance(module, MoE):  # each token goes through a few of its experts
        return _read(module.router) + module.top * _read(module.experts[0])
    own = module.weight.numel() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) else 0
    own += module.in_features * module.out_features if isinstance(module, Quantized) else 0
    return own + sum(map(_read, module.children()))


def _cache_bytes(model) -> int:
    if not model.generates:
        return 0
    decoder = model.decoder
    total = 0
    for index in decoder.order:
        for m in decoder.blocks[index].modules():
            if isinstance(m, Attention) and not isinstance(m, CrossAttention):
                total += m.k.out_features + m.v.out_features
    return total * model.dtype.itemsize


def size(count: float) -> str:
    """Bytes in words: 270.6 MB."""
    return count_words(count) + "B"


def count_words(count: float) -> str:
    """1.2 G, 350.0 T: a count with its unit."""
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.0f} " if unit == "" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} T"

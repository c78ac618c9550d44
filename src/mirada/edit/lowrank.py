"""LoRA (2106.09685): small changes of low rank beside frozen projections; many to a model."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirada.core.linear import Quantized, replaced
from mirada.errors import MiradaError
from mirada.model import Model

from .frozen import frozen
from .share import share

CARRIES = ("it carries adapters (mirada.edit.merge puts them into the weights, "
           "mirada.edit.save_adapter writes them alone)")


class Low(nn.Module):
    """x -> scale B A x, a change of rank R to a projection (2106.09685, sec. 4.1).

    a: (R, in); b: (out, R), zeros at first, so that training begins at the model as it is.
    dropout: of what A reads.
    """

    def __init__(self, a: nn.Parameter, b: nn.Parameter, scale: float, dropout: float = 0.0):
        super().__init__()
        self.a, self.b, self.scale, self.dropout = a, b, scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training).to(self.a.dtype)
        return F.linear(F.linear(x, self.a), self.b) * self.scale

    def change(self) -> Tensor:
        """(out, in): what it adds to the weight."""
        return self.scale * (self.b @ self.a)

    def extra_repr(self) -> str:
        return f"rank={len(self.a)}, scale={self.scale:.6g}"


class Adapted(nn.Module):
    """Stands where `base` stood: its output, and what the active adapters add to it.

    adapters: name -> a Low, or a whole module that takes the base's place (a head that is trained
    along). Base and adapters keep their own dtypes; the output has the base's.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base, self.adapters = base, nn.ModuleDict()
        self.active: tuple[str, ...] = ()

    def take(self, name: str, adapter: nn.Module) -> None:
        self.adapters[name] = adapter.train(self.training)

    def chosen(self) -> tuple[nn.Module, list[Low]]:
        """What stands as the base, and what is added to it."""
        mine = [self.adapters[name] for name in self.active if name in self.adapters]
        low = [module for module in mine if isinstance(module, Low)]
        return ([self.base] + [m for m in mine if not isinstance(m, Low)])[-1], low

    def forward(self, *inputs):
        whole, low = self.chosen()
        y = whole(*inputs)
        for change in low:
            y = y + change(*inputs).to(y.dtype)
        return y

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def weight(self) -> Tensor:
        """As the active adapters leave it: (out, in), summed in float32 or wider."""
        whole, low = self.chosen()
        weight = whole.expand() if isinstance(whole, Quantized) else whole.weight
        if not low:
            return weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        return (weight.to(wide) + sum(c.change().to(wide) for c in low)).to(weight.dtype)

    @property
    def bias(self) -> Tensor | None:
        return self.chosen()[0].bias

    def merged(self, dtype: torch.dtype) -> nn.Module:
        """One module in its place; a weight that stood in blocks is expanded to `dtype`."""
        whole, low = self.chosen()
        if not low:
            return whole
        weight = self.weight.detach()
        weight = weight.to(dtype) if isinstance(whole, Quantized) else weight
        new = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        new.weight, new.bias = nn.Parameter(weight, requires_grad=False), whole.bias
        return new.train(self.training)


class Adapters:
    """A model's adapters by name, and which of them count: `model.adapters`."""

    def __init__(self, model: Model):
        self.sites = {n: m for n, m in model.named_modules() if isinstance(m, Adapted)}

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for m in self.sites.values() for name in m.adapters))

    @property
    def active(self) -> tuple[str, ...]:
        return next((site.active for site in self.sites.values()), ())

    def use(self, *names: str) -> None:
        """From here only these count, added up; none: the model without. Raises MiradaError."""
        for name in names:
            if name not in self.names:
                raise MiradaError(f"no adapter is called {name!r}; there are "
                                  f"{', '.join(self.names) or 'none'}")
        for site in self.sites.values():
            site.active = names

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """`use`, and back at the end."""
        before = self.active
        self.use(*names)
        try:
            yield
        finally:
            self.use(*before)

    def __repr__(self) -> str:
        return ", ".join(f"{n} (active)" if n in self.active else n for n in self.names) or "none"


def lora(model: Model, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = ("q", "v"), *,
         dropout: float = 0.0, whole: Sequence[str] = (), name: str = "default",
         seed: int | None = None) -> Model:
    """The model with a new adapter, active and alone in training; the one given stays.

    targets: projections of the blocks by the end of their path ("q", "mlp.f.up"), or "all".
    whole: parts that train whole and travel with the adapter, by the beginning of their path
    ("head"). The change is alpha / rank * B A; where files hold q, k and v as one tensor they
    share A, as PEFT has it. seed: of A; None: torch's current state. Works on quantized weights
    too (QLoRA, 2305.14314). Raises MiradaError.
    """
    if type(rank) is not int or rank < 1 or not 0 < alpha < math.inf or not 0 <= dropout < 1:
        raise MiradaError(f"rank={rank!r}, alpha={alpha!r}, dropout={dropout!r}: rank is a whole "
                          "number from 1, alpha above 0, dropout from 0 and below 1")
    from mirada import registry
    other = prepared(model, name)
    sites = adapt(other, _targets(other, (targets,) if isinstance(targets, str) else targets))
    group = {ours.removesuffix(".weight"): step.ours[0] for step in registry.steps(other)
             if len(step.files) == 1 for ours in step.ours}
    dtype = torch.promote_types(model.dtype, torch.float32)
    shared: dict[str, nn.Parameter] = {}
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        for path, site in sites.items():
            a = torch.empty(rank, site.base.in_features, dtype=dtype, device=model.device)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            a = shared.setdefault(group.get(path, path), nn.Parameter(a))
            b = nn.Parameter(a.new_zeros(site.base.out_features, rank))
            site.take(name, Low(a, b, alpha / rank, dropout))
    for site in adapt(other, _parts(other, whole)).values():
        site.take(name, copy.deepcopy(site.base).requires_grad_(True))
    other.adapters.use(name)
    return other


def merge(model: Model) -> Model:
    """The model with its active adapters inside its weights, frozen, and saved like any other. The
    one given stays, so that nothing is ever to be unmerged. See merge_error. Raises MiradaError."""
    if not model.adapters.active:
        raise MiradaError("no adapter of this model is active: there is nothing to merge")
    other = share(model)
    other.origin = replace(other.origin, edits=tuple(
        said for said in other.origin.edits if said != CARRIES))
    replaced(other, {site: site.merged(other.dtype) for site in other.adapters.sites.values()})
    return frozen(other)


@torch.no_grad()
def merge_error(model: Model, merged: Model, input_ids: Tensor | None = None) -> float:
    """The largest change of an output (a logit) through merging, in the model's own dtype: summing
    B A into a weight rounds once more. input_ids: (B, T), 64 tokens by chance when None."""
    if input_ids is None:
        chance = torch.Generator().manual_seed(0)
        length = min(64, model.context or 64)
        input_ids = torch.randint(model.config.vocab, (1, length), generator=chance)
    given = {"input_ids": input_ids.to(model.device)}
    if model.encoder_decoder and model.generates:
        given["decoder_input_ids"] = given["input_ids"]
    found = []
    for each in (model, merged):
        was = each.training
        found.append(each.eval()(**given))
        each.train(was)
    return max(float((found[0][k].double() - found[1][k].double()).abs().max())
               for k in found[0] if torch.is_tensor(found[0][k]))


def prepared(model: Model, name: str) -> Model:
    """A frozen copy, to be given an adapter of a new name. Raises MiradaError."""
    if not re.fullmatch(r"[\w-]{1,64}", name) or hasattr(nn.ModuleDict, name):
        raise MiradaError(f"{name!r} cannot name an adapter: use letters, digits, - and _")
    if name in model.adapters.names:
        raise MiradaError(f"the model has an adapter called {name!r} already: give another name=")
    return frozen(share(model, None if CARRIES in model.origin.edits else CARRIES))


def plain_modules(model: Model) -> dict[str, nn.Module]:
    """Path (`body.` left out) -> module, as if there were no adapters; an Adapted stands for what
    it adapts."""
    return {name.removeprefix("body."): module for name, module in model.named_modules()
            if not re.search(r"\.(base|adapters)(\.|$)", name)}


def adapt(model: Model, paths: Sequence[str]) -> dict[str, Adapted]:
    """Path -> the Adapted that stands there now."""
    modules = plain_modules(model)
    sites, new = {}, {}
    for path in paths:
        module = modules[path]
        if not isinstance(module, Adapted):
            new[module] = Adapted(module).train(module.training)
        sites[path] = new.get(module, module)
    replaced(model, new)
    return sites


def _targets(model: Model, targets: Sequence[str]) -> list[str]:
    """The paths of the projections that are meant."""
    can = {path for path, module in plain_modules(model).items() if ".blocks." in f".{path}"
           and isinstance(getattr(module, "base", module), nn.Linear | Quantized)}
    if not targets:
        raise MiradaError("targets names no projection: give some, as (\"q\", \"v\"), or \"all\"")
    found = [path for path in sorted(can, key=_natural) if "all" in targets
             or any(f".{path}".endswith(f".{target}") for target in targets)]
    for target in targets:
        if target != "all" and not any(f".{path}".endswith(f".{target}") for path in found):
            ends = sorted({path.rpartition(".")[2] for path in can})
            raise MiradaError(f"no projection of {model.architecture} is called {target!r}; there "
                              f"are {', '.join(ends)}, and all")
    return found


def _natural(path: str) -> list:
    """blocks.2 before blocks.10."""
    return [int(word) if word.isdecimal() else word for word in path.split(".")]


def _parts(model: Model, words: Sequence[str]) -> list[str]:
    """The paths of the modules with weights of their own under these words."""
    found: list[str] = []
    for word in words:
        under = [path for path, module in plain_modules(model).items()
                 if f"{path}.".startswith(f"{word}.") and any(True for _ in module.parameters())
                 and (isinstance(module, Adapted) or not any(module.children()))]
        if not under:
            raise MiradaError(f"{model.architecture} has no weights under {word!r}")
        found += under
    check_alone(model, found)
    return found


def check_alone(model: Model, paths: Sequence[str]) -> None:
    """These modules can be changed whole: no table among them, nor weights that others share."""
    modules, shared = plain_modules(model), list(model.paths().values())
    for path in paths:
        base = getattr(modules[path], "base", modules[path])
        tied = any(shared.count(first) > 1 for own, first in model.paths().items()
                   if own.startswith(f"{path}."))
        if tied or any(base.children()) or isinstance(base, nn.Embedding):
            raise MiradaError(f"{path} is a table, or shares its weights: it cannot train whole "
                              "with an adapter; name another part, or train the model in full")

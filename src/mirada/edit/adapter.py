"""Adapters as files: adapter_config.json and adapter_model.safetensors, as PEFT has them.

PEFT adapts the reference's modules, so what is one tensor of a file is one adapter there: its A is
shared by our parts, its B is split as the tensor is. On the way back, parts whose A differ are
stacked: the ranks add up, and B becomes block-diagonal.
"""

from __future__ import annotations

import copy
import math
import re
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from mirada import registry
from mirada.errors import MiradaError, UntrustedInputError
from mirada.model import Model
from mirada.weights import jsonfile, tensorfile
from mirada.weights.paths import inside, new_folder
from mirada.weights.rows import Step, Transposed

from .lowrank import Adapted, Low, adapt, check_alone, plain_modules, prepared

PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
TASKS = (("ForCausalLM", "CAUSAL_LM"), ("LMHeadModel", "CAUSAL_LM"),
         ("ForConditionalGeneration", "SEQ_2_SEQ_LM"), ("ForSequenceClassification", "SEQ_CLS"),
         ("ForTokenClassification", "TOKEN_CLS"), ("ForQuestionAnswering", "QUESTION_ANS"))
LABELLERS = {"classifier", "score", "qa_outputs"}  # PEFT wants them in a classifier's adapter
UNREAD = ("use_dora", "lora_bias", "trainable_token_indices", "target_parameters",
          "alora_invocation_tokens", "use_qalora", "use_bdlora", "layer_replication")


def save_adapter(model: Model, path, name: str | None = None) -> Path:
    """Write one adapter into a new folder, for PEFT and load_adapter; the folder.

    name: which, where the model has several. Modules are named as the files name their weights;
    Mixtral's experts and the blocks of ViT and its kin have other names in the reference today, and
    PEFT does not find them. Raises MiradaError.
    """
    names = model.adapters.names
    name = names[0] if name is None and len(names) == 1 else name
    if name not in names:
        raise MiradaError(f"name the adapter to save: this model has {', '.join(names) or 'none'}")
    tensors, config = exported(model, name)

    def write(folder: Path) -> None:
        tensorfile.write_file(folder / "adapter_model.safetensors", tensors.items(),
                              {"format": "pt"})
        jsonfile.write(folder / "adapter_config.json", config)

    return new_folder(path, write)


def exported(model: Model, name: str) -> tuple[dict[str, Tensor], dict]:
    """An adapter's tensors and configuration under PEFT's names."""
    modules = plain_modules(model)
    mine = {path: site.adapters[name] for path, site in modules.items()
            if isinstance(site, Adapted) and name in site.adapters}
    tensors: dict[str, Tensor] = {}
    sizes: dict[str, tuple[int, float]] = {}  # the reference's module -> rank, alpha
    every, whole, turned = [], set(), False
    for step in registry.steps(model):
        for module, ours in _modules(step):
            every.append(module)
            parts = [mine.get(path) for path in ours]
            if any(isinstance(part, Low) for part in parts):
                a, b, scale = _joined(step, [_base(modules[path]) for path in ours], parts)
                tensors |= {PREFIX + module + A: a, PREFIX + module + B: b}
                sizes[module] = len(a), scale * len(a)
                turned |= _transposed(step)
        places = [path.rpartition(".")[::2] for path in step.ours]
        kept = [mine.get(path) for path, _ in places]
        if all(m is not None and not isinstance(m, Low) for m in kept):
            held = [m.get_parameter(last).detach()
                    for m, (_, last) in zip(kept, places, strict=True)]
            for file, tensor in zip(step.files, step.op.save(held), strict=True):
                tensors[PREFIX + file] = tensor
                whole.add(file.rpartition(".")[0])
    common = max(sizes.values(), key=list(sizes.values()).count)
    other = {module: size for module, size in sizes.items() if size != common}
    bare = {m for m in every if m.rpartition(".")[2] in LABELLERS} - whole
    return tensors, {
        "peft_type": "LORA", "task_type": None if bare else _task(model.architecture),
        "base_model_name_or_path": model.origin.path, "r": common[0], "lora_alpha": common[1],
        "lora_dropout": max(m.dropout for m in mine.values() if isinstance(m, Low)),
        "target_modules": _ends(set(sizes), every), "modules_to_save": sorted(whole) or None,
        "rank_pattern": {module: size[0] for module, size in other.items()},
        "alpha_pattern": {module: size[1] for module, size in other.items()},
        "fan_in_fan_out": turned, "bias": "none", "use_rslora": False, "use_dora": False,
        "init_lora_weights": True, "inference_mode": True}


def load_adapter(model: Model, path, name: str | None = None, *, train: bool = False) -> Model:
    """The model with an adapter of a folder that PEFT or save_adapter wrote, active; the one given
    stays, and so do the adapters it has.

    name: "default", or the folder's where that is taken. train: whether the adapter goes on
    training. Raises MiradaError.
    """
    folder = Path(path)
    where = folder / "adapter_config.json"
    config = _config(where)
    if name is None:
        name = folder.name if "default" in model.adapters.names else "default"
    other = prepared(model, name)
    modules = {n: _base(m) for n, m in plain_modules(other).items()}
    file = inside(folder, "adapter_model.safetensors", where)
    with tensorfile.open_file(file) as held:
        left = {key.removeprefix(PREFIX): held.get(key) for key in held.names()}
    made: dict[str, nn.Module] = {}  # path -> the adapter of what stands there
    for step in registry.steps(other):
        for module, ours in _modules(step):
            a, b = left.pop(module + A, None), left.pop(module + B, None)
            if a is not None and b is not None and a.ndim == b.ndim == 2 and len(a):
                rank = math.sqrt(len(a)) if config.get("use_rslora") else len(a)
                scale = _alpha(config, module, where) / rank
                made |= _lows(step, {path: modules[path] for path in ours}, a, b, scale,
                              _dropout(config, where), file)
        if any(key in left for key in step.files):
            check_alone(other, [path.rpartition(".")[0] for path in step.ours])
            _whole(step, modules, made, left, file)
    if left:
        raise UntrustedInputError(file, f"tensor {min(left)!r}", "belongs to no projection of "
                                  f"{model.architecture}; was the adapter made for another model?")
    if not made:
        raise UntrustedInputError(file, "tensors", "there are none")
    wide = torch.promote_types(model.dtype, torch.float32)
    for path, site in adapt(other, list(made)).items():
        new = made[path].to(wide) if isinstance(made[path], Low) else made[path]
        site.take(name, new.to(model.device).requires_grad_(train))
    other.adapters.use(name)
    return other


def _modules(step: Step) -> list[tuple[str, tuple[str, ...]]]:
    """The reference's modules whose weight a step holds, each with the paths of ours."""
    if not all(n.endswith(".weight") for n in (*step.files, *step.ours)):
        return []
    files = [n.removesuffix(".weight") for n in step.files]
    ours = tuple(n.removesuffix(".weight") for n in step.ours)
    if len(files) == 1:
        return [(files[0], ours)]
    return [(f, (o,)) for f, o in zip(files, ours, strict=True)]


def _transposed(step: Step) -> bool:
    """Whether the file has the weight as [in, out]. PEFT's B is (out, R) all the same."""
    turned = isinstance(step.op, Transposed) or getattr(step.op, "transposed", False)
    if not turned and not step.op.rowwise:
        raise MiradaError(f"{step.files[0]} is stored in a form that no adapter can follow")
    return turned


def _base(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, Adapted) else module


def _joined(step: Step, bases: list, parts: list) -> tuple[Tensor, Tensor, float]:
    """A (R, in), B (out, R) and the scale of our parts' changes as one of the whole tensor."""
    low = [part for part in parts if part is not None]
    every = list({id(part.a): part.a.detach() for part in low}.values())
    starts = accumulate([0, *map(len, every)])
    columns = dict(zip({id(part.a): None for part in low}, starts, strict=False))
    a, scale, rows = torch.cat(every), low[0].scale, []
    for base, part in zip(bases, parts, strict=True):
        b = a.new_zeros(base.out_features, len(a))
        if part is not None:
            at = columns[id(part.a)]
            b[:, at : at + len(part.a)] = part.b.detach() * (part.scale / scale)
        rows.append(b)
    b = step.op.save(rows)[0]
    return a, b.transpose(0, -1) if _transposed(step) else b, scale


def _ends(adapted: set[str], every: list[str]) -> list[str]:
    """What names the adapted modules for PEFT, which reads ends of names: as short as is exact."""
    ends = {module.rpartition(".")[2] for module in adapted}
    exact = adapted == {module for module in every if module.rpartition(".")[2] in ends}
    return sorted(ends if exact else adapted)


def _task(architecture: str) -> str | None:
    return next((task for end, task in TASKS if architecture.endswith(end)), None)


def _config(where: Path) -> dict:
    config = jsonfile.read(where)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UntrustedInputError(where, "peft_type", "must be \"LORA\": mirada loads no others")
    for key in UNREAD:
        if config.get(key):
            raise UntrustedInputError(where, key, "asks for more than the plain LoRA that mirada "
                                      "has; merge the adapter with the library that made it")
    if config.get("bias", "none") != "none":
        raise UntrustedInputError(where, "bias", "must be \"none\": biases of an adapter are not "
                                  "loaded")
    return config


def _number(config: dict, key: str, default: float, where: Path) -> float:
    found = config.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or found < 0:
        raise UntrustedInputError(where, key, f"{found!r} is not a number from 0")
    return float(found)


def _alpha(config: dict, module: str, where: Path) -> float:
    """alpha of one module: its own where a pattern names it, as PEFT reads patterns."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UntrustedInputError(where, "alpha_pattern", "must be an object of module names")
    for pattern in patterns:
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", name):  # a stranger's expression is not run
            raise UntrustedInputError(where, f"alpha_pattern {pattern!r}",
                                      "must be a module's name")
        if f".{module}".endswith(f".{name}"):
            return _number(patterns, pattern, 8.0, where)
    return _number(config, "lora_alpha", 8.0, where)


def _dropout(config: dict, where: Path) -> float:
    found = _number(config, "lora_dropout", 0.0, where)
    if found >= 1:
        raise UntrustedInputError(where, "lora_dropout", f"{found} is not below 1")
    return found


def _lows(step: Step, bases: dict[str, nn.Module], a: Tensor, b: Tensor, scale: float,
          dropout: float, file: Path) -> dict[str, Low]:
    """Our parts' shares of one adapter of the file, by their paths."""
    sizes = [(getattr(m, "out_features", 0), getattr(m, "in_features", 0)) for m in bases.values()]
    if (len(b), a.shape[1]) != (sum(out for out, _ in sizes), sizes[0][1]) or b.shape[1] != len(a):
        raise UntrustedInputError(file, f"tensor of {step.files[0]!r}", f"A {tuple(a.shape)} and B "
                                  f"{tuple(b.shape)} do not fit {next(iter(bases))}, {sizes[0]}")
    parts = step.op.load([b.transpose(0, -1) if _transposed(step) else b])
    shared = nn.Parameter(a)  # a Parameter stays itself when a module changes its dtype
    return {path: Low(shared, nn.Parameter(part.contiguous()), scale, dropout)
            for path, part in zip(bases, parts, strict=True)}


def _whole(step: Step, modules: dict[str, nn.Module], made: dict[str, nn.Module],
           left: dict[str, Tensor], file: Path) -> None:
    """Put the file's tensors into copies of the parts that trained whole."""
    missing = [key for key in step.files if key not in left]
    if missing:
        raise UntrustedInputError(file, f"tensor {missing[0]!r}", "is missing beside its like")
    parts = step.op.load([left.pop(key) for key in step.files])
    for path, tensor in zip(step.ours, parts, strict=True):
        place, _, last = path.rpartition(".")
        module = made.setdefault(place, copy.deepcopy(modules[place]))
        old = module.get_parameter(last)
        if old.shape != tensor.shape:
            raise UntrustedInputError(file, f"tensor {step.files[0]!r}", f"is {tuple(tensor.shape)}"
                                      f", and {path} {tuple(old.shape)}")
        setattr(module, last, nn.Parameter(tensor.to(old)))

"""From files to models and back: load, save, build. The only code above models that imports it."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mirada.core import init as initialisers
from mirada.errors import MiradaError, UntrustedInputError
from mirada.model import Model, Origin
from mirada.models import ALIASES, FAMILIES, GGUF
from mirada.weights import config as configs
from mirada.weights import jsonfile, tensorfile
from mirada.weights.rows import Plan, Step


def families() -> list[str]:
    """Names that build() takes."""
    hidden = os.environ.get("MIRADA_WITHOUT", "").split(",")
    return sorted({name for name in FAMILIES.values() if name not in hidden})


def family(name: str):
    """The module of a family, by its own name or by a file's model_type."""
    module = FAMILIES.get(name, name)
    if module not in families():
        raise MiradaError(f"no family is called {name!r}; there are {', '.join(families())}")
    return importlib.import_module(f"mirada.models.{module}")


def _name(fam) -> str:
    return fam.__name__.rpartition(".")[2]


def sizes(name: str) -> list[str]:
    """The named sizes of a family."""
    return list(family(name).SIZES)


def assemble(fam, config, architecture: str) -> Model:
    """The modules of a model on the meta device: no memory, no numbers."""
    if architecture not in fam.HEADS:
        raise MiradaError(f"{_name(fam)} has no head called {architecture!r}; it "
                          f"has {', '.join(fam.HEADS)}")
    with torch.device("meta"):
        body = getattr(fam, "BODIES", {}).get(architecture, fam.build)(config)
        head = fam.HEADS[architecture](config, body)
        return Model(_name(fam), config, body, head, architecture).eval()


def build(name: str, size: str | None = None, *, architecture: str | None = None, device="cpu",
          dtype=None, seed: int | None = None, **changes) -> Model:
    """A model with random weights.

    name: a family, or "family:size". size: one of sizes(name), its first when None. changes:
    Config fields that differ. architecture: a head of the family, its first when None. device:
    "meta" takes no memory. seed: for the weights; None: torch's current state.
    """
    name = ALIASES.get(f"{name}:{size}" if size else name, name)
    name, _, tail = name.partition(":")
    fam, size = family(name), tail or size or None
    size = size or next(iter(fam.SIZES))
    if size not in fam.SIZES:
        raise MiradaError(f"{name} has no size {size!r}; it has {', '.join(fam.SIZES)}")
    try:
        config = replace(fam.SIZES[size], **changes)
    except TypeError:
        known = ", ".join(fam.SIZES[size].__dataclass_fields__)
        raise MiradaError(f"{name} has no field called {', '.join(map(repr, changes))} among: "
                          f"{known}") from None
    model = assemble(fam, config, architecture or next(iter(fam.HEADS)))
    if torch.device(device).type == "meta":
        return model.to(dtype) if dtype else model
    allocate(model, device)
    model.to(dtype or torch.get_default_dtype())
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        initialisers.reset(model)
        fam.init(model, config)
    return model


def allocate(model: Model, device) -> None:
    """Memory for a model that was built without. (nn.Module.to_empty would part shared tensors.)"""
    for places in _places(model).values():
        _put(places, torch.empty_like(places[0][2], device=device))


def load(source, *, dtype=None, device="cpu", ignore=(), architecture: str | None = None,
         hub: bool = False) -> Model:
    """A model from a folder, a .gguf file or a short name (see mirada.shelf).

    dtype: converts the weights; the file's own when None. ignore: config keys and tensor names
    (regular expressions for these) to leave unread. architecture: another head than the config's.
    hub: allow `source` to be a hub id, fetched with the [hub] extra. Raises MiradaError.
    """
    path = locate(source, hub)
    if path.is_dir():
        return _load_folder(path, dtype, device, tuple(ignore), architecture)
    if path.suffix == ".gguf":
        return _load_gguf(path, dtype, device, tuple(ignore))
    raise MiradaError(f"{path}: mirada loads a folder with config.json and weights, or a "
                      ".gguf file")


def locate(source, hub: bool = False) -> Path:
    """The path that a user's word means: a path, a short name, or a hub id when asked."""
    path = Path(source)
    if path.exists():
        return path
    from mirada import shelf
    if str(source) in shelf.names():
        return shelf.find(str(source))
    if hub:
        return _fetched(str(source))
    raise MiradaError(f"{source}: no such folder or file, and no short name "
                      f"({', '.join(shelf.names())}). A hub id is fetched only when asked: hub=True "
                      "or --hub")


def _fetched(source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MiradaError("fetching from the hub needs the extra: pip install 'mirada[hub]'") from None
    try:
        return Path(snapshot_download(source, allow_patterns=[
            "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except (OSError, ValueError) as error:
        raise MiradaError(f"{source} could not be fetched from the hub: {error}") from None


def _load_folder(path: Path, dtype, device, ignore, architecture) -> Model:
    where = path / "config.json"
    if not where.is_file():
        raise MiradaError(f"{path}: there is no config.json, so the architecture is unknown")
    raw = jsonfile.read(where)
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise UntrustedInputError(where, "model_type", "a config must be an object that names its "
                                  f"model_type, one of {', '.join(sorted(FAMILIES))}")
    if raw["model_type"] not in FAMILIES:
        raise UntrustedInputError(where, "model_type", f"{raw['model_type']!r} is not an "
                                  f"architecture that mirada knows: {', '.join(sorted(FAMILIES))}")
    fam = family(raw["model_type"])
    config, ignored = _config(fam, raw, where, ignore)
    named = architecture or next(iter(raw.get("architectures") or fam.HEADS), None)
    if named not in fam.HEADS:
        raise UntrustedInputError(where, "architectures", f"{named!r} is not a head that mirada has "
                                  f"for {raw['model_type']}: {', '.join(fam.HEADS)}; choose one "
                                  "with architecture=")
    with tensorfile.open_folder(path) as checkpoint:
        _check_depth(config, len(checkpoint.names()), where)
        if hasattr(config, "settle"):  # what only the tensors tell
            config = config.settle(checkpoint.names())
        model = assemble(fam, config, named)
        model.origin = Origin(str(path), raw, ignored)
        fill(model, checkpoint, _map(fam, model), dtype, device, ignore, str(path))
    return model


def _config(fam, raw: dict, where: Path, ignore):
    reading = configs.read(fam.Config, raw, where, inert=getattr(fam, "INERT", None), ignore=ignore)
    count = raw.get("num_labels", len(raw.get("id2label") or ()) or 2)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 < count < 1 << 20:
        raise UntrustedInputError(where, "num_labels", f"{count!r} is not a number of labels")
    has_labels = "labels" in fam.Config.__dataclass_fields__
    config = replace(reading.config, labels=count) if has_labels else reading.config
    if config.d % config.heads and not getattr(config, "head_dim", None):
        raise UntrustedInputError(where, "heads", f"a width of {config.d} cannot be cut into "
                                  f"{config.heads} heads")
    return config, reading.ignored


def _check_depth(config, tensors: int, where) -> None:
    """Before anything is built: a file cannot fill more blocks than it has tensors."""
    layers = max(config.layers, getattr(config, "decoder_layers", None) or 0)
    if layers > max(tensors, 1) and getattr(config, "groups", None) is None:
        raise UntrustedInputError(where, "layers", f"{layers} layers are asked for, and the "
                                  f"weights hold only {tensors} tensors")


def fill(model: Model, reader, weights, dtype, device, ignore, where: str) -> None:
    """Stream a file's tensors into a model on the meta device, one row at a time."""
    paths = model.paths()
    plan = weights.plan(paths, reader.names(), ignore, where)
    places = _places(model)
    for step in plan.steps:
        _check_shapes(step, reader, [places[o][0][2].shape for o in step.ours], where)
    for step in plan.steps:
        loaded = step.op.load([reader.get(f) for f in step.files])
        for path, tensor in zip(step.ours, loaded, strict=True):
            _put(places[path], _owned(tensor, dtype, device))
    state = model.state()
    for step in plan.duplicates:
        for path, tensor in zip(step.ours, step.op.load([reader.get(f) for f in step.files]),
                                strict=True):
            if not torch.equal(_owned(tensor, dtype, device), state[paths[path]]):
                raise MiradaError(f"{where} says that {step.files[0]!r} is the same tensor as "
                                  f"another, and it is not; set tie_word_embeddings to false")
    _keep(model.origin, plan, reader)


def _places(model: Model) -> dict[str, list[tuple[nn.Module, str, Tensor]]]:
    """First path -> every (module, attribute, tensor) that holds the tensor."""
    paths, places = model.paths(), {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            path = f"{prefix}.{name}".removeprefix("body.").removeprefix(".")
            if tensor is not None and path in paths:
                places.setdefault(paths[path], []).append((module, name, tensor))
    return places


def _check_shapes(step: Step, reader, wanted: list, where: str) -> None:
    """Headers against modules, before a byte of data is read."""
    theirs = [tuple(reader.shape(f)) for f in step.files]
    try:
        ours = [t.shape for t in step.op.load([torch.empty(s, device="meta") for s in theirs])]
    except (RuntimeError, ValueError):
        ours = None
    if ours != list(wanted):
        shown = ", ".join(f"{f!r} {list(s)}" for f, s in zip(step.files, theirs, strict=True))
        raise MiradaError(f"{where}: {shown} does not fit the architecture in its config, which "
                          f"needs {', '.join(str(list(w)) for w in wanted)}")


def _owned(tensor: Tensor, dtype, device) -> Tensor:
    """Converted, contiguous, and not a view that keeps a larger tensor alive."""
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    tensor = tensor.to(device).contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def _put(places: list, tensor: Tensor) -> None:
    module, name, old = places[0]
    new = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
    for module, name, _ in places:
        (module._parameters if name in module._parameters else module._buffers)[name] = new


def _keep(origin: Origin, plan: Plan, reader) -> None:
    origin.bare, origin.derived = plan.bare, plan.derived
    origin.duplicates = [s.files for s in plan.duplicates]
    origin.carried = {name: reader.get(name) for name in plan.carried}


def _map(fam, model: Model):
    """The map between this model and its files: of its architecture, else the family's."""
    return getattr(fam, "MAPS", {}).get(model.architecture, fam.weights)(model.config)


def export(model: Model) -> dict[str, Tensor]:
    """The model's tensors under the names its files use."""
    fam, origin = family(model.family), model.origin
    weights, state, paths = _map(fam, model), model.state(), model.paths()
    bare = origin.bare if origin.path else model.architecture in getattr(fam, "BARE", _base(fam))
    named: dict[str, Tensor] = {}
    for step in weights.bind(paths, bare):
        alias = all(paths[o] != o for o in step.ours)
        if not alias or step.files in origin.duplicates:
            tensors = step.op.save([state[paths[o]] for o in step.ours])
            named.update(zip(step.files, tensors, strict=True))
    for files in origin.duplicates:
        for name in files:  # an older spelling that the file had beside today's
            named.setdefault(name, named.get(weights.modern(name)))
    for name in origin.derived:
        named[name] = weights.derive(name, bare)
    return named | origin.carried


def _base(fam) -> list[str]:
    """Heads that are the bare body: the reference writes their files without a prefix."""
    return [name for name in fam.HEADS if name.endswith("Model")]


def save(model: Model, path) -> Path:
    """Write a model in the layout that other libraries read: config.json, model.safetensors and
    the tokenizer. The folder must be new or empty; it appears whole or not at all."""
    target = Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MiradaError(f"{target} is there already and not an empty folder; nothing was written. "
                          "Choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        tensorfile.save(aside, export(model))
        jsonfile.write(aside / "config.json", written_config(model))
        if model.tokenizer is not None:
            model.tokenizer.save(aside)
        aside.chmod(0o755)
        if target.exists():
            target.rmdir()
        os.rename(aside, target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return target


def written_config(model: Model) -> dict:
    """config.json of a model: the keys it came with, and ours in the file's names."""
    fam = family(model.family)
    kind = getattr(fam, "MODEL_TYPES", {}).get(model.architecture) or model.origin.raw.get(
        "model_type") or getattr(fam, "MODEL_TYPE", model.family)
    dtype = str(model.dtype).removeprefix("torch.")
    labels = getattr(model.config, "labels", 2)
    named = {} if labels == 2 else {
        "id2label": {str(n): f"LABEL_{n}" for n in range(labels)},
        "label2id": {f"LABEL_{n}": n for n in range(labels)}}
    return {**named, **configs.write(model.config, model.origin.raw), "model_type": kind,
            "architectures": [model.architecture], "dtype": dtype}


def tokenizer(model: Model):
    """The tokenizer that lies beside a model's weights, or None."""
    path = Path(model.origin.path)
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
    if path.is_dir() and not any((path / name).is_file() for name in names):
        return None
    from mirada.text.tokenizer import Tokenizer
    if path.is_dir():
        return Tokenizer.from_folder(path)
    from mirada.weights.gguf import GGUF as Reader
    with Reader(path) as reader:  # a file may hold a model alone
        known = "tokenizer.ggml.model" in reader.metadata
        return Tokenizer.from_gguf(reader.metadata) if known else None


def _load_gguf(path: Path, dtype, device, ignore) -> Model:
    from mirada.weights.gguf import GGUF as Reader
    with Reader(path) as reader:
        if reader.architecture not in GGUF:
            raise UntrustedInputError(path, "general.architecture", f"{reader.architecture!r} is "
                                      f"not one that mirada reads from GGUF: "
                                      f"{', '.join(sorted(GGUF))}")
        fam = family(GGUF[reader.architecture])
        raw, architecture = fam.from_gguf(reader)
        config, ignored = _config(fam, raw, path, ignore)
        _check_depth(config, len(reader.names()), path)
        model = assemble(fam, config, architecture)
        model.origin = Origin(str(path), raw, ignored, dialect="gguf")
        weights = fam.gguf_weights(config)
        fill(model, reader, weights, dtype or torch.float32, device, ignore, str(path))
    model.origin.carried = {}  # a folder has no place for what only GGUF names
    return model

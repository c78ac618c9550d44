"""From files to models and back: load, save, build. The only code above models that imports it."""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mirada.core import init as initialisers
from mirada.core.linear import KEPT, Quantized, keeps, kept, replaced
from mirada.errors import MiradaError, UntrustedInputError
from mirada.kernels.blocks import expand
from mirada.model import Model, Origin
from mirada.models import ALIASES, FAMILIES, GGUF, dialects, meta
from mirada.weights import config as configs
from mirada.weights import joined, jsonfile, packed, tensorfile
from mirada.weights.paths import new_folder
from mirada.weights.rows import Plan, Step

LEAST = 6  # tensors in any block's file: two norms, q k v as one, o, up, down


def families() -> list[str]:
    """Names that build() takes."""
    hidden = os.environ.get("MIRADA_WITHOUT", "").split(",")
    return sorted({name for name in FAMILIES.values() if name not in hidden})


def family(name: str):
    """The module of a family, by its own name or by a file's model_type."""
    module = name if name in FAMILIES.values() else FAMILIES.get(name, name)
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
    with torch.device("meta"), _Unfilled():
        body = getattr(fam, "BODIES", {}).get(architecture, fam.build)(config)
        head = fam.HEADS[architecture](config, body)
        return Model(_name(fam), config, body, head, architecture).eval()


class _Unfilled(TorchFunctionMode):
    """Initialisers do nothing; on the meta device torch imports its compiler (1.4 s) to do that."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build(name: str, size: str | None = None, *, architecture: str | None = None, device="cpu",
          dtype=None, seed: int | None = None, **changes) -> Model:
    """A model with random weights.

    name: a family, or "family:size". size: one of sizes(name), its first when None. changes:
    Config fields that differ; of a config within another an object, text={"layers": 3}.
    architecture: a head of the family, its first when None. device: "meta" takes no memory. seed:
    for the weights; None: torch's current state.
    """
    name = ALIASES.get(f"{name}:{size}" if size else name, name)
    name, _, tail = name.partition(":")
    fam, size = family(name), tail or size or None
    size = size or next(iter(fam.SIZES))
    if size not in fam.SIZES:
        raise MiradaError(f"{name} has no size {size!r}; it has {', '.join(fam.SIZES)}")
    config = configs.changed(fam.SIZES[size], changes, name)
    configs.check(config, name)
    _check_whole(config, name)
    device, dtype = _place(device, dtype)
    model = assemble(fam, config, architecture or next(iter(fam.HEADS)))
    if device.type == "meta":
        return model.to(dtype) if dtype else model
    allocate(model, device)
    model.to(dtype or torch.get_default_dtype())
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        initialisers.reset(model)
        fam.init(model, config)
    return model


def _place(device, dtype) -> tuple[torch.device, torch.dtype | None]:
    """device and dtype as torch has them; raises where this machine or mirada cannot."""
    if not (dtype is None or isinstance(dtype, torch.dtype) and dtype.is_floating_point
            and dtype.itemsize > 1):
        raise MiradaError(f"dtype={dtype!r}: weights can be torch.float32, torch.float16, "
                          "torch.bfloat16 or torch.float64")
    try:
        return torch.empty(0, device=device).device, dtype
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises the second for CUDA
        reason = str(error).split("\n")[0]
        raise MiradaError(f"device={device!r} cannot be used here: {reason}") from None


def allocate(model: Model, device) -> None:
    """Memory for a model that was built without. (nn.Module.to_empty would part shared tensors.)"""
    for places in _places(model).values():
        _put(places, torch.empty_like(places[0][2], device=device))


def load(source, *, dtype=None, device="cpu", ignore=(), architecture: str | None = None,
         hub: bool = False) -> Model:
    """A model from a folder, a .gguf file or a short name (see mirada.shelf).

    dtype: converts the weights; the file's own when None, quantized blocks included. ignore:
    config keys and tensor names (regular expressions for these) to leave unread. architecture:
    another head than the config's. hub: allow `source` to be a hub id, fetched with the [hub]
    extra. Raises MiradaError.
    """
    path, (device, dtype) = locate(source, hub), _place(device, dtype)
    if path.is_dir():
        from mirada import shelf
        head, vocabulary = shelf.unsaid(source)
        model = _load_folder(path, dtype, device, tuple(ignore), architecture or head)
        if vocabulary is not None:
            from mirada.text.tokenizer import Tokenizer
            model.tokenizer = Tokenizer.from_file(vocabulary)
        return model
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
                      f"({', '.join(shelf.names())}). " + (
        f"A new {source} has learned nothing: mirada train {source} --data FILE trains one"
        if str(source).partition(":")[0] in families() else
        "A hub id is fetched only when asked: hub=True or --hub"))


def _fetched(source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MiradaError("fetching from the hub needs: pip install 'mirada[hub]'") from None
    try:
        return Path(snapshot_download(source, allow_patterns=[
            "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
    except (OSError, ValueError) as error:
        raise MiradaError(f"{source} could not be fetched from the hub: {error}") from None


def _load_folder(path: Path, dtype, device, ignore, architecture) -> Model:
    where = path / "config.json"
    if not where.is_file() and (path / "params.json").is_file():
        return _load_parts(path, dtype, device, ignore, architecture)
    if not where.is_file():
        raise MiradaError(f"{path}: there is no config.json, so the architecture is unknown")
    raw = jsonfile.read(where)
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or not isinstance(kind, str):
        raise UntrustedInputError(where, "model_type", "a config must be an object that names its "
                                  f"model_type, one of {', '.join(sorted(FAMILIES))}")
    if kind not in FAMILIES:
        raise UntrustedInputError(where, "model_type", f"{kind!r} is not an architecture that "
                                  f"mirada knows: {', '.join(sorted(FAMILIES))}")
    fam = family(FAMILIES[kind])
    config, ignored = _config(fam, raw, where, ignore)
    architecture = architecture or _architecture(fam, raw)
    if architecture not in fam.HEADS:
        raise UntrustedInputError(where, "architectures", f"{architecture!r} is not a head that "
                                  f"mirada has for {kind}: {', '.join(fam.HEADS)}; choose one with "
                                  "architecture=")
    with tensorfile.open_folder(path) as files:
        method = raw.get("quantization_config")
        checkpoint = files if method is None else packed.Packed(files, method, where)
        if hasattr(config, "settle"):  # what only the tensors tell
            config = config.settle(checkpoint.names())
        model = _shell(fam, config, architecture, checkpoint, where)
        model.origin = Origin(str(path), raw, _generation(path), ignored)
        fill(model, checkpoint, _map(fam, model), dtype, device, ignore, str(path))
    return model


def _generation(path: Path) -> dict | None:
    """What generation_config.json says, or None where there is none."""
    where = path / "generation_config.json"
    if not where.is_file():
        return None
    found = jsonfile.read(where)
    if not isinstance(found, dict):
        raise UntrustedInputError(where, "root", "must be an object of generation's options")
    return found


def _architecture(fam, raw: dict) -> str:
    """The head that a config names; where it names none, the first of its model_type."""
    named = raw.get("architectures") or [None]
    if named != [None]:
        named = named if isinstance(named, list) else [named]
        return str(named[0])
    types = getattr(fam, "MODEL_TYPES", {})
    return next((h for h in fam.HEADS if types.get(h) == raw["model_type"]), next(iter(fam.HEADS)))


def _config(fam, raw: dict, where: Path, ignore):
    reading = configs.read(fam.Config, raw, where, inert=getattr(fam, "INERT", None), ignore=ignore)
    names = raw.get("id2label") or {}
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise UntrustedInputError(where, "id2label", "must map label numbers to names")
    own = getattr(fam.Config, "labels", None)  # how many, where a file does not say
    count = raw.get("num_labels") or len(names) or own
    config = reading.config if own is None else replace(reading.config, labels=count)
    _check_whole(config, where)
    return config, reading.ignored


def _check_whole(config, where) -> None:
    """What no single field shows."""
    count = getattr(config, "labels", 2)
    if type(count) is not int or not 0 < count < 1 << 20:
        raise UntrustedInputError(where, "num_labels", f"{count!r} is not a number of labels")
    if config.d % config.heads and not getattr(config, "head_dim", None):
        raise UntrustedInputError(where, "heads", f"a width of {config.d} cannot be cut into "
                                  f"{config.heads} heads")


def _shell(fam, config, architecture: str, reader, where) -> Model:
    """The modules that a file is to fill, once it is clear that it could."""
    layers = max(config.layers, getattr(config, "decoder_layers", None) or 0)
    held = len(reader.names())
    if LEAST * layers > held and getattr(config, "groups", None) is None:
        raise UntrustedInputError(where, "layers", f"{layers} layers are asked for, and the "
                                  f"weights hold only {held} tensors")
    try:
        return assemble(fam, config, architecture)
    except MiradaError as error:  # the config's fields do not fit together
        raise UntrustedInputError(where, "config", str(error)) from None
    except RuntimeError:  # not even torch's meta device can count so far
        raise UntrustedInputError(where, "config", "asks for tensors of impossible size") from None


def fill(model: Model, reader, weights, dtype, device, ignore, where: str) -> None:
    """Stream a file's tensors into a model on the meta device, one row at a time.

    Without a dtype, matrices that the file holds in blocks stay in them (core.linear). Memory for
    all others is taken first: taken tensor by tensor, between what is read and let go again, the
    allocator's leavings come to most of a second copy.
    """
    paths = model.paths()
    plan = weights.plan(paths, reader.names(), ignore, where)
    places = _places(model)
    for step in [*plan.steps, *plan.duplicates]:
        _check_shapes(step, reader, [places[paths[o]][0][2].shape for o in step.ours], where)
    if torch.device(device).type == "meta":  # all that headers tell has been checked
        return
    small = dtype is None and hasattr(reader, "blocks")
    stay = _blocks(plan.steps, reader, paths, places) if small else {}
    replaced(model, {module: kept(module, blocks.to(device), kind) for path, (blocks, kind)
                     in stay.items() for module, _, _ in places[path]})
    if stay:  # blocks do not train; else what a family froze stays so
        model.requires_grad_(False)
    steps = [s for s in plan.steps if paths[s.ours[0]] not in stay]
    places = _places(model)
    for step in steps:
        for n, path in enumerate(step.ours):
            name = step.files[n if len(step.files) == len(step.ours) else 0]
            old = places[path][0][2]
            kind = _kind(old, name, reader, dtype, where)
            _put(places[path], torch.empty(old.shape, dtype=kind, device=device))
    state = model.state()
    for step in steps:
        for path, tensor in _read(step, reader):
            state[path].copy_(tensor)
    for step in plan.duplicates:
        for path, tensor in _read(step, reader):
            first = paths[path]
            mine = expand(*stay[first], tensor.dtype) if first in stay else state[first]
            if not same_bits(torch.empty_like(mine).copy_(tensor), mine):
                raise MiradaError(f"{where}: its config says that {step.files[0]!r} is the same "
                                  "tensor as another, and it is not; set tie_word_embeddings to "
                                  "false in config.json if both are meant")
    _keep(model.origin, plan, reader)
    model.origin.spelled = {today: name for step in plan.steps for name in step.files
                            if (today := weights.modern(name)) != name}


def _blocks(steps: list[Step], reader, paths: dict,
            places: dict) -> dict[str, tuple[Tensor, str]]:
    """Path -> (blocks, their type) of the tensors that can stay as the file has them: matrices of
    plain projections and tables, whose map moves whole rows only."""
    stay = {}
    for step in steps:
        kinds = [reader.form(name) for name in step.files]
        sites = [site for path in step.ours for site in places[paths[path]]]
        if None in kinds or not step.op.rowwise or len(kinds) not in (1, len(step.ours)) or not all(
                keeps(module) and name == "weight" for module, name, _ in sites):
            continue
        with _alone():
            parts = step.op.load([reader.blocks(name) for name in step.files])
        kinds = kinds * (len(parts) // len(kinds))
        stay.update({paths[ours]: (blocks, kind) for ours, blocks, kind
                     in zip(step.ours, parts, kinds, strict=True)})
    return stay


@contextmanager
def _alone():
    """torch's work in here is done by one thread: to share out a matrix of small blocks takes
    longer than to copy it, and far longer where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read(step: Step, reader):
    """(our path, tensor) of one step."""
    return zip(step.ours, step.op.load([reader.get(f) for f in step.files]), strict=True)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit; so that NaN is itself, and -0 is not 0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(a, b)


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
    except (RuntimeError, ValueError, IndexError):
        ours = None
    if ours != list(wanted):
        shown = ", ".join(f"{f!r} {list(s)}" for f, s in zip(step.files, theirs, strict=True))
        raise UntrustedInputError(where, shown, "does not fit the architecture in its config, "
                                  f"which needs {', '.join(str(list(w)) for w in wanted)}")


def _kind(old: Tensor, name: str, reader, dtype, where: str) -> torch.dtype:
    """The dtype that a tensor of the file gets here: its own, unless told otherwise."""
    theirs = reader.dtype(name)
    kind = dtype if dtype is not None and theirs.is_floating_point else theirs
    if old.is_floating_point() and not (kind.is_floating_point and kind.itemsize > 1):
        raise MiradaError(f"{where}: {name!r} holds {theirs}, with which nothing can be computed; "
                          "dtype= converts it if it is a float")
    return kind


def _put(places: list, tensor: Tensor) -> None:
    _, _, old = places[0]
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
    weights, (paths, state) = _map(fam, model), held(model)
    bare = origin.bare if origin.path else model.architecture in getattr(fam, "BARE", _base(fam))
    named: dict[str, Tensor] = {}
    for step in weights.bind(paths, bare):
        alias = all(paths[o] != o for o in step.ours)
        if not alias or step.files in origin.duplicates:
            parts = [state[paths[o]] for o in step.ours]
            if type := _packable(step, parts):
                rows = step.op.save([p.blocks for p in parts])
                for name, blocks in zip(step.files, rows, strict=True):
                    named |= packed.written(name, blocks, type, model.dtype)
                continue
            parts = [p.expand(model.dtype) if isinstance(p, KEPT) else p for p in parts]
            named.update(zip(step.files, step.op.save(parts), strict=True))
    for files in origin.duplicates:
        for name in files:  # an older spelling that the file had beside today's
            named.setdefault(name, named.get(weights.modern(name)))
    for name in origin.derived:
        named[name] = weights.derive(name, bare)
    return {origin.spelled.get(n, n): tensor for n, tensor in named.items()} | origin.carried


def steps(model: Model) -> list[Step]:
    """Which tensors of ours are which of the reference's, whose modules bear a file's names. What
    adapters and kernels that learn add is left out; the weights that adapters stand on keep their
    paths."""
    fam = family(model.family)
    paths = {n: first for n, first in held(model)[0].items()
             if ".adapters." not in n and ".attend." not in n}
    paths = {n.replace(".base.", "."): first.replace(".base.", ".") for n, first in paths.items()}
    return _map(fam, model).bind(paths, model.architecture in getattr(fam, "BARE", _base(fam)))


def _packable(step: Step, parts: list) -> str | None:
    """The block type in which projections can be saved as they are, or None."""
    types = {p.type if isinstance(p, Quantized) else None for p in parts}
    type = types.pop() if len(types) == 1 and step.op.rowwise else None
    return type if type in packed.OURS and ".blocks." in f".{step.ours[0]}" else None


def held(model: Model) -> tuple[dict[str, str], dict[str, Tensor | nn.Module]]:
    """A model's paths and state as if no weight stood in blocks; the modules that hold such weights
    stand for them."""
    paths, state = model.paths(), model.state()
    small = {f"{name.removeprefix('body.')}.blocks": module for name, module
             in model.named_modules(remove_duplicate=False) if isinstance(module, KEPT)}

    def weight(path: str) -> str:
        return path.removesuffix("blocks") + "weight" if path in small else path

    wide = {weight(path): small.get(path, tensor) for path, tensor in state.items()}
    return {weight(path): weight(first) for path, first in paths.items()}, wide


def _base(fam) -> list[str]:
    """Heads that are the bare body: the reference writes their files without a prefix."""
    return [name for name in fam.HEADS if name.endswith("Model") and "Head" not in name]


def save(model: Model, path, type: str | None = None) -> Path:
    """Write a model as others read it: a folder of config.json, model.safetensors and tokenizer, or
    one file where the path ends in .gguf. It must be new (a folder: or empty), and appears whole
    or not at all.

    type: what a GGUF file's matrices become, as Q8_0 or Q4_K; what they are when None. A folder
    holds the model's dtype (m.to(torch.float16) first changes it): int8, nf4 and fp4 as
    bitsandbytes keeps them, other blocks expanded.
    """
    target = Path(os.path.abspath(path))
    if model.device.type == "meta":
        raise MiradaError("this model was built without memory (device=\"meta\"): there are no "
                          "numbers to save")
    if model.origin.edits:
        raise MiradaError(f"{'; '.join(model.origin.edits)}: no file can say so, and nothing was "
                          "written. Save the model as it was, and edit again after loading")
    if target.suffix == ".gguf":
        from mirada import ggufout
        return ggufout.save(model, *held(model), target, written_config(model), type)
    if type is not None:
        raise MiradaError(f"type={type!r} is of GGUF files: let the output's name end in .gguf")
    return new_folder(target, lambda folder: _write(model, folder))


def _write(model: Model, folder: Path) -> None:
    tensors = export(model)
    tensorfile.save(folder, tensors)
    method = packed.config(tensors, model.dtype)
    jsonfile.write(folder / "config.json", written_config(model) | method)
    if model.origin.generation is not None:
        jsonfile.write(folder / "generation_config.json", model.origin.generation)
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
    said = model.processor  # one that was only assumed is made anew each time, and not written
    if said is not None and said is model._processor:
        said.save(folder)


def written_config(model: Model) -> dict:
    """config.json of a model: the keys it came with, and ours in the file's names."""
    fam = family(model.family)
    kind = getattr(fam, "MODEL_TYPES", {}).get(model.architecture) or model.origin.raw.get(
        "model_type") or getattr(fam, "MODEL_TYPE", model.family)
    dtype = str(model.dtype).removeprefix("torch.")
    own = getattr(fam.Config, "labels", None)  # readers take as many where a file does not say
    labels = getattr(model.config, "labels", None)
    written = configs.write(model.config, model.origin.raw)
    if labels != own and len(written.get("id2label") or ()) != labels:
        written["id2label"] = {str(n): f"LABEL_{n}" for n in range(labels)}
        written["label2id"] = {f"LABEL_{n}": n for n in range(labels)}
    written.pop("torch_dtype", None)  # its name in older files
    return written | {"model_type": kind, "architectures": [model.architecture], "dtype": dtype}


def _load_parts(path: Path, dtype, device, ignore, architecture) -> Model:
    """LLaMA as it was first published: params.json beside consolidated.00.pth ..."""
    fam, where = family("llama"), path / "params.json"
    params = meta.read(jsonfile.read(where), where, ignore)
    with joined.open_parts(path, meta.axis(params)) as reader:
        raw = meta.config(params, reader, where)
        config, ignored = _config(fam, raw, where, ())
        model = _shell(fam, config, architecture or "LlamaForCausalLM", reader, where)
        model.origin = Origin(str(path), raw, ignored=ignored, dialect="consolidated")
        fill(model, reader, meta.weights(config), dtype, device, ignore, str(path))
    model.origin.carried = {}  # a saved folder has no place for these files' frequencies
    return model


def _load_gguf(path: Path, dtype, device, ignore) -> Model:
    from mirada.weights.gguf import GGUF as Reader
    with Reader(path) as reader:
        name = dialects.find(reader)
        if name not in GGUF:
            raise UntrustedInputError(path, "general.architecture", f"{reader.architecture!r} is "
                                      f"not one that mirada reads from GGUF: "
                                      f"{', '.join(sorted(GGUF))}")
        fam = family(GGUF[name])
        dialect = dialects.DIALECTS[name]
        raw = dialect.config(reader)
        config, ignored = _config(fam, raw, path, ignore)
        if hasattr(config, "settle"):
            config = config.settle(reader.names())
        model = _shell(fam, config, dialect.head, reader, path)
        model.origin = Origin(str(path), raw, ignored=ignored, dialect="gguf")
        fill(model, reader, dialect.weights(config), dtype, device, ignore, str(path))
        reader.forget()  # of q and k, whose rows were put in another order
    model.origin.carried = {}  # a folder has no place for what only GGUF names
    return model

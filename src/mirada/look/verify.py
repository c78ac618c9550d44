"""Is this model what its file says, and does it give the same numbers every way it can run?"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
import inspect
import io
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mirada.core.heads import First
from mirada.core.linear import KEPT
from mirada.core.mask import Mask
from mirada.errors import MiradaError, WorkFailed
from mirada.look import sites
from mirada.look.quality import quality
from mirada.weights.config import passed_on

TEXT = ("The cat drank the milk because it was thirsty. El gato bebió la leche porque tenía sed. "
        "A small model should still know that day follows night, and that water runs downhill.")
# What rounding may do in thirty layers; a wrong mask, position or weight shows as 1e-2 or more.
BARS = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


@dataclass(frozen=True)
class Check:
    """One line: ok is None for what could not be asked here (said in `figure`)."""

    name: str
    ok: bool | None
    figure: str
    warning: bool = False

    @property
    def word(self) -> str:
        if self.ok is None:
            return "-"
        return "PASS" if self.ok else ("WARN" if self.warning else "FAIL")


@dataclass(frozen=True)
class Report:
    """The checks of one model. ok: none failed (a warning does not fail)."""

    model: str
    checks: list[Check]

    @property
    def ok(self) -> bool:
        return all(c.ok is not False or c.warning for c in self.checks)

    def data(self) -> dict:
        """For programs."""
        return {"model": self.model, "ok": self.ok, "checks": [
            {"name": c.name, "result": c.word, "figure": c.figure} for c in self.checks]}

    def __str__(self) -> str:
        width = max(len(c.name) for c in self.checks)
        lines = [f"{c.name:{width}}  {c.word:4}  {c.figure}" for c in self.checks]
        return "\n".join([self.model, *lines, "all good" if self.ok else "NOT the model it claims"])


def verify(model, progress: Callable[[str], None] = lambda name: None) -> Report:
    """Run every check that makes sense for a model (or a path, which is loaded first).

    progress: called with the name of each check as it begins. Figures are largest differences,
    divided by the spread of the output (its standard deviation, or a tenth of its largest number
    where that is more).
    """
    from mirada.look.describe import resolve
    model = resolve(model)
    if model.device.type == "meta":
        raise MiradaError("verify needs numbers: load a model, or build one on a real device")
    was_training = model.training
    model.eval()
    checks = []
    try:
        with torch.inference_mode():
            batch = _batch(model)
            wide = _widened(model)
            for name, check in CHECKS.items():
                progress(name)
                checks.append(_asked(name, check, wide if name in WIDE else model, batch))
    finally:
        model.train(was_training)
    return Report(f"{model.family} {model.architecture}", [c for c in checks if c is not None])


def _widened(model: nn.Module) -> nn.Module:
    """The model, or of one in 16 bits a copy in float32: in 30 layers of 16 bits, rounding alone
    moves outputs by a fifth of their spread, and a real difference would hide in that."""
    if model.dtype.itemsize >= 4:
        return model
    kept = {id(x): x for x in (model.origin, model._tokenizer)}
    return copy.deepcopy(model, kept).float()


def _asked(name: str, check: Callable, model, batch) -> Check | None:
    try:
        return check(name, model, batch)
    except WorkFailed as error:  # a full disk says nothing about the model
        return Check(name, None, str(error))
    except MiradaError as error:
        return Check(name, False, str(error))
    except Exception as error:  # a model that cannot run is what this is to find out
        return Check(name, False, f"it could not run: {type(error).__name__}: {_line(error)}")


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


# ---- the file ----------------------------------------------------------------------------------


def _same_as_file(name: str, model, batch) -> Check:
    """Rebuild from the file; every tensor, buffer and scalar must be the one in memory, and the
    outputs too: a hook or a replaced method shows there only."""
    from mirada import registry
    origin, settings = model.origin, len(dict(_scalars(model)))
    small = _types(model)
    if origin.path is None and small:
        return Check(name, None, "it was quantized, and has no file")
    if origin.path is None:
        other = registry.assemble(registry.family(model.family), model.config, model.architecture)
        return _none_of(differences(model, other, tensors=False), name,
                        f"{settings} settings equal those of its config; it has no file")
    if not Path(origin.path).exists():
        return Check(name, None, f"{origin.path} is no longer there")
    other = registry.load(origin.path, dtype=None if small else model.dtype, device=model.device,
                          ignore=tuple(origin.ignored), architecture=model.architecture)
    if small != _types(other):
        return _loss(name, other, model)
    found = _none_of(differences(model, other), name, f"{len(model.state())} tensors and "
                     f"{settings} settings equal those of {Path(origin.path).name}")
    if not found.ok:
        return found
    same = _close(name, model, _main(model(**batch)), _main(other(**batch)))
    return found if same.ok else Check(
        name, False, f"every tensor and setting is equal, and the outputs differ by {same.figure}: "
        "a hook or a replaced method?")


def _types(model) -> dict[str, str]:
    """Path -> block type of the weights that stand in blocks."""
    return {path: m.type for path, m in model.named_modules() if isinstance(m, KEPT)}


def _loss(name: str, wide, model) -> Check:
    """A model quantized since it was loaded is not what its file says: how far is it?"""
    if model.tokenizer is None:
        return Check(name, None, "it was quantized since it was loaded")
    found = quality(wide, model, TEXT)
    words = f"outputs change by {found.logit_mean:.2g} (spread {found.spread:.2g})"
    if found.perplexity is not None:
        before, after = found.perplexity
        words += (f", perplexity {before:.2f} -> {after:.2f}, another likeliest token in "
                  f"{found.flips:.1%} of places")
    return Check(name, None, f"it was quantized since it was loaded: {words}")


def _none_of(differs: Iterator[str], name: str, figure: str) -> Check:
    found = list(differs)
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return Check(name, not found, "; ".join(found[:3]) + more if found else figure)


def differences(a: nn.Module, b: nn.Module, tensors: bool = True) -> Iterator[str]:
    """What of a is not as in b, in words: tensors by path, then scalars by path."""
    from mirada.registry import same_bits
    if tensors:
        ours, theirs = a.state(), b.state()
        for path in sorted(ours.keys() ^ theirs.keys()):
            yield f"{path} is in {'memory' if path in ours else 'the file'} only"
        for path in [p for p in ours if p in theirs]:
            x, y = ours[path], theirs[path]
            if x.shape != y.shape:
                yield f"{path} is {list(x.shape)}, the file says {list(y.shape)}"
            elif not same_bits(x, y):
                yield f"{path} differs by up to {(x.double() - y.double()).abs().max():.3g}"
    ours, theirs = dict(_scalars(a)), dict(_scalars(b))
    for path in dict.fromkeys([*ours, *theirs]):
        x, y = ours.get(path, "nothing"), theirs.get(path, "nothing")
        if x != y:
            yield f"{path} is {x}, the file says {y}"


def _scalars(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Every setting that modules hold outside tensors: numbers, names, masks, orders."""
    for prefix, module in model.named_modules():
        if module is model:
            continue
        yield f"{prefix or 'model'}", type(module).__name__
        for name, value in vars(module).items():
            if name.startswith("_") or name == "training":
                continue
            known = _comparable(value)
            if known is not None:
                yield f"{prefix}.{name}".removeprefix("body."), known


def _comparable(value):
    if isinstance(value, Mask):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        empty = (None, False, 0, ())
        said = [f"{n}={v}" for n, v in fields.items() if n != "memo" and v not in empty]
        return f"Mask({', '.join(said)})"
    if isinstance(value, Tensor):
        return tuple(value.flatten().tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return (type(value).__name__, *map(str, dataclasses.astuple(value)))
    if isinstance(value, list | tuple):
        return tuple(map(_comparable, value))
    if callable(value):
        return getattr(value, "__qualname__", repr(type(value)))
    return "none" if value is None else value


# ---- the same numbers every way ----------------------------------------------------------------


def _batch(model) -> dict:
    """A short real input: text where there is a tokenizer, else seeded ids or pixels."""
    generator = torch.Generator().manual_seed(7)
    batch, embeds = {}, [stack.embed for stack in sites.stacks(model).values()]
    for embed in (e for e in embeds if hasattr(e, "image")):
        shape = (2, embed.project.in_channels, *embed.image)
        batch["pixel_values"] = torch.randn(shape, generator=generator).to(
            model.device, model.dtype)
        if "noise" in model.reads:  # one that hides patches must hide the same each time
            batch["noise"] = torch.rand(2, math.prod(embed.grid), generator=generator).to(
                model.device, model.dtype)
    if all(hasattr(e, "image") for e in embeds):
        return batch
    ids = batch["input_ids"] = _ids(model, generator).to(model.device)
    if not model.encoder_decoder:
        return batch
    length = 8 if model.generates else ids.shape[1]
    start = ids[:, -1:]  # where no token starts every answer, the source's last does (its language)
    if model.config.start is not None:
        start = ids.new_full((1, 1), model.config.start)
    return {"input_ids": ids, "decoder_input_ids": torch.cat([start, ids[:, : length - 1]], 1)}


def _ids(model, generator) -> Tensor:
    room = min(model.context or 64, 64)
    tokenizer = model.tokenizer
    if tokenizer is not None:
        ids = tokenizer.encode(TEXT).ids[:room]
        if max(ids) < model.config.vocab and len(ids) > 8:
            return torch.tensor([ids])
    ids = torch.randint(3, model.config.vocab, (1, min(room, 24)), generator=generator)
    end = getattr(model.config, "eos", getattr(model.config, "sep", None))
    if end is not None:  # some heads look for it, at the end or twice between question and text
        ids[:, [ids.shape[1] // 3, ids.shape[1] // 3 + 1, -1]] = end
    return ids


def _main(out) -> Tensor:
    """The output that checks compare."""
    aside = ("loss", "encoder_last_hidden_state", "logits_per_image")  # texts stand in rows
    return next(v for k, v in out.items() if k not in aside)


def _close(name: str, model, a: Tensor, b: Tensor, bar: float | None = None) -> Check:
    spread = max(b.double().std(correction=0).item(), b.double().abs().max().item() / 10) or 1.0
    worst = (a.double() - b.double()).abs().max().item() / spread
    bar = bar or BARS[model.dtype]
    ok = worst <= bar and bool(torch.isfinite(a).all())
    return Check(name, ok, f"{worst:.1e} of the spread (at most {bar:.0e})")


def _finite(name: str, model, batch) -> Check:
    out = _main(model(**batch))
    bad = [n for n, t in model.state().items()
           if t.is_floating_point() and not torch.isfinite(t).all()]
    if bad:
        return Check(name, False, f"weights hold NaN or infinity: {', '.join(bad[:3])}")
    return Check(name, bool(torch.isfinite(out).all()), f"outputs of shape {tuple(out.shape)}")


def _cached(name: str, model, batch) -> Check | None:
    if not model.generates:
        return None
    whole, given = _main(model(**batch)), dict(batch)
    key = "decoder_input_ids" if model.encoder_decoder else "input_ids"
    ids, cache, parts = given.pop(key), model.new_cache(), []
    if model.encoder_decoder:
        given["encoder_outputs"] = model.encode(given["input_ids"])
    for at in (slice(0, 4), slice(4, 5), slice(5, None)):
        if ids[:, at].shape[1]:
            parts.append(_main(model(**given, **{key: ids[:, at]}, cache=cache)))
    return _close(name, model, torch.cat(parts, 1), whole)


def _padded(side: str):
    def check(name: str, model, batch) -> Check | None:
        if "input_ids" not in batch:
            return None
        ids, pads = batch["input_ids"], 5
        short = torch.cat([ids[:, : -pads - 1], ids[:, -1:]], 1)  # some heads look for the end
        pad = getattr(model.config, "pad", None) or 0
        filler = torch.full((1, pads), pad, device=ids.device)
        parts = [short, filler] if side == "right" else [filler, short]
        mask = torch.cat([torch.full_like(p, p is short) for p in parts], 1).long()
        mask = torch.cat([mask, torch.ones_like(mask)])
        both = {**batch, "input_ids": torch.cat([torch.cat(parts, 1), ids]), "attention_mask": mask}
        alone = {**batch, "input_ids": short}
        again = model.encoder_decoder and not model.generates  # its decoder reads the input
        if again:
            del both["decoder_input_ids"], alone["decoder_input_ids"]
        elif model.encoder_decoder:
            both["decoder_input_ids"] = batch["decoder_input_ids"].expand(2, -1)
        got, wanted = _main(model(**both))[:1], _main(model(**alone))
        first = got.shape == wanted.shape and First in map(type, model.head.modules())
        if side == "left" and (again or first):
            return Check(name, None, "its head reads from the first token: pads go on the right")
        if got.shape != wanted.shape:  # an output for each token: the pads' own do not count
            got = got[:, :-pads] if side == "right" else got[:, pads:]
        return _close(name, model, got, wanted)
    return check


def _tokenizer(name: str, model, batch) -> Check | None:
    if model.kind == "vision":
        return None
    if model.tokenizer is None:
        return Check(name, None, "there is no tokenizer beside the weights")
    ids = model.tokenizer.encode(TEXT, special=False).ids
    text = model.tokenizer.decode(ids)
    again = model.tokenizer.encode(text, special=False).ids
    if again != ids:
        return Check(name, False, f"{text[:40]!r}... does not encode to the ids it came from")
    same = "the same text" if text.strip() == TEXT else "the same ids (it folds case or accents)"
    return Check(name, True, f"{len(ids)} tokens decode and encode to {same}")


def _saved(name: str, model, batch) -> Check:
    from mirada import registry
    with tempfile.TemporaryDirectory(prefix="mirada-verify-") as folder:
        registry.save(model, Path(folder) / "model")
        other = registry.load(Path(folder) / "model", device=model.device,
                              ignore=tuple(model.origin.ignored))
        if _types(model):
            return _none_of(_apart(registry.export(model), registry.export(other)), name,
                            "every number came back bit for bit; only int8, nf4 and fp4 stay small "
                            "in a folder, all types in a .gguf")
        return _none_of(differences(model, other), name,
                        "every tensor and setting came back bit for bit")


def _apart(ours: dict, theirs: dict) -> Iterator[str]:
    from mirada.registry import same_bits
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in ours or name not in theirs or not same_bits(ours[name], theirs[name]):
            yield f"{name} differs"


def _recorded(name: str, model, batch) -> Check:
    plain = _main(model(**batch))
    with model.record() as tape:
        taped = _main(model(**batch))
    if not torch.equal(plain, taped):
        return Check(name, False, "recording changed the output")
    ok = tape.selfcheck <= 10 * BARS[model.dtype]
    return Check(name, ok, f"bit-identical; weights · values = what ran, to {tape.selfcheck:.1e}")


def _reference(name: str, model, batch) -> Check:
    """The reference reads the same file and answers the same; where it cannot, the reason."""
    if importlib.util.find_spec("transformers") is None:
        return Check(name, None, "transformers is not installed")
    if model.origin.path is None:
        return Check(name, None, "the model did not come from a file")
    if _types(model) and not _as_in_gguf(model):
        return Check(name, None, "its weights are quantized, and transformers' would not be")
    try:
        version, theirs = _transformers(model, batch)
        model = _widened(model)
    except Exception as error:  # whatever another program does with the file is no error of ours
        return Check(name, None, f"transformers could not run it: {type(error).__name__}: "
                     f"{_line(error)}")
    ours = model(**batch)
    bar = max(BARS[model.dtype], BARS[torch.float32])  # parts of the reference are float32 always
    checks = [_close(name, model, ours[k], theirs[k], bar) for k in ours if k in theirs]
    check = min(checks, key=lambda c: c.ok)  # a failure first
    return dataclasses.replace(check, figure=f"{check.figure}, {version}")


def _as_in_gguf(model) -> bool:
    """True where the weights stand in the blocks of their GGUF file, which the reference reads."""
    from mirada import registry
    path = Path(model.origin.path)
    return path.suffix == ".gguf" and _types(registry.load(path)) == _types(model)


def _transformers(model, batch) -> tuple[str, dict]:
    """Its version and its outputs. It sees the config without the keys that make it run code."""
    import transformers
    path, cls = Path(model.origin.path), getattr(transformers, model.architecture)
    with _quiet(transformers.logging), torch.inference_mode(False), torch.no_grad():
        if path.is_dir():
            safe = {k: v for k, v in model.origin.raw.items() if passed_on(k)}
            options = {"config": cls.config_class.from_dict(safe)}
        else:
            path, options = path.parent, {"gguf_file": path.name}
        other = cls.from_pretrained(path, dtype=model.dtype, local_files_only=True, **options)
        other = other.eval().to(model.device)
        if model.dtype.itemsize < 4:
            nn.Module.float(other)  # its own refuses what came from GGUF
        given: dict = {k: v.clone() for k, v in batch.items()}
        if "use_cache" in inspect.signature(other.forward).parameters:
            given["use_cache"] = False  # with it FSMT masks nothing, as if tokens came one by one
        out = other(**given)
    return transformers.__version__, dict(out.items())


@contextlib.contextmanager
def _quiet(logging):
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _knows(name: str, model, batch) -> Check | None:
    if not (model.generates and model.kind == "decoder"):
        return None
    if model.tokenizer is None:
        return Check(name, None, "there is no tokenizer beside the weights")
    ids = batch["input_ids"]
    loss = model(input_ids=ids, labels=ids).loss.item()
    chance = math.log(model.config.vocab)
    return Check(name, loss < chance, f"perplexity {math.exp(min(loss, 60)):.1f} on a fixed text; "
                 f"chance is {model.config.vocab}", warning=True)


CHECKS: dict[str, Callable] = {
    "as its file says": _same_as_file,
    "finite": _finite,
    "cached = full": _cached,
    "batched = single, right padding": _padded("right"),
    "batched = single, left padding": _padded("left"),
    "tokenizer round trip": _tokenizer,
    "saved = loaded": _saved,
    "recording on = off": _recorded,
    "equal to transformers": _reference,
    "better than chance": _knows,
}
WIDE = {name for name in CHECKS if name.startswith(("cached", "batched"))}

"""Vectors instead of answers: of each token, and of whole texts (Reimers and Gurevych,
1908.10084)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.core.heads import Pooled
from mirada.edit.lowered import Lowered, lowered
from mirada.edit.ordered import packed
from mirada.errors import MiradaError, UntrustedInputError
from mirada.generate.text import needed
from mirada.model import Model, Output
from mirada.weights import jsonfile

from . import inputs
from .inputs import Row
from .long import POLICIES, weights
from .long import parts as windows_of
from .task import Task

POOLINGS = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "last": lambda x: x[-1]}
TWICE = 1 << 31  # bytes of weights that are kept a second time for speed
GGUF = {1: "mean", 2: "cls", 3: "last"}  # its pooling_type; others are no vector of a text
MODES = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}  # in 1_Pooling/config.json


def headless(model: Model) -> Model:
    """The same modules without the head, so that last_hidden_state comes out."""
    bare = Model(model.family, model.config, model.body, Pooled(), model.architecture)
    bare.train(model.training)
    bare.tokenizer, bare.origin = model.tokenizer, model.origin
    bare.native = model.native if isinstance(model.native, str) else None
    return bare


_packed: WeakKeyDictionary[Model, tuple[tuple, Model]] = WeakKeyDictionary()


def swift(model: Model) -> Model:
    """The model without its head, run natively where it has a program, else with its weights packed
    for a CPU; made anew when they changed.

    Not while a recording or an intervention listens to the model's own modules, nor where a second
    copy of the weights would take much memory.
    """
    native = lowered(model)
    if isinstance(native.body, Lowered):
        return headless(native)
    size = sum(p.nbytes for p in model.parameters())
    heard = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    if model.device.type != "cpu" or model.training or heard or size > TWICE:
        return headless(model)
    now = tuple((id(p), 0 if p.is_inference() else p._version) for p in model.parameters())
    found = _packed.get(model)
    if found is None or found[0] != now:
        _packed[model] = found = now, packed(headless(model))
        found[1].native = "its weights are packed for torch"
    return found[1]


class FeatureExtraction(Task):
    """Text -> [[[number, ...], ...]], (1, T, D) in nested lists: the last hidden state of each
    token. return_tensors=True: tensors."""

    OPTIONS = ("return_tensors",)
    DOES = "reads text"

    def fits(self) -> bool:
        return hasattr(self.model.config, "vocab")

    def run(self, items: list, told: dict) -> list:
        rows = [inputs.row(self.model, text, None, told) for text in items]
        states = inputs.forward(headless(lowered(self.model)), rows, self.batch_size, _state)
        return states if told.get("return_tensors") else [state.tolist() for state in states]


def _state(out: Output, b: int, row: Row) -> Tensor:
    return out.last_hidden_state[b : b + 1, : len(row)].cpu()


class SentenceSimilarity(Task):
    """{"source_sentence", "sentences"} (or both by name) -> cosines, one a sentence. Options:
    those of embed."""

    OPTIONS = ("pooling", "prompt", "stride")
    LONG = POLICIES
    DOES = "reads text"

    def fits(self) -> bool:
        return hasattr(self.model.config, "vocab")

    def __call__(self, inputs: Any = None, source_sentence=None, sentences=None, **options) -> Any:
        if inputs is None:
            inputs = {"source_sentence": source_sentence, "sentences": sentences}
        return super().__call__(inputs, **options)

    def run(self, items: list, told: dict) -> list:
        told = {name: told[name] for name in told if name not in ("padding", "max_length")}
        found = []
        for item in items:
            source, others = _compared(item)
            vectors = embed(self.model, [source, *others], batch_size=self.batch_size,
                            **told | {"normalize": True})
            found.append((vectors[1:] @ vectors[0]).tolist())
        return found

    def words(self, words: list[str], options: dict) -> Any:
        if len(words) < 2:
            raise MiradaError("sentence-similarity takes two texts or more: the first is compared "
                              "with each other one")
        return self(source_sentence=words[0], sentences=words[1:], **options)


def _compared(item) -> tuple[str, list[str]]:
    names = ("source_sentence", "sentences")
    if not isinstance(item, dict) or any(item.get(name) is None for name in names):
        raise MiradaError("sentence-similarity takes a source_sentence and sentences")
    others = [item["sentences"]] if isinstance(item["sentences"], str) else list(item["sentences"])
    return item["source_sentence"], others


@dataclass(frozen=True)
class Recipe:
    """How a sentence encoder makes one vector of a text's, as its folder says."""

    pooling: str = "mean"
    normalize: bool = False
    most: int | None = None  # tokens of a text
    prompts: tuple[tuple[str, str], ...] = ()
    default: str | None = None  # the prompt's name where none is chosen
    counted: bool = True  # a prompt's tokens are pooled too


def embed(model: Model | str | Path, texts: str | Iterable[str], pooling: str | None = None,
          normalize: bool | None = None, *, prompt: str | None = None, truncation: bool = False,
          long: str | None = None, stride: int = 0, batch_size: int = 32) -> Tensor:
    """Vectors of texts, (B, D) in float32; (D,) of a single text.

    pooling: "mean" over the tokens, "cls" the first, "last" the last one; normalize: to length
    one. Where None, as the model's sentence-transformers folder says, else "mean" and as it is.
    prompt: a text before each one, or the name of one of the folder's. Text longer than the folder
    or the context allows is refused, or with truncation=True (long="truncate") cut with a warning,
    or with long="stride" read in windows that share `stride` tokens: the mean of their vectors,
    each weighted by its tokens. Raises MiradaError.
    """
    if not isinstance(model, Model):
        from mirada import registry
        model = registry.load(model)
    needed(model)
    recipe = read(model)
    pooling = recipe.pooling if pooling is None else pooling
    if pooling not in POOLINGS:
        raise MiradaError(f"pooling is {pooling!r}; it can be {', '.join(POOLINGS)}")
    before = prompted(recipe, prompt)
    alone = isinstance(texts, str)
    texts = [texts] if alone else list(texts)  # type: ignore[list-item]
    if long not in (None, *POLICIES):
        raise MiradaError(f"long is {long!r}; it can be {', '.join(POLICIES)}")
    told = {"truncation": truncation or long == "truncate", "max_length": recipe.most,
            "long": long, "stride": stride}
    parts = [windows_of(model, before + text, None, told) for text in texts]
    rows = [row for some in parts for row in some]
    for row in rows if recipe.most is not None else ():
        if len(row) > recipe.most:
            raise MiradaError(f"a text has {len(row)} tokens, and this encoder was made for "
                              f"{recipe.most}: shorten it, or ask for truncation=True")
    pool = POOLINGS[pooling]

    def take(out: Output, b: int, row: Row) -> Tensor:
        states = out.get("encoder_last_hidden_state", out["last_hidden_state"])
        return pool(states[b, : len(row)].float())

    if not rows:
        raise MiradaError("there is no text to embed: give one or more")
    found = iter(inputs.forward(swift(model), rows, batch_size, take))
    vectors = torch.stack([sum(share * next(found) for share in weights(some))
                           for some in parts]).cpu()
    unit = recipe.normalize if normalize is None else normalize
    vectors = F.normalize(vectors, dim=-1) if unit else vectors
    return vectors[0] if alone else vectors


def prompted(recipe: Recipe, prompt: str | None) -> str:
    """The text that stands before each one."""
    named = dict(recipe.prompts)
    prompt = recipe.default if prompt is None else prompt
    text = named.get(prompt, prompt) if prompt else ""
    if text and not recipe.counted:
        raise MiradaError("this encoder's folder leaves the prompt's tokens out of the mean "
                          "(include_prompt: false), which mirada does not do: embed with "
                          'prompt=""')
    return text or ""


def read(model: Model) -> Recipe:
    """The recipe in a model's sentence-transformers folder, or what a GGUF file said. Raises
    UntrustedInputError where its modules are not ones that mirada knows."""
    folder, said = Path(model.origin.path or "."), model.origin.raw.get("pooling_type")
    if model.origin.path is None or not (folder / "modules.json").is_file():
        return Recipe(GGUF.get(said, "mean") if type(said) is int else "mean")
    recipe, modules = Recipe(), jsonfile.read(folder / "modules.json")
    for module in modules if isinstance(modules, list) else ():
        kind = str(module.get("type") if isinstance(module, dict) else module).rpartition(".")[2]
        if kind == "Pooling":
            recipe = _pooling(recipe, folder / _inside(folder, module) / "config.json")
        elif kind == "Normalize":
            recipe = replace(recipe, normalize=True)
        elif kind != "Transformer":
            raise UntrustedInputError(folder / "modules.json", "type", f"{kind!r} is not one of "
                                      "Transformer, Pooling, Normalize")
    most = _object(where := folder / "sentence_bert_config.json").get("max_seq_length")
    if not (most is None or type(most) is int and most > 0):
        raise UntrustedInputError(where, "max_seq_length", "must be a whole number from 1")
    own = _object(where := folder / "config_sentence_transformers.json")
    prompts = own.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise UntrustedInputError(where, "prompts", "must be an object of names and texts")
    return replace(recipe, most=most, default=own.get("default_prompt_name"),
                   prompts=tuple((str(n), str(t)) for n, t in prompts.items()))


def _inside(folder: Path, module: dict) -> str:
    path = str(module.get("path"))
    if not path or Path(path).name != path:
        raise UntrustedInputError(folder / "modules.json", "path", f"{path!r} must be the name of "
                                  "a folder beside it")
    return path


def _pooling(recipe: Recipe, path: Path) -> Recipe:
    own = _object(path)
    modes = [name.removeprefix("pooling_mode_") for name, on in own.items()
             if name.startswith("pooling_mode_") and on]
    if len(modes) != 1 or modes[0] not in MODES:
        raise UntrustedInputError(path, "pooling_mode", f"is {', '.join(modes) or 'none'}; it can "
                                  f"be one of {', '.join(MODES)}")
    return replace(recipe, pooling=MODES[modes[0]], counted=own.get("include_prompt", True))


def _object(path: Path) -> dict:
    found = jsonfile.read(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise UntrustedInputError(path, "root", "must be an object")
    return found

"""What programs written for the older library hand to `pipeline`, in this one's terms."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from mirada import registry
from mirada.errors import MiradaError
from mirada.image import Processor
from mirada.model import Model
from mirada.text.tokenizer import Tokenizer

UNREAD = ("framework", "num_workers", "token", "trust_remote_code", "use_auth_token", "use_fast")


def loading(options: dict, device, dtype) -> tuple[dict, Any, torch.dtype | None]:
    """The task's own options, the device and the dtype, under whichever name they were given.

    torch_dtype, and in model_kwargs: dtype's older names. device_map: "auto" is the GPU where there
    is one; a name or number is that device. UNREAD decide nothing: no code of a model's is run, and
    every tokenizer is the fast one.
    """
    options = dict(options)
    if options.get("framework") not in (None, "pt"):
        raise MiradaError(f"framework is {options['framework']!r}, and mirada computes with "
                          "PyTorch: leave it out")
    for name in UNREAD:
        options.pop(name, None)
    bag = dict(options.pop("model_kwargs", None) or {})
    kinds = [options.pop("torch_dtype", None), bag.pop("torch_dtype", None), bag.pop("dtype", None)]
    if bag:
        raise MiradaError(f"model_kwargs has {', '.join(bag)}, and can have dtype only: give other "
                          "settings to mirada.load, and its model to pipeline")
    dtype = next((kind for kind in (dtype, *kinds) if kind is not None), None)
    return options, _placed(options.pop("device_map", None), device), _dtype(dtype)


def _placed(spread, device):
    if isinstance(spread, dict):
        raise MiradaError("device_map is a dict, and a model here is on one device: name that with "
                          "device=")
    if spread in ("auto", "balanced", "balanced_low_0", "sequential"):
        spread = "cuda" if torch.cuda.is_available() else None
    return spread if device is None else device


def _dtype(named) -> torch.dtype | None:
    if not isinstance(named, str):
        return named
    found = getattr(torch, named.removeprefix("torch."), None)
    if named != "auto" and not isinstance(found, torch.dtype):
        raise MiradaError(f"dtype is {named!r}; it can be float32, bfloat16, float16, float64 or "
                          "auto")
    return found


def foreign(found) -> bool:
    """Whether this is a model or tokenizer of the older library, which knows how to be saved."""
    return hasattr(found, "save_pretrained")


def model(theirs, reader, dtype) -> Model:
    """The older library's model, written to a temporary folder and read from there. Its tokenizer
    or image processor, `reader`, has to be given, as there. Raises MiradaError."""
    if reader is None:
        raise MiradaError(f"this is a {type(theirs).__name__} without its tokenizer: give "
                          "tokenizer= (image_processor= where it sees pictures), or the model's "
                          "folder in place of both")
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        made = registry.load(folder, dtype=dtype)
    made.origin.path = None  # the folder is gone
    return made


def read_tokenizer(theirs) -> Tokenizer:
    """A Tokenizer from the older library's, or from a folder's name."""
    if not foreign(theirs):
        return Tokenizer.from_folder(theirs)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return Tokenizer.from_folder(folder)


def read_processor(theirs) -> Processor:
    """A Processor, from the older library's, or from a folder's name. Raises MiradaError."""
    if isinstance(theirs, Processor):
        return theirs
    with tempfile.TemporaryDirectory() as folder:
        if foreign(theirs):
            theirs.save_pretrained(folder)
        found = Processor.beside(folder if foreign(theirs) else theirs)
    if found is None:
        raise MiradaError(f"{theirs}: there is no preprocessor_config.json, so nothing says how "
                          "its pictures are made ready")
    return found

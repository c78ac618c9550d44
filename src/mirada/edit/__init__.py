"""Edits: model -> model. The model given stays as it was, and shares its untouched tensors."""

import importlib

_HOMES = {  # public name -> the file that holds it; nothing is imported until it is used
    "lora": "lowrank", "merge": "lowrank", "merge_error": "lowrank", "freeze": "frozen",
    "dropout": "rates", "drop_path": "rates",
    "save_adapter": "adapter", "load_adapter": "adapter",
    "prompt": "soft", "save_prompt": "soft", "load_prompt": "soft",
    "packed": "ordered", "quantize": "small",
    "linformer": "linear", "performer": "linear",
    "attention_pattern": "masks", "pattern": "masks",
    "resize_positions": "positions", "without_positions": "positions",
    "without_residual": "residual", "recompute": "recomputed",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"mirada.edit has no {name!r}")
    return getattr(importlib.import_module(f"mirada.edit.{_HOMES[name]}"), name)

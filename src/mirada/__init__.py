"""mirada: one small Transformer core, and every model of the family built from it."""

import importlib
import os

__version__ = "0.1.0"

_HOMES = {  # public name -> the module that holds it; nothing is imported until it is used
    "load": "registry", "save": "registry", "build": "registry", "sizes": "registry",
    "families": "registry", "Model": "model", "kernel": "core.attend",
    "pipeline": "tasks.pipeline", "set_seed": "tasks.pipeline", "embed": "tasks.features",
    "verify": "look.verify", "describe": "look.describe", "diff": "look.diff",
    "MiradaError": "errors", "UntrustedInputError": "errors", "WorkFailed": "errors",
}
_ROOMS = ("edit", "lab", "look")  # mirada.edit.without_residual(m) needs no import of its own
__all__ = sorted(_HOMES)

# Torch's threads spin for 5 ms after work, on cores that the native runtime needs; with this,
# for 0.2. It is read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"mirada.{name}")
    if name not in _HOMES:
        raise AttributeError(f"mirada has no {name!r}")
    return getattr(importlib.import_module(f"mirada.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

"""Which model it was: a digest by which results of one are not taken for those of another."""

from __future__ import annotations

import hashlib

from mirada.model import Model

LOOKED_AT = 4096  # numbers of a tensor


def fingerprint(model: Model) -> str:
    """A SHA-256 of the config, of each tensor's name, type and shape, and of up to 4,096 of its
    numbers, evenly spread: weights that were trained on differ everywhere."""
    found = hashlib.sha256(f"{model.architecture} {model.config}".encode())
    for name, tensor in model.state().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.flatten()
        some = flat[:: max(1, len(flat) // LOOKED_AT)]
        found.update(repr(some.tolist()).encode())
    return found.hexdigest()

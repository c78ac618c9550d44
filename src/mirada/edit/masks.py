"""Give any model another attention pattern: dense, local, strided, fixed or random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mirada.core.attention import Attention, CrossAttention
from mirada.core.mask import Blocked, Mask, Random, Strided
from mirada.errors import MiradaError
from mirada.model import Model

from .share import blocks, share

SIZES: dict[str, dict] = {  # what each takes; None: it must be given
    "dense": {}, "local": {"window": None}, "strided": {"stride": None},
    "fixed": {"stride": None, "summary": 1}, "random": {"share": None, "seed": 0}}


def pattern(kind: str, *, causal: bool = False, **sizes) -> Mask:
    """The mask of a pattern, as a value.

    kind: "dense"; "local": keys nearer than window=; "strided": the nearest stride= keys and every
    stride-th one; "fixed": one's own block of stride= keys and the last summary= (1) of each block
    (both of 1904.10509); "random": a share= of all pairs, drawn by seed= (0). causal: only keys at
    or before the query. Raises MiradaError.
    """
    if kind not in SIZES:
        raise MiradaError(f"no attention pattern is called {kind!r}; there are {', '.join(SIZES)}")
    known = SIZES[kind]
    odd, told = set(sizes) - set(known), known | sizes
    missing = [name for name, size in told.items() if size is None]
    if odd or missing:
        takes = ", ".join(f"{name}=" for name in known) or "no size"
        raise MiradaError(f"a {kind} pattern takes {takes}, and was given "
                          f"{', '.join(sizes) or 'none'}")
    _check(told)
    if kind == "local":
        return Mask(causal=causal, window=told["window"])
    made = {"strided": Strided, "fixed": Blocked, "random": Random}
    return Mask(causal=causal, patterns=(made[kind](**told),) if kind in made else ())


def _check(sizes: dict) -> None:
    for name, size in sizes.items():
        if name == "share":
            fits, must = isinstance(size, int | float) and 0 < size <= 1, "above 0, at most 1"
        else:
            least = 0 if name == "seed" else 1
            fits, must = type(size) is int and size >= least, f"a whole number from {least}"
        if not fits:
            raise MiradaError(f"{name} is {size!r}: it must be {must}")
    if sizes.get("summary", 0) > sizes.get("stride", 0):
        raise MiradaError(f"a block of {sizes['stride']} keys has no {sizes['summary']} last ones")


def attention_pattern(model: Model, kind: str, *, layers: Sequence[int] | None = None,
                      causal: bool | None = None, **sizes) -> Model:
    """The model with this pattern in its self-attention, in place of its layers' own windows.

    kind, sizes: see pattern(). layers: places in each stack's order, all when None. causal: look
    back only, or both ways; each layer's own way when None. Raises MiradaError.
    """
    mask = pattern(kind, **sizes)
    said = " ".join([kind, *(f"{name}={size}" for name, size in sizes.items())])
    other = share(model, f"its attention pattern was made {said}")
    for block in blocks(other, layers):
        for attention in block.modules():
            if isinstance(attention, Attention) and not isinstance(attention, CrossAttention):
                own = attention.mask
                attention.mask = replace(
                    own, causal=own.causal if causal is None else causal, window=mask.window,
                    patterns=mask.patterns)
    return other

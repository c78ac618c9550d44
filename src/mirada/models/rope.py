"""Rotary keys of config files, old form and new, as fields of a Config; rope types as scalings.

A Config inherits `Rope`, its prepare calls `flat`, its restore `nested`, __post_init__ and the
builder `scaling`. A key in the files' object that no field names raises as any unknown key does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from mirada.core.position import ByChannel, ByWavelength, Dynamic, Linear, Yarn
from mirada.errors import MiradaError
from mirada.weights.config import key

AT = "rope_parameters."
NEEDS = {"default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": (),
         "llama3": ("factor", "low", "high"), "longrope": ("short", "long")}


@dataclass(frozen=True)
class Rope:
    rope: str = key(AT + "rope_type", "default", choices=set(NEEDS))
    rope_base: float = key(AT + "rope_theta", 10000.0, low=2, high=1e15)
    rope_part: float = key(AT + "partial_rotary_factor", 1.0, low=0, high=1)  # of a head's channels
    rope_factor: float | None = key(AT + "factor", None, low=1)
    rope_original: int | None = key(AT + "original_max_position_embeddings", None, low=2)
    rope_low: float | None = key(AT + "low_freq_factor", None, low=0)
    rope_high: float | None = key(AT + "high_freq_factor", None, low=0)
    rope_fast: float | None = key(AT + "beta_fast", None, low=0)
    rope_slow: float | None = key(AT + "beta_slow", None, low=0)
    rope_temperature: float | None = key(AT + "attention_factor", None, low=0)
    rope_mscale: float | None = key(AT + "mscale", None, low=0)
    rope_mscale_all: float | None = key(AT + "mscale_all_dim", None, low=0)
    rope_whole: bool = key(AT + "truncate", True)
    rope_short: tuple[float, ...] | None = key(AT + "short_factor", None, low=1e-6)
    rope_long: tuple[float, ...] | None = key(AT + "long_factor", None, low=1e-6)


def flat(raw: dict, base="rope_theta", part="partial_rotary_factor") -> dict:
    """raw with its rotary keys as `rope_parameters.*`. base, part: what older files say outside
    the object. As in the reference `rope_scaling` goes before the new form, inside before out."""
    raw = dict(raw)
    found = [raw.pop(name, None) for name in ("rope_scaling", "rope_parameters")]
    inner = found[0] or found[1] or {}
    if not isinstance(inner, dict):
        return raw | {"rope_parameters": inner}
    outside = {"rope_theta": raw.pop(base, None), "partial_rotary_factor": raw.pop(part, None),
               "rope_type": inner.get("type", "default")}
    inner = outside | {k: v for k, v in inner.items() if v is not None and k != "type"}
    return raw | {AT + name: value for name, value in inner.items() if value is not None}


def nested(ours: dict, base="rope_theta") -> dict:
    """The inverse, in both forms: readers of either find what they look for."""
    plain = {f.metadata["file"]: f.default for f in fields(Rope)}
    inner = {name.removeprefix(AT): ours[name] for name in plain
             if ours[name] != plain[name] or name == AT + "rope_type"}
    theta = ours[AT + "rope_theta"]
    outside = {name: value for name, value in ours.items() if name not in plain}
    return outside | {base: theta, "rope_parameters": inner | {"rope_theta": theta},
                      "rope_scaling": inner if inner["rope_type"] != "default" else None}


def scaling(c: Rope, dim: int, context: int):
    """The core's scaling of `dim` turning channels, or None; raises where the keys do not fit."""
    if dim < 2 or dim % 2:
        raise MiradaError(f"rotation turns channels in pairs, and {dim} of a head make no pairs")
    missing = [name for name in NEEDS[c.rope] if getattr(c, f"rope_{name}") is None]
    original = c.rope_original or context
    factor = c.rope_factor or context / original
    match c.rope:
        case _ if missing:
            pass
        case "default":
            return None
        case "linear":
            return Linear(factor)
        case "dynamic" if dim > 2:  # grows past the context: the reference reads no `original` here
            return Dynamic(factor, context)
        case "llama3" if c.rope_low < c.rope_high:
            return ByWavelength(factor, c.rope_low, c.rope_high, original)
        case "yarn":
            return Yarn(factor, original, c.rope_fast or 32.0, c.rope_slow or 1.0,
                        _warmth(c, factor), c.rope_whole)
        case "longrope" if len(c.rope_short) == len(c.rope_long) == dim // 2:
            grown = 1 + math.log(max(factor, 1)) / math.log(max(original, 2))
            warmth = math.sqrt(grown) if c.rope_temperature is None else c.rope_temperature
            return ByChannel(c.rope_short, c.rope_long, original, warmth)
    raise MiradaError(f"{AT}rope_type {c.rope!r}: the keys beside it do not make sense for heads "
                      f"that turn {dim} channels; {' and '.join(missing) or 'none'} missing")


def _warmth(c: Rope, factor: float) -> float:
    scales = (c.rope_mscale, c.rope_mscale_all)
    top, below = scales if all(scales) else (1.0, 0.0)
    heat = 0.1 * math.log(max(factor, 1))
    ratio = (top * heat + 1) / (below * heat + 1)
    return ratio if c.rope_temperature is None else c.rope_temperature

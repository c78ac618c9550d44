"""The contract, read from schema/explorer-1.json: what comes in is held against it before any use.

Only the words that the file uses are known here; one that is not raises at once.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

from .errors import Refused

FILE = Path(__file__).parent / "schema" / "explorer-1.json"
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
SAID = {"description", "$ref", "type", "enum", "const", "anyOf", "properties", "required", "items",
        "additionalProperties", "minItems", "maxItems", "minimum", "maximum"}


@functools.cache
def read() -> dict:
    """The whole schema."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def check(value, name: str) -> None:
    """Raises Refused, which names the place, unless value is a `name` of the schema."""
    fault = _fault(value, read()["$defs"][name], "")
    if fault:
        field, what = fault
        where = field.lstrip(".") or "the body"
        raise Refused(400, "input", f"{where[:100]} {what}", field=where[:100])


def _fault(value, rule: dict, at: str) -> tuple[str, str] | None:
    """(place, what is wrong there) of the first fault."""
    if not rule.keys() <= SAID:
        raise ValueError(f"the schema says {sorted(rule.keys() - SAID)}, which is not known here")
    if "$ref" in rule:
        return _fault(value, _target(rule["$ref"]), at)
    if "anyOf" in rule:
        faults = [_fault(value, one, at) for one in rule["anyOf"]]
        return None if None in faults else faults[-1]
    if "const" in rule and value != rule["const"]:
        return at, f"must be {rule['const']!r}"
    if "enum" in rule and not any(value == one and type(value) is type(one)
                                  for one in rule["enum"]):
        return at, f"must be one of {', '.join(map(str, rule['enum']))}"
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return at, f"must be of type {' or '.join(kinds)}"
    if isinstance(value, dict):
        return _members(value, rule, at)
    if isinstance(value, list):
        return _items(value, rule, at)
    if isinstance(value, int | float) and not (
            rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf)):
        return at, f"is {value}, out of range"
    return None


def _target(ref: str) -> dict:
    found = read()
    for step in ref.removeprefix("#/").split("/"):
        found = found[step]
    return found


def _is(value, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (kind == "number" and isinstance(value, float) and math.isfinite(value))
    return isinstance(value, TYPES[kind])


def _members(value: dict, rule: dict, at: str) -> tuple[str, str] | None:
    properties, more = rule.get("properties", {}), rule.get("additionalProperties", True)
    for name in rule.get("required", ()):
        if name not in value:
            return f"{at}.{name}", "is missing"
    for name, member in value.items():
        own = properties.get(name, more)
        if own is False:
            return f"{at}.{name}", "is not known"
        fault = _fault(member, own, f"{at}.{name}") if isinstance(own, dict) else None
        if fault:
            return fault
    return None


def _items(value: list, rule: dict, at: str) -> tuple[str, str] | None:
    low, high = rule.get("minItems", 0), rule.get("maxItems", math.inf)
    if not low <= len(value) <= high:
        return at, f"has {len(value)} entries; it must have {low} to {high}"
    for n, item in enumerate(value):
        fault = _fault(item, rule["items"], f"{at}[{n}]") if "items" in rule else None
        if fault:
            return fault
    return None

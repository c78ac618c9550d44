"""`mirada models`: families, their sizes and heads, and which of these the tests have proven."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from mirada import registry


@dataclass(frozen=True)
class Family:
    name: str
    about: str  # the first sentence of its file
    types: list[str]  # model_type values that load as this family
    sizes: list[str]
    heads: list[str]
    proven: list[str]  # rows of the parity table that passed when the package was made


@dataclass(frozen=True)
class Catalogue:
    """All families. Printed, it is a page."""

    families: list[Family]

    def data(self) -> list:
        """For programs."""
        return [vars(f) for f in self.families]

    def __str__(self) -> str:
        lines = []
        for f in self.families:
            proven = {row.partition("-")[0] for row in f.proven}
            lines += [f.about, f"  sizes  {', '.join(f'{f.name}:{s}' for s in f.sizes)}",
                      f"  reads  model_type {', '.join(f.types)}"]
            lines += [f"  {'proven' if head in proven else '      '} {head}" for head in f.heads]
            lines.append("")
        return "\n".join([*lines, "proven: equal to the reference to 1e-10 in float64, outputs and "
                          "gradients, loaded from its files and saved back bit for bit"])


def catalogue() -> Catalogue:
    """Every family that can be built."""
    rows = json.loads(resources.files("mirada").joinpath("proven.json").read_text())["parity"]
    found = []
    for name in registry.families():
        module = registry.family(name)
        types = sorted(t for t, home in registry.FAMILIES.items() if home == name)
        found.append(Family(name, module.__doc__.split("\n")[0], types, list(module.SIZES),
                            list(module.HEADS),
                            [row for row, passed in rows.get(name, {}).items() if passed]))
    return Catalogue(found)

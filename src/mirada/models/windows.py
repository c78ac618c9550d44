"""Which layers look through a window: `layer_types` of config files."""

from __future__ import annotations

from mirada.errors import MiradaError

KINDS = ("full_attention", "sliding_attention")


def each(kinds, layers: int, window: int | None) -> list[int | None]:
    """The window of each layer, None where it looks at everything; raises where that cannot be."""
    if len(kinds) != layers or set(kinds) - set(KINDS):
        raise MiradaError(f"layer_types: {layers} layers need as many of {' and '.join(KINDS)}, "
                          f"and these are {', '.join(kinds)}")
    if window is None and KINDS[1] in kinds:
        raise MiradaError("layer_types: some layers slide, and no sliding_window is in use")
    return [window if kind == KINDS[1] else None for kind in kinds]

"""`mirada models --installed`: which models lie on this machine, and what can be done with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mirada import registry, shelf
from mirada.errors import MiradaError

from .pipeline import served


@dataclass(frozen=True)
class Found:
    """A model on this machine, or one of the shelf's that could be.

    size: bytes of its file or folder. tasks: what `pipeline` does with it. reason: why it cannot be
    loaded; of a short name whose package is missing, the command that installs it.
    """

    name: str  # what mirada.load takes
    about: str
    size: int = 0
    architecture: str | None = None
    tasks: list[str] = field(default_factory=list)
    license: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Installed:
    """All that was looked at. Printed, a table."""

    models: list[Found]

    def data(self) -> list:
        """For programs."""
        return [vars(one) for one in self.models]

    def __str__(self) -> str:
        lines = []
        for one in self.models:
            size = f"{one.size / 1e6:,.1f} MB" if one.size else "not here"
            lines.append(f"{one.name:12}  {size:>11}  {one.about}")
            if one.reason:
                lines.append(f"{'':27}{one.reason}")
            else:
                lines.append(f"{'':27}{', '.join(one.tasks)}")
        return "\n".join(lines)


def installed(paths: list[str] | tuple[str, ...] = ()) -> Installed:
    """The shelf's models, then those at `paths`: a model's folder or file, or a folder of them.

    Headers are read and checked against the architecture; weights are not.
    """
    found = [_shelved(name) for name in shelf.names()]
    for path in map(Path, paths):
        if not path.exists():
            raise MiradaError(f"{path}: no such folder or file")
        found += [_read(str(one), one) for one in _models(path)]
    return Installed(found)


def _models(path: Path) -> list[Path]:
    """The models at a path: itself, or those directly in it."""
    if not path.is_dir() or (path / "config.json").is_file():
        return [path]
    inside = [one for one in sorted(path.iterdir())
              if one.suffix == ".gguf" or (one / "config.json").is_file()]
    if not inside:
        raise MiradaError(f"{path}: there is no model in this folder, neither a folder with "
                          "config.json nor a .gguf file")
    return inside


def _shelved(name: str) -> Found:
    entry = shelf.ENTRIES[name]
    if not shelf.installed(name):
        return Found(name, entry.about, license=entry.license, reason=entry.command)
    try:
        return _read(name, shelf.find(name), entry.about, entry.license)
    except MiradaError as error:  # not the published bytes
        return Found(name, entry.about, license=entry.license, reason=str(error))


def _read(name: str, path: Path, about: str = "", license: str | None = None) -> Found:
    size = _size(path)
    try:
        model = registry.load(name, device="meta")
    except MiradaError as error:
        return Found(name, about or "cannot be loaded", size, license=license, reason=str(error))
    return Found(name, about or model.architecture, size, model.architecture, served(model),
                 license)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)

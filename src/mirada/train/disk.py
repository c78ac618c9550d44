"""What must outlive a power cut: files and names forced onto the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path


def forced(path: Path) -> None:
    """A file's content, or the names in a folder, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_made(path: Path) -> None:
    """A folder and those above it, whose names are on the disk."""
    if not path.is_dir():
        folder_made(path.parent)
        path.mkdir(exist_ok=True)
        forced(path.parent)


def keep(file: Path, content: dict) -> None:
    """A file of JSON, whole or not there, whatever happens meanwhile."""
    aside = file.with_suffix(".tmp")
    try:
        with aside.open("w") as opened:
            opened.write(json.dumps(content, indent=1, default=str))
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(aside, file)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    forced(file.parent)

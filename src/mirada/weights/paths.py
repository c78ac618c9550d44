"""Which files a file from outside may name, how they are opened (regular ones, once), and how a
folder comes to be: whole or not at all."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mirada.errors import MiradaError, UntrustedInputError, WorkFailed


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file for reading, unbuffered.

    A pipe, device or folder is refused without hanging: the open does not wait for a writer, and
    the kind is read from the open file itself, so nothing can be swapped in between.
    Raises UntrustedInputError, also when there is no such file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        raise UntrustedInputError(path, "file", "there is no such file") from None
    except (OSError, ValueError) as error:
        raise UntrustedInputError(path, "file", f"cannot be opened: {_reason(error)}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UntrustedInputError(path, "file", "must be a regular file (no folder, pipe, device)")
    return open(descriptor, "rb", buffering=0)


def read_into(
    view: memoryview, file: BinaryIO, start: int, path: str | os.PathLike, field: str
) -> None:
    """Fill `view` with the open file's bytes from `start`.

    Raises UntrustedInputError when the file ends before: it was cut after it was checked.
    """
    done = 0
    while done < len(view):  # one call reads at most 2 GiB
        count = os.preadv(file.fileno(), [view[done:]], start + done)
        if count == 0:
            raise UntrustedInputError(path, field, "was cut off after the file was opened")
        done += count


def inside(root: str | os.PathLike, name: str, source: str | os.PathLike) -> Path:
    """The regular file `name` of the folder `root`, with links resolved.

    name comes from data (an index, a config), source is the file it stands in, for the message.
    It must be a plain name and lie in `root` after links are followed. One way out is allowed:
    the hub cache, whose `snapshots/<revision>/` links to `blobs/` beside `snapshots`.
    Raises UntrustedInputError.
    """
    field = f"file name {name!r}"
    if not isinstance(name, str) or not plain(name):
        raise UntrustedInputError(source, field, "must be a plain file name in the same folder")
    try:
        root = Path(root).resolve(strict=True)
        target = (root / name).resolve(strict=True)
        mode = target.stat().st_mode
    except FileNotFoundError:
        raise UntrustedInputError(source, field, f"there is no such file in {root}") from None
    except (OSError, RuntimeError) as error:  # a loop of links is RuntimeError before Python 3.13
        raise UntrustedInputError(source, field, f"cannot be read: {_reason(error)}") from None
    if not target.is_relative_to(root) and not _in_hub_cache(root, target):
        raise UntrustedInputError(
            source, field, f"is a link to a place outside {root}; put the file itself there"
        )
    if not stat.S_ISREG(mode):
        raise UntrustedInputError(source, field, "must be a regular file (no folder, pipe, device)")
    return target


def plain(name: str) -> bool:
    """Whether `name` is one printable path component on every system: no separator, no drive."""
    return (
        0 < len(name) <= 255
        and name not in (".", "..")
        and name.isprintable()
        and not any(c in name for c in "/\\:")
    )


def new_folder(path: str | os.PathLike, write: Callable[[Path], object]) -> Path:
    """The folder `path`, new or empty before, that write(folder) fills: it appears whole, with all
    of it on the disk, or not at all. Raises MiradaError, and WorkFailed where the disk refuses."""
    target = Path(os.path.abspath(path))
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise MiradaError(f"{target} is there already and not an empty folder; nothing was "
                          "written. Choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            write(aside)
            aside.chmod(0o755)
            for written in (*aside.rglob("*"), aside):
                _flush(written)
            os.rename(aside, target)  # takes the place of an empty folder
            _flush(target.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    except OSError as error:
        raise WorkFailed(f"{target} could not be written, and nothing is there: "
                         f"{error.strerror}") from None
    return target


def _flush(path: Path) -> None:
    """Onto the disk: else a power cut may leave the new name in front of empty files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot, of a folder
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _in_hub_cache(root: Path, target: Path) -> bool:
    return any(
        folder.name == "snapshots" and target.parent == folder.parent / "blobs"
        for folder in root.parents
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

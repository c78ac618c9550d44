"""GGUF files: their header, and their tensors as blocks or expanded."""

import mmap
import os
from pathlib import Path

import torch

from mirada.errors import UntrustedInputError
from mirada.kernels.blocks import GGML, expand
from mirada.weights import ggufhead
from mirada.weights.ggufhead import TensorInfo
from mirada.weights.paths import open_regular, read_into


class GGUF:
    """An open GGUF file.

    architecture: general.architecture; metadata: key -> number, bool, str or list of them;
    tensors: name -> TensorInfo. Raises UntrustedInputError for any broken rule or limit.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file = open_regular(path)
        try:
            self.header = ggufhead.read(self._file, self.path)
            for info in self.header.tensors.values():
                if info.type not in GGML:
                    raise UntrustedInputError(
                        self.path, f"tensor {info.name!r}", f"has the type {info.type}, which "
                        f"cannot be read; {', '.join(GGML)} can")
        except BaseException:
            self._file.close()
            raise
        self.metadata, self.tensors = self.header.metadata, self.header.tensors
        self.architecture: str = self.metadata["general.architecture"]
        self._map: mmap.mmap | None = None

    def blocks(self, name: str) -> torch.Tensor:
        """The tensor's bytes as they are, a view of the mapped file: (*shape[:-1], bytes per row).

        uint8; what is written to it stays private. Each call checks that the file is still what
        it was when opened. A file cut after that check, while the view is in use, kills the
        process (SIGBUS), as with every memory map; `get` reads a copy and is free of this.
        """
        info = self._info(name)
        self._check_unchanged()
        if self._map is None:
            size = self.header.stamp[0]
            self._map = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(
            self._map, dtype=torch.uint8, count=info.nbytes, offset=info.offset
        )
        return flat.view(*info.shape[:-1], -1)

    def forget(self) -> None:
        """Let go of the pages that were read through `blocks` so far; they are read again when
        they are needed. What was written to them would be lost."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def get(self, name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The tensor expanded to `dtype`, in its torch shape, in memory of its own."""
        info = self._info(name)
        self._check_unchanged()
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        field = f"tensor {name!r}"
        read_into(memoryview(raw.numpy()), self._file, info.offset, self.path, field)
        return expand(raw.view(*info.shape[:-1], -1), info.type, dtype)

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, as torch has it."""
        return self._info(name).shape

    def form(self, name: str) -> str | None:
        """The block type in which a tensor may stay, or None for one of plain float32."""
        kind = self._info(name).type
        return None if kind == "F32" else kind

    def dtype(self, name: str) -> torch.dtype:
        """What `get` gives when it is told nothing."""
        return torch.float32

    def close(self) -> None:
        """Release the file. Views that `blocks` gave stay valid."""
        self._file.close()

    def __enter__(self) -> "GGUF":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise UntrustedInputError(self.path, f"tensor {name!r}", "is not in the file")
        return self.tensors[name]

    def _check_unchanged(self) -> None:
        if ggufhead.stamp(self._file) != self.header.stamp:
            raise UntrustedInputError(self.path, "file", "changed on disk after it was opened")

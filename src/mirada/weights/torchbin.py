"""pytorch_model.bin, a pickle, read by a restricted child process that rewrites it as safetensors.

The child is this file run as a module. It looks at the container before it imports torch, bounds
its own memory, time and output, then loads with `weights_only=True`; there is no other way in.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from mirada.errors import UntrustedInputError, WorkFailed
from mirada.weights.paths import open_regular

# How the old, unzipped kind begins: a pickled magic number.
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_PARTS = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
    r"|data/\d+"
)
PARTS = 200_000
PICKLE = 64 << 20  # bytes of data.pkl; 500 tensors need about 50 KB
RESAVE = "re-save it on a machine that trusts it: torch.save(state_dict, path) or safetensors"

_REFUSED, _NOT_WRITTEN = 3, 4  # exit codes of the child
_FORBIDDEN = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen",
              "socket.", "pickle.find_class", "ctypes.dlopen")


def convert(path: str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Rewrite the torch file `path` as `folder`/<its name>.safetensors and return that path.

    Needs room for a second copy in `folder`. Raises UntrustedInputError when the file is no
    plain dict of tensors or breaks a limit, WorkFailed when the folder is full.
    """
    target = Path(folder, Path(path).name + ".safetensors").resolve()
    with open_regular(path) as file:
        seconds = 2 * _cpu_seconds(os.fstat(file.fileno()).st_size)
    source = str(Path(path).resolve())
    # -P and the foreign working directory: nothing beside the user's file can be imported.
    command = [sys.executable, "-P", "-m", "mirada.weights.torchbin", source, str(target)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"
    }
    try:
        child = subprocess.run(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=seconds + 60, check=False,
        )
    except subprocess.TimeoutExpired:
        raise UntrustedInputError(path, "content", "took too long to read") from None
    if child.returncode == _NOT_WRITTEN:
        said = child.stderr.decode(errors="replace").strip()
        raise WorkFailed(f"{path}: cannot be rewritten in {folder} ({said}); TMPDIR moves it")
    if child.returncode == _REFUSED:
        raise UntrustedInputError(path, *json.loads(child.stdout))
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise UntrustedInputError(path, "content", f"broke a limit while it was read ({name})")
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise WorkFailed(f"{path}: the process that reads it failed: {said[:300]!r}")
    return target


def main(source: str, target: str) -> int:
    """Run in the child: check, limit, load, write. Returns the exit code."""
    try:
        with open_regular(source) as file:
            size = os.fstat(file.fileno()).st_size
            _limit(resource.RLIMIT_CPU, _cpu_seconds(size))
            _limit(resource.RLIMIT_FSIZE, 4 * size + (1 << 20))
            check_container(file, source, size)
            write_tensors(load(file, source, size), source, target, size)
    except UntrustedInputError as error:
        print(json.dumps([error.field, error.limit]))
        return _REFUSED
    except OSError as error:
        print(error, file=sys.stderr)
        return _NOT_WRITTEN
    return 0


def check_container(file: BinaryIO, path: str, size: int) -> None:
    """Refuse everything but torch's two plain kinds, by the zip's own directory."""
    start = os.pread(file.fileno(), len(_LEGACY), 0)
    if start == _LEGACY:
        return
    if not start.startswith(b"PK\3\4"):
        raise UntrustedInputError(path, "start", f"is not a file of torch.save; {RESAVE}")
    try:
        parts = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise UntrustedInputError(path, "zip directory", f"cannot be read: {error}") from None
    if len(parts) > PARTS:
        raise UntrustedInputError(path, "zip directory", f"has more than {PARTS:,} parts")
    names = [part.filename for part in parts]
    if len(set(names)) < len(names):
        raise UntrustedInputError(path, "zip directory", "names a part twice")
    top = names[0].split("/")[0] if names else ""
    for part in parts:
        field = f"part {part.filename!r}"
        root, _, rest = part.filename.partition("/")
        if root != top or not _PARTS.fullmatch(rest) or part.orig_filename != part.filename:
            raise UntrustedInputError(path, field, f"does not belong in a weight file; {RESAVE}")
        if part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size:
            raise UntrustedInputError(path, field, "must be stored, not compressed")
        if rest == "data.pkl" and part.file_size > PICKLE:
            raise UntrustedInputError(path, field, f"is larger than {PICKLE:,} bytes")
    if sum(part.file_size for part in parts) > size:
        raise UntrustedInputError(path, "zip directory", "claims more bytes than the file has")


def load(file: BinaryIO, path: str, size: int) -> dict:
    """The dict of tensors in `file`, under a memory bound; anything else is refused."""
    import torch

    import mirada.weights.tensorfile  # noqa: F401  before the bound and the hook

    torch.set_num_threads(1)
    _limit(resource.RLIMIT_AS, _address_space() + 4 * size + (256 << 20))
    sys.addaudithook(_forbid)
    file.seek(0)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's pickle provokes is a refusal
        limit = f"does not load as plain weights ({_reason(error)}); {RESAVE}"
        raise UntrustedInputError(path, "content", limit) from None
    if not isinstance(state, dict):
        limit = f"must be a dict of tensors, is a {type(state).__name__}"
        raise UntrustedInputError(path, "content", limit)
    return state


def write_tensors(state: dict, path: str, target: str, size: int) -> None:
    """Write a flat dict of dense tensors; tensors that share memory are written each in full."""
    import torch

    from mirada.errors import MiradaError
    from mirada.weights.tensorfile import write_file

    total = 0
    for name, tensor in state.items():
        field = f"entry {str(name)[:80]!r}"
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            limit = f"must be a tensor with a name, is a {type(tensor).__name__}"
            raise UntrustedInputError(path, field, limit)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise UntrustedInputError(path, field, "must be a dense tensor")
        total += tensor.nbytes
    if total > 4 * size:
        limit = f"its tensors unfold to {total:,} bytes, over four times the file"
        raise UntrustedInputError(path, "content", limit)
    try:
        write_file(target, state.items(), {"format": "pt"})
    except MiradaError as error:
        raise UntrustedInputError(path, "content", str(error)) from None


def _reason(error: Exception) -> str:
    """What torch found, without its paragraph of advice to load the file unsafely."""
    for pattern in (r"GLOBAL \S+", r"(?<=WeightsUnpickler error: )\s*[^\n]+", r"[^\n]+"):
        if said := re.search(pattern, str(error)):
            return said[0].strip()[:150]
    return type(error).__name__


def _cpu_seconds(size: int) -> int:
    return 20 + size // (20 << 20)  # 20 MB/s is slow


def _limit(kind: int, amount: int) -> None:
    _, hard = resource.getrlimit(kind)
    amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
    resource.setrlimit(kind, (amount, hard))


def _address_space() -> int:
    """Bytes of address space in use; where the system does not say, what torch takes at most."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:
        return 8 << 30
    return pages * resource.getpagesize()


def _forbid(event: str, args: tuple) -> None:
    if event.startswith(_FORBIDDEN):
        raise PermissionError(f"{event} is forbidden while weights are read")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Every hostile file is refused in one typed sentence, at once, in little memory, with no trace."""

import contextlib
import functools
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as s

from mirada.errors import MiradaError, UntrustedInputError
from mirada.weights import gguf, ggufhead, jsonfile, tensorfile

sys.path.insert(0, str(Path(__file__).parent))
import corpus  # noqa: E402

SECONDS, BYTES = 2.0, 256 << 20
OPEN = {
    "safetensors": tensorfile.open_file,
    "folder": tensorfile.open_folder,
    "gguf": gguf.GGUF,
    "json": jsonfile.read,
}
EXECUTES = ("os.system", "os.exec", "os.fork", "os.spawn", "pickle.find_class", "socket.connect",
            "compile", "exec", "import")
_heard: list[str] | None = None


def _listen(event: str, args: tuple) -> None:
    if _heard is not None and event.startswith(EXECUTES):
        _heard.append(f"{event} {args!r:.200}")


sys.addaudithook(_listen)


@pytest.fixture(autouse=True, scope="module")
def _warm(tmp_path_factory):
    """Import what the readers import lazily, so that the audit hears the files alone."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "pytorch_model.bin").write_bytes(corpus.torch_file({"a": torch.ones(3)}))
    with tensorfile.open_folder(folder) as checkpoint:
        checkpoint.get("a")


def _reset_peak() -> int:
    """Let the peak of resident memory start anew, where the system can; returns the peak."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The largest resident memory so far, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu() -> float:
    own, children = (resource.getrusage(who) for who in
                     (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@functools.cache
def _importing() -> float:
    """What a child that reads a .bin pays before it does anything: the import of torch."""
    before = _cpu()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return _cpu() - before


def _tree(folder: Path) -> dict[str, tuple]:
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.mark.parametrize("case", corpus.files(), ids=lambda c: f"{c.row}-{c.kind}-{c.name}")
def test_refused(case, tmp_path, monkeypatch):
    global _heard
    folder, scratch = tmp_path / "model", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    path = case.make(folder)
    before, memory, cpu, wall = _tree(tmp_path), _reset_peak(), _cpu(), time.monotonic()
    _heard = []
    try:
        with pytest.raises(UntrustedInputError) as caught:
            OPEN[case.kind](path)
    finally:
        heard, _heard = _heard, None
    cpu, wall, grown = _cpu() - cpu, time.monotonic() - wall, _peak() - memory
    sentence = str(caught.value)
    assert case.says in sentence
    at_fault = Path(caught.value.path)
    assert at_fault.is_relative_to(folder) and at_fault.name in sentence and caught.value.field
    assert sentence.isprintable() and len(sentence) < 1500
    # Processor time, so that a busy machine fails nobody; the clock, so that nothing hangs.
    allowed = SECONDS + (_importing() if case.name.startswith("bin") else 0)
    assert cpu <= allowed and wall <= 5 * allowed, (cpu, wall)
    assert grown <= BYTES
    assert not heard
    before.pop(str(scratch))
    after = _tree(tmp_path)
    after.pop(str(scratch))
    assert after == before


def test_the_corpus_covers_the_rows():
    rows = {case.row for case in corpus.files()}
    assert rows >= {*range(1, 33), 37, 38, 39, 40, 41, 45, 48, 49, 50} - {15, 33, 34, 35, 36}


@pytest.mark.parametrize("legacy", [False, True])
def test_the_trap_would_run(tmp_path, legacy):
    """Without restraint the poisoned file does run: the refusals above are no accident."""
    corpus._touch(tmp_path, legacy)
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "RAN").exists()


def test_dangerous_names_never_reach_a_sentence(tmp_path):
    """Row 11, in every place a name can stand."""
    bad = "\x1b[31m\n\u202eok\0"
    made = {
        "a.safetensors": corpus.st({bad: corpus.tensor()}, b"\0" * 8),
        "b.safetensors": corpus.st({"a": corpus.tensor(bad)}, b"\0" * 8),
        "a.gguf": corpus.gguf(keys=(corpus.key(bad, corpus.U32, 1),)),
        "b.gguf": corpus.gguf(infos=(corpus.info(bad),), data=corpus.BLOCK),
        "a.json": ('{"%s": 1, "%s": 2}' % (("\\u001b[31m\\n\\u202eok",) * 2)).encode(),
    }
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
        opener = {"s": tensorfile.open_file, "f": gguf.GGUF, "n": jsonfile.read}[name[-1]]
        with pytest.raises(UntrustedInputError) as caught:
            opener(tmp_path / name)
        assert str(caught.value).isprintable()


def test_nonfinite_weights_load_and_are_named(tmp_path):
    """Row 15."""
    tensors = {"good": torch.ones(3), "nan": torch.tensor([1.0, torch.nan]),
               "inf": torch.tensor([torch.inf]).half(), "whole": torch.arange(3),
               "eight": torch.tensor([torch.nan]).to(torch.float8_e4m3fn)}
    tensorfile.save(tmp_path, tensors)
    with tensorfile.open_folder(tmp_path) as checkpoint:
        assert sorted(tensorfile.nonfinite(checkpoint)) == ["eight", "inf", "nan"]


def test_a_file_cut_after_the_check_is_an_error_not_a_crash(tmp_path):
    """Row 70: the same open file is read, its size is looked at again, no map is touched."""
    st, gg = tmp_path / "a.safetensors", tmp_path / "a.gguf"
    st.write_bytes(corpus.st({"a": corpus.tensor("U8", [10**6], [0, 10**6])}, b"\1" * 10**6))
    gg.write_bytes(corpus.gguf(infos=(corpus.info(dims=(32, 10**4)),), data=b"\1" * 340_000))
    checkpoint, model = tensorfile.open_file(st), gguf.GGUF(gg)
    assert model.blocks("a").shape == (10**4, 34)
    kept = checkpoint.get("a")
    os.truncate(st, 1000)
    os.truncate(gg, 1000)
    for read in (checkpoint.get, model.get, model.blocks):
        with pytest.raises(UntrustedInputError, match="cut off|changed on disk"):
            read("a")
    assert kept.sum() == 10**6


def test_a_file_replaced_after_the_check_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(corpus.GOOD)
    checkpoint = tensorfile.open_file(path)
    other = tmp_path / "other"
    other.write_bytes(corpus.st({"a": corpus.tensor()}, struct.pack("<2f", 7, 7)))
    os.replace(other, path)
    assert checkpoint.get("a").tolist() == [1, 2]


def test_the_largest_vocabulary_allowed_is_quick(tmp_path):
    """Just inside the limits costs no more than being refused."""
    count = ggufhead.ITEMS // 2
    keys = (corpus.ARCH,
            corpus.key("t", corpus.ARRAY, corpus.array(8, count, corpus.text("ab") * count)),
            corpus.key("s", corpus.ARRAY, corpus.array(6, count, b"\0" * 4 * count)))
    (tmp_path / "a.gguf").write_bytes(corpus.gguf(keys=keys))
    memory, cpu = _reset_peak(), _cpu()
    model = gguf.GGUF(tmp_path / "a.gguf")
    assert len(model.metadata["t"]) == count
    assert _cpu() - cpu <= SECONDS and _peak() - memory <= BYTES


VALID_ST = corpus.st(
    {"__metadata__": {"format": "pt"}, "a": corpus.tensor(),
     "b": corpus.tensor("BOOL", [3], [8, 11]), "c": corpus.tensor("F16", [], [11, 13])}, b"\0" * 13)
VALID_GGUF = corpus.gguf(
    keys=(corpus.ARCH, corpus.key("general.alignment", corpus.U32, 32),
          corpus.key("t", corpus.ARRAY, corpus.array(8, 2, corpus.text("x") + corpus.text("yz"))),
          corpus.key("s", corpus.ARRAY, corpus.array(6, 3, b"\0" * 12))),
    infos=(corpus.info(dims=(32, 2)), corpus.info("b", (4,), 0, 96)), data=b"\0" * 112)
EDITS = s.lists(
    s.tuples(s.sampled_from(["set", "cut", "insert", "word"]), s.integers(0, 10**6),
             s.binary(min_size=1, max_size=9)),
    min_size=1, max_size=6)
WORDS = [struct.pack("<Q", n) for n in (0, 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)]


def _mutate(data: bytes, edits: list) -> bytes:
    out = bytearray(data)
    for how, where, content in edits:
        at = where % (len(out) + 1)
        if how == "set":
            out[at : at + len(content)] = content
        elif how == "cut":
            del out[at : at + content[0]]
        elif how == "insert":
            out[at:at] = content
        else:
            word = WORDS[content[0] % len(WORDS)]
            out[at : at + 8] = word
    return bytes(out)


def _survives(opener, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        model = opener(path)
        for name in model.tensors if isinstance(model, gguf.GGUF) else model.names():
            model.get(name)
    except MiradaError as error:
        assert str(error).isprintable()


FUZZ = settings(max_examples=300, deadline=None,
                suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(EDITS)
def test_mutated_safetensors(tmp_path, edits):
    _survives(tensorfile.open_file, tmp_path / "a.safetensors", _mutate(VALID_ST, edits))


@FUZZ
@given(EDITS)
def test_mutated_gguf(tmp_path, edits):
    _survives(gguf.GGUF, tmp_path / "a.gguf", _mutate(VALID_GGUF, edits))


@FUZZ
@given(s.recursive(
    s.none() | s.booleans() | s.integers() | s.text() | s.floats(),
    lambda inner: s.lists(inner, max_size=4) | s.dictionaries(
        s.sampled_from(["dtype", "shape", "data_offsets", "a", "__metadata__"]), inner)))
def test_any_header(tmp_path, header):
    _survives(tensorfile.open_file, tmp_path / "a.safetensors", corpus.st(header, b"\0" * 8))


def test_the_valid_ones_are_valid(tmp_path):
    """What the mutations start from does open."""
    (tmp_path / "a.safetensors").write_bytes(VALID_ST)
    (tmp_path / "a.gguf").write_bytes(VALID_GGUF)
    assert tensorfile.open_file(tmp_path / "a.safetensors").get("b").tolist() == [False] * 3
    assert gguf.GGUF(tmp_path / "a.gguf").get("a").shape == (2, 32)

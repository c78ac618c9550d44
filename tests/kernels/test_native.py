"""The native runtime: how it is built, and its operators against torch, on each kind of processor.

Most operators are held against the modules they stand for in tests/edit/test_lower.py.
"""

import argparse
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mirada
from mirada.commands import common
from mirada.core.linear import Quantized
from mirada.edit import lower
from mirada.generate.rows import Rows
from mirada.kernels import native
from mirada.kernels.blocks import expand
from mirada.kernels.pack import pack

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing() or "")

WAYS = {"plain": ("-O1", "-march=x86-64", "-DMIRADA_PORTABLE"), "eight bits": ("-DDEEP=0",)}
if "avx2" in Path("/proc/cpuinfo").read_text():
    WAYS["avx2"] = ("-O1", "-march=haswell")
D = 256


def through(module, x, *, act=0, gate=None, flags=()) -> torch.Tensor:
    """act(x W + b), or act(x G) * (x W + b), by the runtime's LINEAR operator; x (M, D)."""
    made = lower.Lowering()
    made.vocab = module.out_features
    rows, wide = made.buffer("rows", x.shape[1]), made.buffer("wide", x.shape[1])
    made.op("embed", made.held(x), dst=rows, width=x.shape[1], kind=native.KINDS["F32"], scale=1.0)
    made.op("gather", src=rows, dst=wide, width=x.shape[1])
    made.linears([(module, lower.LOGITS)], wide, act=act, gate=gate)
    program = made.native(native.library(*flags))
    program.reserve(-(-len(x) // 32))
    places = torch.arange(len(x))
    pages = torch.arange(len(program.pool))[None]
    return program.step(places, places, torch.zeros(len(x)), pages, places)


def rounded(x: torch.Tensor, top: int) -> torch.Tensor:
    """Activations as the runtime rounds them: whole numbers up to `top`, 32 to a scale."""
    groups = x.unflatten(-1, (-1, 32))
    per = groups.abs().amax(-1, keepdim=True)
    return ((groups * (top / per)).round() * (per / top)).nan_to_num().flatten(-2)


def made(type: str, rows: int) -> Quantized:
    weight = torch.randn(rows, D) * torch.rand(rows, 1)
    return Quantized(pack(weight, type), type, nn.Parameter(torch.randn(rows)))


@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize("type", sorted(native.KINDS))
def test_a_product_is_its_twin(type, way):
    """Every width of block, rows that fill no tile; a group of zeros and one of outliers."""
    module, flags = made(type, 77), WAYS.get(way, ())
    for count in (1, 2, 3, 7, 16, 21) if way is None else (1, 6):
        x = torch.randn(count, D)
        x[0, :32], x[-1, 40] = 0, 300.0
        twin = x if type in native.FLOATS else rounded(x, 127 if "-DDEEP=0" in flags
                                                                else 16256)
        expected = F.linear(twin.double(), module.expand(torch.float64), module.bias.double())
        found = through(module, x, flags=flags)
        assert (found - expected).abs().max() < 3e-6 * expected.abs().max()
    assert not torch.equal(found, through(made(type, 77), x, flags=flags))


@pytest.mark.parametrize("type", sorted(native.KINDS))
def test_rows_of_a_table(type):
    """What EMBED reads is what kernels.blocks expands, to the last bit but one."""
    blocks = pack(torch.randn(3, D), type)
    out = torch.empty(3, D)
    for row in range(3):
        native.library().mirada_expand(native.KINDS[type], D, blocks[row].data_ptr(),
                                       out[row].data_ptr())
    assert torch.allclose(out, expand(blocks, type), rtol=2e-7, atol=1e-7)


@pytest.mark.parametrize("way", [None, "plain"])
def test_half_precision_by_hand(way):
    """All 65,536 halves, their infinities and NaNs too, are read as torch reads them."""
    words = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16)
    out = torch.empty(1 << 16)
    native.library(*WAYS.get(way, ())).mirada_expand(1, 1 << 16, words.data_ptr(), out.data_ptr())
    expected = words.view(torch.float16).float()
    assert torch.equal(out.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("way", [None, "plain"])
@pytest.mark.parametrize("act", lower.ACTS)
def test_activations(act, way):
    module = nn.Linear(32, 32, bias=False)
    nn.init.eye_(module.weight)
    x = torch.cat([torch.linspace(-30, 30, 1000), torch.tensor([0.0, -0.0, 1e-20, 88, -120])])
    x = torch.cat([x, x.new_zeros(-len(x) % 32)]).view(-1, 32)[:32]
    found = through(module, x, act=act, flags=WAYS.get(way, ()))
    expected = lower.ACTS[act](x.double())
    assert ((found - expected).abs() <= 2e-6 * (1 + expected.abs())).all()
    gated = through(module, x, act=act, gate=module, flags=WAYS.get(way, ()))
    assert torch.allclose(gated, found * x, rtol=1e-6, atol=1e-6)


BOUNDS = {"float32": 2e-5, "float16": 3e-4, "int8": 3e-3}


@pytest.mark.parametrize("way", sorted(WAYS.keys() - {"eight bits"}))
@pytest.mark.parametrize("cache", native.CACHES)
def test_every_processor_gives_the_same_logits(way, cache):
    """A window, a cap, norms of q and k, slopes, keys on three pages. A key that is rounded may
    go to either side."""
    torch.manual_seed(1)
    for name, more in (("gemma2", {"window": 50}), ("gemma3", {}), ("bloom", {})):
        model = mirada.build(name, "tiny", seed=2, **more)
        ids = torch.randint(0, model.config.vocab, (2, 70)).tolist()
        first = Rows(lower.lower(model, cache=cache))(ids, 8)
        other = Rows(lower.lower(model, cache=cache, flags=WAYS[way]))(ids, 8)
        assert (first - other).abs().max() < BOUNDS[cache] * first.abs().max()


# ---- building -----------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache folder of one's own, and nothing known from before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_it_is_built_once_into_a_private_folder(fresh, capfd):
    flags = ("-O0",)
    native.library(*flags)
    folder = fresh / "mirada"
    (built,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and built.suffix == ".so"
    when = built.stat().st_mtime_ns
    native.library.cache_clear()
    native.library(*flags)
    assert [f.stat().st_mtime_ns for f in folder.iterdir()] == [when]
    assert capfd.readouterr().err == ""  # no terminal, no word


def test_why_there_is_none(fresh, monkeypatch):
    monkeypatch.setenv("MIRADA_NATIVE", "0")
    assert native.missing() == "MIRADA_NATIVE=0 turns the native runtime off"
    monkeypatch.delenv("MIRADA_NATIVE")
    monkeypatch.setenv("PATH", str(fresh))
    assert "needs a C compiler" in native.missing()
    broken = fresh / "cc"
    broken.write_text("#!/bin/sh\necho 'no room' >&2; exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fresh}:/bin")
    assert native.missing().endswith("could not build the native runtime: no room")
    assert not list((fresh / "mirada").iterdir())


def test_a_folder_that_others_may_write_is_refused(fresh):
    (fresh / "mirada").mkdir()
    (fresh / "mirada").chmod(0o777)
    assert "may be written by others" in native.missing()


# ---- threads ------------------------------------------------------------------------------------


def test_threads_are_a_word_of_the_commands(monkeypatch, capsys):
    parser = argparse.ArgumentParser()
    common.decoding_arguments(parser)
    said: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    monkeypatch.setattr("mirada.registry.load", lambda *_, **__: None)
    for words in (["m"], ["m", "--threads", "1"]):
        common.load(parser.parse_args(words))
    assert said == [1]
    for wrong in ("0", "two", "-1", "1000"):
        with pytest.raises(SystemExit):
            parser.parse_args(["m", "--threads", wrong])
        assert "is no number of threads: 1 to 256" in capsys.readouterr().err


def test_bits_of_activations_are_a_word_of_the_commands(capsys):
    parser = argparse.ArgumentParser()
    common.decoding_arguments(parser)
    assert common.decoding(parser.parse_args(["m", "--codes", "8"]))["codes"] == 8
    assert "codes" not in common.decoding(parser.parse_args(["m"]))
    with pytest.raises(SystemExit):
        parser.parse_args(["m", "--codes", "4"])
    assert "invalid choice: " in capsys.readouterr().err


@pytest.fixture(scope="module")
def program():
    return lower.lower(mirada.build("llama", "tiny", seed=0))


def test_two_callers_at_once(program):
    """Each has a pool of its own; the runtime takes one step at a time."""
    texts = [torch.randint(0, 1024, (40,)).tolist() for _ in range(2)]
    alone = [Rows(program)([t]) for t in texts]
    found: list = [None, None]

    def work(n: int) -> None:
        for _ in range(20):
            rows = Rows(program)
            rows.native.threads = 1 + n
            found[n] = rows([texts[n]])
            assert torch.equal(found[n], alone[n])

    workers = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert all(torch.equal(f, a) for f, a in zip(found, alone, strict=True))


def test_threads_come_and_go(program):
    """More of them than cores, then fewer, who try out how many are best in short steps."""
    text = torch.randint(0, 1024, (100,)).tolist()

    def written(threads: int) -> torch.Tensor:
        rows = Rows(program)
        rows.native.threads = threads
        return torch.stack([rows([text]), *(rows([[n]]) for n in range(24))])

    alone = written(1)
    for threads in (6, 2, 9, 1, 3):
        assert torch.equal(written(threads), alone), threads


def test_a_forked_child_has_threads_of_its_own():
    code = """
import os, torch, mirada
from mirada.edit import lower
from mirada.generate.rows import Rows
program = lower.lower(mirada.build("llama", "tiny", seed=0))
program.threads = 2
first = Rows(program)([[1, 2, 3]])
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(Rows(program)([[1, 2, 3]]), first) else 3)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(Rows(program)([[1, 2, 3]]), first)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr

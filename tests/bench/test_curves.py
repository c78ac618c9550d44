"""benchmarks/curves.py: what it measures, and where it says that lines cross. No clock is asked."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

from mirada.core.attend import Attend, Call, kernel
from mirada.core.cache import KV
from mirada.core.context import Ctx
from mirada.core.mask import Mask

PATH = Path(__file__).parents[2] / "benchmarks" / "curves.py"
LENGTHS = [64, 128]


@pytest.fixture(scope="module")
def curves():
    spec = importlib.util.spec_from_file_location("benchmarks_curves", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.scope("1.16.7")
def test_every_mechanism_is_measured_and_drawn(curves, tmp_path):
    found = curves.measure(LENGTHS, budget=0.0)
    assert set(found) == {"forward", "forward and backward"}
    for told in found.values():
        for what in ("seconds", "bytes"):
            assert list(told[what]) == list(curves.MECHANISMS)
            assert all(len(row) == 2 and min(row) > 0 for row in told[what].values())
    text = curves.tables(LENGTHS, found)
    for name, m in curves.MECHANISMS.items():
        assert f"| {name} | O({m.order}) | O({m.steps}) | O({m.path}) |" in text
        assert text.count(f"\n| {name} |") == 5
    path = tmp_path / "c.png"
    curves.pictures.save(curves.figure(LENGTHS, found), path)
    assert path.stat().st_size > 20_000


@pytest.mark.scope("1.16.7")
def test_memory_grows_as_theory_says(curves):
    """The square's is told by the allocator, not by a clock."""
    names = ["full, its square held", "Linformer", "Performer", "window"]
    found = curves.measure([512, 1024], names, budget=0.0)["forward"]["bytes"]
    square, *others = found.values()
    assert curves.growth(square) > 1.8
    for row in others:
        assert curves.growth(row) < 1.1 and row[1] < square[1]


def test_every_layer_takes_and_gives_the_stream_and_sees_what_it_says(curves):
    torch.manual_seed(0)
    x, full = torch.randn(1, 256, curves.D), None
    for name, m in curves.MECHANISMS.items():
        torch.manual_seed(1)
        layer = m.build(256)
        with torch.no_grad(), kernel(m.kernel or "sdpa"):
            out = layer(x, Ctx())
        assert out.shape == x.shape, name
        full = out if full is None else full
        assert name in ("full, its square held", "full, fused", "BigBird's blocks") or (
            out - full).abs().max() > 1e-3, name
    assert curves.Blocks.plan(8).tolist() == [list(range(8))] * 8


def test_gathered_blocks_are_their_pattern(curves):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 512, 8, dtype=torch.float64) for _ in "qkv")
    plan, blocks = curves.Blocks.plan(16), torch.zeros(16, 16).bool()
    blocks.scatter_(1, plan, True)
    i = torch.arange(16)
    assert (blocks.sum(1) == 8).all() and blocks[:, [0, -1]].all()
    assert blocks[(i[:, None] - i).abs() <= 1].all()
    blocks[[0, -1]] = True
    seen = blocks.repeat_interleave(32, 0).repeat_interleave(32, 1)
    weights = Attend.weights(Call(q, KV(k, v), 0.3, Mask())).masked_fill(~seen, 0)
    wanted = weights @ v / weights.sum(-1, keepdim=True)
    made = curves.Blocks()(q, KV(k, v), scale=0.3, mask=Mask())
    assert (made - wanted).abs().max() < 1e-13


def test_theory_is_table_1(curves):
    """What four times the length costs: 16 times, 8 times, 4 times."""
    grows = {"n² · d": 2, "n · √n · d": 1.5}
    for name, m in curves.MECHANISMS.items():
        a, b = m.work(2**12), m.work(2**14)
        assert math.log2(b / a) / 2 == pytest.approx(grows.get(m.order, 1), abs=1e-2), name
    assert curves.theory([curves.D], "full, fused") == [6 * curves.D**3]
    assert curves.theory([curves.D], "LSTM") == [8 * curves.D**3]


@pytest.mark.scope("1.16.7")
def test_where_lines_cross(curves):
    xs = [100, 200, 400, 800]
    square, line = [x * x / 300 for x in xs], [float(x) for x in xs]
    assert curves.crossing(xs, line, square) == pytest.approx(300)
    assert curves.between(xs, square, 300) == pytest.approx(300)
    assert curves.crossing(xs, square, line) is None
    assert curves.crossing(xs, [x / 2 for x in square], square) == 100
    assert curves.crossing(xs, line, [*square[:3], None]) == pytest.approx(300)
    again = [*line[:2], 2e3, line[3]]  # below, above, and below for good
    assert 400 < curves.crossing(xs, again, square) < 800
    assert curves.growth([*square, None]) == pytest.approx(2)
    assert curves.growth(line) == pytest.approx(1)

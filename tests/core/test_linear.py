"""Weights that stay in blocks: the same numbers as the expanded weight, in every way they run."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirada.core import linear
from mirada.core.linear import Quantized, QuantizedEmbedding, keeps, kept, replaced
from mirada.kernels.blocks import LAYOUTS, expand
from mirada.kernels.pack import pack

TYPES = list(LAYOUTS)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(type: str, out: int = 12, width: int = 256, bias=True) -> Quantized:
    bias = nn.Parameter(numbers(out, seed=1)) if bias else None
    return Quantized(pack(numbers(out, width), type), type, bias)


@pytest.mark.parametrize("type", TYPES)
def test_the_pass_is_that_of_the_expanded_weight(type):
    module = quantized(type)
    assert (module.in_features, module.out_features, module.shape) == (256, 12, (12, 256))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, wide = numbers(2, 3, 256, seed=2).to(dtype), module.to(dtype)
        wanted = F.linear(x, expand(module.blocks, type, dtype), module.bias)
        assert torch.equal(wide(x), wanted) and wide(x).dtype == dtype
    assert module.blocks.dtype == torch.uint8, "a change of dtype leaves the blocks alone"


@pytest.mark.parametrize("type", ["Q4_0", "NF4", "I8"])
def test_gradients_reach_x_and_bias(type):
    module = quantized(type).double()
    module.dynamic = type == "I8"  # with a gradient the exact product runs
    weight = module.expand(torch.float64)
    x = numbers(2, 5, 256, seed=3).double().requires_grad_()
    other, bias = x.detach().clone().requires_grad_(), module.bias.detach().clone().requires_grad_()
    module(x).square().sum().backward()
    F.linear(other, weight, bias).square().sum().backward()
    assert torch.allclose(x.grad, other.grad, rtol=1e-12)
    assert torch.allclose(module.bias.grad, bias.grad, rtol=1e-12)
    assert [n for n, _ in module.named_parameters()] == ["bias"]


def test_a_large_weight_is_expanded_in_parts(monkeypatch):
    module, x = quantized("Q8_0", out=50).double(), numbers(3, 256).double().requires_grad_()
    whole = module(x)
    (grad,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr(linear, "LARGEST", 256 * 7)
    assert torch.allclose(module(x), whole, rtol=1e-12)
    assert torch.allclose(torch.autograd.grad(module(x).square().sum(), x)[0], grad, rtol=1e-12)


def test_nothing_but_blocks_is_kept_for_the_gradient():
    module, x = quantized("Q4_0", out=64, bias=False), numbers(1, 256).requires_grad_()
    kept_bytes = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept_bytes.append(t.nbytes) or t, lambda t: t):
        module(x)
    assert sum(kept_bytes) == module.blocks.nbytes


def test_a_table_expands_the_rows_it_is_asked_for():
    table = QuantizedEmbedding(pack(numbers(9, 64), "Q8_0"), "Q8_0")
    ids = torch.tensor([[3, 0, 8], [3, 3, 1]])
    assert torch.equal(table(ids), table.expand()[ids]) and table.shape == (9, 64)
    assert table.half()(ids).dtype == torch.float16
    assert table.double()(ids).dtype == torch.float64


@pytest.mark.scope("1.15.7")
def test_products_in_eight_bits():
    module = quantized("I8", out=40)
    x = numbers(3, 7, 256, seed=4)
    exact = module(x)
    module.dynamic = True
    spread = exact.std()
    worst = ((module(x) - exact).abs().max() / spread).item()
    assert 0 < worst < 0.05, "x is rounded, and not far"
    x[1, 2, 5] = 900.0  # one channel far out: without its own path all of its row is lost
    module.dynamic = False
    exact = module(x)
    module.dynamic = True
    assert (module(x) - exact).abs().max() / spread < 0.05
    zero = torch.zeros(2, 256)
    assert torch.equal(module(zero), module.bias.expand(2, -1))


def test_outliers_unminded_would_show(monkeypatch):
    module, x = quantized("I8", out=40), numbers(3, 256, seed=4)
    x[1, 5] = 900.0
    exact, module.dynamic = module(x), True
    monkeypatch.setattr(linear, "OUTLIER", 1e9)
    assert (module(x) - exact)[1].abs().max() / exact[0].std() > 0.2


def test_what_can_be_kept_and_where_it_goes():
    class Own(nn.Linear):
        pass

    assert keeps(nn.Linear(2, 2)) and keeps(nn.Embedding(2, 2)) and not keeps(Own(2, 2))
    shared = nn.Linear(32, 4)
    tree = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.Linear(4, 4))}).eval()
    new = kept(shared, pack(shared.weight, "Q8_0"), "Q8_0")
    replaced(tree, {shared: new})
    assert tree["a"] is new is tree["b"][0] and new.bias is shared.bias and not new.training

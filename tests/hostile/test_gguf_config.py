"""GGUF metadata that contradict themselves or the tensors are refused before a model is built."""

import time

import numpy as np
import pytest

import mirada
from mirada import registry
from mirada.errors import MiradaError, UntrustedInputError
from models import tiny_gguf

D, F, V, KV = 32, 64, 61, 16


def named() -> dict[str, np.ndarray]:
    """Zeros of the right shapes."""
    shapes = {"token_embd": (V, D), "output_norm": (D,), "output": (V, D)}
    for n in range(2):
        shapes |= {f"blk.{n}.{name}": shape for name, shape in {
            "attn_norm": (D,), "attn_q": (D, D), "attn_k": (KV, D), "attn_v": (KV, D),
            "attn_output": (D, D), "ffn_norm": (D,), "ffn_gate": (F, D), "ffn_up": (F, D),
            "ffn_down": (D, F)}.items()}
    return {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}


CASES = {  # name -> (llama.* keys, tokenizer keys, what the error names)
    "blocks-2^31": ({"block_count": 2**31}, {}, "num_hidden_layers"),
    "blocks-more-than-tensors": ({"block_count": 2000}, {}, "layers"),
    "no-blocks": ({"block_count": 0}, {}, "num_hidden_layers"),
    "no-heads": ({"attention.head_count": 0}, {}, "num_attention_heads"),
    "heads-do-not-divide": ({"attention.head_count": 7, "attention.head_count_kv": 7,
                             "rope.dimension_count": None}, {}, "heads"),
    "kv-heads-do-not-divide": ({"attention.head_count_kv": 3}, {}, "cannot share 3"),
    "no-kv-heads": ({"attention.head_count_kv": 0}, {}, "num_key_value_heads"),
    "kv-heads-list": ({"attention.head_count_kv": [2, 2]}, {}, "num_key_value_heads"),
    "odd-rotation": ({"rope.dimension_count": 7}, {}, "pairs"),
    "part-of-a-head-turns": ({"attention.key_length": 8, "rope.dimension_count": 4}, {},
                             "rope.dimension_count"),
    "rotation-text": ({"rope.dimension_count": "8"}, {}, "head_dim"),
    "base-0": ({"rope.freq_base": 0.0}, {}, "rope_theta"),
    "factor-0": ({"rope.scaling.type": "linear", "rope.scaling.factor": 0.0}, {}, "factor"),
    "scaling-unknown": ({"rope.scaling.type": "spiral"}, {}, "spiral"),
    "scaling-attention": ({"rope.scaling.attn_factor": 2.0}, {}, "attn_factor"),
    "experts": ({"expert_count": 8}, {}, "llama.expert_count"),
    "unknown-key": ({"embedding_scale": 12.0}, {}, "llama.embedding_scale"),
    "both-ways": ({"attention.causal": False}, {}, "llama.attention.causal"),
    "eps-negative": ({"attention.layer_norm_rms_epsilon": -1.0}, {}, "rms_norm_eps"),
    "no-width": ({"embedding_length": None}, {}, "hidden_size"),
    "width-2^30": ({"embedding_length": 2**30}, {}, "hidden_size"),
    "vocabulary-key": ({"vocab_size": 62}, {}, "vocab_size"),
    "vocabulary-list": ({}, {"tokens": ["a", "b"]}, "tokenizer.ggml.tokens"),
    "vocabulary-number": ({}, {"tokens": 61}, "tokenizer.ggml.tokens"),
    "bos-past-the-end": ({}, {"bos_token_id": 61}, "bos_token_id"),
    "eos-negative": ({}, {"eos_token_id": -1}, "eos_token_id"),
    "pad-text": ({}, {"padding_token_id": "0"}, "padding_token_id"),
}


@pytest.fixture
def nothing_built(monkeypatch):
    def assemble(*args):
        raise AssertionError("a model was built from a file that must be refused before")
    monkeypatch.setattr(registry, "assemble", assemble)


@pytest.mark.parametrize("name", CASES)
def test_refused_before_building(name, tmp_path, nothing_built):
    keys, tokenizer, said = CASES[name]
    path = tiny_gguf.write(tmp_path / "m.gguf", named(), keys, tokenizer)
    began = time.perf_counter()
    with pytest.raises(UntrustedInputError) as caught:
        mirada.load(path)
    assert time.perf_counter() - began < 2
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("shape, said", [((3,), "longrope"), ((2, 2), "rope_freqs"),
                                         ((5000,), "rope_freqs")])
def test_factors_of_rotation_must_fit(shape, said, tmp_path, nothing_built):
    extra = {"rope_freqs.weight": np.ones(shape, np.float32)}
    path = tiny_gguf.write(tmp_path / "m.gguf", named() | extra)
    with pytest.raises(UntrustedInputError, match=said):
        mirada.load(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_factors_of_rotation_must_be_positive_numbers(bad, tmp_path, nothing_built):
    extra = {"rope_freqs.weight": np.array([1, 1, bad, 1], np.float32)}
    path = tiny_gguf.write(tmp_path / "m.gguf", named() | extra)
    with pytest.raises(UntrustedInputError, match="short_factor"):
        mirada.load(path)


def test_factors_beside_another_scaling(tmp_path, nothing_built):
    extra = {"rope_freqs.weight": np.ones(4, np.float32)}
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    path = tiny_gguf.write(tmp_path / "m.gguf", named() | extra, keys)
    with pytest.raises(UntrustedInputError, match="rope_freqs"):
        mirada.load(path)


@pytest.mark.parametrize("changes, said", [
    ({"blk.1.attn_k.weight": np.zeros((KV + 1, D), np.float32)}, "blk.1.attn_k.weight"),
    ({"blk.0.ffn_up.weight": None}, "blk.0.ffn_up.weight"),
    ({"blk.0.attn_q.bias": np.zeros(D, np.float32)}, "blk.0.attn_k.bias"),
    ({"blk.0.ffn_gate_exps.weight": np.zeros((D, D), np.float32)}, "ffn_gate_exps"),
    ({"token_embd.weight": None}, "token_embd.weight"),
])
def test_tensors_that_do_not_fit(changes, said, tmp_path):
    tensors = {k: v for k, v in (named() | changes).items() if v is not None}
    path = tiny_gguf.write(tmp_path / "m.gguf", tensors)
    with pytest.raises(MiradaError, match=said):
        mirada.load(path)


def test_the_file_that_all_these_start_from_loads(tmp_path):
    model = mirada.load(tiny_gguf.write(tmp_path / "m.gguf", named()))
    assert model.config.head_dim == 8 and model.config.vocab == V


def test_an_unknown_key_can_be_ignored_by_name(tmp_path):
    path = tiny_gguf.write(tmp_path / "m.gguf", named(), {"embedding_scale": 1.0})
    model = mirada.load(path, ignore=["llama.embedding_scale"])
    assert model.origin.ignored == {"llama.embedding_scale": "left out as asked"}

"""LLaMA from GGUF: against the model it was converted from, and the reference's own reader."""

import gguf
import pytest
import torch
import transformers

import mirada
from models import tiny_gguf
from parity.harness import read_reference, shake, wide

BASE = dict(vocab_size=61, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
            rms_norm_eps=2.0**-16)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=0.5, high_freq_factor=2.0,
              original_max_position_embeddings=8, rope_theta=10000.0)


def source(**changes) -> torch.nn.Module:
    """A reference model whose weights are float32 numbers, held in float64."""
    torch.manual_seed(7)
    config = transformers.LlamaConfig(**BASE | changes)
    config._attn_implementation = "eager"
    with wide():
        model = transformers.LlamaForCausalLM(config).double().eval()
        shake(model)
    for p in model.parameters():
        p.data = p.data.float().double()
    return model


def ids(length: int = 20) -> torch.Tensor:
    return torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(3))


def worst(ours, theirs) -> float:
    with wide():
        wanted = theirs(ids()).logits
    assert torch.isfinite(wanted).all()
    return (ours(ids()).logits - wanted).abs().max().item()


@pytest.mark.parametrize("changes, keys", [
    ({}, {}),
    ({"tie_word_embeddings": True, "num_key_value_heads": 1}, {"attention.head_count_kv": 1}),
    ({"num_key_value_heads": 4}, {"attention.head_count_kv": None, "vocab_size": None}),
    ({"head_dim": 16}, {"rope.dimension_count": 16, "attention.key_length": 16,
                        "attention.value_length": 16}),
    ({"attention_bias": True, "mlp_bias": True}, {"expert_count": 0}),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
     {"rope.freq_base": 50.0, "rope.scaling.type": "none"}),
    ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, {"rope.scale_linear": 4.0}),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 0.5, "beta_slow": 0.125,
                          "original_max_position_embeddings": 8}},
     {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.0,
      "rope.scaling.original_context_length": 8, "rope.scaling.finetuned": True,
      "rope.scaling.yarn_beta_fast": 0.5, "rope.scaling.yarn_beta_slow": 0.125}),
], ids=["plain", "tied-one-head", "all-heads", "wide-heads", "biases", "base", "linear", "yarn"])
def test_same_as_what_it_was_converted_from(changes, keys, tmp_path):
    theirs = source(**changes)
    kv = changes.get("num_key_value_heads", 2)
    path = tiny_gguf.write(tmp_path / "m.gguf", tiny_gguf.tensors(theirs, 4, kv), keys)
    ours = mirada.load(path, dtype=torch.float64)
    assert worst(ours, theirs) < 1e-10
    assert ours.dtype == torch.float64 and mirada.load(path).dtype == torch.float32
    mirada.save(ours, tmp_path / "folder")
    again = read_reference(transformers.LlamaForCausalLM, tmp_path / "folder")
    assert worst(ours, again) < 1e-10
    assert torch.equal(mirada.load(tmp_path / "folder")(ids()).logits, ours(ids()).logits)


@pytest.mark.parametrize("kind", [None, "Q8_0"])
def test_same_as_the_references_reader(kind, tmp_path):
    """q and k un-permuted as it does, the same numbers out of the blocks."""
    kind = kind and gguf.GGMLQuantizationType[kind]
    path = tiny_gguf.write(tmp_path / "m.gguf", tiny_gguf.tensors(source()), kind=kind)
    ours = mirada.load(path)
    with wide():
        theirs = tiny_gguf.read_reference(path).double()
    assert worst(ours.double(), theirs) < 1e-10
    for layer, block in zip(theirs.model.layers, ours.body.blocks, strict=True):
        q, k = (m.weight if kind is None else m.expand(torch.float64)
                for m in (block.attn.f.q, block.attn.f.k))
        assert torch.equal(q, layer.self_attn.q_proj.weight)
        assert torch.equal(k, layer.self_attn.k_proj.weight)


def test_factors_of_rotation_are_used(tmp_path):
    """LLaMA 3.1 in GGUF says its scaling only by a tensor of factors; nothing in the keys does."""
    theirs = source(rope_parameters=LLAMA3)
    plain = 10000.0 ** (-torch.arange(0, 8, 2).double() / 8)
    slowed = theirs.model.rotary_emb.inv_freq.double()
    named = tiny_gguf.tensors(theirs)
    without = mirada.load(tiny_gguf.write(tmp_path / "without.gguf", named), dtype=torch.float64)
    named["rope_freqs.weight"] = (plain / slowed).float().numpy()
    ours = mirada.load(tiny_gguf.write(tmp_path / "m.gguf", named), dtype=torch.float64)
    assert worst(ours, theirs) < 1e-5, "the factors are float32 numbers in the file"
    assert worst(without, theirs) > 1e-2, "the scaling changes nothing here: this proves nothing"
    mirada.save(ours, tmp_path / "folder")
    again = read_reference(transformers.LlamaForCausalLM, tmp_path / "folder")
    assert worst(ours, again) < 1e-10, "the folder says the same factors"


def test_ids_of_the_tokenizer_travel(tmp_path):
    tokenizer = {"tokens": [f"t{n}" for n in range(61)], "bos_token_id": 3, "eos_token_id": 60,
                 "padding_token_id": 5}
    path = tiny_gguf.write(tmp_path / "m.gguf", tiny_gguf.tensors(source()), tokenizer=tokenizer)
    raw = mirada.load(path).origin.raw
    assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (3, 60, 5)

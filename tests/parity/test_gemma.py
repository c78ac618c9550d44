"""Gemma 1, 2 and 3 against the reference."""

import copy
import json
import shutil

import pytest
import torch

import mirada
from parity.harness import Row, pair, run_theirs, table

TINY = dict(vocab_size=61, hidden_size=32, intermediate_size=20, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=6, max_position_embeddings=32,
            pad_token_id=1, bos_token_id=None, eos_token_id=None)
TWO = dict(sliding_window=3, query_pre_attn_scalar=9, attn_logit_softcapping=2.0,
           final_logit_softcapping=3.0)
THREE = dict(sliding_window=3, query_pre_attn_scalar=9, num_hidden_layers=3, rope_parameters={
    "full_attention": dict(rope_type="linear", factor=4.0, rope_theta=500.0),
    "sliding_attention": dict(rope_type="default", rope_theta=20.0)},
    layer_types=["sliding_attention", "full_attention", "sliding_attention"])
FIRST = {"Gemma": {}, "Gemma2": TWO, "Gemma3": THREE}


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    name = architecture[:6] if architecture[5] in "23" else "Gemma"
    config = name + ("TextConfig" if name == "Gemma3" else "Config")
    return Row(architecture, config, TINY | FIRST[name] | more, **keys)


ROWS = [
    row("GemmaForCausalLM", cached=True),
    row("GemmaForCausalLM", cached=True, name="odd", num_key_value_heads=1, hidden_act="relu",
        attention_bias=True, rms_norm_eps=1e-3, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=77.0)),
    row("GemmaModel"),
    row("GemmaForSequenceClassification", num_labels=3),
    row("GemmaForTokenClassification", num_labels=3),
    row("Gemma2ForCausalLM", cached=True),
    row("Gemma2ForCausalLM", cached=True, name="odd", layer_types=["full_attention"] * 2,
        attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True,
        hidden_activation="silu", tie_word_embeddings=False),
    row("Gemma2Model"),
    row("Gemma2ForSequenceClassification", num_labels=3),
    row("Gemma2ForTokenClassification", num_labels=3),
    row("Gemma3ForCausalLM", cached=True),
    row("Gemma3ForCausalLM", cached=True, name="odd", final_logit_softcapping=2.0,
        attention_bias=True, rms_norm_eps=1e-3, tie_word_embeddings=False, layer_types=None,
        num_hidden_layers=6),
    row("Gemma3TextModel"),
    row("Gemma3TextForSequenceClassification", num_labels=3),
]
test_parity = pytest.mark.scope("1.6.7")(table(ROWS))


def load(raw: dict, both, folder) -> mirada.Model:
    (folder / "config.json").write_text(json.dumps(raw))
    shutil.copy(both.folder / "model.safetensors", folder)
    return mirada.load(folder)


def test_the_published_files_spellings(tmp_path):
    """Bases outside their objects, a pattern for the layers' kinds, rope_scaling of the far."""
    both = pair(next(r for r in ROWS if str(r) == "Gemma3ForCausalLM-odd"))
    raw = json.loads((both.folder / "config.json").read_text())
    del raw["layer_types"], raw["rope_parameters"], raw["query_pre_attn_scalar"]
    raw |= {"rope_theta": 500.0, "rope_local_base_freq": 20.0, "sliding_window_pattern": 6,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "query_pre_attn_scalar": 9,
            "cache_implementation": "hybrid"}
    model = load(raw, both, tmp_path)
    theirs = run_theirs(both, both.batch)["logits"]
    assert (model(**both.batch).logits - theirs).abs().max() < 1e-10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_embeddings_are_scaled_by_a_rounded_root(dtype, tmp_path):
    """55.5 for that of 3,072 in bfloat16; embeddings that are handed in are taken as they are."""
    both = pair(ROWS[0])
    ids, theirs = both.batch["input_ids"], copy.deepcopy(both.theirs).to(dtype).model.embed_tokens
    theirs.embed_scale.fill_(32**0.5)  # it was a buffer, and the cast above rounded it
    table = mirada.load(both.folder, dtype=dtype).body.embed.token
    assert torch.equal(table(ids), theirs(ids))
    given = torch.randn(2, 5, 32, dtype=torch.float64)
    want = run_theirs(both, {"inputs_embeds": given})["logits"]
    assert (both.ours(inputs_embeds=given).logits - want).abs().max() < 1e-10


def test_what_an_early_file_calls_gelu(tmp_path):
    both = pair(ROWS[0])
    raw = json.loads((both.folder / "config.json").read_text()) | {"hidden_act": "gelu"}
    assert load(raw, both, tmp_path).config.act == "gelu_pytorch_tanh"


@pytest.mark.parametrize("row, changes, said", [
    (0, {"sliding_window": 3}, "sliding_window"), (0, {"layer_types": None}, "layer_types"),
    (0, {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    (0, {"mlp_bias": True}, "mlp_bias"), (5, {"rope_local_base_freq": 20.0}, "rope_local"),
    (5, {"layer_types": ["full_attention"]}, "layer_types"),
    (10, {"attn_logit_softcapping": 3.0}, "attn_logit_softcapping"),
    (10, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (10, {"rope_parameters": THREE["rope_parameters"] | {"sliding_attention": {
        "rope_type": "linear", "factor": 2.0, "rope_theta": 20.0}}}, "sliding_attention"),
    (10, {"rope_parameters": {"full_attention": {}, "sliding_attention": 3}}, "full_attention")])
def test_what_cannot_be_is_refused(row, changes, said, tmp_path):
    both = pair(ROWS[row])
    with pytest.raises(mirada.MiradaError, match=said):
        load(json.loads((both.folder / "config.json").read_text()) | changes, both, tmp_path)


@pytest.mark.parametrize("name, count", [
    ("gemma:2b", 2_506_172_416), ("gemma:7b", 8_537_680_896), ("gemma2:2b", 2_614_341_888),
    ("gemma2:9b", 9_241_705_984), ("gemma2:27b", 27_227_128_320), ("gemma3:1b", 999_885_952),
    ("gemma3:270m", 268_098_176)])
def test_published_sizes(name, count):
    model = mirada.build(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count

"""Qwen2 and Qwen3 against the reference."""

import json

import pytest

import mirada
from parity.harness import Row, pair, table

TINY = dict(vocab_size=61, hidden_size=32, intermediate_size=20, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
            pad_token_id=1)
SLIDING = dict(use_sliding_window=True, sliding_window=3, max_window_layers=1)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    more |= {} if architecture.startswith("Qwen2") else {"head_dim": more.get("head_dim", 6)}
    return Row(architecture, architecture[:5] + "Config", TINY | more, **keys)


ROWS = [
    row("Qwen2ForCausalLM", cached=True),
    row("Qwen2ForCausalLM", cached=True, name="odd", num_key_value_heads=1, hidden_act="gelu_new",
        rms_norm_eps=1e-3, tie_word_embeddings=True, **SLIDING,
        rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=77.0)),
    row("Qwen2ForCausalLM", cached=True, name="types", use_sliding_window=True, sliding_window=2,
        layer_types=["sliding_attention", "full_attention"]),
    row("Qwen2Model"),
    row("Qwen2ForSequenceClassification", num_labels=3),
    row("Qwen2ForTokenClassification", num_labels=3),
    row("Qwen2ForQuestionAnswering"),
    row("Qwen3ForCausalLM", cached=True),
    row("Qwen3ForCausalLM", cached=True, name="odd", attention_bias=True, hidden_act="relu",
        rms_norm_eps=1e-3, tie_word_embeddings=True, **SLIDING),
    row("Qwen3Model"),
    row("Qwen3ForSequenceClassification", num_labels=3),
    row("Qwen3ForTokenClassification", num_labels=3),
    row("Qwen3ForQuestionAnswering"),
]
test_parity = table(ROWS)


@pytest.mark.parametrize("name, count", [
    ("qwen2:0.5b", 494_032_768), ("qwen2:1.5b", 1_543_714_304), ("qwen2:7b", 7_615_616_512),
    ("qwen2:72b", 72_706_203_648), ("qwen3:0.6b", 596_049_920), ("qwen3:4b", 4_022_468_096),
    ("qwen3:8b", 8_190_735_360)])
def test_published_sizes(name, count):
    model = mirada.build(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("changes, said", [
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"layer_types": ["full_attention", "narrow"]}, "layer_types"),
    ({"use_sliding_window": False, "layer_types": ["full_attention", "sliding_attention"]},
     "no sliding_window"),
    ({"mlp_bias": True}, "mlp_bias"), ({"num_key_value_heads": 3}, "cannot share 3")])
def test_what_cannot_be_is_refused(changes, said, tmp_path):
    raw = json.loads((pair(ROWS[1]).folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(mirada.MiradaError, match=said):
        mirada.load(tmp_path)

"""BLOOM against the reference."""

import json
import shutil

import pytest
import torch

import mirada
from parity.harness import Row, pair, table

TINY = dict(vocab_size=61, hidden_size=24, n_layer=2, n_head=4, pad_token_id=1, bos_token_id=None,
            eos_token_id=None)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "BloomConfig", TINY | more, **keys)


ROWS = [
    row("BloomForCausalLM", cached=True),
    row("BloomForCausalLM", cached=True, name="odd", n_head=6, layer_norm_epsilon=1e-3,
        apply_residual_connection_post_layernorm=True, tie_word_embeddings=False),
    row("BloomModel"),
    row("BloomForSequenceClassification", num_labels=3),
    row("BloomForTokenClassification", num_labels=3),
    row("BloomForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.2.5")(table(ROWS))


@pytest.mark.parametrize("size, count", [
    ("560m", 559_214_592), ("1b1", 1_065_314_304), ("1b7", 1_722_408_960), ("3b", 3_002_557_440),
    ("7b1", 7_069_016_064), ("176b", 176_247_271_424)])
def test_published_sizes(size, count):
    model = mirada.build("bloom", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


def test_an_older_file(tmp_path):
    """The published files' spellings, and names without the prefix."""
    both = pair(ROWS[0])
    raw = json.loads((both.folder / "config.json").read_text())
    raw["n_embed"], raw["num_attention_heads"] = raw.pop("hidden_size"), raw.pop("n_head")
    raw |= {"offset_alibi": 100, "seq_length": 2048, "skip_bias_add": True, "n_inner": None}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    shutil.copy(both.folder / "model.safetensors", tmp_path)
    model = mirada.load(tmp_path)
    assert torch.equal(model(**both.batch).logits, both.ours(**both.batch).logits)
    raw |= {"slow_but_exact": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(mirada.MiradaError, match="slow_but_exact"):
        mirada.load(tmp_path)

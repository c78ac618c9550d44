"""ModernBERT against the reference."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file

import mirada
from mirada.errors import MiradaError
from parity.harness import BAR, Row, pair, table

TINY = dict(vocab_size=61, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=32, local_attention=4, pad_token_id=0,
            bos_token_id=None, eos_token_id=None, cls_token_id=None, sep_token_id=None)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt", "left")}
    return Row(architecture, "ModernBertConfig", TINY | more, **keys)


ROWS = [
    row("ModernBertForMaskedLM"),
    row("ModernBertForMaskedLM", name="odd", norm_bias=True, attention_bias=True, mlp_bias=True,
        classifier_bias=True, decoder_bias=False, tie_word_embeddings=False, norm_eps=1e-3,
        hidden_activation="silu", classifier_activation="relu", local_attention=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 500.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 30.0}}),
    row("ModernBertForMaskedLM", name="learned", hidden_activation="prelu", num_hidden_layers=1,
        classifier_activation="prelu", exempt={"window": "its one layer sees everything"}),
    row("ModernBertModel", norm_bias=True),
    row("ModernBertForSequenceClassification", num_labels=3, left=False),  # its first is a pad
    row("ModernBertForSequenceClassification", name="mean", num_labels=3,
        classifier_pooling="mean", classifier_bias=True),
    row("ModernBertForTokenClassification", num_labels=3),
    row("ModernBertForQuestionAnswering"),
]
test_parity = table(ROWS)


def test_the_published_files_spellings(tmp_path):
    """A period in place of each layer's kind, the bases outside an object."""
    both = pair(ROWS[0])
    raw = json.loads((both.folder / "config.json").read_text())
    del raw["layer_types"], raw["rope_parameters"]
    raw |= dict(global_attn_every_n_layers=2, global_rope_theta=900.0, local_rope_theta=50.0,
                layer_norm_eps=1e-5, position_embedding_type="absolute", reference_compile=None)
    old = tmp_path / "old"
    old.mkdir()
    save_file(mirada.registry.export(both.ours), old / "model.safetensors")
    (old / "config.json").write_text(json.dumps(raw))
    ours, ids = mirada.load(old), both.batch["input_ids"]
    assert [a.attn.f.mask.window for a in ours.body.blocks] == [None, 3, None]
    mirada.save(ours, tmp_path / "again")
    for folder in (old, tmp_path / "again"):
        theirs = transformers.ModernBertForMaskedLM.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager")
        assert (ours(ids).logits - theirs(ids).logits).abs().max() < 1e-5  # its angles are float32
    assert (ours(ids).logits - both.ours(ids).logits).abs().max() > 1e-3


@pytest.mark.parametrize("changes, said", [
    ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}}}, "linear"),
    ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "yarn"),
    ({"rope_parameters": {"full_attention": 5}}, "rope_parameters.full_attention"),
    ({"rope_parameters": [5]}, "rope_parameters"),
    ({"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters.rope_theta"),
    ({"layer_types": ["full_attention"]}, "layer_types"), ({"classifier_pooling": "max"}, "cls")])
def test_what_is_not_here_is_refused(tmp_path, changes, said):
    both = pair(ROWS[0])
    raw = json.loads((both.folder / "config.json").read_text()) | changes
    save_file(mirada.registry.export(both.ours), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(MiradaError, match=said):
        mirada.load(tmp_path)


def test_pads_change_no_mean():
    both = pair(next(r for r in ROWS if r.name == "mean"))
    ids = both.batch["input_ids"][:1]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    got = both.ours(padded, (padded != 0).long()).logits
    assert (got - both.ours(ids).logits).abs().max() < BAR


@pytest.mark.parametrize("size, count", [("base", 149_655_232), ("large", 395_881_664)])
def test_published_sizes(size, count):
    model = mirada.build("modernbert", size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count

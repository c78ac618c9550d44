"""The first DeBERTa against the reference."""

import json

import pytest
import torch
import transformers

import mirada
from mirada import registry
from mirada.errors import MiradaError
from mirada.weights import config
from parity.harness import Row, table, tokens

TINY = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=16, relative_attention=True,
            pos_att_type="c2p|p2c", position_biased_input=False)


def long(row: Row) -> dict:
    """Texts longer than the farthest distance; segments where the row has kinds."""
    batch = tokens(row, 2, 14)
    kinds = row.settings.get("type_vocab_size", 0)
    if kinds:
        batch["token_type_ids"] = torch.randint(kinds, batch["input_ids"].shape)
    return batch


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "left")}
    return Row(architecture, "DebertaConfig", TINY | more, inputs=long, **keys)


ROWS = [
    row("DebertaForMaskedLM"),
    row("DebertaForMaskedLM", name="newer-head", legacy=False),
    row("DebertaForMaskedLM", name="odd", max_relative_positions=5, position_biased_input=True,
        type_vocab_size=2, embedding_size=12, tie_word_embeddings=False, hidden_act="prelu",
        layer_norm_eps=1e-3),
    row("DebertaModel", name="c2p", pos_att_type=["c2p"]),
    row("DebertaModel", name="p2c", pos_att_type=["p2c"], max_relative_positions=20),
    row("DebertaModel", name="no-terms", pos_att_type=None, position_biased_input=True),
    row("DebertaModel", name="absolute", relative_attention=False, position_biased_input=True),
    row("DebertaForSequenceClassification", num_labels=3, pooler_hidden_act="tanh", left=False),
    row("DebertaForTokenClassification", num_labels=3),
    row("DebertaForQuestionAnswering"),
]
test_parity = table(ROWS)

PUBLISHED = """{"model_type": "deberta", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
"hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
"intermediate_size": 3072, "max_position_embeddings": 512, "relative_attention": true,
"pos_att_type": "c2p|p2c", "layer_norm_eps": 1e-7, "padding_idx": 0, "max_relative_positions": -1,
"position_biased_input": false, "num_attention_heads": 12, "num_hidden_layers": 12,
"type_vocab_size": 0, "vocab_size": 50265}"""  # config.json of base


@pytest.mark.scope("1.5.6")
def test_the_published_config_is_the_size_of_that_name(tmp_path):
    fam = registry.family("deberta_v1")
    reading = config.read(fam.Config, json.loads(PUBLISHED), "config.json", inert=fam.INERT)
    assert reading.config == fam.SIZES["base"]


@pytest.mark.scope("1.5.6")
@pytest.mark.parametrize("size, count", [("base", 138_601_728), ("large", 405_163_008)])
def test_published_sizes(size, count):
    model = mirada.build("deberta_v1", size, architecture="DebertaModel", device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_familys_name_goes_before_a_model_type(tmp_path):
    """`deberta` is what files of the first version call themselves, and our later family."""
    first, later = (mirada.build(f"{name}:tiny", seed=0) for name in ("deberta_v1", "deberta"))
    assert later.architecture == "DebertaV2ForMaskedLM"
    for model, kind in ((first, "deberta"), (later, "deberta-v2")):
        mirada.save(model, tmp_path / kind)
        again = mirada.load(tmp_path / kind)
        assert again.family == model.family
        assert json.loads((tmp_path / kind / "config.json").read_text())["model_type"] == kind


def test_its_own_files_bring_their_newer_head(tmp_path):
    """No `legacy`, no `architectures`."""
    theirs = transformers.DebertaForMaskedLM(transformers.DebertaConfig(**TINY, legacy=False))
    theirs.eval().save_pretrained(tmp_path / "v1")
    file, ids = tmp_path / "v1" / "config.json", torch.arange(3, 10)[None]
    raw = json.loads(file.read_text())
    del raw["legacy"], raw["architectures"]
    file.write_text(json.dumps(raw))
    assert torch.allclose(mirada.load(tmp_path / "v1")(ids).logits, theirs(ids).logits, atol=1e-5)


@pytest.mark.parametrize("key, value", [
    ("talking_head", True), ("pos_att_type", "c2p|p2p"), ("position_buckets", 256),
    ("share_att_key", True), ("conv_kernel_size", 3)])
def test_what_the_first_version_has_not_is_refused(key, value):
    fam = registry.family("deberta_v1")
    raw = json.loads(PUBLISHED) | {key: value}
    with pytest.raises(MiradaError, match=key):
        made = config.read(fam.Config, raw, "config.json", inert=fam.INERT).config
        registry.assemble(fam, made, "DebertaModel")

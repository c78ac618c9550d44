"""DeBERTa v2 and v3 against the reference."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

import mirada
from mirada import registry
from mirada.core.bias import Disentangled, Places
from mirada.errors import MiradaError
from mirada.weights import config
from parity.harness import Row, table, tokens

TINY = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=16, relative_attention=True,
            pos_att_type=["p2c", "c2p"])
V3 = dict(position_biased_input=False, position_buckets=4, share_att_key=True,
          norm_rel_ebd="layer_norm", pos_att_type="p2c|c2p")


def far(row: Row) -> dict:
    """Texts long enough that distances share buckets; segments where the row has kinds."""
    batch = tokens(row, 2, 14)
    kinds = row.settings.get("type_vocab_size", 0)
    if kinds:
        batch["token_type_ids"] = torch.randint(kinds, batch["input_ids"].shape)
    return batch


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt", "left")}
    return Row(architecture, "DebertaV2Config", TINY | more, inputs=far, **keys)


ROWS = [
    row("DebertaV2ForMaskedLM", name="v3", **V3),
    row("DebertaV2ForMaskedLM", name="newer-head", **V3, legacy=False),
    row("DebertaV2ForMaskedLM", name="v2", **V3, conv_kernel_size=3, conv_act="gelu"),
    row("DebertaV2ForMaskedLM", name="own-keys", type_vocab_size=2, embedding_size=12),
    row("DebertaV2ForMaskedLM", name="odd", pos_att_type=["c2p"], max_relative_positions=5,
        tie_word_embeddings=False, conv_kernel_size=5, conv_groups=2, hidden_act="prelu",
        layer_norm_eps=1e-3),
    row("DebertaV2Model", name="p2c", pos_att_type=["p2c"], position_buckets=7,
        max_relative_positions=12, norm_rel_ebd="layer_norm"),
    row("DebertaV2Model", name="no-terms", pos_att_type=None),
    row("DebertaV2Model", name="absolute", relative_attention=False),
    row("DebertaV2ForSequenceClassification", **V3, num_labels=3, pooler_hidden_act="tanh",
        left=False),
    row("DebertaV2ForTokenClassification", **V3, num_labels=3),
    row("DebertaV2ForQuestionAnswering", **V3),
]
test_parity = table(ROWS)


@pytest.mark.scope("1.2.6")
@pytest.mark.parametrize("buckets, farthest", [
    (256, 512), (8, 32), (7, 33), (10, 50), (2, 9), (64, 1024), (8, 6)])
def test_each_distance_has_the_references_row(buckets, farthest):
    span, steps = buckets, torch.arange(2 * farthest)
    ours = Disentangled(Places(2 * span, 4), 1, 1.0, buckets=buckets, farthest=farthest)
    distance = steps[:, None] - steps
    bucket = make_log_bucket_position(distance, buckets, farthest).long()
    wanted = (bucket + span).clamp(0, 2 * span - 1)
    assert torch.equal(ours.index(steps, steps)[0, 0], wanted)
    assert wanted.min() <= 1 and wanted.max() == 2 * span - 1 and len(wanted.unique()) > span / 2


def test_a_short_text_asks_for_few_rows_of_the_table():
    deberta, asked = mirada.build("deberta:tiny", seed=0).double(), []
    hook = deberta.body.blocks[0].attn.f.k.register_forward_hook(
        lambda module, args, output: asked.append(args[0].shape[-2]))
    deberta(torch.arange(3, 8)[None])
    hook.remove()
    assert asked == [5, 9]  # the text's own five tokens; distances -4 to 4 of the 32 rows


PUBLISHED = """{"model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1,
"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
"intermediate_size": 3072, "max_position_embeddings": 512, "relative_attention": true,
"position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": true,
"pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "max_relative_positions": -1,
"position_biased_input": false, "num_attention_heads": 12, "num_hidden_layers": 12,
"type_vocab_size": 0, "vocab_size": 128100}"""  # config.json of v3-base


def test_the_published_config_is_the_size_of_that_name():
    fam = registry.family("deberta-v2")
    reading = config.read(fam.Config, json.loads(PUBLISHED), "config.json", inert=fam.INERT)
    assert reading.config == fam.SIZES["v3-base"]


@pytest.mark.parametrize("size", ["v3-base", "v3-small", "v3-large"])
def test_sizes_hold_as_many_numbers_as_the_references(size):
    ours = mirada.build("deberta", size, architecture="DebertaV2Model", device="meta")
    keys = registry.written_config(ours) | {"architectures": None}
    with torch.device("meta"):
        theirs = transformers.DebertaV2Model(transformers.DebertaV2Config(**keys))
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count > 100_000_000


def test_v3s_own_files_bring_their_newer_head(tmp_path):
    """No `legacy`, no `architectures`; a second head and positions that nothing reads."""
    keys = TINY | V3 | {"legacy": False}
    theirs = transformers.DebertaV2ForMaskedLM(transformers.DebertaV2Config(**keys)).eval()
    theirs.save_pretrained(tmp_path / "v3")
    where, ids = tmp_path / "v3" / "model.safetensors", torch.arange(3, 10)[None]
    unread = {"mask_predictions.dense.weight": torch.zeros(24, 24),
              "mask_predictions.LayerNorm.bias": torch.zeros(24),
              "deberta.embeddings.position_embeddings.weight": torch.zeros(16, 24)}
    save_file(load_file(where) | unread, where)
    file = tmp_path / "v3" / "config.json"
    raw = json.loads(file.read_text())
    del raw["legacy"], raw["architectures"]
    file.write_text(json.dumps(raw))
    ours = mirada.load(tmp_path / "v3")
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)
    assert ours.origin.carried.keys() == unread.keys()
    body = mirada.load(tmp_path / "v3", architecture="DebertaV2Model")
    assert torch.allclose(body(ids).last_hidden_state, theirs.deberta(ids)[0], atol=1e-5)
    assert unread.keys() < body.origin.carried.keys()


@pytest.mark.parametrize("changes, said", [
    ({"buckets": 1}, "must lie farther"), ({"buckets": 8, "farthest": 5}, "must lie farther"),
    ({"conv": 4}, "must be odd"), ({"conv": 3, "conv_groups": 5}, "divide 64")])
def test_what_cannot_be_built_is_said(changes, said):
    with pytest.raises(MiradaError, match=said):
        mirada.build("deberta:tiny", **changes)

"""DeBERTa v2 and v3 against the reference."""

import torch
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

"""BERT against the reference."""

import copy

import pytest
import torch
import transformers
from parity.harness import BAR, Row, table, tokens, wide
from safetensors.torch import load_file, save_file

import mirada
from mirada.errors import MiradaError

TINY = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=32)


def pairs(row: Row) -> dict:
    """Two segments in each row."""
    batch = tokens(row)
    kinds = torch.randint(row.settings.get("type_vocab_size", 2), batch["input_ids"].shape)
    return batch | {"token_type_ids": kinds}


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt")}
    return Row(architecture, "BertConfig", TINY | more, inputs=pairs, **keys)


ROWS = [
    row("BertForPreTraining"),
    row("BertForMaskedLM"),
    row("BertForMaskedLM", name="odd", tie_word_embeddings=False, type_vocab_size=3,
        hidden_act="gelu_new", layer_norm_eps=1e-3),
    row("BertForMaskedLM", name="learned", hidden_act="prelu", num_hidden_layers=1),
    row("BertForNextSentencePrediction"),
    row("BertModel"),
    row("BertForSequenceClassification", num_labels=3),
    row("BertForSequenceClassification", name="regression", num_labels=1),
    row("BertForTokenClassification", num_labels=3),
    row("BertForQuestionAnswering"),
]
test_parity = table(ROWS)

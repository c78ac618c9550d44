"""GPT-2 against the reference."""

import pytest

from parity.harness import Row, table

TINY = dict(vocab_size=61, n_positions=32, n_embd=24, n_layer=3, n_head=4, pad_token_id=1,
            bos_token_id=None, eos_token_id=None)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "GPT2Config", TINY | more, **keys)


ROWS = [
    row("GPT2LMHeadModel", cached=True),
    row("GPT2LMHeadModel", cached=True, name="odd", n_inner=40, activation_function="relu",
        scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False,
        layer_norm_epsilon=1e-3),
    row("GPT2Model"),
    row("GPT2ForSequenceClassification", num_labels=3),
    row("GPT2ForTokenClassification", num_labels=3),
    row("GPT2ForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.6.2")(table(ROWS))

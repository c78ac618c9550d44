"""T5, T5 v1.1 and mT5 against the reference."""

from parity.harness import Row, source_and_target, table, tokens

TINY = dict(vocab_size=61, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4, pad_token_id=0,
            decoder_start_token_id=0, relative_attention_num_buckets=8,
            relative_attention_max_distance=6)  # both stacks meet distances past the farthest


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt", "untied")}
    config = "MT5Config" if architecture.startswith("MT5") else "T5Config"
    keys["inputs"] = more.pop("inputs", source_and_target)
    return Row(architecture, config, TINY | more, **keys)


def with_end(row: Row) -> dict:
    """Sources whose end token stands where no pad will."""
    batch = tokens(row, 2, 9)
    batch["input_ids"][:, 4] = 1
    return batch


ROWS = [
    row("T5ForConditionalGeneration", cached=True),
    row("T5ForConditionalGeneration", cached=True, name="v1.1", feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, num_layers=1, num_decoder_layers=3, untied="lm_head"),
    row("T5ForConditionalGeneration", name="odd", feed_forward_proj="gated-silu", num_layers=3,
        num_decoder_layers=1, layer_norm_epsilon=1e-3, relative_attention_num_buckets=13,
        relative_attention_max_distance=9, tie_word_embeddings=False),
    row("T5ForConditionalGeneration", name="learned", feed_forward_proj="prelu", num_layers=1),
    row("MT5ForConditionalGeneration", cached=True, untied="lm_head"),
    row("T5Model"),
    row("T5EncoderModel", inputs=tokens),
    row("T5ForSequenceClassification", inputs=with_end, num_labels=3, eos_token_id=1),
    row("T5ForTokenClassification", inputs=tokens, num_labels=3),
    row("T5ForQuestionAnswering"),
]
test_parity = table(ROWS)

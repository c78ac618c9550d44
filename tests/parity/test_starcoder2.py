"""StarCoder2 against the reference."""

import pytest

import mirada
from parity.harness import Row, table

TINY = dict(vocab_size=61, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
            pad_token_id=1, bos_token_id=None, eos_token_id=None)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "Starcoder2Config", TINY | more, **keys)


ROWS = [
    row("Starcoder2ForCausalLM", cached=True),
    row("Starcoder2ForCausalLM", cached=True, name="odd", num_key_value_heads=4, use_bias=False,
        hidden_act="prelu", norm_epsilon=1e-3, sliding_window=3, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=77.0)),
    row("Starcoder2Model"),
    row("Starcoder2ForSequenceClassification", num_labels=3),
    row("Starcoder2ForTokenClassification", num_labels=3),
]
test_parity = table(ROWS)


@pytest.mark.parametrize("size, count", [
    ("3b", 3_030_371_328), ("7b", 7_173_923_840), ("15b", 15_957_889_024)])
def test_published_sizes(size, count):
    model = mirada.build("starcoder2", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("changes, said", [
    (dict(kv_heads=3), "cannot share 3"), (dict(rope_part=0.5), "partial_rotary_factor"),
    (dict(d=60), "pairs")])
def test_what_cannot_be_is_refused(changes, said):
    with pytest.raises(mirada.MiradaError, match=said):
        mirada.build("starcoder2:tiny", device="meta", **changes)

"""StarCoder (GPTBigCode) against the reference."""

import pytest

import mirada
from parity.harness import Row, table

TINY = dict(vocab_size=61, n_positions=32, n_embd=24, n_layer=2, n_head=4, pad_token_id=1,
            bos_token_id=None, eos_token_id=None)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "GPTBigCodeConfig", TINY | more, **keys)


ROWS = [
    row("GPTBigCodeForCausalLM", cached=True),
    row("GPTBigCodeForCausalLM", cached=True, name="odd", multi_query=False, n_inner=40,
        activation_function="prelu", layer_norm_epsilon=1e-3, scale_attn_weights=False,
        tie_word_embeddings=False),
    row("GPTBigCodeModel"),
    row("GPTBigCodeForSequenceClassification", num_labels=3),
    row("GPTBigCodeForTokenClassification", num_labels=3),
]
test_parity = table(ROWS)


@pytest.mark.parametrize("size, count", [("1b", 1_137_207_296), ("15b", 15_517_456_384)])
def test_published_sizes(size, count):
    model = mirada.build("starcoder", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count

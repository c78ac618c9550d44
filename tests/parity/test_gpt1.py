"""GPT, the first, against the reference."""

import pytest

import mirada
from parity.harness import Row, table

TINY = dict(vocab_size=61, n_positions=32, n_embd=24, n_layer=3, n_head=4, pad_token_id=1)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "OpenAIGPTConfig", TINY | more, **keys)


ROWS = [
    row("OpenAIGPTLMHeadModel", cached=True),
    row("OpenAIGPTLMHeadModel", cached=True, name="odd", afn="swish", layer_norm_epsilon=1e-3,
        tie_word_embeddings=False),
    row("OpenAIGPTModel", afn="relu"),
    row("OpenAIGPTForSequenceClassification", num_labels=3),
]
test_parity = pytest.mark.scope("1.6.1")(table(ROWS))


def test_its_activations_are_four():
    """Its own table: what it calls gelu is the tanh form."""
    assert mirada.build("gpt1:tiny", device="meta").body.blocks[0].mlp.f.act.name == "gelu_new"
    with pytest.raises(mirada.MiradaError, match="act.*mish.*not one of"):
        mirada.build("gpt1:tiny", act="mish", device="meta")


def test_published_size():
    model = mirada.build("gpt1", size="117m", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 116_534_784

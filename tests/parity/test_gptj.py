"""GPT-J against the reference."""

import pytest

import mirada
from parity.harness import Row, table

TINY = dict(vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=4, rotary_dim=4,
            pad_token_id=1, bos_token_id=None, eos_token_id=None)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "GPTJConfig", TINY | more, **keys)


ROWS = [
    row("GPTJForCausalLM", cached=True),
    row("GPTJForCausalLM", cached=True, name="odd", n_inner=40, activation_function="prelu",
        rotary_dim=8, layer_norm_epsilon=1e-3, tie_word_embeddings=True),
    row("GPTJModel"),
    row("GPTJForSequenceClassification", num_labels=3),
    row("GPTJForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.6.11", "1.6.3")(table(ROWS))


def test_published_size():
    model = mirada.build("gptj", size="6b", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 6_050_882_784


@pytest.mark.parametrize("turning", [5, 18])
def test_channels_turn_in_pairs(turning):
    with pytest.raises(mirada.MiradaError, match="rotary_dim"):
        mirada.build("gptj", size="tiny", turning=turning, device="meta")

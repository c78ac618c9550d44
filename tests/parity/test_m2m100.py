"""M2M-100 (and NLLB's dense files) against the reference."""

import pytest
import torch

import mirada
from mirada.errors import MiradaError
from parity.harness import Row, pair, source_and_target, table, wide

TINY = dict(vocab_size=61, max_position_embeddings=20, d_model=24, encoder_layers=2,
            decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=40, decoder_ffn_dim=32, pad_token_id=1)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached")}
    return Row(architecture, "M2M100Config", TINY | more, inputs=source_and_target, **keys)


ROWS = [
    row("M2M100ForConditionalGeneration", cached=True),
    row("M2M100ForConditionalGeneration", cached=True, name="odd", activation_function="gelu",
        scale_embedding=False, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=6, pad_token_id=2),
    row("M2M100ForConditionalGeneration", name="untied", tie_word_embeddings=False),
    row("M2M100Model"),
]
test_parity = table(ROWS)


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}])
def test_translation_begins_with_the_language(search):
    both = pair(ROWS[0])
    ids = torch.randint(3, 61, (2, 9))
    options = {"max_new_tokens": 8, "do_sample": False, "forced_bos_token_id": 17, **search}
    with wide():
        wanted = both.theirs.generate(ids, **options)
    got = both.ours.generate(ids, **options)
    assert torch.equal(got, wanted) and got[:, :2].tolist() == [[2, 17]] * 2


@pytest.mark.parametrize("size, count", [("418m", 483_905_536), ("nllb-600m", 615_073_792)])
def test_published_sizes(size, count):
    model = mirada.build("m2m100", size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


def test_an_odd_width_is_refused():
    with pytest.raises(MiradaError, match="d_model: sinusoids fill an even width"):
        mirada.build("m2m100", "tiny", d=63, heads=3, decoder_heads=3)

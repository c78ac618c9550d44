"""PEGASUS against the reference."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada.core.position import Sinusoid
from parity.harness import BAR, Row, shake, source_and_target, table, wide

TINY = dict(vocab_size=61, max_position_embeddings=20, d_model=24, encoder_layers=2,
            decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=40, decoder_ffn_dim=32, activation_function="relu",
            scale_embedding=True, forced_eos_token_id=None)
BIAS = ("final_logits_bias",)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "buffers")}
    return Row(architecture, "PegasusConfig", TINY | more, inputs=source_and_target, left=False,
               **keys)


ROWS = [
    row("PegasusForConditionalGeneration", cached=True, buffers=BIAS),
    row("PegasusForConditionalGeneration", cached=True, buffers=BIAS, name="odd",
        activation_function="gelu", scale_embedding=False, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=6, tie_word_embeddings=False),
    row("PegasusModel"),
]
test_parity = pytest.mark.scope("1.7.5")(table(ROWS))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The reference and ours on a file without its sinusoids, as the published ones are."""
    folder = tmp_path_factory.mktemp("pegasus")
    torch.manual_seed(2)
    with wide():
        cls = transformers.PegasusForConditionalGeneration
        theirs = cls(transformers.PegasusConfig(**TINY)).double()
        shake(theirs)
        theirs.save_pretrained(folder)
        kept = {n: t for n, t in load_file(folder / "model.safetensors").items()
                if "embed_positions" not in n}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        theirs = cls.from_pretrained(folder, dtype=torch.float64).eval()
    return theirs, mirada.load(folder)


@pytest.mark.scope("1.2.1")
@pytest.mark.parametrize("search", [{}, dict(num_beams=3, length_penalty=0.6)])
def test_generation_is_the_references(small, search):
    theirs, ours = small
    assert isinstance(ours.decoder.embed.position, Sinusoid)
    ids = torch.randint(3, 61, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    with wide():
        wanted = theirs(ids, mask, decoder_input_ids=ids[:, :5]).logits
        written = theirs.generate(ids, attention_mask=mask, max_new_tokens=8, **search)
    assert (ours(ids, mask, decoder_input_ids=ids[:, :5]).logits - wanted).abs().max() < BAR
    got = ours.generate(ids, attention_mask=mask, max_new_tokens=8, **search)
    assert torch.equal(got, written)


def test_the_published_size():
    model = mirada.build("pegasus", "large", device="meta")
    assert sum(p.numel() for p in model.parameters()) == 568_699_904  # 570,797,056 less sinusoids

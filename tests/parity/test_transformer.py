"""The Transformer's files, Marian's and FSMT's, against the reference; and the paper's sizes."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada.core.position import Sinusoid
from mirada.errors import MiradaError
from mirada.models.transformer import Table
from parity.harness import BAR, Row, shake, source_and_target, table, wide

SHAPE = dict(max_position_embeddings=20, d_model=24, encoder_layers=2, decoder_layers=2,
             encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=40,
             decoder_ffn_dim=32, forced_eos_token_id=None)
TINY = SHAPE | dict(vocab_size=61, pad_token_id=1, decoder_start_token_id=60, eos_token_id=0,
                    activation_function="swish", scale_embedding=True)
FSMT = SHAPE | dict(langs=["en", "de"], src_vocab_size=61, tgt_vocab_size=61, pad_token_id=1,
                )
BIAS = ("final_logits_bias",)


def sentences(row: Row) -> dict:
    """Ids of the source's vocabulary and of the target's, without pads."""
    source, target = (row.settings[n] for n in ("src_vocab_size", "tgt_vocab_size"))
    return {"input_ids": torch.randint(3, source, (2, 9)),
            "decoder_input_ids": torch.randint(3, target, (2, 5))}


def wide_target(row: Row) -> dict:
    """Answers whose ids only the decoder's own vocabulary has."""
    return source_and_target(row) | {"decoder_input_ids": torch.randint(55, 71, (2, 5))}


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "inputs", "buffers")}
    if architecture.startswith("FSMT"):
        return Row(architecture, "FSMTConfig", FSMT | more, inputs=sentences, frozen=(
            "model.encoder.embed_positions", "model.decoder.embed_positions"), **keys)
    return Row(architecture, "MarianConfig", TINY | more, left=False,
               **{"inputs": source_and_target} | keys)


ROWS = [
    row("MarianMTModel", cached=True, buffers=BIAS),
    row("MarianMTModel", cached=True, buffers=BIAS, name="odd", activation_function="relu",
        scale_embedding=False, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=6, tie_word_embeddings=False),
    row("MarianMTModel", cached=True, buffers=BIAS, name="two-vocabularies", inputs=wide_target,
        decoder_vocab_size=71, share_encoder_decoder_embeddings=False),
    row("MarianMTModel", name="untied", inputs=wide_target, decoder_vocab_size=71,
        share_encoder_decoder_embeddings=False, tie_word_embeddings=False),
    row("MarianModel"),
    row("FSMTForConditionalGeneration", cached=True),
    row("FSMTForConditionalGeneration", cached=True, name="odd", src_vocab_size=50,
        activation_function="gelu", scale_embedding=False, encoder_layers=1, pad_token_id=2,
        encoder_attention_heads=2, decoder_attention_heads=6),
    row("FSMTForConditionalGeneration", name="tied", tie_word_embeddings=True),
]
test_parity = pytest.mark.scope("1.3.9")(table(ROWS))


@pytest.fixture(scope="module", params=["MarianMTModel", "FSMTForConditionalGeneration"])
def small(request, tmp_path_factory):
    """The reference and ours on one file, in float64."""
    folder = tmp_path_factory.mktemp("small")
    torch.manual_seed(2)
    config = (transformers.MarianConfig(**TINY) if request.param == "MarianMTModel"
              else transformers.FSMTConfig(**FSMT))
    with wide():
        theirs = getattr(transformers, request.param)(config).double()
        shake(theirs)
        theirs.eval().save_pretrained(folder)
        theirs = type(theirs).from_pretrained(folder, dtype=torch.float64).eval()
    return theirs, mirada.load(folder), folder


@pytest.mark.scope("1.1.7")
@pytest.mark.parametrize("search", [{}, dict(num_beams=3)])
def test_generation_is_the_references(small, search):
    theirs, ours, _ = small
    ids = torch.randint(3, 60, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    ids[mask == 0] = ours.config.pad
    options = dict(attention_mask=mask, max_new_tokens=8, do_sample=False, length_penalty=1.0,
                   early_stopping=False, **{"num_beams": 1} | search)
    with wide():
        wanted = theirs.generate(ids, **options)
    assert torch.equal(ours.generate(ids, **options), wanted)


@pytest.mark.scope("1.2.1")
@pytest.mark.parametrize("stored", [True, False])
def test_sinusoids_are_the_files_or_computed(small, tmp_path, stored):
    """As the reference: what the file holds is used as it is, and else the formula."""
    theirs, _, folder = small
    tensors = {n: t for n, t in load_file(folder / "model.safetensors").items()
               if "embed_positions" not in n}
    if stored:
        rows = 20 if theirs.config.model_type == "marian" else 22
        tensors |= {f"model.{side}.embed_positions.weight": torch.randn(rows, 24).double()
                    for side in ("encoder", "decoder")}
    (tmp_path / "file").mkdir()
    save_file(tensors, tmp_path / "file" / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text()) | {"use_cache": False}
    (tmp_path / "file" / "config.json").write_text(json.dumps(raw))
    with wide():
        theirs = type(theirs).from_pretrained(tmp_path / "file", dtype=torch.float64).eval()
    batch = dict(input_ids=torch.randint(3, 60, (2, 9)),
                 decoder_input_ids=torch.randint(3, 60, (2, 6)))
    ours = mirada.load(tmp_path / "file")
    assert isinstance(ours.decoder.embed.position, Table if stored else Sinusoid)
    with wide():
        wanted = theirs(**batch).logits
    assert (ours(**batch).logits - wanted).abs().max() < BAR
    mirada.save(ours, tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == tensors.keys()


@pytest.mark.parametrize("family", ["transformer", "fsmt", "pegasus"])
def test_a_built_table_holds_the_sinusoids_and_is_not_trained(family):
    model = mirada.build(family, "tiny", table=True, seed=1)
    held = model.body.encoder.embed.position
    computed = mirada.build(family, "tiny", seed=1).body.encoder.embed.position
    places = torch.arange(50)
    assert torch.allclose(held(places), computed(places), atol=1e-5)
    assert not held.weight.requires_grad


@pytest.mark.scope("1.3.10")
@pytest.mark.parametrize("size, count", [("base", 63_082_496), ("big", 214_245_376)])
def test_the_papers_sizes(size, count):
    """Table 3 rounds to 65 and 213 million; these are its shapes counted, with 37,000 words."""
    model = mirada.build("transformer", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("family, size, reference", [
    ("transformer", "opus-mt", transformers.MarianConfig(
        vocab_size=58101, d_model=512, encoder_layers=6, decoder_layers=6,
        encoder_attention_heads=8, decoder_attention_heads=8, encoder_ffn_dim=2048,
        decoder_ffn_dim=2048, max_position_embeddings=512)),
    ("fsmt", "wmt19", transformers.FSMTConfig(
        encoder_layers=6, decoder_layers=6, encoder_ffn_dim=8192, decoder_ffn_dim=4096))])
def test_published_shapes_count_as_the_references(family, size, reference):
    cls = transformers.MarianMTModel if family == "transformer" \
        else transformers.FSMTForConditionalGeneration
    with torch.device("meta"):
        theirs = cls(reference)
    wanted = sum(p.numel() for n, p in theirs.named_parameters() if "embed_positions" not in n)
    model = mirada.build(family, size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == wanted


def test_ids_are_held_against_their_own_vocabulary():
    model = mirada.build("fsmt", "tiny", vocab=50, target=70, seed=1)
    high = torch.full((1, 3), 60)
    model(input_ids=high - 20, decoder_input_ids=high)
    with pytest.raises(MiradaError, match="token id 60 is not in this model's vocabulary of 50"):
        model(input_ids=high, decoder_input_ids=high)
    with pytest.raises(MiradaError, match="vocabulary of 70"):
        model(input_ids=high - 20, decoder_input_ids=high + 20)


@pytest.mark.parametrize("d", [2, 33])
def test_a_width_that_holds_no_sinusoids_is_refused(d):
    with pytest.raises(MiradaError, match="an even width"):
        mirada.build("fsmt", "tiny", d=d, heads=1, decoder_heads=1)

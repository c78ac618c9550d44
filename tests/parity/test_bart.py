"""BART and mBART against the reference."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada.errors import MiradaError
from parity.harness import BAR, Row, shake, source_and_target, table, wide

TINY = dict(vocab_size=61, max_position_embeddings=20, d_model=24, encoder_layers=2,
            decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=40, decoder_ffn_dim=32, forced_eos_token_id=None)
BIAS = ("final_logits_bias",)
AT = "the reference counts left pads as positions, and cannot be told otherwise"


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt", "buffers")}
    keys["inputs"] = more.pop("inputs", source_and_target)
    config = "MBartConfig" if architecture.startswith("MBart") else "BartConfig"
    return Row(architecture, config, TINY | more, left=False, **keys)


def with_ends(row: Row) -> dict:
    """As many ends in each source as in the other; the last stands where no pad will."""
    batch = source_and_target(row)
    batch["input_ids"][:, [2, 4]] = 2
    return batch | {"decoder_input_ids": batch["input_ids"].roll(1, 1)}


ODD = dict(name="odd", activation_function="relu", scale_embedding=True, decoder_layers=1,
           encoder_attention_heads=2, decoder_attention_heads=6, tie_word_embeddings=False)
ROWS = [
    row("BartForConditionalGeneration", cached=True, buffers=BIAS),
    row("BartForConditionalGeneration", cached=True, buffers=BIAS, **ODD),
    row("BartForConditionalGeneration", name="learned", activation_function="prelu",
        encoder_layers=1, decoder_layers=1),
    row("BartModel"),
    row("BartForSequenceClassification", inputs=with_ends, num_labels=4),
    row("BartForQuestionAnswering"),
    row("MBartForConditionalGeneration", cached=True, buffers=BIAS, scale_embedding=True),
    row("MBartForConditionalGeneration", buffers=BIAS, **ODD),
    row("MBartModel"),
    row("MBartForSequenceClassification", inputs=with_ends, num_labels=3),
    row("MBartForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.7.4")(table(ROWS))


@pytest.fixture(scope="module", params=["Bart", "MBart"])
def small(request, tmp_path_factory):
    """The reference and ours on one file, in float64."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(2)
    config = getattr(transformers, request.param + "Config")(**TINY)
    with wide():
        theirs = getattr(transformers, request.param + "ForConditionalGeneration")(config).double()
        shake(theirs)
        theirs.eval().save_pretrained(folder)
    return theirs, mirada.load(folder), folder


def test_labels_are_shifted_as_the_references(small):
    """BART puts its start before them; mBART each row's last real token, the language's."""
    theirs, ours, _ = small
    ids, labels = torch.randint(3, 61, (2, 9)), torch.randint(3, 61, (2, 6))
    labels[0, 4:] = -100
    with wide():
        wanted = theirs(input_ids=ids, labels=labels)
    got = ours(input_ids=ids, labels=labels)
    assert (got.loss - wanted.loss).abs() < BAR and (got.logits - wanted.logits).abs().max() < BAR


@pytest.mark.parametrize("search", [{}, dict(num_beams=3), dict(num_beams=4, length_penalty=2.0,
                                                                no_repeat_ngram_size=2)])
def test_generation_is_the_references(small, search):
    theirs, ours, _ = small
    ids = torch.randint(3, 61, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    options = dict(attention_mask=mask, max_new_tokens=8, do_sample=False,
                   decoder_start_token_id=2, **search)
    with wide():
        wanted = theirs.generate(ids, **options)
    assert torch.equal(ours.generate(ids, **options), wanted)


def test_pads_on_the_left_change_nothing(small):
    _, ours, _ = small
    batch = dict(input_ids=torch.randint(3, 61, (1, 6)),
                 decoder_input_ids=torch.randint(3, 61, (1, 4)))
    padded = torch.cat([torch.ones(1, 3, dtype=torch.long), batch["input_ids"]], 1)
    got = ours(**batch | {"input_ids": padded}, attention_mask=(padded != 1).long())
    assert (got.logits - ours(**batch).logits).abs().max() < BAR


def test_the_first_files_hold_the_shared_table_under_every_name(small, tmp_path):
    _, ours, folder = small
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        tensors[name + ".weight"] = tensors["model.shared.weight"].clone()
    tensors["model.encoder.version"] = torch.ones(1)

    def rewritten(name):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text((folder / "config.json").read_text())
        return tmp_path / name

    old = mirada.load(rewritten("old"))
    mirada.save(old, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    tensors["lm_head.weight"][0, 0] += 1
    with pytest.raises(MiradaError, match="lm_head.weight' is the same tensor"):
        mirada.load(rewritten("torn"))


@pytest.mark.parametrize("family, size, count", [
    ("bart", "base", 139_420_416), ("bart", "large", 406_291_456),
    ("mbart", "large-cc25", 610_851_840), ("mbart", "large-50", 610_879_488)])
def test_published_sizes(family, size, count):
    model = mirada.build(family, size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


def test_heads_must_divide_the_width_on_both_sides():
    with pytest.raises(MiradaError, match="decoder_attention_heads"):
        mirada.build("bart", "tiny", decoder_heads=5)

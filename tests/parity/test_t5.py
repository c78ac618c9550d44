"""T5, T5 v1.1 and mT5 against the reference."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada import registry
from mirada.errors import MiradaError
from mirada.models.t5 import INERT, Config
from mirada.weights import config as configs
from parity.harness import (
    BAR,
    Row,
    read_reference,
    shake,
    source_and_target,
    table,
    tokens,
    wide,
)

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
test_parity = pytest.mark.scope("1.7.3")(table(ROWS))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The reference and ours on one file, in float64."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(2)
    with wide():
        theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**TINY)).double()
        shake(theirs)
        theirs.eval().save_pretrained(folder)
    return theirs, mirada.load(folder), folder


def test_the_loss_shifts_labels_and_skips_what_is_ignored(small):
    theirs, ours, _ = small
    ids, labels = torch.randint(3, 61, (2, 9)), torch.randint(3, 61, (2, 5))
    labels[0, 3:] = -100
    labels[1, 1] = -100  # not at the end: the id fed back is the pad
    with wide():
        wanted = theirs(input_ids=ids, labels=labels)
    got = ours(input_ids=ids, labels=labels)
    assert (got.loss - wanted.loss).abs() < BAR and (got.logits - wanted.logits).abs().max() < BAR


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_target_is_the_references(small, side):
    theirs, ours, _ = small
    ids, target = torch.randint(3, 61, (2, 9)), torch.randint(3, 61, (2, 6))
    mask = torch.ones_like(target)
    mask[0, (slice(2) if side == "left" else slice(-2, None))] = 0
    batch = dict(input_ids=ids, decoder_input_ids=target, decoder_attention_mask=mask)
    with wide():
        wanted = theirs(**batch).logits
    for kernel in ("sdpa", "exact"):
        with mirada.kernel(kernel):
            got = ours(**batch).logits
        assert torch.isfinite(got).all()
        assert (got - wanted)[mask.bool()].abs().max() < BAR
    cache, parts = ours.new_cache("static", size=8), []
    for a, b in ((0, 4), (4, 6)):
        part = batch | dict(decoder_input_ids=target[:, a:b], decoder_attention_mask=mask[:, :b])
        parts.append(ours(**part, cache=cache).logits)
    assert (torch.cat(parts, 1) - wanted)[mask.bool()].abs().max() < BAR


def test_decoding_projects_the_source_once_and_beams_may_multiply(small):
    theirs, ours, _ = small
    ids, target = torch.randint(3, 61, (2, 9)), torch.randint(3, 61, (2, 5))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0  # padded on the left
    with wide():
        wanted = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=target).logits
    projected = []
    handles = [getattr(block.cross.f, name).register_forward_hook(
        lambda *_, name=name: projected.append(name))
        for block in ours.decoder.blocks for name in "kv"]
    memory, cache = ours.encode(ids, mask), ours.new_cache()
    step = dict(encoder_outputs=memory, attention_mask=mask, cache=cache)
    got = [ours(**step, decoder_input_ids=target[:, n : n + 1]).logits for n in range(3)]
    assert sorted(projected) == ["k"] * 2 + ["v"] * 2
    assert (torch.cat(got, 1) - wanted[:, :3]).abs().max() < BAR
    beams = torch.tensor([1, 1, 0, 0])
    cache.reorder(beams)
    step = dict(encoder_outputs=memory[beams], attention_mask=mask[beams], cache=cache)
    for n in (3, 4):
        got = ours(**step, decoder_input_ids=target[beams, n : n + 1]).logits
        assert (got[:, 0] - wanted[beams, n]).abs().max() < BAR
    assert len(projected) == 4
    cache.crop(2)
    got = ours(**step, decoder_input_ids=target[beams, 2:]).logits
    assert (got - wanted[beams, 2:]).abs().max() < BAR and len(projected) == 4
    for handle in handles:
        handle.remove()


def test_a_file_may_hold_the_shared_table_under_every_name(small, tmp_path):
    """As the first files do, with a bias of cross-attention that nobody reads."""
    _, ours, folder = small
    tensors = load_file(folder / "model.safetensors")
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors["shared.weight"].clone()
    unread = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors[unread] = torch.ones(8, 4)
    old = _folder(tmp_path / "old", folder, tensors)
    model = mirada.load(old)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.parameters())
    mirada.save(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
    del tensors["shared.weight"]
    alone = mirada.load(_folder(tmp_path / "alone", folder, tensors))
    assert torch.equal(alone.decoder.embed.token.weight, ours.decoder.embed.token.weight)
    del tensors["lm_head.weight"]
    tensors["encoder.embed_tokens.weight"][0, 0] += 1
    with pytest.raises(MiradaError, match="embed_tokens.weight' is the same tensor"):
        mirada.load(_folder(tmp_path / "torn", folder, tensors))


def _folder(path: Path, like: Path, tensors: dict) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text((like / "config.json").read_text())
    return path


def test_an_encoder_alone_does_not_generate():
    model = mirada.build("t5", "tiny", architecture="T5EncoderModel", seed=1)
    assert not model.encoder_decoder and not model.generates
    assert mirada.build("t5", "tiny", device="meta").generates
    with pytest.raises(MiradaError, match="no encoder apart"):
        model.encode(torch.ones(1, 3, dtype=torch.long))


def test_what_cannot_be_is_said():
    model = mirada.build("t5", "tiny", architecture="T5ForSequenceClassification", seed=1)
    with pytest.raises(MiradaError, match="last token 1"):
        model(torch.full((2, 4), 5))
    with pytest.raises(MiradaError, match="decoder_input_ids"):
        mirada.build("t5", "tiny", seed=1)(torch.full((2, 4), 5))
    with pytest.raises(MiradaError, match="static cache"):
        model.new_cache("static")
    memory = model.encode(torch.full((2, 4), 5))
    with pytest.raises(MiradaError, match="3 columns"):
        model(encoder_outputs=memory, attention_mask=torch.ones(2, 3),
              decoder_input_ids=torch.ones(2, 1, dtype=torch.long))


@pytest.mark.scope("1.7.2")
@pytest.mark.parametrize("size, count", [
    ("small", 60_506_624), ("base", 222_903_552), ("large", 737_668_096), ("3b", 2_851_598_336),
    ("11b", 11_307_321_344), ("v1_1-small", 76_961_152), ("flan-base", 247_577_856),
    ("flan-large", 783_150_080), ("flan-xl", 2_849_757_184), ("flan-xxl", 11_135_332_352),
    ("mt5-small", 300_176_768), ("mt5-base", 582_401_280), ("mt5-large", 1_229_581_312),
    ("mt5-xl", 3_742_619_648), ("mt5-xxl", 12_921_057_280)])
def test_the_named_sizes_are_the_published_ones(size, count):
    model = mirada.build("t5", size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_built_model_begins_as_wide_as_the_references():
    """Standard deviation of each matrix, by name, against the reference's own initialisation."""
    config = dict(vocab_size=1024, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    torch.manual_seed(4)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**config))
    wanted = {n: p.std().item() for n, p in theirs.named_parameters() if p.numel() > 1000}
    got = registry.export(mirada.build("t5", "tiny", buckets=32, seed=4))
    assert len(wanted) > 20
    for name, std in wanted.items():
        assert got[name].std().item() == pytest.approx(std, rel=0.06), name
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert got[table].std().item() == pytest.approx(64**-0.5, rel=0.25)


@pytest.mark.parametrize("search", [{}, dict(num_beams=3)])
def test_generation_is_the_references(small, search):
    theirs, ours, _ = small
    ids = torch.randint(3, 61, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options = dict(attention_mask=mask, max_new_tokens=8, do_sample=False, **search)
    with wide():
        wanted = theirs.generate(ids, **options)
    assert torch.equal(ours.generate(ids, **options), wanted)


@pytest.mark.parametrize("change, field", [
    ({"feed_forward_proj": "gated-gelu-new"}, "dense_act_fn"), ({"is_decoder": True}, "is_decoder"),
    ({"relative_attention_num_buckets": 2}, "num_buckets"),
    ({"num_decoder_layers": 2000}, "2000 layers"),
    ({"relative_attention_max_distance": 2}, "share up to 2")])
def test_a_config_that_cannot_be_is_refused_by_name(small, tmp_path, change, field):
    _, _, folder = small
    raw = json.loads((folder / "config.json").read_text())
    if "feed_forward_proj" in change:  # as files were before its derived keys stood beside it
        del raw["dense_act_fn"], raw["is_gated_act"]
    bad = _folder(tmp_path / "bad", folder, load_file(folder / "model.safetensors"))
    (bad / "config.json").write_text(json.dumps(raw | change))
    with pytest.raises(MiradaError, match=field):
        mirada.load(bad)


@pytest.mark.parametrize("form", ["relu", "gated-gelu", "gated-silu", "gelu", "gelu_new"])
@pytest.mark.parametrize("model_type, tied", [("t5", True), ("t5", False), ("mt5", False)])
def test_a_file_of_any_age_means_what_the_reference_reads(form, model_type, tied):
    """Keys of the first files, and those that we write."""
    cls = transformers.T5Config if model_type == "t5" else transformers.MT5Config
    raw = dict(vocab_size=61, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4,
               feed_forward_proj=form, tie_word_embeddings=tied, model_type=model_type)
    theirs = cls.from_dict(raw)
    ours = configs.read(Config, raw, "config.json", inert=INERT).config
    for c in (ours, configs.read(Config, configs.write(ours, raw), "again", inert=INERT).config):
        assert (c.act, c.gated) == (theirs.dense_act_fn, theirs.is_gated_act)
        assert c.scaled == getattr(theirs, "scale_decoder_outputs", False)
    back = cls.from_dict(configs.write(ours, raw))
    assert (back.dense_act_fn, back.is_gated_act) == (theirs.dense_act_fn, theirs.is_gated_act)
    assert back.feed_forward_proj == form and back.num_decoder_layers == 2


def test_a_built_mt5_is_saved_as_one(tmp_path):
    """Its head never scales, whatever size it was built from."""
    model = mirada.build("t5:tiny", architecture="MT5ForConditionalGeneration", seed=0,
                         dtype=torch.float64)
    mirada.save(model, tmp_path / "mt5")
    assert json.loads((tmp_path / "mt5" / "config.json").read_text())["model_type"] == "mt5"
    batch = {"input_ids": torch.arange(3, 12)[None], "decoder_input_ids": torch.arange(0, 5)[None]}
    theirs = read_reference(transformers.MT5ForConditionalGeneration, tmp_path / "mt5")
    with wide():
        assert (model(**batch).logits - theirs(**batch).logits).abs().max() < 1e-10

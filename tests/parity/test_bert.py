"""BERT against the reference."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada.core.mlp import LEARNED
from mirada.errors import MiradaError
from parity.harness import Row, table, tokens

TINY = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=32)


def pairs(row: Row) -> dict:
    """Two segments in each row."""
    batch = tokens(row)
    kinds = torch.randint(row.settings.get("type_vocab_size", 2), batch["input_ids"].shape)
    return batch | {"token_type_ids": kinds}


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "exempt")}
    return Row(architecture, "BertConfig", TINY | more, inputs=pairs, **keys)


ROWS = [
    row("BertForPreTraining"),
    row("BertForMaskedLM"),
    row("BertForMaskedLM", name="odd", tie_word_embeddings=False, type_vocab_size=3,
        hidden_act="gelu_new", layer_norm_eps=1e-3),
    row("BertForMaskedLM", name="learned", hidden_act="prelu", num_hidden_layers=1),
    row("BertForNextSentencePrediction"),
    row("BertModel"),
    row("BertForSequenceClassification", num_labels=3),
    row("BertForSequenceClassification", name="regression", num_labels=1),
    row("BertForTokenClassification", num_labels=3),
    row("BertForQuestionAnswering"),
]
test_parity = table(ROWS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of BertForPreTraining, as today's reference writes it."""
    path = tmp_path_factory.mktemp("bert")
    transformers.BertForPreTraining(transformers.BertConfig(**TINY)).save_pretrained(path)
    return path


def rewritten(folder: Path, to: Path, tensors=None, **keys) -> Path:
    """The checkpoint with other tensors or other config keys."""
    to.mkdir()
    config = json.loads((folder / "config.json").read_text()) | keys
    (to / "config.json").write_text(json.dumps(config))
    save_file(tensors or load_file(folder / "model.safetensors"), to / "model.safetensors")
    return to


def aged(folder: Path) -> dict:
    """The tensors as the first releases wrote them: gamma and beta, tied tensors twice, and the
    positions that a table is read at."""
    new = load_file(folder / "model.safetensors")
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"): t for n, t in new.items()}
    old["cls.predictions.decoder.weight"] = new["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = new["cls.predictions.bias"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(32)[None]
    return old


@pytest.mark.scope("1.5.1")
@pytest.mark.parametrize("architecture, carried", [
    ("BertForPreTraining", set()), ("BertModel", {"cls"}),
    ("BertForMaskedLM", {"bert.pooler", "cls.seq_relationship"}),
    ("BertForNextSentencePrediction", {"cls.predictions"})])
def test_files_of_the_first_releases_load_under_any_head(folder, tmp_path, architecture, carried):
    path = rewritten(folder, tmp_path / "old", aged(folder), architectures=[architecture])
    ours, ids = mirada.load(path), torch.arange(3, 10)[None]
    theirs = getattr(transformers, architecture).from_pretrained(folder).eval()(ids)
    for name, mine in ours(ids).items():
        assert torch.allclose(mine, theirs[name], atol=1e-5)
    assert all(any(n.startswith(c) for c in carried) for n in ours.origin.carried)
    assert bool(carried) == bool(ours.origin.carried)
    mirada.save(ours, tmp_path / "again")
    before, after = aged(folder), load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in before.items():
        modern = name.replace(".gamma", ".weight").replace(".beta", ".bias")
        assert torch.equal(after.get(name, after.get(modern)), tensor), name


@pytest.mark.parametrize("copy", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])
def test_a_copy_that_differs_is_not_the_tied_tensor(folder, tmp_path, copy):
    tensors = aged(folder)
    tensors[copy] = tensors[copy] + 1
    with pytest.raises(MiradaError, match="and it is not"):
        mirada.load(rewritten(folder, tmp_path / "bad", tensors))


@pytest.mark.parametrize("key, value", [
    ("position_embedding_type", "relative_key"), ("is_decoder", True), ("hidden_act", "gelu_11"),
    ("add_cross_attention", True), ("type_vocab_size", 0), ("num_attention_heads", 5)])
def test_what_bert_here_is_not_is_refused(folder, tmp_path, key, value):
    with pytest.raises(MiradaError):
        mirada.load(rewritten(folder, tmp_path / "bad", **{key: value}))


@pytest.mark.scope("1.5.1")
@pytest.mark.parametrize("size, count", [("base", 109_482_240), ("large", 335_141_888)])
def test_published_sizes(size, count):
    bert = mirada.build("bert", size, architecture="BertModel", device="meta")
    assert sum(p.numel() for p in bert.parameters()) == count


def test_yes_or_no_labels_have_the_references_loss(tmp_path):
    cls = transformers.BertForSequenceClassification
    theirs = cls(transformers.BertConfig(**TINY, num_labels=3)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    batch = {"input_ids": torch.arange(3, 11).view(2, 4), "labels": torch.rand(2, 3).round()}
    ours = mirada.load(tmp_path / "theirs")(**batch).loss
    assert torch.allclose(ours, theirs(**batch).loss, atol=1e-6)


def test_labels_must_be_the_heads():
    ids = torch.arange(3, 11).view(2, 4)
    pair, plain = (mirada.build("bert:tiny", architecture=a) for a in
                   ("BertForPreTraining", "BertModel"))
    with pytest.raises(MiradaError, match="takes labels and next_sentence_label"):
        pair(ids, labels=ids)
    with pytest.raises(MiradaError, match="attention_maks: its head has no loss"):
        plain(ids, attention_maks=torch.ones_like(ids))
    with pytest.raises(MiradaError, match="between 0 and 1"):
        plain(ids, token_type_ids=torch.full_like(ids, 2))


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_activation_begins_as_made(name):
    act = mirada.build("bert:tiny", act=name).body.blocks[1].mlp.f.act
    for mine, wanted in zip(act.state_dict().values(), LEARNED[name]().state_dict().values(),
                            strict=True):
        assert torch.equal(mine, wanted)

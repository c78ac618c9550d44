"""RoBERTa, XLM-R and CamemBERT against the reference."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada import registry
from mirada.errors import MiradaError
from parity.harness import Row, table

TINY = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=20, type_vocab_size=1, pad_token_id=1)


def row(architecture: str, config: str = "RobertaConfig", **more) -> Row:
    """The reference counts positions itself, from the pad's id on. A pooler reads the first token,
    so there is nothing to compare where that is a pad."""
    name, pooled = more.pop("name", ""), architecture.endswith(("Model", "SequenceClassification"))
    return Row(architecture, config, TINY | more, name=name, told=False, left=not pooled)


ROWS = [
    row("RobertaForMaskedLM"),
    row("RobertaForMaskedLM", name="odd", tie_word_embeddings=False, type_vocab_size=2,
        hidden_act="silu", layer_norm_eps=1e-3, pad_token_id=2),
    row("RobertaModel"),
    row("RobertaForSequenceClassification", num_labels=3),
    row("RobertaForTokenClassification", num_labels=3),
    row("RobertaForQuestionAnswering"),
    row("XLMRobertaForMaskedLM", "XLMRobertaConfig"),
    row("XLMRobertaForSequenceClassification", "XLMRobertaConfig", num_labels=3),
    row("CamembertForMaskedLM", "CamembertConfig", pad_token_id=0),
]
test_parity = pytest.mark.scope("1.5.2")(table(ROWS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint as the first releases wrote it: a pooler, a decoder that repeats the table, and
    the positions."""
    path = tmp_path_factory.mktemp("roberta")
    theirs = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**TINY)).eval()
    theirs.save_pretrained(path)
    file = path / "model.safetensors"
    now = load_file(file)
    save_file(now | {
        "roberta.pooler.dense.weight": torch.ones(24, 24), "roberta.pooler.dense.bias":
        torch.ones(24), "lm_head.decoder.weight": now["roberta.embeddings.word_embeddings.weight"]
        .clone(), "lm_head.decoder.bias": now["lm_head.bias"].clone(),
        "roberta.embeddings.position_ids": torch.arange(20)[None]}, file)
    return path


def test_a_first_release_loads_and_is_written_back(folder, tmp_path):
    ours = mirada.load(folder)
    theirs = transformers.RobertaForMaskedLM.from_pretrained(folder).eval()
    ids = torch.tensor([[0, 9, 8, 7, 2, 1, 1], [0, 4, 5, 6, 7, 8, 2]])
    real = ids != 1
    logits = theirs(ids, attention_mask=real).logits
    assert torch.allclose(ours(ids, attention_mask=real).logits[real], logits[real], atol=1e-5)
    assert ours.origin.carried.keys() == {"roberta.pooler.dense.weight",
                                          "roberta.pooler.dense.bias"}
    mirada.save(ours, tmp_path / "again")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    body = mirada.load(folder, architecture="RobertaModel")
    assert {n for n in body.origin.carried if n.startswith("lm_head.")}


def test_the_context_is_what_tokens_may_have(folder):
    """20 rows of positions: two stand for the pad and below it."""
    ours = mirada.load(folder)
    assert ours.context == 18 and registry.written_config(ours)["max_position_embeddings"] == 20
    assert ours(torch.full((1, 18), 5)).logits.isfinite().all()
    with pytest.raises(MiradaError, match="context of 18"):
        ours(torch.full((1, 19), 5))


@pytest.mark.parametrize("key, value", [
    ("max_position_embeddings", 2), ("max_position_embeddings", "20"), ("pad_token_id", None),
    ("pad_token_id", -1), ("is_decoder", True), ("position_embedding_type", "relative_key")])
def test_what_roberta_here_is_not_is_refused(folder, tmp_path, key, value):
    raw = json.loads((folder / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(MiradaError):
        mirada.load(tmp_path)


@pytest.mark.parametrize("size, count", [
    ("base", 124_645_632), ("large", 355_359_744), ("xlm-base", 278_043_648),
    ("xlm-large", 559_890_432), ("camembert-base", 110_621_952)])
def test_published_sizes(size, count):
    model = mirada.build("roberta", size, architecture="RobertaModel", device="meta")
    assert sum(p.numel() for p in model.parameters()) == count

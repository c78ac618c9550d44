"""DistilBERT against the reference."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from parity.harness import Row, table

TINY = dict(vocab_size=61, dim=24, n_layers=2, n_heads=4, hidden_dim=40,
            max_position_embeddings=32)


def row(architecture: str, **more) -> Row:
    name = more.pop("name", "")
    return Row(architecture, "DistilBertConfig", TINY | more, name=name)


ROWS = [
    row("DistilBertForMaskedLM"),
    row("DistilBertForMaskedLM", name="odd", tie_word_embeddings=False, activation="gelu_new",
        sinusoidal_pos_embds=True),
    row("DistilBertForMaskedLM", name="learned", activation="prelu", n_layers=1),
    row("DistilBertModel"),
    row("DistilBertForSequenceClassification", num_labels=3),
    row("DistilBertForTokenClassification", num_labels=3),
    row("DistilBertForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.5.4")(table(ROWS))


@pytest.mark.parametrize("d", [24, 64])
def test_sinusoids_begin_as_the_references(d):
    keys = TINY | dict(dim=d, sinusoidal_pos_embds=True)
    theirs = transformers.DistilBertModel(transformers.DistilBertConfig(**keys))
    wanted = theirs.embeddings.position_embeddings.weight
    ours = mirada.build("distilbert:tiny", d=d, context=32, sinusoids=True)
    assert torch.allclose(ours.body.embed.position.weight, wanted, atol=1e-5)
    assert wanted[0, 1] == 1 and wanted.std() > 0.3
    learned = mirada.build("distilbert:tiny", d=d, context=32)
    assert learned.body.embed.position.weight.std() < 0.03


@pytest.mark.parametrize("head, count", [("Model", 66_362_880), ("ForMaskedLM", 66_985_530)])
def test_published_size(head, count):
    model = mirada.build("distilbert", architecture="DistilBert" + head, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


def test_the_first_release_loads(tmp_path):
    """The projector repeats the table, positions lie beside it, and a key says what is tied."""
    theirs = transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(
        **TINY, tie_weights_=True)).eval()
    theirs.save_pretrained(tmp_path / "a")
    file, ids = tmp_path / "a" / "model.safetensors", torch.arange(3, 10)[None]
    now = load_file(file)
    save_file(now | {"vocab_projector.weight": now["distilbert.embeddings.word_embeddings.weight"]
                     .clone(), "distilbert.embeddings.position_ids": torch.arange(32)[None]}, file)
    ours = mirada.load(tmp_path / "a")
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)
    tagger = mirada.load(tmp_path / "a", architecture="DistilBertModel")
    assert all(n.startswith("vocab_") for n in tagger.origin.carried) and tagger.origin.carried
    mirada.save(ours, tmp_path / "again")
    before, after = load_file(file), load_file(tmp_path / "again" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)

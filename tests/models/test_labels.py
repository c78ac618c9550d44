"""How many labels a head has: written so that the reference reads it, whatever its own default."""

import pytest
import transformers

import mirada


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(("family", "head"), [
    ("bart", "BartForSequenceClassification"), ("mbart", "MBartForSequenceClassification"),
    ("bert", "BertForSequenceClassification")])
def test_the_reference_reads_as_many(tmp_path, family, head, count):
    model = mirada.build(family, "tiny", architecture=head, labels=count)
    folder = mirada.save(model, tmp_path / "saved")
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert theirs.num_labels == count == mirada.load(folder).config.labels
    assert theirs.id2label == {n: f"LABEL_{n}" for n in range(count)}

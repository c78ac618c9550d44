"""ALBERT against the reference."""

import pytest
import torch
import transformers
from safetensors.torch import load_file

import mirada
from mirada.errors import MiradaError
from parity.harness import Row, table, tokens

TINY = dict(vocab_size=61, embedding_size=12, hidden_size=24, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=40, max_position_embeddings=32)


def pairs(row: Row) -> dict:
    """Two segments in each row."""
    batch = tokens(row)
    kinds = torch.randint(row.settings.get("type_vocab_size", 2), batch["input_ids"].shape)
    return batch | {"token_type_ids": kinds}


def row(architecture: str, **more) -> Row:
    name = more.pop("name", "")
    return Row(architecture, "AlbertConfig", TINY | more, inputs=pairs, name=name)


ROWS = [
    row("AlbertForPreTraining"),
    row("AlbertForPreTraining", name="odd", tie_word_embeddings=False,
        type_vocab_size=3, layer_norm_eps=1e-3, num_hidden_groups=2, inner_group_num=2),
    row("AlbertForMaskedLM"),
    row("AlbertForMaskedLM", name="learned", hidden_act="prelu", embedding_size=24),
    row("AlbertModel"),
    row("AlbertForSequenceClassification", num_labels=3),
    row("AlbertForTokenClassification", num_labels=3),
    row("AlbertForQuestionAnswering"),
]
test_parity = table(ROWS)


@pytest.mark.scope("1.5.3")
def test_the_layers_share_one_block():
    albert = mirada.build("albert", "large", device="meta")
    assert albert.body.order == [0] * 24 and len(albert.body.blocks) == 1


@pytest.mark.parametrize("layers, groups", [(12, 4), (7, 3), (18, 14), (27, 21)])
def test_groups_of_layers_are_the_references(layers, groups):
    """18 / 14 is no exact number, and its rounding decides which block layer 9 is."""
    keys = TINY | dict(num_hidden_layers=layers, num_hidden_groups=groups)
    theirs, order = transformers.AlbertModel(transformers.AlbertConfig(**keys)), []
    for n, group in enumerate(theirs.encoder.albert_layer_groups):
        group.register_forward_hook(lambda module, args, output, n=n: order.append(n))
    theirs(torch.arange(3, 6)[None])
    ours = mirada.build("albert:tiny", layers=layers, groups=groups, device="meta")
    assert ours.body.order == order


def test_more_groups_than_layers_are_refused():
    with pytest.raises(MiradaError, match="2 layers cannot be 3 groups"):
        mirada.build("albert:tiny", groups=3)


@pytest.mark.scope("1.5.3")
@pytest.mark.parametrize("size, count", [
    ("base", 11_683_584), ("large", 17_683_968), ("xlarge", 58_724_864), ("xxlarge", 222_595_584)])
def test_published_sizes(size, count):
    albert = mirada.build("albert", size, architecture="AlbertModel", device="meta")
    assert sum(p.numel() for p in albert.parameters()) == count


def test_one_file_serves_every_head(tmp_path):
    """A pretraining checkpoint under the other heads: what they do not read is carried."""
    theirs = transformers.AlbertForPreTraining(transformers.AlbertConfig(**TINY)).eval()
    theirs.save_pretrained(tmp_path / "a")
    file, ids = load_file(tmp_path / "a" / "model.safetensors"), torch.arange(3, 10)[None]
    wanted, body = theirs(ids), theirs.albert(ids)
    masked = mirada.load(tmp_path / "a", architecture="AlbertForMaskedLM")
    assert torch.allclose(masked(ids).logits, wanted.prediction_logits, atol=1e-5)
    assert masked.origin.carried.keys() == {
        n for n in file if n.startswith(("albert.pooler.", "sop_classifier."))}
    plain = mirada.load(tmp_path / "a", architecture="AlbertModel")
    assert torch.allclose(plain(ids).pooler_output, body.pooler_output, atol=1e-5)
    assert plain.origin.carried.keys() == {
        n for n in file if n.startswith(("predictions.", "sop_classifier."))}

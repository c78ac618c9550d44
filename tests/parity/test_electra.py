"""ELECTRA against the reference."""

import pytest
import torch
import transformers

import mirada
from mirada import registry
from parity.harness import Pair, Row, pair, run_theirs, table, tokens, wide

TINY = dict(vocab_size=61, embedding_size=12, hidden_size=24, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=40, max_position_embeddings=32)


def pairs(row: Row) -> dict:
    """Two segments in each row."""
    batch = tokens(row)
    kinds = torch.randint(row.settings.get("type_vocab_size", 2), batch["input_ids"].shape)
    return batch | {"token_type_ids": kinds}


def found(pair: Pair) -> torch.Tensor:
    """Which tokens were replaced, (B, T)."""
    return torch.arange(pair.batch["input_ids"].numel()).view_as(pair.batch["input_ids"]) % 3 % 2


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "labels")}
    return Row(architecture, "ElectraConfig", TINY | more, inputs=pairs, **keys)


ROWS = [
    row("ElectraForPreTraining", labels=found),
    row("ElectraForPreTraining", name="learned", labels=found, hidden_act="prelu",
        embedding_size=24),
    row("ElectraForMaskedLM"),
    row("ElectraForMaskedLM", name="odd", tie_word_embeddings=False, hidden_act="relu",
        layer_norm_eps=1e-3, type_vocab_size=3, embedding_size=32),
    row("ElectraModel"),
    row("ElectraForSequenceClassification", num_labels=3),
    row("ElectraForTokenClassification", num_labels=3),
    row("ElectraForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.5.5")(table(ROWS))


def test_pads_do_not_count_in_the_loss():
    both = pair(ROWS[0])
    real = torch.ones_like(both.batch["input_ids"])
    real[0, -3:] = 0
    labels = found(both)
    batch = both.batch | {"attention_mask": real, "labels": labels}
    wanted = run_theirs(both, batch)["loss"]
    assert (both.ours(**batch).loss - wanted).abs() < 1e-10
    flipped = torch.where(real.bool(), labels, 1 - labels)
    assert both.ours(**batch | {"labels": flipped}).loss == both.ours(**batch).loss
    all_count = {k: v for k, v in batch.items() if k != "attention_mask"}
    with wide():
        assert (both.ours(**all_count).loss - wanted).abs() > 1e-3


def test_the_generator_of_a_size_shares_its_table():
    for size in ("base", "large"):
        found, made = (mirada.build("electra", s, architecture="ElectraForMaskedLM", device="meta")
                       for s in (size, size + "-generator"))
        assert found.body.embed.token.weight.shape == made.body.embed.token.weight.shape
        assert made.config.d * 3 <= found.config.d


@pytest.mark.parametrize("size, count", [
    ("small", 13_483_008), ("base", 108_891_648), ("large", 334_092_288)])
def test_published_sizes(size, count):
    electra = mirada.build("electra", size, architecture="ElectraModel", device="meta")
    assert sum(p.numel() for p in electra.parameters()) == count


@pytest.mark.parametrize("size", ["base-generator", "large-generator"])
def test_generators_hold_as_many_numbers_as_the_references(size):
    ours = mirada.build("electra", size, architecture="ElectraForMaskedLM", device="meta")
    keys = registry.written_config(ours) | {"architectures": None}
    with torch.device("meta"):
        theirs = transformers.ElectraForMaskedLM(transformers.ElectraConfig(**keys))
    count = sum(p.numel() for p in theirs.parameters())
    assert sum(p.numel() for p in ours.parameters()) == count > 30_000_000

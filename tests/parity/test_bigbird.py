"""BigBird against the reference, which must really have run its block-sparse attention."""

import copy

import pytest
import torch
import transformers

import mirada
from parity.harness import BAR, Row, pair, run_theirs, shake, table, tokens, wide

TINY = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=40, max_position_embeddings=80, pad_token_id=0, sep_token_id=2,
            block_size=4, num_random_blocks=1)
SPARSE = "block_sparse"


def long(row: Row) -> dict:
    """64 tokens, 16 blocks: more than 5 + 2 * 1 of them, and than 5 + 2 * 2."""
    return tokens(row, 2, 64)


def ragged(row: Row) -> dict:
    """A last block of two tokens; segments of both kinds."""
    batch = tokens(row, 2, 62)
    return batch | {"token_type_ids": torch.randint(2, batch["input_ids"].shape)}


def asked(row: Row) -> dict:
    """Questions of two lengths."""
    batch = long(row)
    batch["input_ids"][0, [9, 60]] = batch["input_ids"][1, 14] = 2
    return batch


def patterns(pair, theirs) -> dict:
    """The reference shows one of the looks at the first block, where its rows take several."""
    block, drawn = (pair.row.settings[n] for n in ("block_size", "num_random_blocks"))
    T, made = pair.batch["input_ids"].shape[1], []
    for attention in theirs.attentions:
        whole = attention.clone()
        whole[:, :, block:-block, :block] *= 1 + drawn
        assert (whole.sum(-1) - 1).abs().max() < BAR
        made.append((whole[:, :, :T, :T], torch.ones(1, 1, T, T)))
    return {"encoder": made}


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "inputs", "exempt")}
    sparse = more.get("attention_type", SPARSE) == SPARSE and keys.get("inputs") is not tokens
    pooled = architecture.endswith(("PreTraining", "Model", "SequenceClassification", "Answering"))
    keys = {"inputs": long, "patterns": patterns if sparse else None,
            "left": not pooled} | keys  # these read the first token, to the reference a pad
    return Row(architecture, "BigBirdConfig", TINY | more, **keys)


ROWS = [
    row("BigBirdForPreTraining"),
    row("BigBirdForMaskedLM"),
    row("BigBirdForMaskedLM", name="odd", inputs=ragged, num_random_blocks=2, use_bias=False,
        rescale_embeddings=True, tie_word_embeddings=False, hidden_act="relu",
        layer_norm_eps=1e-3),
    row("BigBirdForMaskedLM", name="full", attention_type="original_full"),
    row("BigBirdForMaskedLM", name="short", inputs=tokens,
        exempt={"score bias": "a short text looks at everything"}),
    row("BigBirdModel"),
    row("BigBirdForSequenceClassification", num_labels=3),
    row("BigBirdForTokenClassification", num_labels=3),
    row("BigBirdForQuestionAnswering", inputs=asked),
]
test_parity = table(ROWS)


@pytest.mark.scope("1.16.3")
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_reference_ran_block_sparse(row):
    both = pair(row)
    run_theirs(both, both.batch)
    body = both.theirs.get_submodule("bert") if hasattr(both.theirs, "bert") else both.theirs
    wanted = "original_full" if row.name in ("full", "short") else SPARSE
    assert body.attention_type == wanted and body.block_size == 4
    kinds = {type(layer.attention.self).__name__ for layer in body.encoder.layer}
    assert kinds == {"BigBirdBlockSparseAttention" if wanted == SPARSE else "BigBirdSelfAttention"}


@pytest.mark.scope("1.16.3")
@pytest.mark.parametrize("length, changes", [
    (64, {}), (61, dict(num_random_blocks=2)), (41, dict(block_size=3, num_random_blocks=3)),
    (1024, dict(block_size=64, num_random_blocks=3, max_position_embeddings=2048)),
    (1024, dict(block_size=64, num_random_blocks=3, max_position_embeddings=1024))])
def test_in_training_each_head_looks_at_blocks_drawn_by_lot(tmp_path, length, changes):
    """The reference's very draws; in evaluation it, and so ours, looks elsewhere."""
    torch.manual_seed(3)
    still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with wide():
        theirs = transformers.BigBirdForMaskedLM(
            transformers.BigBirdConfig(**TINY | still | changes)).double()
        shake(theirs)
        theirs.save_pretrained(tmp_path)
        ids = torch.randint(3, 61, (1, length))
        wanted = theirs.train()(ids).logits
        assert theirs.bert.attention_type == SPARSE
    ours = mirada.load(tmp_path)
    evaluated = ours(ids).logits
    ours.train()
    assert (ours(ids).logits - wanted).abs().max() < BAR
    assert (evaluated - wanted).abs().max() > 1e-3
    block = changes.get("block_size", 4)
    times = ours.body.blocks[0].attn.f.score_bias.times(-(-length // block))
    other = ours.body.blocks[1].attn.f.score_bias.times(-(-length // block))
    assert not torch.equal(times, other) and not torch.equal(times[0], times[1])


@pytest.mark.scope("1.16.3")
def test_who_looks_at_whom():
    """Neighbours, the first block and the last; in evaluation the first counts for each draw."""
    both = pair(ROWS[1])
    times = both.ours.body.blocks[0].attn.f.score_bias.times(6)[0]
    assert times.tolist() == [[1, 1, 1, 1, 1, 1], [2, 1, 1, 0, 0, 1], [2, 1, 1, 1, 0, 1],
                              [2, 0, 1, 1, 1, 1], [2, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]


def test_a_block_of_pads_stays_finite():
    both = pair(ROWS[1])
    mask = torch.ones(2, 64, dtype=torch.long)
    mask[0, :30] = 0
    batch = both.batch | {"attention_mask": mask}
    places = (mask.cumsum(1) - 1).clamp(min=0)
    wanted = run_theirs(both, batch | {"position_ids": places})["logits"]
    for kernel in ("sdpa", "exact"):
        with mirada.kernel(kernel):
            got = both.ours(**batch).logits
        assert torch.isfinite(got).all()
        assert (got - wanted)[mask.bool()].abs().max() < BAR


@pytest.mark.parametrize("separated", [True, False])
def test_pads_before_a_question_change_nothing(separated):
    both = pair(ROWS[-1])
    ids = torch.randint(3, 61, (1, 12))
    ids[0, 4] = 2 if separated else 3
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    alone, behind = both.ours(ids), both.ours(padded, (padded != 0).long())
    theirs = copy.deepcopy(both.theirs)(ids)  # a copy: after a short text it is sparse no more
    for name in ("start_logits", "end_logits"):
        assert (behind[name][:, 3:] - alone[name]).abs().max() < 1e-8  # of a million
        assert (alone[name] < -1e5).sum() == (4 if separated else 0)
        assert (alone[name] - theirs[name]).abs().max() < BAR


@pytest.mark.scope("1.16.3")
@pytest.mark.parametrize("size", ["base", "large"])
def test_published_sizes(size):
    """google/bigbird-roberta-base and -large."""
    shape = {} if size == "base" else dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
    with torch.device("meta"):
        theirs = transformers.BigBirdForPreTraining(transformers.BigBirdConfig(**shape))
    ours = mirada.build("bigbird", size, device="meta")
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()

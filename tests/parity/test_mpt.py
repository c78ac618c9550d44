"""MPT against the reference."""

import json

import pytest
import torch
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

import mirada
from parity.harness import Row, pair, table

TINY = dict(vocab_size=61, max_seq_len=32, d_model=24, n_layers=2, n_heads=4, pad_token_id=1)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "MptConfig", TINY | more, **keys)


ROWS = [
    row("MptForCausalLM", cached=True),
    row("MptForCausalLM", cached=True, name="odd", n_heads=6, layer_norm_epsilon=1e-3,
        tie_word_embeddings=False,
        attn_config=dict(clip_qkv=0.7, softmax_scale=0.9)),
    row("MptModel"),
    row("MptForSequenceClassification", num_labels=3),
    row("MptForTokenClassification", num_labels=3),
    row("MptForQuestionAnswering"),
]
test_parity = pytest.mark.scope("1.2.5")(table(ROWS))


def test_clipping_bites():
    """Without it the odd row's numbers would be others."""
    both = pair(ROWS[1])
    out = both.ours(**both.batch).logits
    attn = both.ours.body.blocks[0].attn.f
    attn.v.limit = 1e9
    try:
        assert (both.ours(**both.batch).logits - out).abs().max() > 1e-3
    finally:
        attn.v.limit = 0.7


@pytest.mark.parametrize("heads, steepest", [(4, 8), (6, 16), (12, 5)])
def test_slopes(heads, steepest):
    """The reference's formula; its model never hands the steepest slope over, so no row can."""
    bias = mirada.build("mpt:tiny", d=96, heads=heads, steepest=steepest).body.blocks[0].attn.f
    wanted = build_mpt_alibi_tensor(heads, 9, steepest)[:, 0]  # up to the newest key
    steps = torch.arange(9)
    got = bias.score_bias.rows(torch.zeros(1), torch.zeros(1), steps, steps)[0, :, -1]
    assert (got - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("size, count", [
    ("7b", 6_649_286_656), ("7b-storywriter", 6_649_286_656), ("30b", 29_957_200_896)])
def test_published_sizes(size, count):
    model = mirada.build("mpt", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("changes, said", [
    ({"no_bias": False}, "no_bias"), ({"logit_scale": 0.5}, "logit_scale"),
    ({"attn_config": {"qk_ln": True}}, "attn_config.qk_ln"),
    ({"attn_config": {"alibi": False}}, "attn_config.alibi"),
    ({"attn_config": {"rope": True}}, "attn_config.rope"), ({"attn_config": 3}, "attn_config")])
def test_what_published_files_never_say_is_refused(changes, said, tmp_path):
    raw = json.loads((pair(ROWS[0]).folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | changes))
    with pytest.raises(mirada.MiradaError, match=said):
        mirada.load(tmp_path)

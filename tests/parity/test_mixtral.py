"""Mixtral against the reference."""

import copy

import pytest
import torch

import mirada
from parity.harness import Row, pair, run_theirs, table

TINY = dict(vocab_size=61, hidden_size=32, intermediate_size=20, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=4,
            max_position_embeddings=32, pad_token_id=1, bos_token_id=None, eos_token_id=None)


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt")}
    return Row(architecture, "MixtralConfig", TINY | more, **keys)


ROWS = [
    row("MixtralForCausalLM", cached=True),
    row("MixtralForCausalLM", cached=True, name="odd", num_local_experts=3, num_experts_per_tok=1,
        head_dim=6, hidden_act="gelu", rms_norm_eps=1e-3, sliding_window=3,
        tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=77.0)),
    row("MixtralModel", num_experts_per_tok=3),
    row("MixtralForSequenceClassification", num_labels=3),
    row("MixtralForTokenClassification", num_labels=3),
    row("MixtralForQuestionAnswering"),
]
test_parity = table(ROWS)


def test_hooks_see_the_routers_logits():
    """The reference's own router logits, layer by layer."""
    both = pair(ROWS[0])
    seen = []
    hooks = [block.mlp.f.router.register_forward_hook(lambda m, a, out: seen.append(out))
             for block in both.ours.body.blocks]
    both.ours(**both.batch)
    for hook in hooks:
        hook.remove()
    theirs = run_theirs(both, both.batch | {"output_router_logits": True})["router_logits"]
    assert len(seen) == len(theirs) == 2
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(seen, theirs, strict=True))


@pytest.mark.parametrize("fault", ["one expert less", "weighed too little", "experts exchanged"])
def test_a_broken_mixture_shows(fault):
    both = pair(ROWS[0])
    model = copy.deepcopy(both.ours)
    for block in model.body.blocks:
        moe = block.mlp.f
        if fault == "one expert less":
            moe.top -= 1
        elif fault == "experts exchanged":
            moe.experts = torch.nn.ModuleList(reversed(moe.experts))
        else:
            moe.register_forward_hook(lambda m, a, out: 0.9 * out)
    worst = (model(**both.batch).logits - both.ours(**both.batch).logits).abs().max()
    assert worst > 1e-3


@pytest.mark.parametrize("size, count", [("8x7b", 46_702_792_704), ("8x22b", 140_620_634_112)])
def test_published_sizes(size, count):
    model = mirada.build("mixtral", size=size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("changes", [{"top": 5}, {"act": "prelu"}, {"mlp_bias": True}])
def test_what_cannot_be_is_refused(changes):
    with pytest.raises(mirada.MiradaError, match="experts|biases"):
        mirada.build("mixtral:tiny", device="meta", **changes)

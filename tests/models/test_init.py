"""A model built anew has weights as wide as the reference gives its own."""

import math

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING

import mirada
from mirada import registry

OURS = {"gpt3", "palm"}  # no reference builds these
FAMILIES = sorted(set(registry.families()) - OURS)
# differs: the reference cuts the tails of its normal off, and narrows the head's transform.
APART = {"modernbert": 0.15}
OTHER = {"modernbert": {"head.dense.weight"},  # today's reference has MAE's positions at zero
         "vit_mae": {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}}


@pytest.mark.parametrize("name", FAMILIES)
def test_new_weights_are_as_wide_as_the_references(name):
    """Standard deviations within six of their own errors; constants are equal."""
    ours = mirada.build(f"{name}:tiny", seed=1)
    raw = registry.written_config(ours)
    torch.manual_seed(3)
    config = CONFIG_MAPPING[raw["model_type"]].from_dict(raw)
    theirs = getattr(transformers, ours.architecture)(config).state_dict()
    mine = {n: t for n, t in registry.export(ours).items()
            if n in theirs and n not in OTHER.get(name, ())}
    assert len(mine) >= 8
    for tensor, other in ((t, theirs[n]) for n, t in mine.items() if t.is_floating_point()):
        if min(tensor.numel(), other.numel()) < 2 or other.std() == 0:
            assert torch.equal(tensor, other)
            continue
        width, wanted = tensor.std().item(), other.std().item()
        room = 6 / math.sqrt(tensor.numel()) + APART.get(name, 0)  # two samples of so many
        assert abs(width / wanted - 1) < room
        assert abs(tensor.mean()) < 6 * width / math.sqrt(tensor.numel())


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_no_reference_builds_is_even(name):
    """GPT-3 as GPT-2; PaLM by fan-in, its table N(0, 1) (2204.02311, section 5)."""
    ours = mirada.build(f"{name}:tiny", seed=1)
    table, up = (ours.state()[path] for path in ("embed.token.weight", "blocks.0.mlp.f.up.weight"))
    wanted = {"gpt3": (0.02, 0.02), "palm": (1.0, up.shape[1] ** -0.5)}[name]
    assert [table.std().item(), up.std().item()] == pytest.approx(wanted, rel=0.05)

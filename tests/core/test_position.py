"""Positions: sinusoids, learned tables and rotation with its scalings, by formula and reference."""

import math

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gptj import modeling_gptj as gptj
from transformers.models.llama import modeling_llama as llama
from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

from mirada.core.position import (
    ByChannel,
    ByWavelength,
    Dynamic,
    Learned,
    Linear,
    Rotary,
    Sinusoid,
    Yarn,
    frequencies,
    sinusoid,
)
from mirada.errors import MiradaError
from parity.harness import wide

STEPS = torch.arange(12)


def angles(d: int, p: float, base=10000.0) -> list[float]:
    return [p / base ** (2 * i / d) for i in range(math.ceil(d / 2))]


@pytest.mark.scope("1.2.1")
@pytest.mark.parametrize("d", [1, 2, 6, 7])
@pytest.mark.parametrize("base", [10000.0, 50.0])
def test_sinusoids_are_the_papers_formula_in_both_layouts(d, base):
    mixed = sinusoid(STEPS, d, base=base, dtype=torch.float64)
    halves = sinusoid(STEPS, d, base=base, halves=True, dtype=torch.float64)
    assert mixed.shape == halves.shape == (12, d)
    for p in (0, 1, 11):
        sines, cosines = ([f(a) for a in angles(d, p, base)] for f in (math.sin, math.cos))
        pairs = [x for pair in zip(sines, cosines, strict=True) for x in pair]
        assert mixed[p].tolist() == pytest.approx(pairs[:d], abs=1e-14)
        assert halves[p].tolist() == pytest.approx((sines + cosines)[:d], abs=1e-14)


@pytest.mark.scope("1.2.1")
@pytest.mark.parametrize("d", [6, 7])
def test_the_halves_layout_is_marians(d):
    theirs = MarianSinusoidalPositionalEmbedding(12, d).create_weight()
    assert torch.allclose(sinusoid(STEPS, d, halves=True), theirs, atol=1e-6)


@pytest.mark.scope("1.2.1")
@pytest.mark.parametrize("k", [1, 5, 100])
def test_a_shift_is_a_rotation_that_knows_no_position(k):
    """PE(p + k) = M_k PE(p) with one M_k for all p: a block rotation by each frequency's angle."""
    d = 8
    M = torch.zeros(d, d, dtype=torch.float64)
    for i, a in enumerate(angles(d, k)):
        turn = torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])
        M[2 * i:2 * i + 2, 2 * i:2 * i + 2] = turn
    here, there = (sinusoid(p, d, dtype=torch.float64) for p in (STEPS, STEPS + k))
    assert torch.allclose(there, here @ M.T, atol=1e-12)
    assert here.abs().max() <= 1 and len(torch.unique(here, dim=0)) == len(STEPS)


def test_the_guides_figure_corrected():
    # sin(1 / 10000^0.2) is 0.1578; 0.01 would be 10000^0.5, that is d = 4
    assert sinusoid(torch.tensor([1]), 10)[0, 2].item() == pytest.approx(0.15783, abs=1e-5)
    assert sinusoid(torch.tensor([1]), 4)[0, 2].item() == pytest.approx(0.01, abs=1e-5)


def test_sinusoids_are_computed_wide_and_returned_narrow():
    far = torch.tensor([[5000, 100_001]])
    exact = sinusoid(far, 16, dtype=torch.float64)
    assert sinusoid(far, 16).dtype == torch.float32 and exact.dtype == torch.float64
    half = sinusoid(far, 16, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.shape == (1, 2, 16)
    assert (half.double() - exact).abs().max() < 2e-2  # angles in bfloat16 would be off by hundreds
    module = Sinusoid(16, base=50.0, halves=True)
    assert torch.equal(module(far, dtype=torch.float64),
                       sinusoid(far, 16, base=50.0, halves=True, dtype=torch.float64))
    assert not list(module.parameters()) and module(far).dtype == torch.float32
    assert torch.equal(Sinusoid(16, offset=3)(far), sinusoid(far + 3, 16))


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_end_where_the_context_does(offset):
    table = Learned(5, 3, offset)
    assert table.weight.shape == (5 + offset, 3) and table.context == 5
    assert torch.equal(table(torch.tensor([[0, 4]])), table.weight[[offset, 4 + offset]][None])
    with pytest.raises(MiradaError, match="position 5 is past this model's context of 5 tokens"):
        table(torch.tensor([[0, 5]]))


# ---- rotation ----


def config(rope: dict, context: int = 64, dim: int = 16, part: float = 1.0):
    given = {"rope_theta": 10000.0, "partial_rotary_factor": part} | rope
    return transformers.LlamaConfig(
        hidden_size=dim, num_attention_heads=1, num_key_value_heads=1, head_dim=dim,
        max_position_embeddings=context, rope_parameters=given)


def theirs(rope: dict, positions: torch.Tensor, dim: int = 16, context: int = 64, part=1.0):
    """cos and sin, (B, T, dim), of the reference in float64."""
    with wide():
        module = llama.LlamaRotaryEmbedding(config(rope, context, dim, part))
        return module(torch.zeros(1, dtype=torch.float64), positions)


SCALINGS = {
    "default": (None, {}),
    "base": (None, {"rope_theta": 500.0}),
    "linear": (Linear(4.0), {"rope_type": "linear", "factor": 4.0}),
    "dynamic": (Dynamic(3.0, 64), {"rope_type": "dynamic", "factor": 3.0}),
    "llama3": (ByWavelength(8.0, 1.0, 4.0, 32),
               {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
    "llama3 wide": (ByWavelength(2.0, 0.5, 6.0, 500),
                    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 0.5,
                     "high_freq_factor": 6.0, "original_max_position_embeddings": 500}),
    "yarn": (Yarn(4.0, 16), {"rope_type": "yarn", "factor": 4.0,
                             "original_max_position_embeddings": 16}),
    "yarn odd": (Yarn(2.5, 300, 20.0, 2.0, 0.7, False),
                 {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 300,
                  "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 0.7, "truncate": False}),
    "yarn whole": (Yarn(2.5, 300, 20.0, 2.0),
                   {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 300,
                    "beta_fast": 20.0, "beta_slow": 2.0}),
    "yarn unsaid": (Yarn(2.5, 800), {"rope_type": "yarn", "factor": 2.5,
                                     "original_max_position_embeddings": 800}),
    "yarn of one": (Yarn(1.0, 64), {"rope_type": "yarn", "factor": 1.0,
                                    "original_max_position_embeddings": 64}),
    "yarn short": (Yarn(4.0, 4), {"rope_type": "yarn", "factor": 4.0,
                                  "original_max_position_embeddings": 4}),
    "longrope": (ByChannel(tuple(1 + 0.1 * i for i in range(8)), tuple(2.0 + i for i in range(8)),
                           32, math.sqrt(1 + math.log(2) / math.log(32))),
                 {"rope_type": "longrope", "short_factor": [1 + 0.1 * i for i in range(8)],
                  "long_factor": [2.0 + i for i in range(8)], "factor": 2.0,
                  "original_max_position_embeddings": 32}),
}


@pytest.mark.scope("1.2.4")
@pytest.mark.parametrize("most", [10, 31, 32, 63, 64, 300])
@pytest.mark.parametrize("name", SCALINGS)
def test_every_scaling_is_the_references_also_past_the_old_context(name, most):
    scaling, rope = SCALINGS[name]
    positions = torch.tensor([list(range(9)) + [most]])
    rope = rope if "rope_type" in rope else rope | {"rope_type": "default"}
    cos, sin = theirs(rope, positions)
    rotary = Rotary(16, rope.get("rope_theta", 10000.0), scaling=scaling)
    ours = rotary.table(positions, torch.float64)
    for mine, other in zip(ours, (cos, sin), strict=True):
        assert mine.shape == (1, 1, 10, 8) and other.dtype == torch.float64
        assert (mine[:, 0] - other[..., :8]).abs().max() < 1e-11, name


def test_every_type_of_the_reference_is_compared():
    compared = {rope.get("rope_type", "default") for _, rope in SCALINGS.values()}
    # "proportional" is of models that this core does not build
    assert set(ROPE_INIT_FUNCTIONS) | {"default"} == compared | {"proportional"}


def test_scalings_by_their_formulas():
    plain = frequencies(8, 100.0, torch.zeros(0, dtype=torch.float64))
    assert plain.tolist() == pytest.approx([100 ** (-2 * i / 8) for i in range(4)])
    rotary = Rotary(8, 100.0)
    assert torch.allclose(Linear(4.0)(plain, rotary, None)[0], plain / 4)
    grown, warm = Dynamic(2.0, 10)(plain, rotary, lambda: torch.tensor(30))
    base = 100 * (2 * 30 / 10 - 1) ** (8 / 6)
    assert grown.tolist() == pytest.approx([base ** (-2 * i / 8) for i in range(4)]) and warm == 1
    kept, _ = Dynamic(2.0, 10)(plain, rotary, lambda: torch.tensor(7))
    assert torch.allclose(kept, plain)
    assert Yarn(8.0, 16)(plain, rotary, None)[1] == pytest.approx(0.1 * math.log(8) + 1)
    assert Yarn(8.0, 16, temperature=0.5)(plain, rotary, None)[1] == 0.5


@pytest.mark.scope("1.2.4")
@pytest.mark.parametrize("part", [8, 4])
def test_halves_are_llamas_layout_whole_and_partial(part):
    q, k = torch.randn(2, 3, 5, 8).double(), torch.randn(2, 1, 5, 8).double()
    positions = torch.tensor([[0, 1, 2, 3, 4], [3, 4, 5, 9, 90]])
    cos, sin = theirs({"rope_type": "default"}, positions, dim=part)
    turned = llama.apply_rotary_pos_emb(q[..., :part], k[..., :part], cos, sin)
    for mine, whole, other in zip(Rotary(part)(q, k, positions), (q, k), turned, strict=True):
        assert torch.allclose(mine[..., :part], other, atol=1e-12)
        assert torch.equal(mine[..., part:], whole[..., part:]) and mine.shape == whole.shape


@pytest.mark.scope("1.2.4")
@pytest.mark.parametrize("part", [8, 4])
def test_pairs_are_gptjs_layout_whole_and_partial(part):
    q = torch.randn(2, 5, 3, 8).double()  # (B, T, H, K) there
    positions = torch.tensor([[0, 1, 2, 3, 4], [3, 4, 5, 9, 90]])
    table = gptj.create_sinusoidal_positions(100, part).double()[positions]
    sin, cos = table.chunk(2, -1)
    turned = gptj.apply_rotary_pos_emb(q[..., :part], sin, cos)
    mine, _ = Rotary(part, interleaved=True)(q.transpose(1, 2), q.transpose(1, 2), positions)
    assert torch.allclose(mine[..., :part], turned.transpose(1, 2), atol=1e-5)  # theirs is float32
    assert torch.equal(mine[..., part:], q.transpose(1, 2)[..., part:])


@pytest.mark.scope("1.2.4")
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("scaling", [None, Linear(3.0), Yarn(4.0, 16, temperature=1.0)])
def test_what_a_query_finds_depends_on_the_distance_only(interleaved, scaling):
    rotary = Rotary(8, interleaved=interleaved, scaling=scaling)
    q, k = torch.randn(2, 1, 1, 1, 8).double()

    def found(m: int, n: int) -> float:
        at = rotary(q, q, torch.tensor([[m]]))[0], rotary(k, k, torch.tensor([[n]]))[1]
        return (at[0] * at[1]).sum().item()

    for m, n in ((0, 0), (5, 2), (2, 5), (9, 0)):
        for shift in (1, 40, 1000):
            assert found(m + shift, n + shift) == pytest.approx(found(m, n), abs=1e-10)
    assert found(5, 2) != pytest.approx(found(2, 5), abs=1e-3)
    assert found(3, 3) == pytest.approx((q * k).sum().item(), abs=1e-12)
    assert rotary(q, k, torch.tensor([[7]]))[0].norm().item() == pytest.approx(q.norm().item())


def test_layouts_are_one_rotation_under_a_permutation():
    q, positions = torch.randn(1, 2, 5, 8).double(), torch.arange(5)[None]
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    pairs = Rotary(8, interleaved=True)(q, q, positions)[0]
    halves = Rotary(8)(q[..., order], q[..., order], positions)[0]
    assert torch.allclose(pairs[..., order], halves, atol=1e-14)


def test_angles_are_never_rounded_to_the_models_width():
    positions = torch.tensor([[4001]])
    exact, _ = Rotary(8).table(positions, torch.float64)
    cos, sin = Rotary(8).table(positions, torch.bfloat16)
    assert cos.dtype == sin.dtype == torch.bfloat16
    assert (cos.double() - exact).abs().max() < 1e-2
    assert Rotary(8).table(positions, torch.float32)[0].dtype == torch.float32
    assert not list(Rotary(8).bfloat16().state_dict())


def test_a_pass_computes_its_table_once_and_never_reads_a_stale_one(monkeypatch):
    rotary, made = Rotary(8), []
    angles = rotary._angles
    monkeypatch.setattr(rotary, "_angles", lambda *a: made.append(1) or angles(*a))
    positions = torch.arange(4)[None]

    def count(dtype=torch.float32) -> int:
        got = rotary.table(positions, dtype)
        fresh = Rotary(8, rotary.base, scaling=rotary.scaling).table(positions, dtype)
        assert all(torch.equal(a, b) for a, b in zip(got, fresh, strict=True))
        return len(made)

    assert count() == count() == 1
    positions += 3  # in place: the same tensor with other numbers
    assert count() == 2
    rotary.base = 500.0
    assert count() == 3
    rotary.scaling = Linear(2.0)
    assert count() == count() == 4
    assert count(torch.float64) == 5
    positions = positions.clone()
    assert count(torch.float64) == 6
    with torch.inference_mode():
        assert count(torch.float64) == 7
    assert count(torch.float64) == 8, "a table made for inference cannot be trained through"


def test_positions_of_inference_tensors_have_no_version_and_still_work():
    with torch.inference_mode():
        positions = torch.arange(3)[None]
        cos, _ = Rotary(4).table(positions, torch.float32)
    assert torch.equal(cos, Rotary(4).table(torch.arange(3)[None], torch.float32)[0])

"""The planner beside published tables, and beside what torch itself keeps."""

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

import mirada
from mirada import MiradaError, registry
from mirada.look.describe import describe
from mirada.look.plan import KINDS, GiB, count, plan

COUNTED = {  # parameters, as the makers' files hold them
    "gpt2:small": 124_439_808, "gpt2:medium": 354_823_168, "gpt2:large": 774_030_080,
    "gpt2:xl": 1_557_611_200, "llama:7b": 6_738_415_616, "llama:13b": 13_015_864_320,
    "llama:70b": 68_976_648_192, "llama:llama3-8b": 8_030_261_248,
    "llama:llama3-70b": 70_553_706_496, "llama:llama3-405b": 405_853_388_800,
    "llama:mistral-7b": 7_241_732_096, "llama:smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_of_public_models_to_the_last_one(name):
    assert describe(name).parameters == COUNTED[name]


def megatron(d, layers, heads):
    return registry.build("gpt2", device="meta", dtype=torch.bfloat16, vocab=51200, context=2048,
                          d=d, layers=layers, heads=heads)


@pytest.mark.scope("1.6.18")
@pytest.mark.parametrize("shape, gpus, rows, seconds, published", [
    ((6144, 48, 64), 8, 4, 1.10, 41.5), ((12288, 96, 96), 64, 64, 13.75, 51.4),
    ((20480, 105, 128), 280, 280, 37.83, 56.0), ((25600, 128, 160), 512, 512, 71.49, 56.3),
])
def test_mfu_of_megatron(shape, gpus, rows, seconds, published):
    """2205.05198, table 5: 22B, 175B, 530B and 1T."""
    found = plan(megatron(*shape), gpus=gpus, kind="a100", rate=rows * 2048 / seconds / gpus,
                 length=2048)
    assert 100 * found.mfu == pytest.approx(published, abs=1)


@pytest.mark.scope("1.6.18")
def test_speed_of_mt_nlg():
    """2201.11990: 530B, 1,920 rows, TFLOP/s that count the recomputed forward pass as well."""
    found = plan(megatron(20480, 105, 128), kind="a100", length=2048, rate=1.0)
    for gpus, seconds, published in ((2240, 60.1, 126), (2800, 50.2, 121), (3360, 44.4, 113)):
        mfu = found.mfu * 1920 * 2048 / seconds / gpus
        assert 100 * mfu * 4 / 3 == pytest.approx(100 * published / 312, abs=1)


@pytest.mark.scope("1.6.18")
@pytest.mark.parametrize("size, kind, rate, table, published", [
    ("llama3-8b", "h100", 5762, False, 33), ("llama3-8b", "h100", 6667, False, 39),
    ("llama3-8b", "a100", 2904, True, 56.8), ("llama3-70b", "a100", 331, True, 51.7)])
def test_mfu_of_torchtitan(size, kind, rate, table, published):
    """Its performance notes of 2024; the older ones count the token table's weights as work."""
    name = f"llama:{size}"
    found = plan(name, gpus=64, kind=kind, length=8192, rate=rate)
    body = describe(name)
    rows = body.parameters - body.flops // 2 if table else 0
    more = 6 * rows * rate / KINDS[kind].flops
    assert 100 * (found.mfu + more) == pytest.approx(published, abs=1)



@pytest.mark.scope("1.6.18")
@pytest.mark.parametrize("how, published", [
    ({"gpus": 8, "batch": 2, "length": 8192, "recompute": "selective"}, 82.4),
    ({"gpus": 8, "batch": 2, "length": 8192, "recompute": "selective"}, 77.0),  # compiled
    ({"gpus": 128, "batch": 2, "length": 8192, "recompute": "selective"}, 67.0),
    ({"gpus": 128, "batch": 2, "length": 8192, "recompute": "selective"}, 62.0),  # compiled
    ({"gpus": 8, "length": 32768, "recompute": "full"}, 83.9),
    ({"gpus": 8, "length": 65536, "context": 2, "recompute": "full"}, 84.2),
    ({"gpus": 8, "length": 131072, "context": 4, "recompute": "full"}, 84.0),
    ({"gpus": 8, "length": 262144, "context": 8, "recompute": "full"}, 84.5)])
def test_memory_of_torchtitan(how, published):
    """LLaMA-3 8B on H100 with FSDP, its performance notes of December 2024, GiB."""
    found = plan("llama:llama3-8b", kind="h100-96", **how)
    assert found.used / GiB == pytest.approx(published, rel=0.10)


TINY = ("llama", "gpt2", "bert", "qwen2", "neox", "bloom", "mpt", "roberta", "gptj", "palm")


@pytest.mark.filterwarnings("ignore")  # of the tracker
@pytest.mark.parametrize("family", TINY)
def test_activations_are_what_torch_keeps(family):
    rows, length = 4, 96
    model = registry.build(f"{family}:tiny", dtype=torch.bfloat16, seed=0).train()
    ids = torch.randint(0, 100, (rows, length))
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        before = _live(tracker)
        out = model(ids)  # noqa: F841  it holds what is kept
        live = _live(tracker) - before
    kept = count(registry.build(f"{family}:tiny", device="meta", dtype=torch.bfloat16), length)
    assert rows * (kept.all + kept.around + 2 * kept.logits) == pytest.approx(live, rel=0.05)
    assert kept.inputs < kept.chosen < kept.all


def _live(tracker) -> int:
    found = tracker.get_tracker_snapshot("current")[torch.device("cpu")]
    return next(n for part, n in found.items() if str(part) == "Total")


@pytest.mark.scope("1.6.18")
def test_any_model_is_planned_without_memory():
    for name in registry.families():
        size = "tiny" if "tiny" in registry.sizes(name) else registry.sizes(name)[0]
        found = plan(f"{name}:{size}", gpus=8, length=64)
        assert found.used > 0 and found.flops > 0, name
        assert found.step is None, "no speed is claimed that nobody gave"


def test_experts_cost_what_a_token_meets():
    few = describe(registry.build("mixtral:tiny", device="meta"))
    many = describe(registry.build("mixtral:tiny", device="meta", experts=16))
    assert many.parameters > few.parameters
    grown = 2 * (16 - 4) * 64 * 2  # the router alone: tiny has 4 experts in each of 2 layers
    assert many.flops - few.flops == grown


def test_pieces_and_copies():
    kept = {"length": 256, "kind": "a100"}
    alone, pieces = plan("gpt2", **kept), plan("gpt2", gpus=4, **kept)
    copies = plan("gpt2", gpus=4, shard=False, **kept)
    assert pieces.parts["optimizer"] * 4 == alone.parts["optimizer"] == copies.parts["optimizer"]
    assert plan("gpt2", tensor=2, gpus=2, **kept).flops * 2 == alone.flops
    again = plan("gpt2", recompute="full", **kept)
    assert again.parts["activations"] < alone.parts["activations"]


def test_what_does_not_fit_says_what_would():
    found = plan("llama:70b", kind="h100", length=2048, batch=4)
    assert not found.fits and "does not fit" in str(found)
    assert any("fewer rows" in words for words in found.advice)
    assert plan("llama:llama3-405b", gpus=512, kind="h100", length=8192, tensor=8,
                recompute="full").fits


def test_serving():
    found = plan("llama:llama3-8b", serve=True, batch=16, length=8192)
    body = describe(registry.build("llama:llama3-8b", device="meta", dtype=torch.bfloat16))
    assert found.parts["cache"] == 16 * 8192 * body.cache_bytes == 16 * GiB
    assert found.fits and "cache" in str(found)


def test_assumptions_and_goodput_are_told():
    found = plan("gpt2", gpus=1024, efficiency=0.4, failures=50_000, save=60)
    assert found.step == pytest.approx(found.at_least / 0.4)
    assert any("40%" in words for words in found.assumed)
    (share, interval), between = found.goodput, 50_000 * 3600 / 1024
    assert interval == pytest.approx((2 * 60 * between) ** 0.5)
    assert share == pytest.approx(1 - 60 / interval - interval / (2 * between))


@pytest.mark.parametrize("how, words", [
    ({"gpus": 6, "tensor": 4}, "6 machines cannot stand in groups of 4 x 1"),
    ({"kind": "abacus"}, "no machine is called 'abacus'"), ({"batch": 0}, "batch is 0"),
    ({"recompute": "some"}, "recompute is 'some'"), ({"efficiency": 40.0}, "it is a share"),
    ({"length": 0}, "length is 0"), ({"length": 100, "gpus": 3, "context": 3}, "100 tokens")])
def test_numbers_that_cannot_be(how, words):
    with pytest.raises(MiradaError, match=words):
        plan("gpt2", **how)


def test_a_loaded_model_is_planned_and_left_alone():
    model = mirada.build("llama:tiny", seed=0)
    ids = torch.arange(8)[None]
    before = model(ids).logits
    plan(model, length=32)
    assert torch.equal(model(ids).logits, before) and not model.training


def test_command(capsys):
    from mirada.cli import main
    assert main(["plan", "gpt2", "--gpus", "2", "--kind", "rtx4090", "--batch", "4"]) == 0
    assert "fits" in capsys.readouterr().out

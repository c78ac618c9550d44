"""Quantize: what is rounded, what stays, how far it goes, on every family."""


import pytest
import torch

import mirada
from mirada import registry
from mirada.core.linear import KEPT, Quantized, QuantizedEmbedding
from mirada.edit.gptq import rounded
from mirada.errors import MiradaError
from mirada.kernels.blocks import expand
from mirada.kernels.pack import pack
from mirada.look.quality import quality
from mirada.look.verify import _batch, _main, verify
from mirada.text.tokenizer import Tokenizer

IDS = torch.arange(3, 23)[None]
TEXT = "The cat drank the milk because it was thirsty, and the dog slept near the warm stove. " * 60


def tiny(**changes):
    return mirada.build("llama", "tiny", seed=1, **changes)


def kinds(model) -> dict[str, str]:
    return {path.removeprefix("body."): m.type for path, m in model.named_modules()
            if isinstance(m, KEPT)}


def worst(a, b) -> float:
    return ((a - b).abs().max() / a.std()).item()


@pytest.mark.scope("1.15.8")
@pytest.mark.parametrize("to, type, bar", [
    ("int8", "I8", 0.06), ("int4", "Q4_0", 0.8), ("nf4", "NF4", 0.8), ("fp4", "FP4", 1.1),
    ("q8_0", "Q8_0", 0.05), ("Q4_1", "Q4_1", 0.8), ("Q4_K", "Q5_0", 0.5), ("Q6_K", "Q8_0", 0.05)])
def test_each_type_moves_the_outputs_and_not_far(to, type, bar):
    model = tiny()
    small = mirada.edit.quantize(model, to)
    assert set(kinds(small).values()) == {type} and len(kinds(small)) == 14
    assert 0 < worst(model(IDS).logits, small(IDS).logits) < bar
    for path in kinds(small):  # nothing but rounding to nearest
        weight = model.get_submodule("body." + path).weight
        assert torch.equal(small.get_submodule("body." + path).blocks, pack(weight, type))


@pytest.mark.scope("1.15.7")
def test_eight_bits_are_a_quarter_of_the_file(tmp_path):
    """Of float32, where projections are nearly all of the model, as in large ones."""
    model = mirada.build("llama", "tiny", seed=1, vocab=64, d=512, hidden=1024, heads=8,
                         layers=6)
    wide = mirada.save(model, tmp_path / "wide") / "model.safetensors"
    small = mirada.save(mirada.edit.quantize(model, "int8"), tmp_path / "small")
    ratio = wide.stat().st_size / (small / "model.safetensors").stat().st_size
    assert 3.8 < ratio < 4, ratio


def test_the_model_given_stays_and_shares_the_rest():
    model = tiny()
    before = model(IDS).logits
    small = mirada.edit.quantize(model, "int4")
    assert torch.equal(model(IDS).logits, before) and not kinds(model)
    table, given = small.body.embed.token.weight, model.body.embed.token.weight
    assert table.data_ptr() == given.data_ptr() and not table.requires_grad
    assert all(p.requires_grad for p in model.parameters())


def test_what_stays_wide():
    model = tiny(tied=True)
    assert mirada.edit.quantize(model, "int8").paths()["head.out.weight"] == "embed.token.weight"
    wide = {n for n, m in mirada.edit.quantize(model, "int8").named_modules()
            if isinstance(m, torch.nn.Linear | torch.nn.Embedding)}
    assert wide == {"body.embed.token", "head.out"}
    some = kinds(mirada.edit.quantize(model, "int8", skip=["mlp.f.down", r"blocks\.0\."]))
    assert sorted(some) == [f"blocks.1.{n}" for n in (
        "attn.f.k", "attn.f.o", "attn.f.q", "attn.f.v", "mlp.f.gate", "mlp.f.up")]
    routers = mirada.build("mixtral", "tiny", seed=1)
    assert not any("router" in path for path in kinds(mirada.edit.quantize(routers, "int4")))


def test_tables_are_one_buffer_where_they_are_tied():
    small = mirada.edit.quantize(tiny(tied=True), "int4", tables="Q8_0")
    table, head = small.body.embed.token, small.head.out
    assert isinstance(table, QuantizedEmbedding) and isinstance(head, Quantized)
    assert table.blocks is head.blocks and kinds(small)["embed.token"] == "Q8_0"
    assert small.paths()["head.out.blocks"] == "embed.token.blocks"
    described = mirada.describe(small)
    assert described.parameters == mirada.describe(tiny(tied=True)).parameters
    assert described.memory["Q8_0"] == 1024 * 64 // 32 * 34
    assert "tied to the token table" in described.facts["head"]
    apart = mirada.edit.quantize(tiny(), "int4", tables="Q8_0")
    assert apart.body.embed.token.blocks is not apart.head.out.blocks


def test_mistakes_are_said():
    model = tiny()
    with pytest.raises(MiradaError, match="'int3' is no type.*int8, int4, nf4"):
        mirada.edit.quantize(model, "int3")
    with pytest.raises(MiradaError, match="quantized already.*dtype=torch.float32"):
        mirada.edit.quantize(mirada.edit.quantize(model, "int8"), "int4")
    with pytest.raises(MiradaError, match="without memory"):
        mirada.edit.quantize(mirada.build("llama", "tiny", device="meta"), "int8")
    with pytest.raises(MiradaError, match="nothing of this model"):
        mirada.edit.quantize(model, "int8", skip=["."])
    with pytest.raises(MiradaError, match="calibration is for int4"):
        mirada.edit.quantize(model, "nf4", calibrate=TEXT)


def test_training_what_is_quantized_is_refused():
    small = mirada.edit.quantize(tiny(), "nf4").train()
    with pytest.raises(MiradaError, match="quantized weights do not train: tune adapters"):
        small(IDS, labels=IDS)
    with torch.no_grad():
        assert small(IDS, labels=IDS).loss > 0
    adapter = torch.nn.Parameter(torch.zeros(64))  # as QLoRA's: something of it trains
    small.body.blocks[0].attn.f.q.register_parameter("bias", adapter)
    small(IDS, labels=IDS).loss.backward()
    assert adapter.grad.abs().max() > 0


FAMILIES = [name for name in registry.families()
            if "tiny" in registry.sizes(name) and registry.family(name).KIND != "audio"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_quantized(family):
    """8 bits a weight move no output by more than a tenth of its spread; 4 bits by far more."""
    model = mirada.build(family, "tiny", seed=2)
    batch = _batch(model)
    with torch.inference_mode():
        wide = _main(model(**batch))
        eight, four = (_main(mirada.edit.quantize(model, to)(**batch)) for to in ("Q8_0", "int4"))
    if not kinds(mirada.edit.quantize(model, "Q8_0")):
        pytest.fail("nothing was quantized")
    spread = max(wide.std().item(), wide.abs().max().item() / 10)
    moved = [((x - wide).abs().max() / spread).item() for x in (eight, four)]
    assert 0 < moved[0] < 0.1 and moved[0] < moved[1], moved


def test_verify_and_record_work_on_it(tmp_path):
    mirada.save(tiny(), tmp_path / "wide")
    loaded = mirada.load(tmp_path / "wide")
    for to in ("int8", "nf4", "Q4_1"):
        small = mirada.edit.quantize(loaded, to)
        report = {c.name: c for c in verify(small).checks}
        assert all(c.ok is not False for c in report.values()), report
        assert "quantized since it was loaded" in report["as its file says"].figure
        assert report["saved = loaded"].ok and report["recording on = off"].ok
        if to != "Q4_1":
            mirada.save(small, tmp_path / to)
            again = mirada.load(tmp_path / to)
            assert torch.equal(again(IDS).logits, small(IDS).logits)
            report = {c.name: c for c in verify(again).checks}
            assert report["as its file says"].ok and all(
                c.ok is not False for c in report.values()), report


# ---- calibration -------------------------------------------------------------------------------


@pytest.mark.scope("1.15.8")
def test_gptq_keeps_products_better_than_rounding():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(160, 160, generator=generator) / 13
    X = torch.randn(900, 160, generator=generator) @ mix
    W = torch.randn(48, 160, generator=generator)
    learned, plain = rounded(W, X.T @ X), pack(W, "Q4_0")

    def error(blocks):
        return ((expand(blocks, "Q4_0") - W) @ X.T).square().mean().item()

    assert learned.shape == plain.shape and error(learned) < 0.6 * error(plain)
    dead = torch.zeros(160, 160)  # inputs that never come say nothing: rounding to near is left
    assert (expand(rounded(W, dead), "Q4_0") - W).abs().max() < W.abs().max() / 7


def test_calibration_of_a_model(real):
    model = tiny(vocab=30522)
    with torch.no_grad():
        for block in model.body.blocks:  # streams whose channels move together, as real ones do
            for p in (block.attn.f.v.weight, block.mlp.f.down.weight):
                p.mul_(40)
    with pytest.raises(MiradaError, match="no tokenizer"):
        mirada.edit.quantize(model, "int4", calibrate=TEXT)
    model.tokenizer = Tokenizer.from_folder(real("minilm"))
    with pytest.raises(MiradaError, match="fewer than 256"):
        mirada.edit.quantize(model, "int4", calibrate="a cat")
    learned = mirada.edit.quantize(model, "int4", calibrate=TEXT)
    plain = mirada.edit.quantize(model, "int4")
    assert kinds(learned) == kinds(plain) and learned.head.out.weight.data_ptr() == (
        model.head.out.weight.data_ptr())
    assert quality(model, learned, TEXT).logit_mean < quality(model, plain, TEXT).logit_mean

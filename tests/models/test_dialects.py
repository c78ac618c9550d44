"""Every family that llama.cpp has: to GGUF and back, and what GGUF cannot say is refused."""

import gguf
import pytest
import torch

import mirada
from mirada import registry
from mirada.core.linear import KEPT
from mirada.errors import MiradaError
from mirada.models import GGUF, dialects
from mirada.models.dialects import DIALECTS
from mirada.weights.gguf import GGUF as Reader

IDS = torch.tensor([[5, 17, 101, 7, 900, 33, 250, 4]])


def build(name: str, **changes):
    """Norms and biases moved off 1 and 0."""
    model = mirada.build(GGUF[name], "tiny", seed=3, **changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


def test_the_tables_agree():
    assert GGUF.keys() == DIALECTS.keys()
    for name, dialect in DIALECTS.items():
        assert dialect.head in registry.family(GGUF[name]).HEADS
        assert name in gguf.MODEL_ARCH_NAMES.values()


@pytest.mark.scope("1.15.9")
@pytest.mark.parametrize("name", DIALECTS)
def test_to_gguf_and_back(name, tmp_path):
    model = build(name)
    path = mirada.save(model, tmp_path / "m.gguf")
    again = mirada.load(path)
    assert torch.allclose(again(IDS).logits, model(IDS).logits, atol=1e-6)
    mirada.save(again, tmp_path / "folder")
    assert torch.equal(mirada.load(tmp_path / "folder")(IDS).logits, again(IDS).logits)
    assert again.architecture == DIALECTS[name].head


@pytest.mark.parametrize("name", DIALECTS)
def test_names_are_llama_cpps(name, tmp_path):
    """The gguf package's own tables know each tensor and key."""
    path = mirada.save(build(name), tmp_path / "m.gguf")
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == name)
    known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[arch]}
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        base = tensor.name.rpartition(".")[0].replace("blk.0.", "blk.{bid}.")
        assert base.replace("blk.1.", "blk.{bid}.") in known, tensor.name
    keys = {v.replace("{arch}", name) for group in vars(gguf.Keys).values()
            if isinstance(group, type) for v in vars(group).values() if isinstance(v, str)}
    assert {k for k in reader.fields if not k.startswith("GGUF.")} <= keys


@pytest.mark.parametrize("type", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K"])
def test_types(type, tmp_path):
    """Rows of 64 and 256: K types where they fit, a type of 32 elsewhere; vectors stay F32."""
    model = build("llama", hidden=256)
    path = mirada.save(model, tmp_path / "m.gguf", type=type)
    with Reader(path) as reader:
        found = {n: info.type for n, info in reader.tensors.items()}
    short = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}.get(type, type)
    assert found["blk.0.ffn_down.weight"] == type and found["blk.0.attn_q.weight"] == short
    assert found["blk.0.attn_norm.weight"] == found["output_norm.weight"] == "F32"
    four = type[:2] in ("Q4", "Q5")
    assert found["output.weight"] == ("Q8_0" if four else short)
    again = mirada.load(path)
    assert {m.type for m in again.modules() if isinstance(m, KEPT)} == set(found.values()) - {"F32"}
    wide = mirada.load(path, dtype=torch.float32)
    assert torch.equal(again(IDS).logits, wide(IDS).logits)
    assert (wide(IDS).logits - model(IDS).logits).abs().max() < 0.8 * model(IDS).logits.std()


def test_blocks_travel_as_they_are(tmp_path):
    first = mirada.save(build("llama", tied=True), tmp_path / "a.gguf", type="Q4_0")
    model = mirada.load(first)
    second = mirada.save(model, tmp_path / "b.gguf")
    with Reader(first) as a, Reader(second) as b:
        assert all(torch.equal(a.blocks(n), b.blocks(n)) for n in a.names())
        assert a.names() == b.names() and "output.weight" not in a.names()
    with pytest.raises(MiradaError, match="rounding twice.*dtype=torch.float32"):
        mirada.save(model, tmp_path / "c.gguf", type="Q8_0")
    mirada.save(model, tmp_path / "d.gguf", type="F16")  # wider is no second rounding
    small = mirada.edit.quantize(build("gpt2"), "int4")
    mirada.save(small, tmp_path / "e.gguf")  # q, k and v are one tensor there
    assert torch.equal(mirada.load(tmp_path / "e.gguf")(IDS).logits, small(IDS).logits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "d.gguf", "e.gguf"]


def test_factors_of_rotation_are_written(tmp_path):
    model = build("llama", rope="llama3", rope_factor=8.0, rope_low=1.0, rope_high=4.0,
                  rope_original=32)
    again = mirada.load(mirada.save(model, tmp_path / "m.gguf"))
    ids = torch.arange(3, 203)[None]
    assert (again(ids).logits - model(ids).logits).abs().max() < 1e-4
    plain = build("llama")
    assert (plain(ids).logits - model(ids).logits).abs().max() > 1e-2, "the scaling changes nothing"
    with pytest.raises(MiradaError, match="no keys for rotary positions of type 'dynamic'"):
        mirada.save(build("llama", rope="dynamic", rope_factor=2.0), tmp_path / "n.gguf")


@pytest.mark.parametrize("changes, words", [
    ({"act": "relu"}, "hidden_act = 'relu'"), ({"attention_bias": True}, None)])
def test_what_llama_cpp_takes_for_granted(changes, words, tmp_path):
    model = build("llama", **changes)
    if words is None:
        again = mirada.load(mirada.save(model, tmp_path / "m.gguf"))
        assert torch.equal(again(IDS).logits, model(IDS).logits)
        return
    with pytest.raises(MiradaError, match=words):
        mirada.save(model, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_said(tmp_path):
    with pytest.raises(MiradaError, match="llama.cpp has no BertForMaskedLM"):
        mirada.save(mirada.build("bert", "tiny"), tmp_path / "m.gguf")
    with pytest.raises(MiradaError, match="'Q3_X' is no type of GGUF"):
        mirada.save(build("llama"), tmp_path / "m.gguf", type="Q3_X")
    with pytest.raises(MiradaError, match="must|end in .gguf"):
        mirada.save(build("llama"), tmp_path / "folder", type="Q8_0")
    with pytest.raises(MiradaError, match="query_pre_attn_scalar"):
        dialects.DIALECTS["gemma2"].metadata(
            registry.written_config(mirada.build("gemma2", "tiny")) | {
                "query_pre_attn_scalar": 7}, "gemma2")
    assert not list(tmp_path.iterdir())

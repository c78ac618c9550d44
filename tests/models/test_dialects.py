"""Every family that llama.cpp has: to GGUF and back, and what GGUF cannot say is refused."""

import json
import re
from dataclasses import replace

import gguf
import pytest
import torch

import mirada
from mirada import registry
from mirada.core.linear import KEPT
from mirada.errors import MiradaError
from mirada.models import GGUF, dialects
from mirada.models.dialects import DIALECTS
from mirada.tasks.features import read as recipe
from mirada.weights.gguf import GGUF as Reader

IDS = torch.tensor([[5, 17, 101, 7, 900, 33, 250, 4]])


USUAL = {"t5": {"farthest": 128}}  # what llama.cpp takes for granted and a tiny model has not


def build(name: str, **changes):
    """Norms and biases moved off 1 and 0."""
    changes = USUAL.get(name, {}) | changes
    head = DIALECTS[name].head
    model = mirada.build(GGUF[name], "tiny", seed=3, architecture=head, **changes)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


def answer(model) -> torch.Tensor:
    """Its logits; of an encoder, its stream."""
    more = {"decoder_input_ids": IDS[:, :4]} if model.encoder_decoder else {}
    out = model(IDS, **more)
    return out["logits"] if "logits" in out else out["last_hidden_state"]


def test_the_tables_agree():
    assert GGUF.keys() == DIALECTS.keys()
    for name, dialect in DIALECTS.items():
        assert dialect.head in registry.family(GGUF[name]).HEADS
        assert name.partition(":")[0] in gguf.MODEL_ARCH_NAMES.values()


@pytest.mark.scope("1.15.9")
@pytest.mark.parametrize("name", DIALECTS)
def test_to_gguf_and_back(name, tmp_path):
    model = build(name)
    path = mirada.save(model, tmp_path / "m.gguf")
    again = mirada.load(path)
    assert torch.allclose(answer(again), answer(model), atol=1e-6)
    mirada.save(again, tmp_path / "folder")
    assert torch.equal(answer(mirada.load(tmp_path / "folder")), answer(again))
    assert again.architecture == DIALECTS[name].head


@pytest.mark.parametrize("name", DIALECTS)
def test_names_are_llama_cpps(name, tmp_path):
    """The gguf package's own tables know each tensor and key."""
    path = mirada.save(build(name), tmp_path / "m.gguf")
    name = name.partition(":")[0]
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == name)
    known = {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[arch]}
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        base = re.sub(r"\bblk\.\d+\.", "blk.{bid}.", tensor.name.rpartition(".")[0])
        assert base in known, tensor.name
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


def test_mistral_is_written_as_llama(tmp_path):
    model = mirada.build("llama", "tiny", seed=3, architecture="MistralForCausalLM")
    again = mirada.load(mirada.save(model, tmp_path / "m.gguf"))
    assert again.architecture == "LlamaForCausalLM" and torch.equal(answer(again), answer(model))
    with pytest.raises(MiradaError, match="sliding_window = 8"):
        mirada.save(mirada.build("llama", "tiny", architecture="MistralForCausalLM", window=8),
                    tmp_path / "n.gguf")


@pytest.mark.parametrize("changes", [{"period": 2}, {"kinds": (
    "sliding_attention", "full_attention", "full_attention")}])
@pytest.mark.parametrize("name", ["gemma3", "modern-bert"])
def test_which_layers_slide(name, changes, tmp_path):
    model = build(name, **changes)
    again = mirada.load(mirada.save(model, tmp_path / "m.gguf"))
    assert again.config.sights() == model.config.sights() != build(name).config.sights()


def test_experts_stay_in_blocks(tmp_path):
    """All of a layer's are one tensor there; each is a projection here."""
    model = mirada.build("mixtral", "tiny", seed=3)
    first = mirada.save(model, tmp_path / "a.gguf", type="Q4_0")
    again = mirada.load(first)
    small = again.get_submodule("body.blocks.0.mlp.f.experts.3.down")
    assert small.type == "Q4_0" and again.config.experts == 4 and again.config.top == 2
    with Reader(mirada.save(again, tmp_path / "b.gguf")) as b, Reader(first) as a:
        assert a.shape("blk.0.ffn_down_exps.weight") == (4, 64, 96)
        assert a.tensors["blk.0.ffn_gate_inp.weight"].type == "F32"
        assert all(torch.equal(a.blocks(n), b.blocks(n)) for n in a.names())


@pytest.mark.parametrize("changes", [
    {"act": "gelu_new", "gated": True, "tied": False, "scaled": False}, {"decoder_layers": 1}])
def test_every_t5(changes, tmp_path):
    model = build("t5", **changes)
    again = mirada.load(mirada.save(model, tmp_path / "m.gguf"))
    assert torch.equal(answer(again), answer(model))
    assert (again.config.gated, again.config.tied) == (model.config.gated, model.config.tied)


def test_an_encoder_without_its_pooler(tmp_path):
    """As llama.cpp's own converter writes BERT, and as sentence encoders are published."""
    model = build("bert")
    lean = registry.assemble(registry.family("bert"), replace(model.config, pooled=False),
                             "BertModel")
    registry.allocate(lean, "cpu")
    for path, tensor in lean.state().items():
        tensor.copy_(model.state()[path])
    for name in ("m.gguf", "folder"):
        again = mirada.load(mirada.save(lean, tmp_path / name))
        assert torch.equal(answer(again), answer(model))
        assert "pooler_output" not in again(IDS) and "pooler_output" in model(IDS)


def test_roberta_is_written_as_bert(tmp_path):
    model = mirada.build("roberta", "tiny", seed=3, architecture="RobertaModel")
    again = mirada.load(mirada.save(model, tmp_path / "m.gguf"))
    assert again.architecture == "BertModel" and again.context == model.context
    assert again.body.embed.position.weight.shape[0] == model.context
    ours, theirs = model(IDS), again(IDS)
    assert all(torch.equal(ours[name], theirs[name]) for name in ("last_hidden_state",
                                                                  "pooler_output"))


@pytest.mark.parametrize("mode, number", [("mean_tokens", 1), ("cls_token", 2)])
def test_how_a_sentence_becomes_one_vector(mode, number, tmp_path):
    """As the sentence encoder's folder says, in GGUF and read from there."""
    where = mirada.save(mirada.build("bert", "tiny", architecture="BertModel"), tmp_path / "m")
    (where / "1_Pooling").mkdir()
    (where / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    path = mirada.save(mirada.load(where), tmp_path / "m.gguf")
    with Reader(path) as reader:
        assert reader.metadata["bert.pooling_type"] == number
    again = mirada.load(mirada.save(mirada.load(path), tmp_path / "n.gguf"))
    assert recipe(again).pooling == {1: "mean", 2: "cls"}[number]
    (where / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(MiradaError, match="1_Pooling.*pools in one way"):
        mirada.save(mirada.load(where), tmp_path / "o.gguf")


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
    with pytest.raises(MiradaError, match="3 decoder layers beside 2 encoder layers"):
        mirada.save(build("t5", decoder_layers=3), tmp_path / "m.gguf")
    with pytest.raises(MiradaError, match="relative_attention_max_distance = 32"):
        mirada.save(mirada.build("t5", "tiny"), tmp_path / "m.gguf")
    with pytest.raises(MiradaError, match="scale_decoder_outputs = False"):
        mirada.save(build("t5", scaled=False), tmp_path / "m.gguf")
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

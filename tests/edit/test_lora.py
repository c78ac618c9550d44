"""LoRA: the adapter beside the weights, its files against the reference's modules, merging."""

import argparse
import json
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mirada
from mirada import cli, registry
from mirada.commands import common
from mirada.edit import adapter
from mirada.edit.lowrank import Adapted, Low
from mirada.errors import MiradaError, UntrustedInputError
from parity.harness import wide

IDS = torch.arange(3, 20)[None]


@dataclass(frozen=True)
class Row:
    """A family; targets: ours; theirs: the ends of the reference's names for them."""

    name: str
    architecture: str
    targets: tuple
    theirs: tuple


ROWS = [
    Row("llama", "LlamaForCausalLM", ("q", "v", "down"), ("q_proj", "v_proj", "down_proj")),
    Row("gpt2", "GPT2LMHeadModel", ("q", "k", "v", "o", "up"),
        ("c_attn", "attn.c_proj", "c_fc")),
    Row("neox", "GPTNeoXForCausalLM", ("q", "k", "v"), ("query_key_value",)),
    Row("bert", "BertForSequenceClassification", ("q", "v", "o"),
        ("query", "value", "attention.output.dense")),
    Row("t5", "T5ForConditionalGeneration", ("q", "v", "up"), ("q", "v", "wi")),
]
EACH = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def tiny(row: Row, dtype=torch.float32):
    return mirada.build(f"{row.name}:tiny", architecture=row.architecture, seed=1, dtype=dtype)


def moved(model):
    """Its adapter as training would leave it: B is no longer zero."""
    chance = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and name.endswith(".b"):
                p.normal_(std=0.3, generator=chance)
    return model


def logits(model, ids=IDS):
    """Of either side; the reference's float32 islands are raised where it runs in float64."""
    given = {"decoder_input_ids": ids} if "T5" in getattr(
        model, "architecture", type(model).__name__) else {}
    with torch.no_grad(), wide() if model.dtype == torch.float64 else nullcontext():
        return model(input_ids=ids, **given).logits


def reference(folder, tensors, config):
    """The reference's model with each adapter added to its weight by hand, in float64: PEFT's
    formula, W + alpha / r B A, where Conv1D holds W transposed."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    with wide():  # rotary tables are made there and then
        model = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float64).eval()
    modules = dict(model.named_modules())
    done = 0
    for name, a in tensors.items():
        if name.endswith(adapter.A):
            module = name.removeprefix(adapter.PREFIX).removesuffix(adapter.A)
            b, rank = tensors[name.replace(adapter.A, adapter.B)].double(), len(a)
            alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
            change = alpha / rank * b @ a.double()
            turned = isinstance(modules[module], transformers.pytorch_utils.Conv1D)
            modules[module].weight.data += change.T if turned else change
            done += 1
    assert done
    return model


def files(folder):
    return (load_file(folder / "adapter_model.safetensors"),
            json.loads((folder / "adapter_config.json").read_text()))


@pytest.mark.scope("1.13.8")
@EACH
def test_what_we_write_is_the_reference_s(row, tmp_path):
    plain = tiny(row, torch.float64)
    mirada.save(plain, tmp_path / "plain")
    model = moved(mirada.edit.lora(plain, 4, 8.0, row.targets, seed=2))
    mirada.edit.save_adapter(model, tmp_path / "adapter")
    theirs = reference(tmp_path / "plain", *files(tmp_path / "adapter"))
    ours = logits(model)
    assert (ours - logits(theirs)).abs().max() < 1e-10
    assert (ours - logits(plain)).abs().max() > 1e-3


@pytest.mark.scope("1.13.8")
@EACH
def test_what_it_writes_we_read(row, tmp_path):
    """Files as PEFT lays them out, from the reference's own module names and shapes."""
    plain = tiny(row, torch.float64)
    mirada.save(plain, tmp_path / "plain")
    theirs = getattr(transformers, row.architecture).from_pretrained(tmp_path / "plain")
    tensors = {}
    for name, module in theirs.named_modules():
        if any(f".{name}".endswith(f".{end}") for end in row.theirs):
            turned = isinstance(module, transformers.pytorch_utils.Conv1D)
            out, into = module.weight.T.shape if turned else module.weight.shape
            tensors[adapter.PREFIX + name + adapter.A] = torch.randn(3, into) / 8
            tensors[adapter.PREFIX + name + adapter.B] = torch.randn(out, 3)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": list(row.theirs)}
    folder = written(tmp_path / "adapter", tensors, config)
    ours = mirada.edit.load_adapter(plain, folder)
    theirs = reference(tmp_path / "plain", tensors, config)
    assert (logits(ours) - logits(theirs)).abs().max() < 1e-9
    lows = [site.adapters["default"] for site in ours.adapters.sites.values()]
    assert len({id(low.a) for low in lows}) == len(tensors) // 2  # one A a module of the reference
    # and back again: the same numbers under the same names
    mirada.edit.save_adapter(ours, tmp_path / "again")
    again, said = files(tmp_path / "again")
    assert again.keys() == tensors.keys() and all(
        torch.allclose(again[n].float(), tensors[n], atol=1e-7) for n in tensors)
    assert (said["r"], said["lora_alpha"]) == (3, 5)


def written(folder, tensors, config):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


UNKNOWN = ("gpt3", "palm")  # the reference has no such model
# Of these the reference's modules bear other names today than their files' tensors.
RENAMED = ("beit", "deit", "mixtral", "swin", "vit", "vit_mae")


@pytest.mark.parametrize("name", registry.families())
def test_every_family_goes_out_and_comes_back(name, tmp_path):
    """Every projection, under the names of the reference's own modules."""
    plain = mirada.build(f"{name}:tiny", seed=1)
    model = moved(mirada.edit.lora(plain, 2, 3, "all", seed=2))
    mirada.edit.save_adapter(model, tmp_path / "adapter")
    again = mirada.edit.load_adapter(plain, tmp_path / "adapter")
    sites = model.adapters.sites
    assert sites.keys() == again.adapters.sites.keys() and len(sites) >= 6
    for path, site in sites.items():
        assert torch.equal(site.weight, again.adapters.sites[path].weight)
        assert not torch.equal(site.weight, site.base.weight)
    if name not in (*UNKNOWN, *RENAMED):
        kind = getattr(transformers, plain.architecture)
        with torch.device("meta"):
            config = kind.config_class(**registry.written_config(plain))
            modules = dict(kind(config).named_modules())
        assert all(key.removeprefix(adapter.PREFIX)[: -len(adapter.A)] in modules
                   for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))


def test_parts_with_their_own_a_are_stacked(tmp_path):
    """Ranks add up, and B is block-diagonal, each block with its part's scale."""
    plain = tiny(ROWS[1], torch.float64)
    mirada.save(plain, tmp_path / "plain")
    model = moved(mirada.edit.lora(plain, 2, 8.0, ("q", "v"), seed=2))
    for block in model.body.blocks:
        low = block.attn.f.v.adapters["default"]
        low.a, low.scale = torch.nn.Parameter(torch.randn(3, 64).double()), 0.5
        low.b = torch.nn.Parameter(torch.randn(64, 3).double())
    mirada.edit.save_adapter(model, tmp_path / "adapter")
    tensors, config = files(tmp_path / "adapter")
    a = tensors["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"]
    b = tensors["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    assert a.shape == (5, 64) and b.shape == (192, 5)
    assert not b[:64, 2:].any() and not b[64:128].any() and not b[128:, :2].any()
    theirs = reference(tmp_path / "plain", tensors, config)
    assert (logits(model) - logits(theirs)).abs().max() < 1e-10


def test_what_trains_is_the_adapter_and_the_model_given_stays():
    plain = tiny(ROWS[0])
    before, count = logits(plain), sum(p.numel() for p in plain.parameters())
    model = mirada.edit.lora(plain, 4, targets=("q", "v"), seed=2)
    assert torch.equal(logits(model), before)  # B is zero
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all(".adapters.default." in n for n in trained)
    moved(model)
    assert torch.equal(logits(plain), before) and all(p.requires_grad for p in plain.parameters())
    assert sum(p.numel() for p in plain.parameters()) == count
    out = model(input_ids=IDS, labels=IDS)
    out.loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in trained.values())
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)


def test_dropout_is_of_the_adapter_alone():
    model = moved(mirada.edit.lora(tiny(ROWS[0]), 4, dropout=0.5, seed=2))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))
    with model.adapters.using():
        assert torch.equal(logits(model), logits(model))


@pytest.mark.scope("1.13.8")
@pytest.mark.parametrize("dtype, bar", [("float64", 1e-12), ("float32", 1e-5),
                                        ("bfloat16", 0.3)])
@EACH
def test_merged_is_unmerged_and_the_error_is_told(row, dtype, bar):
    model = moved(mirada.edit.lora(tiny(row, getattr(torch, dtype)), 4, 8.0, row.targets,
                                   seed=2))
    merged = mirada.edit.merge(model)
    assert not any(isinstance(m, Adapted) for m in merged.modules())
    error = mirada.edit.merge_error(model, merged, IDS)
    assert error == (logits(model).double() - logits(merged).double()).abs().max().item()
    assert 0 < error < bar
    assert mirada.edit.merge_error(model, merged) < bar


@pytest.mark.scope("1.13.8")
@EACH
def test_a_merged_model_is_one_for_everybody(row, tmp_path):
    model = moved(mirada.edit.lora(tiny(row), 4, 8.0, row.targets, seed=2))
    mirada.save(mirada.edit.merge(model), tmp_path / "merged")
    theirs = getattr(transformers, row.architecture).from_pretrained(tmp_path / "merged")
    assert (logits(theirs) - logits(model)).abs().max() < 1e-5


def test_many_adapters_and_switching_between_them(tmp_path):
    plain = tiny(ROWS[0])
    one = moved(mirada.edit.lora(plain, 4, targets=("q",), name="one", seed=2))
    two = mirada.edit.lora(one, 2, targets=("q", "up"), name="two", seed=3)
    moved(two)
    assert two.adapters.names == ["one", "two"] and two.adapters.active == ("two",)
    trained = [n for n, p in two.named_parameters() if p.requires_grad]
    assert trained and all(".adapters.two." in n for n in trained)
    with two.adapters.using("one"):
        assert torch.equal(logits(two), logits(one))
    with two.adapters.using():
        assert torch.equal(logits(two), logits(plain))
    with two.adapters.using("one", "two"):
        both = logits(two)
        assert mirada.edit.merge_error(two, mirada.edit.merge(two), IDS) < 1e-5
    only = logits(two)
    assert not torch.equal(both, only) and not torch.equal(only, logits(one))
    # each is written alone, and loaded beside the other
    mirada.edit.save_adapter(two, tmp_path / "two", "two")
    again = mirada.edit.load_adapter(one, tmp_path / "two", "two")
    assert torch.equal(logits(again), only) and repr(again.adapters) == "one, two (active)"
    with pytest.raises(MiradaError, match="name the adapter to save: this model has one, two"):
        mirada.edit.save_adapter(two, tmp_path / "which")
    with pytest.raises(MiradaError, match="no adapter is called 'three'; there are one, two"):
        two.adapters.use("three")
    with pytest.raises(MiradaError, match="has an adapter called 'one' already"):
        mirada.edit.lora(two, name="one")


@pytest.mark.scope("1.13.8")
def test_a_head_that_trains_along_travels_with_the_adapter(tmp_path):
    plain = tiny(ROWS[3])
    model = moved(mirada.edit.lora(plain, 4, targets=("q",), whole=("head",), seed=2))
    with torch.no_grad():
        model.head.score.adapters["default"].weight.normal_()
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "head" in n]
    assert trained == [f"head.{part}.adapters.default.{p}" for part in ("pool.dense", "score")
                       for p in ("weight", "bias")]
    mirada.edit.save_adapter(model, tmp_path / "adapter")
    tensors, config = files(tmp_path / "adapter")
    assert config["modules_to_save"] == ["bert.pooler.dense", "classifier"]
    assert config["target_modules"] == ["query"]
    assert config["task_type"] == "SEQ_CLS"
    assert torch.equal(tensors["base_model.model.classifier.weight"], model.head.score.weight)
    again = mirada.edit.load_adapter(plain, tmp_path / "adapter", train=True)
    assert torch.equal(logits(again), logits(model))
    assert [n for n, p in again.named_parameters() if p.requires_grad and "head" in n] == trained
    with again.adapters.using():
        assert torch.equal(logits(again), logits(plain))
    merged = mirada.edit.merge(again)
    assert torch.equal(merged.head.score.weight, model.head.score.weight)


def test_an_adapted_projection_shows_its_weight_as_it_works():
    model = moved(mirada.edit.lora(tiny(ROWS[0]), 4, seed=2))
    site = model.body.blocks[0].attn.f.q
    low = site.adapters["default"]
    assert isinstance(low, Low) and str(low) == "Low(rank=4, scale=4)"
    torch.testing.assert_close(site.weight, site.base.weight + 4 * low.b @ low.a)
    assert model.path().startswith("torch: ")  # the native runtime has no adapters


def test_what_cannot_be(tmp_path):
    plain = tiny(ROWS[0])
    for words, said in [({"targets": ("query",)}, "'query'; there are down, gate, k, o, q, up, v"),
                        ({"targets": ()}, "targets names no projection"),
                        ({"rank": 0}, "rank is a whole number from 1"),
                        ({"whole": ("classifier",)}, "no weights under 'classifier'"),
                        ({"whole": ("embed",)}, "embed.token is a table, or shares its weights"),
                        ({"name": "a.b"}, "cannot name an adapter"),
                        ({"name": "keys"}, "cannot name an adapter")]:
        with pytest.raises(MiradaError, match=said):
            mirada.edit.lora(plain, **words)
    model = mirada.edit.lora(plain, seed=2)
    with pytest.raises(MiradaError, match="it carries adapters .*: no file can say so"):
        mirada.save(model, tmp_path / "no")
    with pytest.raises(MiradaError, match="no adapter of this model is active"):
        mirada.edit.merge(plain)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").touch()
    with pytest.raises(MiradaError, match="not an empty folder"):
        mirada.edit.save_adapter(model, tmp_path / "full")


NAME = "model.layers.0.self_attn.q_proj"
GOOD = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


@pytest.mark.parametrize("config, key, shapes, said", [
    ({"peft_type": "IA3"}, NAME, (2, 64, 64), "peft_type: must be \"LORA\""),
    (GOOD | {"use_dora": True}, NAME, (2, 64, 64), "use_dora: asks for more"),
    (GOOD | {"bias": "all"}, NAME, (2, 64, 64), "bias: must be \"none\""),
    (GOOD | {"lora_alpha": "4"}, NAME, (2, 64, 64), "lora_alpha: '4' is not a number"),
    (GOOD | {"lora_dropout": 1.0}, NAME, (2, 64, 64), "lora_dropout: 1.0 is not below 1"),
    (GOOD | {"alpha_pattern": {"(a+)+$": 3}}, NAME, (2, 64, 64), "must be a module's name"),
    (GOOD, "model.layers.7.self_attn.q_proj", (2, 64, 64), "belongs to no projection"),
    (GOOD, NAME, (2, 63, 64), "do not fit blocks.0.attn.f.q"),
    (GOOD, NAME, (2, 64, 63), "do not fit blocks.0.attn.f.q"),
    (GOOD, "model.embed_tokens", (2, 64, 64), "do not fit embed.token"),
])
def test_files_that_are_none(config, key, shapes, said, tmp_path):
    rank, into, out = shapes
    plain = tiny(ROWS[0])
    folder = written(tmp_path / "a", {adapter.PREFIX + key + adapter.A: torch.ones(rank, into),
                                      adapter.PREFIX + key + adapter.B: torch.ones(out, rank)},
                     config)
    with pytest.raises(UntrustedInputError, match=said):
        mirada.edit.load_adapter(plain, folder)


def test_scales_of_files(tmp_path):
    """rsLoRA divides by the root of the rank; a pattern gives a module an alpha of its own."""
    plain = tiny(ROWS[0])
    tensors = {adapter.PREFIX + NAME + adapter.A: torch.ones(4, 64),
               adapter.PREFIX + NAME + adapter.B: torch.ones(64, 4)}
    for number, (more, scale) in enumerate([
            ({}, 1.0), ({"use_rslora": True}, 2.0), ({"alpha_pattern": {"q_proj": 8}}, 2.0),
            ({"alpha_pattern": {r"^model\.layers\.0\.self_attn\.q_proj$": 2}}, 0.5),
            ({"alpha_pattern": {"layers.1.self_attn.q_proj": 2}}, 1.0)]):
        folder = written(tmp_path / str(number), tensors, GOOD | more)
        model = mirada.edit.load_adapter(plain, folder)
        assert model.body.blocks[0].attn.f.q.adapters["default"].scale == scale


def test_the_command_line_puts_adapters_on_and_merges_them(tmp_path, capsys):
    plain = tiny(ROWS[0])
    mirada.save(plain, tmp_path / "plain")
    model = moved(mirada.edit.lora(plain, 4, seed=2))
    mirada.edit.save_adapter(model, tmp_path / "adapter")
    words = ["convert", tmp_path / "plain", tmp_path / "merged", "--adapter", tmp_path / "adapter"]
    assert cli.main([str(word) for word in words]) == 0
    assert "merged; no output moved by more than" in capsys.readouterr().err
    assert (logits(mirada.load(tmp_path / "merged")) - logits(model)).abs().max() < 1e-5
    args = argparse.Namespace(model=tmp_path / "plain", adapter=tmp_path / "adapter", dtype=None,
                              ignore=[], hub=False)
    assert torch.equal(logits(common.load(args)), logits(model))

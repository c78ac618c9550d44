"""Published quantized safetensors: each layout written here by its definition, and read exactly."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mirada
from mirada.core.linear import Quantized
from mirada.errors import MiradaError
from mirada.kernels.blocks import FP4, NF4

IDS = torch.arange(3, 23)[None]
AWQ = [0, 2, 4, 6, 1, 3, 5, 7]  # the column that each place of a word holds


def integers(shape, low, high, seed=0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def words(codes: torch.Tensor, bits: int, order=None) -> torch.Tensor:
    """(n, m) codes -> (n, m * bits / 32) int32, the first in the lowest bits."""
    apart = codes.long().view(len(codes), -1, 32 // bits)
    apart = apart if order is None else apart[..., order]
    whole = (apart << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()


def gptq(out, width, *, bits=4, group=32, middle=False, shuffled=False, later=1, seed=0):
    """Parts of one layer, and its weight by the definition: scale * (code - zero), (out, in)."""
    groups, top = width // group, 1 << bits
    codes = integers((width, out), 0, top, seed)
    zeros = torch.full((groups, out), top // 2) if middle else integers((groups, out), 1, top, 7)
    scales = (torch.rand(groups, out, generator=torch.Generator().manual_seed(seed)) / 40).half()
    index = torch.arange(width) // group
    if shuffled:
        index = index[torch.randperm(width, generator=torch.Generator().manual_seed(seed))]
    weight = (scales[index].double() * (codes - zeros[index])).T
    return {"qweight": words(codes.T, bits).T.contiguous(), "scales": scales,
            "qzeros": words(zeros - later, bits), "g_idx": index.int()}, weight


def awq(out, width, *, group=32, seed=0):
    codes, zeros = integers((width, out), 0, 16, seed), integers((width // group, out), 0, 16, 5)
    scales = (torch.rand(width // group, out, generator=torch.Generator().manual_seed(seed)) / 40)
    index, scales = torch.arange(width) // group, scales.half()
    weight = (scales[index].double() * (codes - zeros[index])).T
    return {"qweight": words(codes, 4, AWQ), "qzeros": words(zeros, 4, AWQ),
            "scales": scales}, weight


def book(out, width, *, kind="nf4", nested=False, size=64, seed=0):
    values = NF4 if kind == "nf4" else FP4
    codes, count = integers((out, width), 0, 16, seed), out * width // size
    tops = torch.rand(count, generator=torch.Generator().manual_seed(seed)) / 20 + 0.01
    flat = codes.flatten().to(torch.uint8)
    state = {"quant_type": kind, "blocksize": size, "dtype": "float32", "shape": [out, width]}
    parts = {"weight": (flat[::2] << 4 | flat[1::2])[:, None], "weight.quant_map": values.clone()}
    if nested:
        inner = torch.linspace(-1, 1, 256)
        eights, outer = integers((count,), 0, 256, 3).to(torch.uint8), torch.tensor([0.02, 0.03])
        tops = inner[eights.int()] * outer.repeat_interleave(-(-count // 2))[:count] + 0.05
        state |= {"nested_blocksize": -(-count // 2), "nested_offset": 0.05}
        parts |= {"weight.nested_absmax": outer, "weight.nested_quant_map": inner}
    parts["weight.absmax"] = eights if nested else tops
    text = json.dumps(state).encode()
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    weight = (values[codes.flatten()] * tops.repeat_interleave(size)).view(out, width)
    return parts, weight.double()


def rows(out, width, seed=0):
    codes = integers((out, width), -127, 128, seed).to(torch.int8)
    tops = torch.rand(out, generator=torch.Generator().manual_seed(seed)) / 4
    return {"weight": codes, "SCB": tops, "weight_format": torch.zeros((), dtype=torch.uint8)}, (
        codes.float() * tops[:, None] * (1 / 127)).double()


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
CASES = {  # config, parts, the type it stays in
    "gptq": (GPTQ, lambda o, i, s: gptq(o, i, seed=s), "U4"),
    "gptq middle": (GPTQ, lambda o, i, s: gptq(o, i, middle=True, seed=s), "Q4_0"),
    "gptq desc_act": (GPTQ, lambda o, i, s: gptq(o, i, middle=True, shuffled=True, seed=s), None),
    "gptq v2": (GPTQ | {"checkpoint_format": "gptq_v2"},
                lambda o, i, s: gptq(o, i, later=0, seed=s), "U4"),
    "gptq 8 bits": (GPTQ | {"bits": 8}, lambda o, i, s: gptq(o, i, bits=8, seed=s), None),
    "gptq 8 bits middle": (GPTQ | {"bits": 8},
                           lambda o, i, s: gptq(o, i, bits=8, middle=True, seed=s), "Q8_0"),
    "gptq group 64": (GPTQ, lambda o, i, s: gptq(o, i, middle=True, group=64, seed=s), "Q4_0"),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"},
            lambda o, i, s: awq(o, i, seed=s), "U4"),
    "awq group 64": ({"quant_method": "awq", "bits": 4, "version": "gemm"},
                     lambda o, i, s: awq(o, i, group=64, seed=s), "U4"),
    "nf4": (BNB, lambda o, i, s: book(o, i, seed=s), "NF4"),
    "fp4": (BNB, lambda o, i, s: book(o, i, kind="fp4", seed=s), "FP4"),
    "nf4 double": (BNB, lambda o, i, s: book(o, i, nested=True, seed=s), "NF4"),
    "nf4 of 128": (BNB, lambda o, i, s: book(o, i, size=128, seed=s), None),
    "int8": (BNB | {"load_in_8bit": True}, lambda o, i, s: rows(o, i, seed=s), "I8"),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    model = mirada.build("llama", "tiny", seed=1)
    return mirada.save(model, tmp_path_factory.mktemp("plain") / "m")


def publish(plain, folder, method, make) -> dict[str, torch.Tensor]:
    """Write the folder as people publish it; the weights by name, as the layout defines them."""
    shutil.copytree(plain, folder)
    tensors, weights = load_file(plain / "model.safetensors"), {}
    for n, name in enumerate(sorted(t for t in tensors if "_proj" in t)):
        base = name.removesuffix(".weight")
        parts, weights[name] = make(*tensors.pop(name).shape, n)
        tensors |= {f"{base}.{end}": part for end, part in parts.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    return weights


@pytest.mark.scope("1.15.8")
@pytest.mark.parametrize("case", CASES)
def test_each_weight_is_the_number_that_its_format_defines(case, plain, tmp_path):
    method, make, type = CASES[case]
    weights = publish(plain, tmp_path / "m", method, make)
    model = mirada.load(tmp_path / "m")
    held = [m for m in model.modules() if isinstance(m, Quantized)]
    assert {m.type for m in held} == ({type} if type else set())
    assert not type or not any(p.requires_grad for p in model.parameters())
    found = {n: t for n, t in mirada.load(tmp_path / "m", dtype=torch.float64).state().items()
             if ".f." in n}
    for name, wanted in weights.items():
        _, _, layer, part, proj, _ = name.split(".")
        short = proj.removesuffix("_proj")
        path = f"blocks.{layer}.{'attn' if part == 'self_attn' else 'mlp'}.f.{short}"
        assert torch.equal(found[path + ".weight"], wanted.float().double()), name
        if type:
            small = model.get_submodule("body." + path)
            assert torch.equal(small.expand(torch.float64), wanted.float().double())
    assert torch.isfinite(model(IDS).logits).all()


@pytest.mark.parametrize("case", ["gptq", "awq"])
def test_numpy_unpacks_the_same(case, plain, tmp_path):
    """By another way than ours: bits counted one by one from the words of the file."""
    method, make, _ = CASES[case]
    publish(plain, tmp_path / "m", method, make)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    base, order = "model.layers.1.mlp.down_proj.", AWQ if case == "awq" else range(8)
    words, zeros = (tensors[base + n].numpy().view(np.uint32) for n in ("qweight", "qzeros"))
    scales = tensors[base + "scales"].numpy().astype(np.float64)
    found = mirada.load(tmp_path / "m").get_submodule("body.blocks.1.mlp.f.down")
    numbers = found.expand(torch.float64).numpy()
    out, width = numbers.shape
    for o, i in [(0, 0), (3, 7), (out - 1, width - 1), (17, 45), (40, 100)]:
        place = list(order).index(o % 8)
        if case == "awq":
            code = int(words[i, o // 8]) >> 4 * place & 15
            zero = int(zeros[i // 32, o // 8]) >> 4 * place & 15
        else:
            code = int(words[i // 8, o]) >> 4 * (i % 8) & 15
            zero = (int(zeros[i // 32, o // 8]) >> 4 * (o % 8) & 15) + 1
        assert numbers[o, i] == np.float32(scales[i // 32, o] * (code - zero))


def test_the_native_runtime_takes_them(plain, tmp_path):
    """As Q4_1, whose offset is rounded to float16: near, and with the same choices."""
    publish(plain, tmp_path / "m", *CASES["awq"][:2])
    model = mirada.load(tmp_path / "m")
    ids = model.generate([5, 6, 7], max_new_tokens=24, eos_token_id=())
    if isinstance(model.native, str):  # no compiler
        pytest.skip(model.native)
    assert model.path().startswith("native runtime")
    torchs = model.generate([5, 6, 7], max_new_tokens=24, eos_token_id=(), cache=model.new_cache())
    assert torch.equal(torchs, ids)


@pytest.mark.parametrize("case", ["nf4", "nf4 double", "fp4", "int8"])
def test_what_bitsandbytes_keeps_is_saved_so(case, plain, tmp_path):
    method, make, type = CASES[case]
    publish(plain, tmp_path / "m", method, make)
    model = mirada.load(tmp_path / "m")
    mirada.save(model, tmp_path / "again")
    again = mirada.load(tmp_path / "again")
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert {m.type for m in again.modules() if isinstance(m, Quantized)} == {type}
    said = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]
    assert said["quant_method"] == "bitsandbytes"
    if case in ("nf4", "fp4", "int8"):
        first, second = (load_file(tmp_path / f / "model.safetensors") for f in ("m", "again"))
        same = {n for n in first if n in second and torch.equal(first[n], second[n])}
        assert {n for n in first if "quant_state" not in n} <= same


def test_other_files_say_nothing_of_it(plain, tmp_path):
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    publish(plain, tmp_path / "m", GPTQ, CASES["gptq middle"][1])
    mirada.save(mirada.load(tmp_path / "m"), tmp_path / "wide")  # expanded: no writer of GPTQ
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert "quantization_config" not in config
    assert torch.equal(mirada.load(tmp_path / "wide")(IDS).logits,
                       mirada.load(tmp_path / "m", dtype=torch.float32)(IDS).logits)


@pytest.mark.parametrize("method, words", [
    ({"quant_method": "fp8"}, "'fp8' is not one that mirada reads: gptq, awq, bitsandbytes"),
    ({"quant_method": "gptq", "bits": 3}, "gptq with 3 bits"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "in the form 'marlin'"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "in the form 'gemv'"),
    ({"bits": 4}, "the method None"), ("gptq", "the method None")])
def test_other_methods_are_named(method, words, plain, tmp_path):
    publish(plain, tmp_path / "m", method, CASES["gptq"][1])
    with pytest.raises(MiradaError, match=words):
        mirada.load(tmp_path / "m")


NAME = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize("case, changes, words", [
    ("gptq", {"qzeros": None}, "qzeros.*is missing"),
    ("gptq", {"qzeros": torch.zeros(1, 1, dtype=torch.int32)}, "does not fit scales"),
    ("gptq", {"qweight": torch.zeros(8, 128)}, "is torch.float32 of shape"),
    ("gptq", {"g_idx": torch.full((64,), 9, dtype=torch.int32)}, "name one of 2 groups"),
    ("awq", {"scales": torch.zeros(3, 128).half()}, "does not fit scales"),
    ("nf4", {"weight.absmax": torch.zeros(3)}, "do not fit the shape"),
    ("nf4", {"weight.quant_map": None}, "quant_map.*is missing"),
    ("nf4", {"weight.quant_state.bitsandbytes__nf4": torch.tensor([123, 125], dtype=torch.uint8)},
     "must say the weight's shape"),
    ("nf4 double", {"weight.nested_absmax": torch.zeros(7)}, "does not fit the blocks"),
    ("int8", {"SCB": torch.zeros(3)}, "does not fit torch.int8"),
])
def test_parts_that_do_not_fit_are_said(case, changes, words, plain, tmp_path):
    method, make, _ = CASES[case]
    publish(plain, tmp_path / "m", method, make)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    for end, part in changes.items():
        tensors.pop(NAME + end)
        if part is not None:
            tensors[NAME + end] = part
    save_file(tensors, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(MiradaError, match=words):
        mirada.load(tmp_path / "m")

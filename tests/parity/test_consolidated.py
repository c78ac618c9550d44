"""LLaMA's original files, written here by their published layout, against the reference."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers

import mirada
from mirada import registry
from mirada.models import llama, meta
from mirada.text import Tokenizer
from mirada.weights import torchbin
from models import tiny_gguf
from parity.harness import read_reference, shake, wide
from text import vocabularies as v

BASE = dict(vocab_size=60, hidden_size=32, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=8, num_key_value_heads=4, rms_norm_eps=1e-3)
PARAMS = dict(dim=32, n_layers=2, n_heads=8, n_kv_heads=4, vocab_size=60, multiple_of=32,
              norm_eps=1e-3)
COLUMNS = ("wq", "wk", "wv", "w1", "w3", "output")  # ColumnParallelLinear: outputs are divided
ROWS = ("wo", "w2")  # RowParallelLinear: inputs are
NAMES = {"embed_tokens": "tok_embeddings", "input_layernorm": "attention_norm",
         "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
         "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
         "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1",
         "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
         "norm": "norm", "lm_head": "output"}


@pytest.fixture
def here(monkeypatch):
    """Files are rewritten in this process: the child that does it has tests of its own, and takes
    seconds to begin."""
    def convert(path, folder) -> Path:
        target = Path(folder, Path(path).name + ".safetensors")
        state = torch.load(path, weights_only=True)
        torchbin.write_tensors(state, str(path), str(target), Path(path).stat().st_size)
        return target

    monkeypatch.setattr(torchbin, "convert", convert)


def reference(**changes) -> torch.nn.Module:
    torch.manual_seed(5)
    config = transformers.LlamaConfig(**BASE | changes)
    config._attn_implementation = "eager"
    with wide():
        model = transformers.LlamaForCausalLM(config).double().eval()
        shake(model)
    return model


def original(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The names and orders of the first files: rotation turned neighbouring channels, (0, 1)."""
    c, found = model.config, {}
    for name, tensor in model.state_dict().items():
        layer = name.removeprefix("model.").removesuffix(".weight")
        start, _, part = layer.rpartition(".") if "layers" not in layer else ("", "", layer)
        if layer.startswith("layers."):
            _, i, part = layer.split(".", 2)
            start = f"layers.{i}."
        if part.endswith(("q_proj", "k_proj")):
            heads = c.num_attention_heads if part.endswith("q_proj") else c.num_key_value_heads
            K = tensor.shape[0] // heads
            order = torch.arange(K).reshape(2, K // 2).T.flatten()  # 0, K/2, 1, K/2 + 1 ...
            tensor = tensor.reshape(heads, K, -1)[:, order].reshape(tensor.shape)
        found[f"{start}{NAMES[part]}.weight"] = tensor.clone()
    return found | {"rope.freqs": torch.ones(c.hidden_size // c.num_attention_heads // 2)}


def write(folder: Path, tensors: dict, params: dict, shards: int = 1, embedding: int = 1) -> Path:
    """embedding: the axis along which its table was divided, 1 in LLaMA 1 and 2, 0 in 3."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    for n in range(shards):
        part = {}
        for name, tensor in tensors.items():
            kind = name.split(".")[-2]
            axis = 0 if kind in COLUMNS else 1 if kind in ROWS else None
            axis = embedding if kind == "tok_embeddings" else axis
            part[name] = tensor if axis is None else tensor.chunk(shards, axis)[n].clone()
        torch.save(part, folder / f"consolidated.{n:02}.pth")
    return folder


def ids(length: int = 12) -> torch.Tensor:
    return torch.randint(0, 60, (2, length), generator=torch.Generator().manual_seed(3))


def worst(ours, theirs) -> float:
    with wide():
        wanted = theirs(ids()).logits
    assert torch.isfinite(wanted).all()
    return (ours(ids()).logits - wanted).abs().max().item()


SCALED = dict(rope_type="llama3", factor=5.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192, rope_theta=1e6)
CASES = {
    "one": ({}, {}, dict(shards=1)),
    "two": ({}, {}, dict(shards=2)),
    "four": ({"vocab_size": 64}, {"vocab_size": -1}, dict(shards=4, embedding=0)),
    "all heads": ({"num_key_value_heads": 8}, {"n_kv_heads": ..., "vocab_size": -1,
                                               "max_seq_len": 9}, dict(shards=2)),
    "wider": ({"intermediate_size": 120}, {"ffn_dim_multiplier": 1.3, "multiple_of": 20}, {}),
    "base": ({"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
             {"rope_theta": 50.0}, {}),
    "scaled": ({"rope_parameters": SCALED},
               {"rope_theta": 1e6, "use_scaled_rope": True, "rope_scaling_factor": 5.0}, {}),
}


@pytest.mark.scope("1.6.13")
@pytest.mark.parametrize("name", CASES)
def test_same_as_the_reference(name, tmp_path, here):
    changes, told, files = CASES[name]
    theirs = reference(**changes)
    params = {k: x for k, x in (PARAMS | told).items() if x is not ...}
    ours = mirada.load(write(tmp_path / "first", original(theirs), params, **files))
    assert ours.dtype == torch.float64 and worst(ours, theirs) < 1e-10
    mirada.save(ours, tmp_path / "today")
    again = read_reference(transformers.LlamaForCausalLM, tmp_path / "today")
    assert worst(ours, again) < 1e-10
    assert torch.equal(mirada.load(tmp_path / "today")(ids()).logits, ours(ids()).logits)


def test_a_tied_head_is_in_no_file(tmp_path, here):
    theirs = reference(tie_word_embeddings=True)
    tensors = original(theirs)
    del tensors["output.weight"]
    assert worst(mirada.load(write(tmp_path / "m", tensors, PARAMS)), theirs) < 1e-10


@pytest.mark.scope("1.6.13")
def test_three_file_forms_are_one_model(tmp_path):
    """Safetensors of today, the first files and GGUF, grouped keys and values in each."""
    theirs = reference(rms_norm_eps=2.0**-10)
    for p in theirs.parameters():
        p.data = p.data.float().double()
    theirs.save_pretrained(tmp_path / "today")
    write(tmp_path / "first", original(theirs), PARAMS | {"norm_eps": 2.0**-10}, shards=2)
    tiny_gguf.write(tmp_path / "m.gguf", tiny_gguf.tensors(theirs, 8, 4), {
        "vocab_size": 60, "feed_forward_length": 96, "attention.head_count": 8,
        "attention.head_count_kv": 4, "rope.dimension_count": 4,
        "attention.layer_norm_rms_epsilon": 2.0**-10})
    for name in ("today", "first", "m.gguf"):
        ours = mirada.load(tmp_path / name, dtype=torch.float64)
        assert worst(ours, theirs) < 1e-10, name
        assert ours.config.kv_heads == 4


def test_the_order_of_rotation_matters(tmp_path, here):
    """Unpermuted rows, or files joined along the other axis, give other logits."""
    theirs = reference(num_key_value_heads=8)
    tensors = original(theirs)
    tensors["layers.0.attention.wq.weight"] = theirs.model.layers[0].self_attn.q_proj.weight.data
    ours = mirada.load(write(tmp_path / "m", tensors, PARAMS | {"n_kv_heads": 8}))
    assert worst(ours, theirs) > 1e-3


PUBLISHED = {  # size: its params.json
    "7b": dict(dim=4096, multiple_of=256, n_heads=32, n_layers=32, norm_eps=1e-5, vocab_size=-1),
    "13b": dict(dim=5120, multiple_of=256, n_heads=40, n_layers=40, norm_eps=1e-5, vocab_size=-1),
    "70b": dict(dim=8192, multiple_of=4096, ffn_dim_multiplier=1.3, n_heads=64, n_kv_heads=8,
                n_layers=80, norm_eps=1e-5, vocab_size=-1),
    "llama3-8b": dict(dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, vocab_size=128256,
                      multiple_of=1024, ffn_dim_multiplier=1.3, norm_eps=1e-5, rope_theta=5e5),
    "llama3-405b": dict(dim=16384, n_layers=126, n_heads=128, n_kv_heads=8, vocab_size=128256,
                        multiple_of=4096, ffn_dim_multiplier=1.2, norm_eps=1e-5, rope_theta=5e5,
                        use_scaled_rope=True),
    "codellama-7b": dict(dim=4096, n_layers=32, n_heads=32, multiple_of=256, norm_eps=1e-5,
                         ffn_dim_multiplier=1.0, rope_theta=1e6),
}


class Claims:
    """A reader of files that are too large to make."""

    def __init__(self, vocab: int):
        self.vocab = vocab

    def names(self):
        return ["tok_embeddings.weight", "output.weight"]

    def shape(self, name):
        return (self.vocab, 0)


def configured(params: dict, vocab: int) -> llama.Config:
    path = Path("params.json")
    raw = meta.config(meta.read(params, path), Claims(vocab), path)
    return registry._config(llama, raw, path, ())[0]


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_params_are_our_sizes(size):
    wanted = llama.SIZES[size]
    ours = configured(PUBLISHED[size], wanted.vocab)
    assert ours == replace(wanted, kv_heads=wanted.kv_heads or wanted.heads)


@pytest.mark.parametrize("dim, factor", [(2048, 32), (3072, 32), (4096, 8), (8192, 8), (16384, 8)])
def test_scaled_rotation_by_the_models_that_have_it(dim, factor):
    params = PARAMS | dict(dim=dim, use_scaled_rope=True, rope_theta=5e5, vocab_size=-1)
    ours = configured(params, 9)
    assert (ours.rope, ours.rope_factor, ours.rope_low, ours.rope_high, ours.rope_original,
            ours.context) == ("llama3", factor, 1, 4, 8192, 131072)
    assert configured(params | {"norm_eps": 1e-6, "rope_theta": 1e4}, 9).context == 2048


@pytest.mark.parametrize("changes, said", [
    ({"dims": 3}, "dims: this key"),
    ({"dim": ...}, "dim: is missing"),
    ({"dim": "32"}, "dim: '32' is not a whole number"),
    ({"n_layers": 10**6}, "n_layers: 1000000 is out of range"),
    ({"n_layers": 900}, "900 layers are asked for"),
    ({"n_layers": 1}, r"has \d+ tensors that it has no place for"),
    ({"multiple_of": 0}, "multiple_of: 0 is too small"),
    ({"multiple_of": 64}, "does not fit"),
    ({"ffn_dim_multiplier": 1e300}, "ffn_dim_multiplier"),
    ({"vocab_size": 59}, "vocab_size: 59, and the embedding has 60 rows"),
    ({"n_kv_heads": 3}, "cannot share 3"),
    ({"n_kv_heads": 2}, "does not fit"),
    ({"use_scaled_rope": True}, "use_scaled_rope: does not say by how much"),
    ({"rope_theta": 0}, "rope_theta: 0 is too small"),
    ({"quantization_args": {}}, "quantization_args: this key"),
])
def test_params_that_cannot_be_are_refused(changes, said, tmp_path, here):
    params = {k: x for k, x in (PARAMS | changes).items() if x is not ...}
    folder = write(tmp_path / "m", original(reference()), params)
    with pytest.raises(mirada.MiradaError, match=said):
        mirada.load(folder)


def test_a_key_can_be_left_out_as_asked(tmp_path, here):
    folder = write(tmp_path / "m", original(reference()), PARAMS | {"dims": 3})
    assert mirada.load(folder, ignore=["dims"]).generates


def _missing(folder: Path) -> None:
    (folder / "consolidated.00.pth").unlink()


def _short(folder: Path) -> None:
    (folder / "consolidated.01.pth").unlink()


def _all_gone(folder: Path) -> None:
    _missing(folder), _short(folder)


def _changed(name: str, change):
    def act(folder: Path) -> None:
        path = folder / "consolidated.01.pth"
        part = torch.load(path, weights_only=True)
        change(part, name)
        torch.save(part, path)
    return act


def _linked(folder: Path) -> None:
    (folder / "consolidated.01.pth").rename(folder.parent / "elsewhere.pth")
    (folder / "consolidated.01.pth").symlink_to(folder.parent / "elsewhere.pth")


def _halved(part: dict, name: str) -> None:
    part[name] = part[name][:1].clone()


def _rounded(part: dict, name: str) -> None:
    part[name] = part[name].float()


def _moved(part: dict, name: str) -> None:
    part[name] = part[name] + 1


@pytest.mark.parametrize("act, said", [
    (_missing, "missing: consolidated.00.pth"),
    (_short, "does not fit|is a consolidated file missing"),
    (_all_gone, "missing: consolidated.00.pth"),
    (_linked, "is a link to a place outside"),
    (_changed("layers.1.attention.wk.weight", _halved), "does not join"),
    (_changed("layers.1.attention.wk.weight", _rounded), "does not join"),
    (_changed("layers.1.attention.wk.weight", dict.pop), "must be in every file"),
    (_changed("layers.0.ffn_norm.weight", _moved), "must hold the same numbers"),
    (lambda folder: (folder / "params.json").write_text("[1]"), "must be an object"),
])
def test_files_that_do_not_join_are_refused(act, said, tmp_path, here):
    folder = write(tmp_path / "m", original(reference()), PARAMS, shards=2)
    act(folder)
    with pytest.raises(mirada.MiradaError, match=said):
        mirada.load(folder)


def test_what_runs_code_is_refused(tmp_path):
    folder = write(tmp_path / "m", {"norm.weight": math.sqrt}, PARAMS)
    with pytest.raises(mirada.UntrustedInputError, match="does not load as plain weights"):
        mirada.load(folder)


TEMPLATE = (  # of the chat models' tokenizer_config.json, for the talk below
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] %}"
    "{% set talk = messages[1:] %}{% else %}{% set said = none %}{% set talk = messages %}{% endif "
    "%}{% for m in talk %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}{% if loop.first "
    "and said is not none %}{{ '<<SYS>>\\n' + said + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + "
    "eos_token }}{% endif %}{% endfor %}")


@pytest.mark.scope("1.6.13")
def test_the_chat_models_dialogue(tmp_path):
    """The published encoding: [INST] ... [/INST] answer, each turn between <s> and </s>."""
    config = {"tokenizer_class": "LlamaTokenizer", "chat_template": TEMPLATE, "legacy": True}
    v.folder(tmp_path, {"tokenizer.model": v.llama_model(), "tokenizer_config.json": config})
    plain = sentencepiece.SentencePieceProcessor(model_proto=v.llama_model())
    talk = [("system", "Sé breve."), ("user", " Hola, ¿qué tal? "), ("assistant", "Bien. "),
            ("user", "2 + 2")]
    turns = ["[INST] <<SYS>>\nSé breve.\n<</SYS>>\n\nHola, ¿qué tal? [/INST] Bien. ",
             "[INST] 2 + 2 [/INST]"]
    wanted = [1, *plain.encode(turns[0]), 2, 1, *plain.encode(turns[1])]
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.chat([{"role": role, "content": content} for role, content in talk]) == wanted


def test_the_tokenizer_beside_the_first_files(tmp_path, here):
    """Nothing but tokenizer.model names it; its rules are LLaMA's."""
    theirs = reference(vocab_size=420)
    folder = write(tmp_path / "m", original(theirs), PARAMS | {"vocab_size": -1})
    (folder / "tokenizer.model").write_bytes(v.llama_model())
    plain = sentencepiece.SentencePieceProcessor(model_proto=v.llama_model())
    ours = mirada.load(folder)
    assert ours.tokenizer.encode("a cat  sat").ids == [1, *plain.encode("a cat  sat")]
    mirada.save(ours, tmp_path / "today")
    assert mirada.load(tmp_path / "today").tokenizer.encode("a cat").ids == [
        1, *plain.encode("a cat")]

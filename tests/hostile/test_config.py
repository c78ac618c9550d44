"""Hostile config.json files beside good weights: refused at once, in little memory, no trace."""

import contextlib
import json
import math
import resource
import socket
import sys
from pathlib import Path

import pytest
import torch

import mirada
from mirada.errors import MiradaError, UntrustedInputError
from mirada.weights import tensorfile

SECONDS, BYTES = 2.0, 256 << 20
RUNS = ("os.system", "os.exec", "os.fork", "os.spawn", "os.posix_spawn", "subprocess", "socket",
        "pickle", "compile", "exec", "import", "urllib", "ctypes")
_heard: list[str] | None = None


def _listen(event: str, args: tuple) -> None:
    if _heard is not None and event.startswith(RUNS):
        _heard.append(f"{event} {args!r:.200}")


sys.addaudithook(_listen)


@contextlib.contextmanager
def heard():
    """The audit events, within, of anything that runs code or opens a connection."""
    global _heard
    _heard = found = []
    try:
        yield found
    finally:
        _heard = None


def peak() -> int:
    """The largest resident memory so far; starts anew at each call, where the system can."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        most = int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024
        Path("/proc/self/clear_refs").write_text("5")
        return most
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu() -> float:
    own, children = (resource.getrusage(who) for who in
                     (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def tree(folder: Path) -> dict[str, tuple]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """name -> a folder with a small model of that family; all imports are done."""
    made = {}
    for name in ("gpt2", "llama", "bert", "t5", "vit"):
        folder = tmp_path_factory.mktemp(name) / "model"
        made[name] = mirada.save(mirada.build(name, size="tiny", seed=1), folder)
        mirada.load(folder)
    return made


def folder(good: Path, tmp_path: Path, content: bytes | dict) -> Path:
    """The good weights beside another config."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").hardlink_to(good / "model.safetensors")
    if isinstance(content, dict):
        raw = json.loads((good / "config.json").read_text()) | content
        content = json.dumps({k: v for k, v in raw.items() if v is not ...}).encode()
    (tmp_path / "model" / "config.json").write_bytes(content)
    return tmp_path / "model"


def refused(path: Path, says: str, kind=UntrustedInputError) -> str:
    """Loading says so, in the limits, runs nothing and changes nothing. Returns the sentence."""
    before, memory, spent = tree(path.parent), (peak(), peak())[1], cpu()
    with heard() as ran, pytest.raises(kind) as caught:
        mirada.load(path)
    spent, grown = cpu() - spent, peak() - memory
    said = str(caught.value)
    assert says in said, said
    assert said.isprintable() and len(said) < 1500
    assert spent <= SECONDS and grown <= BYTES, (spent, grown)
    assert not ran and tree(path.parent) == before
    return said


WRONG = {  # name -> (family, changes of its config, what the sentence holds)
    # row 42
    "layers-10^8": ("gpt2", {"n_layer": 10**8}, "n_layer: 100000000 is out of range"),
    "layers-2000": ("gpt2", {"n_layer": 2000}, "2000 layers are asked for"),
    "layers-10^400": ("gpt2", {"n_layer": 10**400}, "n_layer"),
    "decoder-layers-2000": ("t5", {"num_decoder_layers": 2000}, "2000 layers are asked for"),
    "wide-and-deep": ("llama", {"hidden_size": 10**6, "num_hidden_layers": 2000,
                                "intermediate_size": 1 << 24}, "2000 layers are asked for"),
    # row 43
    "width-2^20": ("gpt2", {"n_embd": 2**20}, "does not fit"),
    "width-2^24": ("llama", {"hidden_size": 2**24, "intermediate_size": 2**24,
                             "vocab_size": 2**24}, "does not fit"),
    "width-2^25": ("gpt2", {"n_embd": 2**25}, "n_embd: 33554432 is out of range"),
    "context-2^24": ("bert", {"max_position_embeddings": 2**24}, "does not fit"),
    "picture-2^24": ("vit", {"image_size": 2**24, "patch_size": 1, "hidden_size": 2**24}, ""),
    # row 45
    "theta-0": ("llama", {"rope_theta": 0, "rope_parameters": ..., "rope_scaling": ...},
                "rope_theta: 0 is too small"),
    "theta-negative": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}},
                       "rope_theta: -1.0 is too small"),
    "vocabulary-negative": ("gpt2", {"vocab_size": -1}, "vocab_size: -1 is too small"),
    "vocabulary-0": ("gpt2", {"vocab_size": 0}, "vocab_size: 0 is too small"),
    "true-is-no-number": ("gpt2", {"n_layer": True}, "n_layer: True is not a whole number"),
    "eps-negative": ("gpt2", {"layer_norm_epsilon": -1e-5}, "too small"),
    "heads-0": ("gpt2", {"n_head": 0}, "n_head: 0 is too small"),
    "heads-do-not-divide": ("gpt2", {"n_head": 7}, "64 cannot be cut into 7 heads"),
    "groups-do-not-divide": ("llama", {"num_key_value_heads": 3}, "4 heads cannot share 3"),
    "odd-rotation": ("llama", {"head_dim": 7}, "in pairs"),
    "labels-10^9": ("gpt2", {"num_labels": 10**9}, "1000000000 is not a number of labels"),
    "labels-negative": ("gpt2", {"num_labels": -3}, "not a number of labels"),
    # row 46
    "text-for-number": ("bert", {"hidden_size": "64"}, "'64' is not a whole number"),
    "list-for-number": ("bert", {"hidden_size": [64]}, "[64] is not a whole number"),
    "object-for-number": ("bert", {"hidden_size": {"value": 64}}, "is not a whole number"),
    "null-for-number": ("bert", {"hidden_size": None}, "hidden_size"),
    "number-for-text": ("bert", {"hidden_act": 1}, "1 is not a text"),
    "list-for-text": ("bert", {"hidden_act": ["gelu"]}, "is not a text"),
    "number-for-truth": ("gpt2", {"scale_attn_weights": 1}, "1 is not true or false"),
    "no-such-activation": ("gpt2", {"activation_function": "__import__"}, "is not one of"),
    "rope-text": ("llama", {"rope_scaling": "linear"}, "rope"),
    "rope-list": ("llama", {"rope_scaling": ["linear", 2.0]}, "rope"),
    "rope-kind-list": ("llama", {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}}, "rope"),
    "rope-factor-text": ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
    "rope-unknown-key": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "secret": 1}},
                         "secret"),
    "rope-lists-10^5": ("llama", {"rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 10**5, "long_factor": [1.0] * 10**5}}, "rope"),
    "labels-list": ("bert", {"id2label": ["a", "b"]}, "id2label: must map"),
    "labels-number": ("bert", {"id2label": 5}, "id2label: must map"),
    "labels-of-lists": ("bert", {"id2label": {"0": ["a"], "1": "b"}}, "id2label: must map"),
    "labels-text": ("bert", {"num_labels": "3"}, "'3' is not a number of labels"),
    "feed-forward-list": ("t5", {"feed_forward_proj": ["gated-gelu"], "dense_act_fn": ...},
                          "is not one of"),
    "picture-text": ("vit", {"image_size": "32"}, "'32' is not a whole number"),
    "picture-of-three": ("vit", {"image_size": [8, 8, 8]}, "is not a whole number"),
    "patch-larger": ("vit", {"patch_size": 64}, "holds no patch"),
    # names
    "model-type-unknown": ("gpt2", {"model_type": "gpt9"}, "'gpt9' is not an architecture"),
    "model-type-number": ("gpt2", {"model_type": 7}, "names its model_type"),
    "model-type-list": ("gpt2", {"model_type": ["gpt2"]}, "names its model_type"),
    "model-type-missing": ("gpt2", {"model_type": ...}, "names its model_type"),
    "model-type-escapes": ("gpt2", {"model_type": "\x1b[31m\u202egpt2"}, "is not an architecture"),
    "model-type-a-path": ("gpt2", {"model_type": "../../os"}, "is not an architecture"),
    "model-type-a-module": ("gpt2", {"model_type": "rope"}, "is not an architecture"),
    "head-unknown": ("gpt2", {"architectures": ["GPT2Evil"]}, "'GPT2Evil' is not a head"),
    "heads-text": ("gpt2", {"architectures": "GPT2Evil"}, "'GPT2Evil' is not a head"),
    "heads-number": ("gpt2", {"architectures": 5}, "'5' is not a head"),
    "heads-of-lists": ("gpt2", {"architectures": [["GPT2Model"]]}, "is not a head"),
    "heads-object": ("gpt2", {"architectures": {"a": 1}}, "is not a head"),
    "unknown-key": ("gpt2", {"gap_size": 3}, "gap_size"),
    "unknown-long-key": ("gpt2", {"k" * 10**6: "v" * 10**6}, "is not known"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name, good, tmp_path):
    family, changes, says = WRONG[name]
    refused(folder(good[family], tmp_path, changes), says)


BYTES_ = {  # name -> (the whole file, what the sentence holds)
    "nan": (b'{"model_type": "gpt2", "layer_norm_epsilon": NaN}', "NaN"),
    "infinity": (b'{"model_type": "gpt2", "layer_norm_epsilon": -Infinity}', "Infinity"),
    "1e400": (b'{"model_type": "gpt2", "layer_norm_epsilon": 1e400}', "too large"),
    "digits": (b'{"model_type": "gpt2", "n_layer": ' + b"9" * 10**6 + b"}", "too many digits"),
    "twice": (b'{"model_type": "gpt2", "n_layer": 2, "n_layer": 3}', "n_layer"),
    "mark": (b'\xef\xbb\xbf{"model_type": "gpt2"}', "byte order mark"),
    "deep": (b'{"model_type": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "nested deeper"),
    "list": (b'["gpt2"]', "names its model_type"),
    "null": (b"null", "must be a JSON object"),
    "empty": (b"", "is not JSON"),
    "text": (b"model_type: gpt2", "is not JSON"),
    "cut": (b'{"model_type": "gp', "is not JSON"),
    "latin": ('{"model_type": "gpt2", "x": "ñ"}'.encode("latin-1"), "UTF-8"),
}


@pytest.mark.parametrize("name", BYTES_)
def test_refused_bytes(name, good, tmp_path):
    content, says = BYTES_[name]
    refused(folder(good["gpt2"], tmp_path, content), says)


def test_100_mb_are_not_read(good, tmp_path):
    path = folder(good["gpt2"], tmp_path, b"")
    with open(path / "config.json", "wb") as file:  # sparse: it takes no room on the disk
        file.write(b'{"model_type": "gpt2", "x": "')
        file.truncate(100 << 20)
    refused(path, "104,857,600 bytes")


def test_many_tensors_of_nothing_do_not_build_many_layers(good, tmp_path):
    """2,000 empty tensors make a small file; 2,000 blocks would take seconds."""
    path = folder(good["gpt2"], tmp_path, {"n_layer": 2000})
    (path / "model.safetensors").unlink()
    tensorfile.save(path, {f"t{n}": torch.zeros(0) for n in range(2000)})
    refused(path, "2000 layers are asked for")


def test_what_would_run_code_is_passed_by_and_reported(good, tmp_path):
    """Row 44: nothing is imported, started or connected to, and `describe` says what was there."""
    wrong = {
        "auto_map": {"AutoModel": "evil--modeling.Evil", "AutoConfig": "configuration.Evil"},
        "_attn_implementation_internal": "evil/kernel", "_attn_implementation": "evil/kernel:run",
        "custom_pipelines": {"text": {"impl": "evil.Pipeline"}}, "trust_remote_code": True,
        "_name_or_path": "../../etc",
    }
    path = folder(good["gpt2"], tmp_path, wrong)
    trap = "raise SystemExit('the file was run')"
    for name in ("modeling.py", "configuration.py", "evil.py", "__init__.py"):
        (path / name).write_text(trap)
    before = tree(tmp_path)
    with heard() as ran:
        model = mirada.load(path)
    assert not ran and tree(tmp_path) == before
    assert model.origin.ignored.keys() == wrong.keys()
    notes = " ".join(mirada.describe(model).notes)
    assert all(key in notes for key in wrong)
    plain = mirada.load(good["gpt2"])
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, plain(ids).logits)
    verified = mirada.verify(model)
    assert verified.ok and "evil" not in json.dumps(verified.data())


def test_a_way_to_quantize_that_is_unknown_is_refused(good, tmp_path):
    """Row 44: its numbers would be read as something else."""
    path = folder(good["gpt2"], tmp_path, {"quantization_config": {"quant_method": "evil"}})
    with heard() as ran:
        refused(path, "the method 'evil' is not one that mirada reads")
    assert not ran


def test_the_ear_hears():
    """The audit hook above is no ornament: it hears what it is to hear."""
    with heard() as ran:
        socket.socket().close()
        exec("0")
    assert any("socket" in x for x in ran) and any("exec" in x for x in ran)


def test_an_attention_eps_that_is_no_number(good, tmp_path):
    for value in (math.nan, math.inf):
        with pytest.raises(MiradaError, match="eps"):
            mirada.build("gpt2:tiny", eps=value)

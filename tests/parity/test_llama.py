"""LLaMA and Mistral against the reference."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import mirada
from mirada import registry
from mirada.core.position import Rotary
from mirada.models import rope
from parity.harness import Row, pair, table, tokens, wide

TINY = dict(vocab_size=61, hidden_size=24, intermediate_size=20, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
            pad_token_id=1, bos_token_id=None, eos_token_id=None)
SCALED = {  # rotary objects; all are run past the length their model was first trained for
    "linear": dict(rope_type="linear", factor=3.0),
    "dynamic": dict(rope_type="dynamic", factor=2.0),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=6, beta_fast=0.6,
                 beta_slow=0.05),
    "yarn-ratio": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=6,
                       mscale=0.7, mscale_all_dim=0.3, truncate=False, beta_fast=0.6,
                       beta_slow=0.05),
    "yarn-told": dict(rope_type="yarn", factor=4.0, attention_factor=1.4, rope_theta=1000.0),
    "llama3": dict(rope_type="llama3", factor=8.0, original_max_position_embeddings=6,
                   low_freq_factor=0.2, high_freq_factor=0.8),
    "longrope": dict(rope_type="longrope", original_max_position_embeddings=6, factor=4.0,
                     short_factor=[1.0, 1.1, 1.5, 2.0], long_factor=[1.3, 2.5, 5.0, 9.0]),
}


BY_LENGTH = ("dynamic", "longrope")


def row(architecture: str, **more) -> Row:
    keys = {k: more.pop(k) for k in list(more) if k in ("name", "cached", "exempt", "inputs")}
    family = "LlamaConfig" if architecture.startswith("Llama") else "MistralConfig"
    return Row(architecture, family, TINY | more, **keys)


def scaled(name: str) -> Row:
    """Where the length changes the angles of earlier keys, cached = full cannot hold: see below."""
    inner = {"rope_theta": 100.0} | SCALED[name]
    context = 5 if name == "dynamic" else 32
    return row("LlamaForCausalLM", name=name, cached=name not in BY_LENGTH, hidden_size=32,
               rope_parameters=inner, inputs=partial(tokens, length=11),
               max_position_embeddings=context)


ROWS = [
    row("LlamaForCausalLM", cached=True),
    row("LlamaForCausalLM", cached=True, name="odd", num_key_value_heads=1, head_dim=10,
        hidden_act="gelu_new", attention_bias=True, mlp_bias=True, tie_word_embeddings=True,
        rms_norm_eps=1e-3, rope_parameters=dict(rope_type="default", rope_theta=77.0)),
    row("LlamaForCausalLM", name="xielu", hidden_act="xielu", num_key_value_heads=4),
    row("LlamaModel"),
    row("LlamaForSequenceClassification", num_labels=3),
    row("LlamaForTokenClassification", num_labels=3),
    row("LlamaForQuestionAnswering"),
    row("MistralForCausalLM", cached=True, sliding_window=3, head_dim=8),
    row("MistralForCausalLM", name="whole", sliding_window=None, tie_word_embeddings=True),
    row("MistralModel", sliding_window=3),
    row("MistralForSequenceClassification", sliding_window=3, num_labels=3),
    row("MistralForTokenClassification", sliding_window=3, num_labels=3),
    row("MistralForQuestionAnswering", sliding_window=3),
    *map(scaled, SCALED),
]
test_parity = table(ROWS)


@pytest.mark.scope("1.6.6")
@pytest.mark.parametrize("name", BY_LENGTH)
def test_cached_is_the_references_cached(name):
    """Earlier keys keep the angles of their own step, as in the reference."""
    both = pair(next(r for r in ROWS if r.name == name))
    cache, past, at = both.ours.new_cache(), transformers.DynamicCache(), 0
    whole = both.ours(**both.batch).logits
    moved = 0.0
    for step in (3, 1, 1, 4, 1, 1):
        ids = both.batch["input_ids"][:, at : at + step]
        at += step
        ours = both.ours(input_ids=ids, cache=cache).logits
        with wide():
            theirs = both.theirs(input_ids=ids, past_key_values=past, use_cache=True).logits
        assert (ours - theirs).abs().max() < 1e-10
        moved = max(moved, (ours - whole[:, at - step : at]).abs().max().item())
    assert at == 11 and moved > 1e-3, "no angle changed: this proves nothing"


@pytest.mark.scope("1.6.6")
@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("theta, dim", [(10.0, 8), (1e4, 64), (5e5, 128), (3.0, 16)])
def test_frequencies_far_beyond_the_original_length(name, theta, dim):
    """Angles at positions up to a hundred times the first length, all in float64."""
    inner = SCALED[name] | {"rope_theta": theta}
    if name == "longrope":
        inner |= {k: torch.linspace(1, last, dim // 2).tolist()
                  for k, last in (("short_factor", 2), ("long_factor", 30))}
    original, context, length = 6, 40, 700
    inner |= {"original_max_position_embeddings": original}
    config = SimpleNamespace(rope_parameters=inner, head_dim=dim, hidden_size=dim * 2,
                             num_attention_heads=2, max_position_embeddings=context,
                             standardize_rope_params=lambda: None)
    with wide():
        freqs, warmth = ROPE_INIT_FUNCTIONS[inner["rope_type"]](
            config, torch.device("cpu"), seq_len=torch.tensor(length))
    keys = rope.flat({"rope_parameters": inner})
    files = {f.metadata["file"]: f.name for f in rope.fields(rope.Rope)}
    keys = {files[k]: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}
    scaling = rope.scaling(rope.Rope(**keys), dim, context)
    cos, sin = Rotary(dim, theta, scaling=scaling).table(torch.arange(length)[None], torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * freqs
    assert freqs.dtype == torch.float64
    assert (cos[0, 0] - angle.cos() * warmth).abs().max() < 1e-10
    assert (sin[0, 0] - angle.sin() * warmth).abs().max() < 1e-10


@pytest.mark.parametrize("name", SCALED)
def test_old_files_say_the_same(name, tmp_path):
    """rope_theta and rope_scaling with `type`, as files were written before: same config."""
    both = pair(scaled(name))
    raw = json.loads((both.folder / "config.json").read_text())
    inner = raw.pop("rope_parameters")
    inner["type"] = inner.pop("rope_type")
    raw |= {"rope_theta": inner.pop("rope_theta"), "rope_scaling": inner}
    read = registry._config(registry.family("llama"), raw, tmp_path / "config.json", ())[0]
    assert read == both.ours.config and read.rope == SCALED[name]["rope_type"]
    mirada.save(both.ours, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "config.json").read_text())
    old = {k: v for k, v in written.items() if k != "rope_parameters"}
    new = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}
    configs = [transformers.LlamaConfig(**c) for c in (old, new, written)]
    assert len({json.dumps(c.rope_parameters, sort_keys=True) for c in configs}) == 1


@pytest.mark.parametrize("changes, said", [
    ({"rope_parameters": {"rope_type": "spiral"}}, "spiral"),
    ({"rope_parameters": {"rope_type": "default", "stretch": 2}}, "rope_parameters.stretch"),
    ({"rope_scaling": {"type": "linear"}}, "factor missing"),
    ({"rope_scaling": {"type": "linear", "factor": "4"}}, "rope_parameters.factor"),
    ({"rope_scaling": [2]}, "rope_parameters"),
    ({"rope_theta": 0}, "rope_parameters.rope_theta"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
     "longrope"),
    ({"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0,
                       "high_freq_factor": 1.0}}, "llama3"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"head_dim": 5}, "pairs"),
    ({"num_key_value_heads": 3}, "cannot share 3"),
    ({"pretraining_tp": 2}, "pretraining_tp"),
    ({"rope_interleaved": True}, "rope_interleaved"),
])
def test_what_cannot_be_right_is_refused(changes, said):
    raw = TINY | {"model_type": "llama"} | changes
    with pytest.raises(mirada.UntrustedInputError, match=said) as caught:
        registry._config(registry.family("llama"), raw, "somewhere/config.json", ())
    assert "somewhere/config.json" in str(caught.value)


def test_a_window_belongs_to_mistral():
    with pytest.raises(mirada.MiradaError, match="sliding_window"):
        mirada.build("llama:tiny", window=4, device="meta")
    model = mirada.build("llama:tiny", window=4, architecture="MistralForCausalLM", device="meta")
    assert registry.written_config(model)["model_type"] == "mistral"
    assert registry.written_config(model)["sliding_window"] == 4
    unsaid = registry._config(registry.family("mistral"), TINY | {"model_type": "mistral"}, "x", ())
    assert unsaid[0].window == 4096, "a Mistral file that does not say has this window"


@pytest.mark.parametrize("size, count", [
    ("7b", 6_738_415_616), ("13b", 13_015_864_320), ("70b", 68_976_648_192),
    ("llama3-8b", 8_030_261_248), ("llama3-70b", 70_553_706_496),
    ("codellama-7b", 6_738_546_688), ("codellama-13b", 13_016_028_160),
    ("codellama-34b", 33_743_970_304), ("llama3-405b", 405_853_388_800),
    ("mistral-7b", 7_241_732_096),
    ("smollm2-135m", 134_515_008),
])
def test_published_parameter_counts(size, count):
    model = mirada.build("llama", size, device="meta")
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_rounds_no_angle(dtype):
    """The trap: frequencies that are cast with the weights are radians off at position 2,000."""
    model = mirada.build("llama:tiny").to(dtype)
    positions = torch.arange(2000, 2064)[None]
    freqs = 1e4 ** (-torch.arange(0, 16, 2).double() / 16)
    exact = (positions[0].double()[:, None] * freqs).cos()
    assert ((positions[0][:, None] * freqs.to(dtype).double()).cos() - exact).abs().max() > 0.1
    rounding = torch.finfo(dtype).eps / 2
    for to, bar in ((dtype, rounding + 4e-4), (torch.float32, 4e-4), (torch.float64, 1e-10)):
        rotary = next(m for m in model.to(to).modules() if isinstance(m, Rotary))
        q = torch.eye(16, dtype=to).expand(1, 1, 16, 16)
        cos, _ = rotary.table(positions, to)
        assert (cos[0, 0].double() - exact).abs().max() < bar
        turned, _ = rotary(q[:, :, :1].expand(1, 1, 64, 16), q[:, :, :1], positions[:, :64])
        assert turned.dtype == to and (turned[0, 0, :, 0].double() - exact[:, 0]).abs().max() < bar


@pytest.mark.scope("1.6.14")
def test_mistral_rolls():
    """Token by token, caches of window - 1 keys, far past the window: the reference's logits."""
    both = pair(next(r for r in ROWS if r.architecture == "MistralForCausalLM" and not r.name))
    ids = torch.randint(3, 61, (2, 24))
    with wide():
        theirs = both.theirs(ids).logits
    cache = both.ours.new_cache("rolling")
    for t in range(24):
        ours = both.ours(ids[:, t : t + 1], cache=cache).logits[:, 0]
        assert (ours - theirs[:, t]).abs().max() < 1e-10
        assert all(c.held <= 2 for c in cache.each()), "the window is 3: two keys and the new one"
    near = ids.clone()
    near[:, 4] = near[:, 4] % 57 + 3
    changed = (both.ours(near).logits != both.ours(ids).logits).any(-1)[0]
    assert changed[4:9].all() and not changed[9:].any() and not changed[:4].any()  # two layers

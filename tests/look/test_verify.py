"""verify passes what is whole and names what is not: each way to be wrong is tried here."""

import json

import pytest
import torch

import mirada
from mirada import registry
from mirada.core.attend import Attend
from mirada.core.attention import Attention
from mirada.core.bias import ScoreBias
from mirada.core.mask import Mask
from mirada.core.mlp import Activation
from mirada.core.norm import LayerNorm
from mirada.core.position import Linear, Rotary
from mirada.errors import MiradaError, WorkFailed
from mirada.look.verify import CHECKS, Check, Report, verify

FIRST = [(name, next(iter(registry.family(name).HEADS))) for name in registry.families()]
MORE = [("bert", "BertForSequenceClassification"), ("bert", "BertModel"),
        ("bert", "BertForPreTraining"), ("gpt2", "GPT2ForSequenceClassification"),
        ("t5", "T5ForSequenceClassification"), ("t5", "T5Model"), ("t5", "T5EncoderModel"),
        ("llama", "MistralForCausalLM"), ("deberta", "DebertaV2ForSequenceClassification"),
        ("vit", "ViTForMaskedImageModeling"), ("llama", "LlamaForQuestionAnswering")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(family, head) -> a saved tiny model, made once."""
    made = {}

    def folder(name: str, head: str | None = None, **changes):
        at = (name, head, *sorted(changes.items()))
        if at not in made:
            model = mirada.build(name, size="tiny", architecture=head, seed=1, **changes)
            with torch.no_grad():
                for p in model.parameters():  # uneven attention: what is broken must show
                    p.add_(torch.randn_like(p) * (0.3 if p.ndim < 2 else p.shape[-1] ** -0.5))
            made[at] = mirada.save(model, tmp_path_factory.mktemp(name) / "model")
        return made[at]

    return folder


def results(report: Report) -> dict[str, Check]:
    return {c.name: c for c in report.checks}


@pytest.mark.parametrize("name, head", [*FIRST, *MORE])
def test_what_is_whole_passes(name, head, folders):
    report = verify(mirada.load(folders(name, head)))
    assert report.ok, str(report)
    found = results(report)
    for must in ("as its file says", "finite", "saved = loaded", "recording on = off"):
        assert found[must].word == "PASS"
    reference = found["equal to transformers"]
    assert reference.word == "PASS" or "no attribute" in reference.figure, reference.figure
    json.dumps(report.data())
    assert str(report).endswith("all good")


def _base(model):
    next(m for m in model.modules() if isinstance(m, Rotary)).base *= 1.01


def _rotary_scaling(model):
    next(m for m in model.modules() if isinstance(m, Rotary)).scaling = Linear(2.0)


@torch.no_grad()
def _one_bias(model):
    dict(model.named_parameters())["body.blocks.1.attn.f.v.bias"][3] += 1e-3


def _no_mask(model):
    for block in model.body.blocks:
        block.attn.f.mask = Mask()


def _window(model):
    model.body.blocks[0].attn.f.mask = Mask(causal=True, window=2)


def _eps(model):
    next(m for m in model.modules() if isinstance(m, LayerNorm)).eps = 1e-3


def _activation(model):
    found = next(m for m in model.modules() if isinstance(m, Activation))
    found.name, found.fn = "relu", torch.relu


def _activation_alone(model):
    next(m for m in model.modules() if isinstance(m, Activation)).fn = torch.relu


def _scale(model):
    model.body.blocks[1].attn.f.scale *= 1.01


def _blocks_change_places(model):
    a, b = model.body.blocks
    model.body.blocks[0], model.body.blocks[1] = b, a


def _order(model):
    model.body.order = [1, 0]


def _one_layer_less(model):
    model.body.order = [0]


def _untied(model):
    model.head.out.weight = torch.nn.Parameter(model.head.out.weight.detach().clone())


def _hook(model):
    model.body.blocks[0].register_forward_hook(lambda module, args, out: out * 1.01)


def _replaced_method(model):
    bias = next(m for m in model.modules() if isinstance(m, ScoreBias))
    rows = bias.rows
    bias.rows = lambda q, k, qi, ki: 1.05 * rows(q, k, qi, ki)


@torch.no_grad()
def _nan(model):
    model.body.norm.weight[0] = torch.nan


def _norm_gone(model):
    model.body.norm = torch.nn.Identity()


def _head_count(model):
    model.body.blocks[0].attn.f.heads = 2


SEEDED = {  # name -> (family, what is done, what the first failing line holds)
    "rotary base": ("llama", _base, "rotary.base is 10100.0, the file says 10000.0"),
    "rotary scaling": ("llama", _rotary_scaling, "rotary.scaling is"),
    "one bias": ("gpt2", _one_bias, "blocks.1.attn.f.v.bias differs by up to 0.001"),
    "no mask": ("gpt2", _no_mask, "blocks.0.attn.f.mask is Mask(), the file says "
                                  "Mask(causal=True)"),
    "a window": ("gpt2", _window, "Mask(causal=True, window=2)"),
    "eps": ("gpt2", _eps, "eps is 0.001, the file says 1e-05"),
    "activation": ("gpt2", _activation, "act.name is relu, the file says gelu_new"),
    "activation function": ("gpt2", _activation_alone, "act.fn is _VariableFunctionsClass.relu, "
                                                       "the file says _gelu_tanh_written_out"),
    "scale": ("gpt2", _scale, "blocks.1.attn.f.scale is"),
    "blocks change places": ("gpt2", _blocks_change_places, "blocks.0.attn"),
    "order": ("gpt2", _order, "order is (1, 0), the file says (0, 1)"),
    "one layer less": ("gpt2", _one_layer_less, "order is (0,)"),
    "untied": ("gpt2", _untied, "head.out.weight is in memory only"),
    "a hook": ("bert", _hook, "a hook or a replaced method"),
    "a replaced method": ("t5", _replaced_method, "score_bias.rows is"),
    "nan": ("gpt2", _nan, "norm.weight differs by up to nan"),
    "norm gone": ("gpt2", _norm_gone, "norm.weight is in the file only"),
    "heads": ("gpt2", _head_count, "attn.f.heads is 2, the file says 4"),
}


@pytest.mark.parametrize("name", SEEDED)
def test_what_was_changed_in_memory_is_named(name, folders):
    family, fault, said = SEEDED[name]
    model = mirada.load(folders(family))
    assert verify(model).ok
    fault(model)
    report = verify(model)
    assert not report.ok and str(report).endswith("NOT the model it claims")
    check = results(report)["as its file says"]
    assert check.word == "FAIL" and said in check.figure, check.figure


# ---- each check can fail ------------------------------------------------------------------------


def fails(model, name: str) -> str:
    check = results(verify(model))[name]
    assert check.word == "FAIL", check
    return check.figure


def test_nan_in_the_file_is_named_and_is_no_difference(folders, tmp_path):
    model = mirada.load(folders("gpt2"))
    _nan(model)
    other = mirada.load(mirada.save(model, tmp_path / "m"))
    found = results(verify(other))
    assert "weights hold NaN or infinity: norm.weight" in found["finite"].figure
    assert found["saved = loaded"].word == "PASS"


def test_a_cache_that_forgets(folders, monkeypatch):
    plain = Attend.forward

    def forgets(self, q, kv, *, mask, **more):
        hidden = torch.ones(1, kv.k.shape[2], dtype=torch.bool)
        hidden[0, 0] = mask.start == 0
        return plain(self, q, kv, mask=mask & Mask(padding=hidden), **more)

    monkeypatch.setattr(Attend, "forward", forgets)
    assert "of the spread" in fails(mirada.load(folders("gpt2")), "cached = full")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_pads_that_are_seen(folders, monkeypatch, side, family):
    plain = Attend.forward

    def sees(self, q, kv, *, mask, **more):
        seen = Mask(mask.causal, mask.window, start=mask.start)
        return plain(self, q, kv, mask=seen, **more)

    monkeypatch.setattr(Attend, "forward", sees)
    fails(mirada.load(folders(family)), f"batched = single, {side} padding")


def test_positions_that_count_pads(folders):
    model = mirada.load(folders("gpt2"))
    plain = model.body.embed.position.forward
    model.body.embed.position.forward = lambda positions, dtype=None: plain(
        torch.arange(positions.shape[1])[None], dtype)
    fails(model, "batched = single, left padding")
    fails(model, "cached = full")


class Letters:
    """A tokenizer of ASCII letters; `broken` decodes wrongly."""

    def __init__(self, broken=False):
        self.broken = broken

    def encode(self, text, special=True):
        class Ids:
            ids = [min(ord(c), 127) for c in text]
        return Ids

    def decode(self, ids):
        return "".join(map(chr, ids)).replace("e", "x" if self.broken else "e")

    def save(self, folder):
        pass


def test_a_tokenizer_that_does_not_come_back(folders):
    model = mirada.load(folders("gpt2"))
    model.tokenizer = Letters()
    assert results(verify(model))["tokenizer round trip"].word == "PASS"
    model.tokenizer = Letters(broken=True)
    assert "does not encode to the ids" in fails(model, "tokenizer round trip")


def test_a_save_that_loses_something(folders, monkeypatch):
    plain = registry.written_config
    monkeypatch.setattr(registry, "written_config",
                        lambda model: plain(model) | {"layer_norm_epsilon": 1e-3})
    assert "eps is 1e-05, the file says 0.001" in fails(mirada.load(folders("gpt2")),
                                                        "saved = loaded")


def test_a_recording_that_lies(folders, monkeypatch):
    plain = Attend.weights
    monkeypatch.setattr(Attend, "weights", staticmethod(
        lambda call, rows=None: plain(call, rows).flip(-1)))
    assert "to" in fails(mirada.load(folders("gpt2")), "recording on = off")


def test_a_recording_that_changes_the_output(folders):
    model = mirada.load(folders("gpt2"))
    plain = model.body.norm.forward
    model.body.norm.forward = lambda x: plain(x) * (1.0 if model.tape is None else 1.001)
    assert "recording changed the output" in fails(model, "recording on = off")


@pytest.mark.parametrize("fault", [_no_mask, _one_bias, _scale, _hook])
def test_another_program_sees_it_too(folders, fault):
    model = mirada.load(folders("gpt2"))
    fault(model)
    assert "of the spread" in fails(model, "equal to transformers")


def test_what_the_reference_cannot_do_is_said(folders, monkeypatch):
    import transformers

    def cannot(*args, **kwargs):
        raise KeyError("it is out of order\nsecond line")

    monkeypatch.setattr(transformers.GPT2LMHeadModel, "from_pretrained", cannot)
    report = verify(mirada.load(folders("gpt2")))
    check = results(report)["equal to transformers"]
    assert check.word == "-" and "KeyError" in check.figure and report.ok
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check = results(verify(mirada.load(folders("gpt2"))))["equal to transformers"]
    assert (check.word, check.figure) == ("-", "transformers is not installed")


def test_no_better_than_chance_is_a_warning(folders):
    model = mirada.load(folders("gpt2"))
    model.tokenizer = Letters()
    report = verify(model)
    check = results(report)["better than chance"]
    assert check.word == "WARN" and check.ok is False and report.ok
    assert "chance is 1024" in check.figure


# ---- what verify needs and leaves ----------------------------------------------------------------


def test_sixteen_bits_are_no_excuse_and_no_fault(folders, tmp_path):
    """Rounding in 16 bits must neither fail a good model nor hide a bad one."""
    for dtype in (torch.bfloat16, torch.float16):
        model = mirada.load(folders("gpt2"), dtype=dtype)
        folder = mirada.save(model, tmp_path / str(dtype))
        model = mirada.load(folder)
        report = verify(model)
        assert report.ok and model.dtype == dtype, str(report)
        assert results(report)["cached = full"].figure.endswith("(at most 1e-04)")
        model.body.embed.position.forward = lambda positions, dtype=None: 0
        assert not verify(model).ok


def test_float64_is_held_to_more(folders):
    report = results(verify(mirada.load(folders("gpt2"), dtype=torch.float64)))
    assert report["cached = full"].figure.endswith("(at most 1e-10)")
    assert report["equal to transformers"].word == "PASS"


def test_a_model_that_was_built_has_no_file(folders):
    report = verify(mirada.build("gpt2:tiny", seed=1))
    assert report.ok
    found = results(report)
    assert "it has no file" in found["as its file says"].figure
    assert found["equal to transformers"].word == "-"
    model = mirada.build("gpt2:tiny", seed=1)
    _eps(model)
    assert "eps is 0.001" in results(verify(model))["as its file says"].figure
    with pytest.raises(MiradaError, match="verify needs numbers"):
        verify("gpt2:tiny")


def test_a_file_that_went_away(folders, tmp_path):
    folder = mirada.save(mirada.load(folders("gpt2")), tmp_path / "m")
    model = mirada.load(folder)
    model.tokenizer = Letters()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    check = results(verify(model))["as its file says"]
    assert check.word == "-" and "no longer there" in check.figure


def test_a_full_disk_says_nothing_about_the_model(folders, monkeypatch):
    def full(model, path):
        raise WorkFailed("the disk is full")

    model = mirada.load(folders("gpt2"))
    monkeypatch.setattr(registry, "save", full)
    report = verify(model)
    assert report.ok and results(report)["saved = loaded"] == Check(
        "saved = loaded", None, "the disk is full")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(folders, training):
    model = mirada.load(folders("t5")).train(training)
    before, verbosity = {n: t.clone() for n, t in model.state().items()}, _verbosity()
    verify(model)
    assert model.training == training and model.tape is None and _verbosity() == verbosity
    assert all(m.training == training for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(t, before[n]) for n, t in model.state().items())
    assert all(p.requires_grad for p in model.parameters())


def _verbosity() -> tuple:
    from transformers.utils import logging
    return logging.get_verbosity(), logging.is_progress_bar_enabled()


def test_progress_is_told(folders):
    told = []
    verify(mirada.load(folders("gpt2")), progress=told.append)
    assert told == list(CHECKS)


def test_a_path_is_loaded(folders, capfd):
    report = mirada.verify(folders("bert"))
    assert report.ok and capfd.readouterr() == ("", ""), "verify prints nothing itself"


def test_every_attention_is_looked_at(folders):
    """The settings that are compared reach every attention's own."""
    model = mirada.load(folders("t5"))
    last = [m for m in model.modules() if isinstance(m, Attention)][-1]
    last.scale = 0.5
    assert "scale is 0.5" in results(verify(model))["as its file says"].figure

"""PaLM has no published weights and no reference class: the paper's formulas, written out plainly.

Here `mirada` meets them in float64: outputs, gradients, patterns, padding, caches, files.
"""

import copy

import pytest
import torch

import mirada
from mirada import registry
from mirada.core.mask import Mask

BAR = 1e-10
TINY = dict(vocab=61, d=24, layers=3, heads=4, head_dim=6, hidden=40, eps=1e-3)


def norm(x, weight, eps):
    x = x - x.mean(-1, keepdim=True)
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def turn(x):
    """Channels (0, 1), (2, 3) ... of position t by t * 10,000 ** (-2 i / K). x: (..., T, K)."""
    T, K = x.shape[-2:]
    step = 1e4 ** (-torch.arange(0, K, 2, dtype=x.dtype) / K)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    turned = turned * torch.polar(torch.ones(T, K // 2).to(x), torch.arange(T)[:, None] * step)
    return torch.view_as_real(turned).flatten(-2)


def paper(w: dict, c, ids) -> tuple[torch.Tensor, list]:
    """y = x + MLP(LayerNorm(x)) + Attention(LayerNorm(x)); logits E y / sqrt(d); the patterns."""
    x, patterns = w["embed_tokens.weight"][ids], []
    for n in range(c.layers):
        at = f"layers.{n}."
        p = {name.removeprefix(at): t for name, t in w.items() if name.startswith(at)}
        h = norm(x, p["norm.weight"], c.eps)
        q = (h @ p["attention.q_proj.weight"].T).unflatten(-1, (c.heads, -1)).transpose(1, 2)
        k, v = ((h @ p[f"attention.{name}_proj.weight"].T)[:, None] for name in "kv")
        scores = turn(q) @ turn(k).transpose(2, 3) / c.head_dim**0.5
        future = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
        patterns.append(scores.masked_fill(future, -torch.inf).softmax(-1))
        z = (patterns[-1] @ v).transpose(1, 2).flatten(2) @ p["attention.o_proj.weight"].T
        gate, up = (h @ p[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate * gate.sigmoid() * up) @ p["mlp.down_proj.weight"].T + z
    x = norm(x, w["norm.weight"], c.eps)
    return x @ w["embed_tokens.weight"].T / c.d**0.5, patterns


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(4)
    model = mirada.build("palm:tiny", **TINY).to(torch.float64)
    for p in model.parameters():
        p.data.add_(torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.1))
    return model


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 61, (2, 9))


def test_outputs_and_gradients_are_the_papers(model, ids):
    model = copy.deepcopy(model)
    wanted = {name: t.clone().requires_grad_() for name, t in registry.export(model).items()}
    theirs, _ = paper(wanted, model.config, ids)
    for kernel in ("sdpa", "exact"):
        with mirada.kernel(kernel):
            assert (model(ids).logits - theirs).abs().max() < BAR
    factor = torch.randn_like(theirs)
    (theirs * factor).sum().backward()
    (model(ids).logits * factor).sum().backward()
    for p in model.parameters():
        p.data = p.grad
    got = registry.export(model)
    assert got.keys() == wanted.keys() and len(got) == 2 + 8 * 3
    for name, t in wanted.items():
        assert (got[name] - t.grad).abs().max() < BAR and t.grad.abs().max() > 1e-3, name


def test_recording_is_the_papers_pattern(model, ids):
    plain = model(ids).logits
    with model.record() as tape:
        assert torch.equal(model(ids).logits, plain)
    _, patterns = paper(registry.export(model), model.config, ids)
    for n, wanted in enumerate(patterns):
        assert (tape.pattern(n) - wanted).abs().max() < BAR


@pytest.mark.parametrize("kind", ["growing", "static", "rolling"])
@pytest.mark.parametrize("pads", [0, 3])
def test_chunks_and_padding_change_nothing(model, ids, kind, pads):
    padded = torch.cat([torch.zeros(2, pads, dtype=torch.long), ids], 1)
    mask = torch.ones_like(padded)
    mask[:, :pads] = 0
    whole, _ = paper(registry.export(model), model.config, ids)
    cache, parts, at = model.new_cache(kind, size=16), [], 0
    for step in (4, 1, padded.shape[1] - 5):
        at += step
        parts.append(model(padded[:, at - step : at], mask[:, :at], cache=cache).logits)
    assert (torch.cat(parts, 1)[:, pads:] - whole).abs().max() < BAR


def _scale(model):
    model.body.blocks[2].attn.f.scale *= 1.01


def _causal(model):
    model.body.blocks[0].attn.f.mask = Mask()


def _rotary(model):
    model.body.blocks[0].attn.f.rotary.interleaved = False


def _base(model):
    model.body.blocks[0].attn.f.rotary.base *= 1.1


def _norm(model):
    model.body.blocks[1].norm.eps += 1e-3


def _shared(model):
    model.body.blocks[1].mlp.f.gate, model.body.blocks[1].mlp.f.up = (
        model.body.blocks[1].mlp.f.up, model.body.blocks[1].mlp.f.gate)


def _logits(model):
    model.head.scale = 1.0


@pytest.mark.parametrize("fault", [_scale, _causal, _rotary, _base, _norm, _shared, _logits])
def test_each_fault_shows(model, ids, fault):
    theirs, _ = paper(registry.export(model), model.config, ids)
    broken = copy.deepcopy(model)
    fault(broken)
    assert (broken(ids).logits - theirs).abs().max() > 1e-6


@pytest.mark.parametrize("architecture", ["PaLMForCausalLM", "PaLMModel"])
def test_files(ids, tmp_path, architecture):
    model = mirada.build("palm:tiny", architecture=architecture, seed=3)
    mirada.save(model, tmp_path / "saved")
    again = mirada.load(tmp_path / "saved")
    assert again.config == model.config and again.architecture == architecture
    for name, value in model(ids).items():
        assert torch.equal(value, again(ids)[name])


@pytest.mark.parametrize("size, billions", [("8b", 8.63), ("62b", 62.50), ("540b", 540.35)])
def test_table_1(size, billions):
    """The paper's counts are those of the matrices; the norms add 0.002 billion at most."""
    model = mirada.build("palm", size=size, device="meta")
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    norms = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    assert round(matrices / 1e9, 2) == billions and norms < 0.0025e9

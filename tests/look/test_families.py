"""Every family can be looked into: recorded without a bit changed, shown as it ran, and changed."""

import pytest
import torch
from torch import nn

import mirada
from mirada import registry
from mirada.core.attend import Attend, kernel
from mirada.core.attention import Attention
from mirada.look import sites

FAMILIES = [f for f in registry.families()]
FULL = dict(v=True, resid="sublayers", z=True, mlp=True)


def batch_of(m, rows=2, length=11):
    generator = torch.Generator().manual_seed(1)
    batch = {}
    if hasattr(m.config, "image"):
        image = m.config.image if isinstance(m.config.image, int) else m.config.image[0]
        batch["pixel_values"] = torch.randn(rows, 3, image, image, generator=generator,
                                            dtype=m.dtype)
    if "noise" in m.reads:  # the same patches hidden each time
        batch["noise"] = torch.rand(rows, m.body.embed.position.shape[1] - 1, generator=generator)
    if m.kind == "vision":
        return batch
    ids = torch.randint(3, min(250, m.config.vocab), (rows, length), generator=generator)
    if m.family.startswith("clip"):
        ids[:, 5] = m.config.eos
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, -3:] = 0
    batch |= {"input_ids": ids, "attention_mask": mask}
    if m.encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :6]
    if m.family == "longformer":
        batch["global_attention_mask"] = (torch.arange(length) % 5 == 0).long().repeat(rows, 1)
    return batch


def outputs(m, batch):
    with torch.no_grad():
        return m(**batch)


def same(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a) and set(a) == set(b)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return mirada.build(request.param, size="tiny", seed=4)


def test_recording_changes_no_bit(model):
    batch = batch_of(model)
    plain = outputs(model, batch)
    for options in ({}, FULL, {"keep": "resid"}, {"keep": None, "resid": True}, {"device": "cpu"}):
        with model.record(**options) as tape:
            assert same(plain, outputs(model, batch))
    with model.intervene(), model.record():
        assert same(plain, outputs(model, batch))
    assert same(plain, outputs(model, batch)) and tape.selfcheck == tape.selfcheck


def test_what_is_shown_is_what_ran(model):
    """Patterns against the weights caught inside the exact kernel, per call and in order; streams
    that add up; and the heads' outputs, which W_o turns into what the attention adds."""
    batch, caught, plain = batch_of(model), [], Attend.weights

    def catch(call, rows=None):
        made = plain(call, rows)
        if rows is None:
            caught.append(made)
        return made

    with pytest.MonkeyPatch.context() as patch, kernel("exact"):
        patch.setattr(Attend, "weights", staticmethod(catch))
        outputs(model, batch)
        catching, caught = caught, []
    order = []
    with kernel("exact"), model.record(**FULL) as tape:
        handles = [a.attend.register_forward_hook(lambda *_, a=a: order.append(a))
                   for a in model.modules() if isinstance(a, Attention)]
        outputs(model, batch)
    for handle in handles:
        handle.remove()
    with model.record(keep="resid") as half:
        outputs(model, batch)
    body = set(model.body.modules())  # MAE's head has a stack of its own, which is not recorded
    ran = [(w, a) for w, a in zip(catching, order, strict=True) if a in body]
    assert len(ran) == sum(len(tape.layers(s)) for s in tape.stacks)
    seen = {site: 0 for site in tape.modules}
    by_module = {}
    for weights, attention in ran:
        by_module.setdefault(id(attention), []).append(weights)
    for site, attention in tape.modules.items():
        runs = by_module[id(attention)]
        own = [s for s, a in tape.modules.items() if a is attention]  # one block for many layers
        eager = runs[own.index(site)]
        stack, layer = site
        shown = tape.pattern(layer, stack=stack)
        assert shown.shape == eager.shape and (shown - eager).abs().max() < 1e-6
        assert (half.pattern(layer, stack=stack) - eager).abs().max() < 1e-5
        some = tape.pattern(layer, heads=[1], rows=[2], stack=stack)[0, 0, 0]
        assert (some - eager[0, 1, 2]).abs().max() < 1e-6
        z = tape.z(layer, stack)
        v = tape.values(layer, stack).repeat_interleave(z.shape[2] // attention.kv_heads, 1)
        if isinstance(attention.gate, nn.Module) and type(attention.gate).__name__ == "NoGate":
            assert ((shown @ v).transpose(1, 2) - z).abs().max() < 1e-5
        seen[site] += 1
    assert tape.selfcheck < 1e-5 and half.selfcheck < 1e-5


def test_streams_add_up(model):
    """What each sublayer adds is what the stream gains, where nothing but adding happens."""
    with model.record(**FULL) as tape:
        out = outputs(model, batch_of(model))
    for name, stack in sites.stacks(model).items():
        L = len(stack.order)
        if not tape.windowed:  # else the stream grows wider on its way
            assert tape.lens(name).shape[0] == L + 1
        last = stack.norm(tape.resid(-1, name))
        if name == "encoder" and model.encoder_decoder:
            assert torch.equal(last, out["encoder_last_hidden_state"])
        for layer in range(L):
            block = stack.blocks[stack.order[layer]]
            parts = dict(sites.sublayers(block))
            gains = sum(tape.added(layer, part, name) for part in parts)
            bare = not hasattr(block, "merge") and all(
                isinstance(getattr(p, "out", None) or nn.Identity(), nn.Identity)
                for p in parts.values())
            if bare and model.family != "bloom":  # whose norm may stand in the stream
                step = tape.resid(layer + 1, name) - tape.resid(layer, name)
                assert (step - gains).abs().max() < 1e-4


def test_every_part_can_be_changed(model):
    """Each site of each stack: a patch with itself is bit-identical, and zeroing is heard."""
    batch = batch_of(model)
    plain = outputs(model, batch)
    with model.record(**FULL) as tape:
        outputs(model, batch)
    made = 0
    for stack in tape.stacks:
        home = stack if stack in sites.stacks(model) else list(sites.stacks(model))[-1]
        network = sites.network(sites.stacks(model)[home].blocks[0])
        for site in ("head_out", "attn", "mlp", "neuron", "resid", "cross"):
            if (site == "neuron" and network is None) or (
                    (stack == "cross") != (site in ("cross",)) and site != "head_out") or (
                    site == "cross" and not model.encoder_decoder):
                continue
            change = {"site": site, "layer": 1, "stack": stack}
            with model.intervene(change | {"op": "patch", "source": tape}):
                assert same(plain, outputs(model, batch)), (stack, site)
            with model.intervene(change | {"op": "zero"}):
                assert not same(plain, outputs(model, batch)), (stack, site)
            made += 1
        for site, op in (("edge", "knockout"), ("value", "zero")):
            change = {"site": site, "layer": 0, "stack": stack, "heads": [0], "keys": [2],
                      "op": op}  # the two tokens before DeiT's patches begin as zeros
            with model.intervene(change):
                assert not same(plain, outputs(model, batch)), (stack, site)
        with model.intervene({"site": "pattern", "layer": 0, "stack": stack, "op": "freeze",
                              "source": tape}):
            frozen = outputs(model, batch)
        assert all((frozen[n] - plain[n]).abs().max() < 1e-4 for n in plain)
    assert made >= 3


@pytest.mark.parametrize("what", ["sinks", "cap", "window"])
def test_kernels_arguments_are_honoured(what):
    """Sinks take weight, a cap bends scores, a window hides keys: the tape shows it and agrees."""
    m = mirada.build("llama", size="tiny", seed=1, dtype=torch.float64)
    batch = batch_of(m)
    with m.record() as tape:
        outputs(m, batch)
    plain = tape.pattern(1)
    for block in m.body.blocks:
        a = block.attn.f
        if what == "sinks":
            a.sinks = nn.Parameter(torch.linspace(0, 2, a.heads, dtype=torch.float64))
        elif what == "cap":
            a.cap, a.scale = 0.5, 50.0
        else:
            a.mask = type(a.mask)(causal=True, window=3)
    with m.record() as tape:
        outputs(m, batch)
    shown = tape.pattern(1)
    assert tape.selfcheck < 1e-12 and (shown - plain).abs().max() > 1e-4
    sums = shown[1].sum(-1)
    assert (sums < 0.99).all() if what == "sinks" else (sums - 1).abs().max() < 1e-12
    terms = tape.qk_terms(1, 2, 6, 5, row=1)
    scores = torch.tensor([tape.qk_terms(1, 2, 6, j, row=1).score for j in range(11)]).double()
    if what == "sinks":
        scores = torch.cat([scores, m.body.blocks[1].attn.f.sinks[2:3].detach()])
    assert (scores.softmax(-1)[:11] - shown[1, 2, 6]).abs().max() < 1e-6
    assert terms.weight == shown[1, 2, 6, 5].item()

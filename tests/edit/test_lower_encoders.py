"""Encoders and encoder-decoders on the native runtime equal the modules they were made of."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mirada
from mirada.core.linear import Quantized
from mirada.core.position import Rotary
from mirada.edit import lower, quantize
from mirada.edit.lowered import Lowered, lowered
from mirada.errors import MiradaError
from mirada.generate.rows import Rows
from mirada.kernels import native
from tasks import tiny

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing() or "")

ENCODERS = {  # name -> how it is built
    "albert": {}, "bert": {}, "clip_text-gelu": {"act": "gelu", "context": 64},
    "clip_vision-gelu": {"act": "gelu"}, "deit": {}, "distilbert": {}, "electra": {}, "esm": {},
    "esm-learned": {"positions": "absolute"}, "modernbert": {}, "roberta": {}, "vit": {}}
BOTH = ("bart", "fsmt", "m2m100", "mbart", "pegasus", "t5", "t5-gated", "transformer")
CHANGES = {name: {} for name in BOTH} | {"t5-gated": {"gated": True, "act": "gelu_new",
                                                      "tied": False, "scaled": False}}
OWN = {"beit", "bigbird", "clip", "deberta", "deberta_v1", "longformer", "swin", "vit_mae"}
# parts of these have no operator


def made(name: str, **more) -> mirada.Model:
    """A tiny model, norms and biases off one and zero."""
    family = name.partition("-")[0]
    model = mirada.build(family, "tiny", seed=3, **(ENCODERS | CHANGES)[name] | more)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * 1.2 / p.shape[-1] ** 0.5) if p.ndim > 1 else p.add_(noise * 0.3)
    return model.eval()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert torch.isfinite(a).all() and a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def texts(model, side: str = "right", lengths=(50, 31, 7)) -> dict[str, torch.Tensor]:
    """A batch of uneven texts, padded."""
    generator = torch.Generator().manual_seed(5)
    if model.kind == "vision":
        size = model.config.image
        return {"pixel_values": torch.randn(3, 3, size, size, generator=generator)}
    T = max(lengths)
    ids = torch.randint(5, 33, (len(lengths), T), generator=generator)
    ids[:, 2] = ids[:, -3] = getattr(model.config, "eos", 7)  # some heads look for it
    steps = torch.arange(T)
    mask = torch.stack([steps < n if side == "right" else steps >= T - n for n in lengths]).long()
    return {"input_ids": ids, "attention_mask": mask}


def real(batch: dict, x: torch.Tensor) -> torch.Tensor:
    mask = batch.get("attention_mask")
    return x if mask is None else x[mask.bool()]


@torch.inference_mode()
def states(model, batch: dict) -> torch.Tensor:
    """The last states of the real tokens, whatever head stands there."""
    bare = mirada.Model(model.family, model.config, model.body, nn.Identity(), model.architecture)
    bare.head.forward = lambda x, inputs, ctx: {"x": x}
    return real(batch, bare(**batch)["x"])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_program_gives_the_encoders_states(name):
    model = made(name)
    lower.attach(model)
    fast = lowered(model)
    assert type(fast.body) is Lowered and model.path().endswith("; no pad is computed")
    for side in ("right", "left") if model.kind == "encoder" else ("right",):
        batch = texts(model, side)
        assert distance(states(fast, batch), states(model, batch)) < 1e-5
    with torch.inference_mode():
        one, other = model(**batch), fast(**batch)
    assert {*one} == {*other} and torch.isfinite(next(iter(other.values()))).all()


def test_every_encoder_family_is_here_or_refused():
    here = {name.partition("-")[0] for name in (*ENCODERS, *BOTH)}
    kinds = {f: mirada.build(f, device="meta").kind for f in mirada.families()}
    every = {f for f, kind in kinds.items() if kind != "decoder"}
    assert every - here == OWN
    for name in OWN:
        model = mirada.build(name, "tiny")
        assert model.path().startswith("torch: ") and "no native operator" in model.path()
        assert lowered(model) is model


def _changed(model, what: str) -> None:
    first = model.body.blocks[0].attn.f
    if what == "window":
        model.body.blocks[1].attn.f.mask = replace(model.body.blocks[1].attn.f.mask, window=5)
    elif what == "causal":
        first.mask = replace(first.mask, causal=True)
    elif what == "base":
        first.rotary = Rotary(first.rotary.dim, 9000.0)
    elif what == "segments":
        model.body.embed.segment.weight.data[1, 3] += 0.3
    elif what == "places":
        model.body.embed.position.weight.data[:, 2] += 0.3
    elif what == "table":
        model.body.embed.project.weight.data[2] += 0.3
    elif what == "out":
        model.body.blocks[1].mlp.out.weight.data[3] += 0.3


@pytest.mark.parametrize("name, what", [
    ("modernbert", "window"), ("bert", "causal"), ("modernbert", "base"), ("bert", "segments"),
    ("roberta", "places"), ("albert", "table"), ("distilbert", "out")])
def test_what_an_encoders_program_is_made_of_shows(name, what):
    model = made(name)
    batch = texts(model)
    if what == "segments":
        batch["token_type_ids"] = (torch.arange(50) > 4).long().expand(3, -1)
    lower.attach(model)
    before = states(lowered(model), batch)
    _changed(model, what)
    after = states(model, batch)
    assert distance(before, after) > 1e-4
    if what != "causal":  # such a stack is no encoder any more
        lower.attach(model)
        assert distance(states(lowered(model), batch), after) < 1e-5


def test_neighbours_and_threads_change_no_bit():
    """Many texts are several steps, and one may be longer than a step."""
    model = made("esm", context=2048)
    program, generator = lower.attach(model), torch.Generator().manual_seed(6)
    lengths = [900, 3, 41, 300, 280, 33, 1]
    with torch.inference_mode():
        given = torch.randn(sum(lengths), model.config.d, generator=generator)
        together = program.states(lengths, given=given)
        program.threads = 2
        for n, part in enumerate(given.split(lengths)):
            alone = program.states(lengths[n : n + 1], given=part)
            assert torch.equal(alone, together.split(lengths)[n])
    batch = texts(model, lengths=(900, 2, 600))
    assert distance(states(lowered(model), batch), states(model, batch)) < 1e-5


def widened(model) -> mirada.Model:
    """The same weights in blocks, met by activations that nothing rounds."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if type(module) is Quantized:
            module.forward = lambda x, m=module: F.linear(x, m.expand(x.dtype), m.bias)
    return other


@pytest.mark.parametrize("type", ["int8", "Q8_0", "int4", "Q6_K"])
def test_encoders_in_blocks(type):
    """In int8 activations have 8 bits where nobody says, as the modules have them."""
    model = quantize(made("bert", d=256, hidden=512), type, tables="Q8_0")
    batch, fast = texts(model), lowered(model)
    right = states(widened(model), batch)
    assert isinstance(fast.body, Lowered), "blocks are lowered at the first pass"
    assert ("activations in 8 bits" in model.path()) == (type == "int8")
    unasked = states(fast, batch)
    lower.attach(model, codes=16)
    assert distance(states(lowered(model), batch), right) < 5e-4
    lower.attach(model, codes=8)
    shallow = states(lowered(model), batch)
    assert 5e-4 < distance(shallow, right) < 5e-2
    assert torch.equal(unasked, shallow) == (type == "int8")
    if type == "int8":
        assert (shallow - right).norm() < (states(model, batch) - right).norm()


def test_what_the_program_does_not_take_the_modules_do():
    """Gradients, other positions, holes among the real tokens, embeddings in place of ids."""
    model = made("roberta")
    program = lower.attach(model)
    fast, batch = lowered(model), texts(model)
    holes = batch | {"attention_mask": batch["attention_mask"].clone()}
    holes["attention_mask"][0, 20:25] = 0
    moved = batch | {"position_ids": torch.arange(3, 53).expand(3, -1)}
    with torch.no_grad():
        embeds = model.body.embed.token(batch["input_ids"])
    told = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}

    def none(*_, **__):
        raise AssertionError("the runtime was asked")

    program.states = none
    for other in (holes, moved, told):
        assert torch.equal(states(fast, other), states(model, other))
    fast(**batch).logits.sum().backward()
    assert model.body.blocks[0].attn.f.q.weight.grad.abs().max() > 0
    with pytest.raises(MiradaError, match="past this model's context"), torch.inference_mode():
        fast(torch.ones(1, 200, dtype=torch.long))
    with pytest.raises(AssertionError, match="was asked"):
        states(fast, batch)


def test_segments_beyond_the_models_are_refused():
    model = made("bert")
    lower.attach(model)
    batch = texts(model) | {"token_type_ids": torch.full((3, 50), 2)}
    with pytest.raises(MiradaError, match="segment"), torch.inference_mode():
        lowered(model)(**batch)


WORDS = ["the cat sat on a mat", "attention is all you need and language was there", "hello"]


def test_embedding_and_pipelines_run_on_it(tmp_path, monkeypatch):
    """Weights in blocks: without being asked, once; changed weights anew; not while recorded."""
    made_of, states = [], native.Native.states
    monkeypatch.setattr(native.Native, "states",
                        lambda self, *a, **k: made_of.append(self) or states(self, *a, **k))
    model = mirada.load(tiny.bert(tmp_path / "model", "Model"))
    plain = mirada.embed(model, WORDS)
    assert not made_of and "attach" in model.path()
    lower.attach(model)
    assert torch.allclose(mirada.embed(model, WORDS), plain, atol=1e-5)
    features = mirada.pipeline("feature-extraction", model)(WORDS[0])
    assert torch.tensor(features[0]).mean(0).sub(plain[0]).abs().max() < 1e-5
    assert {*made_of} == {model.native}
    with torch.no_grad():
        model.body.blocks[0].attn.f.q.weight.mul_(3)
    changed = mirada.embed(model, WORDS)
    assert (changed - plain).abs().max() > 1e-3 and made_of[-1] is model.native is not made_of[0]
    count = len(made_of)
    with model.record():
        assert torch.allclose(mirada.embed(model, WORDS), changed, atol=1e-5)
    assert len(made_of) == count
    small = quantize(model, "Q8_0")
    assert "made at the first pass" in small.path()
    assert (mirada.embed(small, WORDS) - changed).abs().max() < 0.05
    mirada.embed(small, WORDS)
    assert made_of[-1] is made_of[-2] is small.native


# ---- encoder-decoders ---------------------------------------------------------------------------


def both(name: str) -> tuple[mirada.Model, dict, torch.Tensor, torch.Tensor]:
    """A model with its program, uneven sources, their memory, and 40 tokens of each answer."""
    model = made(name)
    lower.attach(model)
    batch = texts(model, lengths=(70, 31, 7))
    with torch.inference_mode():
        memory = model.encode(**batch)
    return model, batch, memory, torch.arange(120).mul(7).remainder(500).view(3, 40)


def scores(model, batch: dict, memory, answer) -> torch.Tensor:
    with torch.inference_mode():
        return model(encoder_outputs=memory, attention_mask=batch["attention_mask"],
                     decoder_input_ids=answer).logits


def rows_of(model, batch: dict, memory, cache: str | None = None) -> Rows:
    rows = Rows(model.native, cache)
    rows.remember(memory, batch["attention_mask"])
    return rows


@pytest.mark.parametrize("name", BOTH)
def test_a_program_gives_the_encoder_decoders_logits(name):
    model, batch, memory, answer = both(name)
    with torch.inference_mode():
        native_memory = lowered(model).encode(**batch)
    assert distance(real(batch, native_memory), real(batch, memory)) < 1e-5
    whole = rows_of(model, batch, memory)(answer.tolist(), 40)
    assert distance(whole, scores(model, batch, memory, answer)) < 1e-5
    rows = rows_of(model, batch, memory)  # token by token, as it is generated: to the last bit
    steps = [rows(answer[:, t : t + 1].tolist()) for t in range(40)]
    assert torch.equal(torch.cat(steps, 1), whole)


@pytest.mark.parametrize("name, what", [("t5", "buckets"), ("bart", "source"), ("t5", "cross"),
                                        ("transformer", "places"), ("bart", "bias")])
def test_what_an_encoder_decoders_program_is_made_of_shows(name, what):
    model, batch, memory, answer = both(name)
    before = rows_of(model, batch, memory)(answer.tolist(), 40)
    decoder = model.body.decoder
    if what == "buckets":
        decoder.blocks[0].attn.f.score_bias.table.weight.data[5] += 0.3
    elif what == "source":
        memory = memory.roll(1, 1)
    elif what == "cross":
        decoder.blocks[1].cross.f.scale *= 1.05
    elif what == "places":
        decoder.embed.position.base = 9000.0
    elif what == "bias":
        model.head.bias[0, 3] += 1
    after = scores(model, batch, memory, answer)
    assert distance(before, after) > 1e-4
    lower.attach(model)
    assert distance(rows_of(model, batch, memory)(answer.tolist(), 40), after) < 1e-5


@pytest.mark.parametrize("cache, within", [("float16", 2e-3), ("int8", 4e-2)])
def test_sources_in_other_caches(cache, within):
    model, batch, memory, answer = both("bart")
    right = scores(model, batch, memory, answer)
    found = rows_of(model, batch, memory, cache)(answer.tolist(), 40)
    assert 1e-6 < distance(found, right) < within


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 5},
                                     {"do_sample": True, "seed": 5, "num_return_sequences": 3}])
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_answers_are_the_same(name, options):
    """Sources longer than a page, answers that cross into the next: copies of a row share what
    neither writes to."""
    model, batch, _, _ = both(name)
    options = options | {"max_new_tokens": 40, "pad_token_id": 0, "eos_token_id": ()}
    fast = model.generate(**batch, **options)
    assert model.path().startswith("native runtime, ")
    model.native = "switched off"
    assert torch.equal(fast, model.generate(**batch, **options))


@pytest.mark.parametrize("name, tables", [("t5", None), ("bart", "Q8_0")])
def test_an_encoder_decoder_in_blocks_generates_natively(name, tables):
    model = quantize(made(name), "Q8_0", tables=tables)
    batch = texts(model)
    options = dict(max_new_tokens=20, pad_token_id=0, eos_token_id=())
    fast = model.generate(**batch, **options)
    assert isinstance(model.native, native.Native) and model.native.cache == "float16"
    with model.record():
        assert torch.equal(model.generate(**batch, **options), fast)


def test_a_source_needs_its_states():
    model, batch, memory, answer = both("t5")
    with pytest.raises(MiradaError, match="length of each row's source"):
        Rows(model.native)(answer.tolist())
    rows = rows_of(model, batch, memory)
    whole = rows(answer.tolist())
    rows.crop(3)
    assert [len(table) for table in rows.tables] == [3, 1, 1], "the source stays"
    assert torch.equal(rows(answer[:, 3:].tolist()), whole)

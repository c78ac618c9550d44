"""Every way to generate gives the model's own numbers, for every family that writes.

The models are the decoding rows of the parity table and each family's tiny size, so that a new
family is held here without a line. What is true of one pass without a cache, `whole`, is asked of
batches with pads, of every cache, of tokens taken back, of blocks, of guesses, of the engine, of
the native runtime where a model is lowered, and of all of them while a recording listens.
"""

import copy
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import mirada
from mirada import registry
from mirada.core.attention import Attention
from mirada.core.cache import Growing
from mirada.core.linear import KEPT, Quantized, replaced
from mirada.core.mlp import MoE
from mirada.edit import lower
from mirada.errors import MiradaError
from mirada.generate import speculate
from mirada.generate.engine import Engine
from mirada.generate.feed import Feed
from mirada.generate.options import Options
from mirada.generate.speculate import Pace, Speculative
from mirada.kernels import native
from mirada.look.quality import quality
from parity.harness import BAR, VISIBLE, Row, pair, shake

PROMPTS, ANSWER = (8, 5, 2), 6  # tokens: with their answers less than any row's context
NATIVE = pytest.mark.skipif(bool(native.missing()), reason=native.missing() or "")


def rows():
    """The parity rows that decode with a cache."""
    for file in sorted((Path(__file__).parents[1] / "parity").glob("test_*.py")):
        found = vars(import_module(f"parity.{file.stem}")).values()
        lists = [v for v in found if isinstance(v, list) and v and isinstance(v[0], Row)]
        yield from (row for one in lists for row in one if row.cached)


def writers():
    """family:architecture of all that write."""
    for family in registry.families():
        if registry.family(family).KIND in ("decoder", "encoder-decoder"):
            for name in registry.family(family).HEADS:
                if mirada.build(family, "tiny", architecture=name, device="meta").generates:
                    yield f"{family}:{name}"


TINY, TYPES = list(writers()), ["int8", "int4", "nf4"]
CASES = {str(case): case for case in [*rows(), *TINY]}


def made(name: str) -> mirada.Model:
    """A model in float64 with uneven attention, its norms and biases off one and zero."""
    case = CASES[name]
    if isinstance(case, Row):
        return pair(case).ours
    family, architecture = case.split(":")
    model = mirada.build(family, "tiny", architecture=architecture, seed=3)
    torch.manual_seed(11)
    shake(model)
    for a in model.modules():  # where scores are not scaled down, queries are small
        if isinstance(a, Attention):
            a.q.weight.data.mul_((a.q.out_features // a.heads) ** -0.5 / a.scale)
    return model.double().eval()


@pytest.fixture(scope="module", params=CASES)
def model(request):
    return made(request.param)


@dataclass
class Batch:
    """Prompts of unequal length, (B, P) and where they are real, and an answer to each, (B, N)."""

    prompts: list[list[int]]
    ids: Tensor
    mask: Tensor
    answers: Tensor
    start: int  # an encoder-decoder's first id


def batch_for(model) -> Batch:
    generator = torch.Generator().manual_seed(5)
    reads, writes = speculate._vocabularies(model)
    prompts = [torch.randint(3, reads, (n,), generator=generator) for n in PROMPTS]
    answers = torch.randint(3, writes, (len(PROMPTS), ANSWER), generator=generator)
    side = "right" if model.encoder_decoder else "left"
    pad = nn.utils.rnn.pad_sequence
    ids = pad(prompts, True, 0, side)
    mask = pad([torch.ones_like(p) for p in prompts], True, 0, side)
    return Batch([p.tolist() for p in prompts], ids, mask, answers,
                 getattr(model.config, "start", None) or 2)


def asked(batch: Batch, **more) -> dict:
    """Options that no file changes; without the penalty some write one word for ever."""
    return dict(max_new_tokens=10, eos_token_id=(), num_beams=1, do_sample=False,
                repetition_penalty=2.0, decoder_start_token_id=batch.start) | more


@torch.inference_mode()
def whole(model, batch: Batch) -> Tensor:
    """Scores (B, 1 + N, V) of the answers: each row alone, in one pass, without a cache."""
    found = []
    for prompt, answer in zip(batch.prompts, batch.answers.tolist(), strict=True):
        if model.encoder_decoder:
            given = {"decoder_input_ids": torch.tensor([[batch.start, *answer]])}
        else:
            given, prompt = {}, prompt + answer
        out = model(torch.tensor([prompt]), **given).logits[0]
        found.append(out[-1 - ANSWER :])
    return torch.stack(found)


@torch.inference_mode()
def fed(model, batch: Batch, **options) -> Tensor:
    """The same scores as a search meets them: a padded batch, a cache, two steps of unequal
    length, and before each three wrong tokens that are taken back."""
    given = asked(batch, prompt_lookup_num_tokens=3, **options)
    feed = Feed(model, batch.ids, batch.mask, Options.read(model, given))
    parts, at = [feed.begin()[:, None]], 0
    for n in (1, 5):
        held = feed.fed
        feed.scores(batch.answers[:, :3].flip(1), 3)
        feed.crop(held)
        parts.append(feed.scores(batch.answers[:, at : at + n], n))
        at += n
    return torch.cat(parts, 1)


def distance(a: Tensor, b: Tensor) -> float:
    assert torch.isfinite(a).all() and a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def aligned(model, tape, text: list[int], source=None) -> None:
    """What a tape shows of a text that was written step by step is what one pass over it shows."""
    given = {} if source is None else {"decoder_input_ids": torch.tensor([text])}
    with torch.no_grad(), model.record() as once:
        model(torch.tensor([text if source is None else source]), **given)
    T = tape.shape()[2]
    assert T >= len(text) - 1, "steps are missing"
    for stack in tape.stacks:
        for layer in tape.layers(stack):
            found, right = (t.pattern(layer, stack=stack) for t in (tape, once))
            rows, keys = found.shape[2:]
            assert (found - right[:, :, :rows, :keys]).abs().max() < BAR


# ---- caches, batches, the engine ----------------------------------------------------------------


@pytest.mark.scope("1.15.5")
def test_cached_in_a_batch_is_uncached_alone(model):
    batch = batch_for(model)
    right = whole(model, batch)
    for cache in ("growing", "static", "rolling"):
        plain = fed(model, batch, cache=cache)
        assert distance(plain, right) < BAR, cache
    with model.record():
        assert torch.equal(fed(model, batch, cache=cache), plain)


def test_the_engine_gives_each_its_own_answer(model):
    batch = batch_for(model)
    if model.encoder_decoder:
        with pytest.raises(MiradaError, match="the engine serves decoders"):
            Engine(model)
        return
    options = asked(batch, max_new_tokens=6)
    alone = [model.generate(p, **options)[0, len(p):].tolist() for p in batch.prompts]
    engine = Engine(model, tokens=64, rows=2, chunk=6, block=4)
    assert engine.generate(batch.prompts, **options) == alone
    with model.record() as tape:
        assert engine.generate(batch.prompts[:1], **options) == alone[:1]
    aligned(model, tape, batch.prompts[0] + alone[0])
    assert len({tuple(answer) for answer in alone}) > 1


def test_an_engine_follows_its_model():
    """Other weights, another adapter, or somebody who changes what modules do: nothing that was
    kept is used."""
    model = mirada.edit.lora(made("llama:LlamaForCausalLM"), seed=0)
    for name, p in model.named_parameters():
        if name.endswith(".b"):
            nn.init.normal_(p)
    batch = batch_for(model)
    engine, found = Engine(model, tokens=64, rows=2, chunk=6, block=4), []
    prompts = batch.prompts[:2]

    def both() -> bool:
        found.append(engine.generate(prompts, **asked(batch)))
        return found[-1] == [model.generate(p, **asked(batch))[0, len(p):].tolist()
                             for p in prompts]

    assert both()
    with model.intervene({"site": "mlp", "layer": 0, "op": "zero"}):
        assert both()
    model.adapters.use()
    assert both()
    with torch.no_grad():
        model.body.blocks[0].mlp.f.up.weight.mul_(-1)
    assert both() and len({str(answers) for answers in found}) == 4


def test_texts_that_an_engine_writes_in_turns_are_not_mixed_up():
    """A short answer is written between the pieces in which a long prompt is read."""
    model = made("llama:LlamaForCausalLM")
    engine = Engine(model, tokens=64, rows=2, chunk=4, block=4)
    with model.record() as tape:
        requests = [engine.submit(p, max_new_tokens=3, eos_token_id=()) for p in (
            [5], list(range(20, 35)))]
        texts = [r.ids + list(r) for r in requests]
    whole_runs = 0
    for run in range(len(tape.runs["decoder", 0])):
        try:
            tape.pattern(0, run=run)
        except MiradaError as error:
            assert "record one alone" in str(error)
            continue
        (ids,) = tape.ids(run=run).tolist()
        assert any(text[: len(ids)] == ids for text in texts)
        whole_runs += 1
    assert whole_runs == 2


# ---- guessing ahead -----------------------------------------------------------------------------


class Oracle:
    """Guesses the answer that is known, but for the last of each round."""

    def __init__(self, answer: list[int], vocab: int):
        self.answer, self.vocab = answer, vocab

    def guess(self, ids, count, run):
        right = self.answer[len(ids) : len(ids) + count]
        return [*right[:-1], *((g + 1) % self.vocab for g in right[-1:])], None


def guessed(model, batch: Batch, **options) -> Speculative:
    given = asked(batch, cache=options.pop("cache", "growing"), **options)
    return Speculative(model, batch.prompts[0], None, Options.read(model, given))


def by_oracle(model, batch: Batch, plain: Tensor, **options) -> Speculative:
    run = guessed(model, batch, prompt_lookup_num_tokens=3, **options)
    run.guesser = Oracle(plain[0].tolist(), speculate._vocabularies(model)[1])
    return run


def one_layer(model) -> mirada.Model:
    """The model without its decoder's other layers, to guess for it."""
    small = copy.deepcopy(model)
    small.decoder.order = small.decoder.order[:1]
    return small


@pytest.fixture
def always(monkeypatch):
    """Guess at every step, whatever the clock says."""
    monkeypatch.setattr(Pace, "tokens", lambda self: self.most)


@pytest.mark.scope("1.15.6")
def test_guesses_change_no_token(model, always):
    batch = batch_for(model)
    batch.prompts[0][4:] = batch.prompts[0][:4]  # so that there is something to look up
    plain = model.generate(batch.prompts[0], **asked(batch))
    run = by_oracle(model, batch, plain, cache="rolling")
    with model.record() as tape:
        list(run)
    assert torch.equal(run.ids, plain)
    assert run.drafted == 8 and run.accepted == 5  # of ten: 1, then 2 + 1 three times
    aligned(model, tape, plain[0].tolist(), batch.prompts[0] if model.encoder_decoder else None)
    run = guessed(model, batch, cache="static", prompt_lookup_num_tokens=3)
    list(run)
    assert torch.equal(run.ids, plain)
    run = guessed(model, batch, assistant_model=one_layer(model), num_assistant_tokens=3)
    list(run)
    assert torch.equal(run.ids, plain) and run.drafted >= 3


# ---- weights in blocks --------------------------------------------------------------------------


def dense(small) -> mirada.Model:
    """The model with the numbers that its blocks stand for, as plain weights."""
    wide, table = copy.deepcopy(small), {}
    for module in wide.modules():
        if isinstance(module, KEPT):
            plain = nn.Linear(1, 1) if isinstance(module, Quantized) else nn.Embedding(1, 1)
            plain.weight = nn.Parameter(module.expand(small.dtype))
            plain.bias = getattr(module, "bias", None)
            table[module] = plain
    replaced(wide, table)
    return wide


@pytest.fixture(scope="module", params=[(name, to) for name in TINY for to in TYPES],
                ids=lambda of: "-".join(of))
def pressed(request):
    """A quantized model, and the plain one with the numbers of its blocks, in float32."""
    name, to = request.param
    small = mirada.edit.quantize(made(name).float(), to)
    assert {m.type for m in small.modules() if isinstance(m, KEPT)} == {
        {"int8": "I8", "int4": "Q4_0", "nf4": "NF4"}[to]}
    return small, dense(small)


def test_blocks_are_the_numbers_they_stand_for(pressed):
    """In float64, where the modules do not round what they are given."""
    small, wide = (copy.deepcopy(m).double() for m in pressed)
    batch = batch_for(small)
    for module in small.modules():
        if isinstance(module, Quantized):
            module.dynamic = False
    right = whole(wide, batch)
    plain = fed(small, batch)
    assert distance(plain, right) < BAR
    with small.record():
        assert torch.equal(fed(small, batch), plain)


@pytest.mark.parametrize("name", TINY)
def test_eight_bit_products_are_within_half_a_step(name):
    """int8 rounds what comes in too, row by row: each product is as far off as that can make it."""
    small = mirada.edit.quantize(made(name).float(), "int8").double()
    found = []

    def check(module, args, output):
        x, W = args[0], module.expand(torch.float64)
        if len(x):  # an expert may get no token
            step = x.abs().amax(-1, keepdim=True) / 127
            off = output - nn.functional.linear(x, W, module.bias)
            found.append(float((off.abs() / (step / 2 * W.abs().sum(1))).max()))

    for module in small.modules():
        if isinstance(module, Quantized):
            assert module.dynamic
            module.register_forward_hook(check)
    whole(small, batch_for(small))
    assert 0.05 < max(found) <= 1.0


@pytest.mark.parametrize("name", TINY)
def test_what_is_reported_of_rounding_is_true(name):
    """Bytes by type, and how far the outputs moved, beside the numbers themselves."""
    model = made(name).float()
    small = mirada.edit.quantize(model, "int4")
    model.tokenizer = SimpleNamespace(encode=lambda text, special: SimpleNamespace(
        ids=list(range(3, 3 + len(text)))))
    said, described = quality(model, small, "x" * 24), mirada.describe(small)
    ids = torch.arange(3, 27)[None]
    given = {"decoder_input_ids": ids} if model.encoder_decoder else {}
    with torch.inference_mode():
        before, after = (m(ids, **given).logits[0] for m in (model, dense(small)))
    moved = (after - before).abs()
    assert said.logit_mean == pytest.approx(moved.mean().item(), rel=1e-4) and moved.mean() > 0
    assert said.logit_max == pytest.approx(moved.max().item(), rel=1e-4)
    assert said.flips == (before.argmax(-1) != after.argmax(-1)).double().mean().item()
    blocks = {m.blocks.data_ptr(): m.blocks.nbytes for m in small.modules() if isinstance(m, KEPT)}
    wide = sum(p.nbytes for p in small.parameters())
    assert described.memory == {"Q4_0": sum(blocks.values()), "float32": wide}
    assert said.nbytes == (sum(p.nbytes for p in model.parameters()), sum(blocks.values()) + wide)
    assert described.parameters == mirada.describe(model).parameters


# ---- the native runtime -------------------------------------------------------------------------


BOUNDS = {"float32": 1e-5, "float16": 2e-3, "int8": 5e-2}  # of the largest logit, by the cache
IN_BLOCKS = 5e-4  # weights in blocks meet activations of 15 bits
EIGHT_BITS = 5e-2  # with codes=8


def within(bound: float, found: Tensor, right: Tensor, model) -> bool:
    """At each place; where a router chooses, bytes may choose another expert in one of four."""
    off = (found - right).abs().amax(-1) / right.abs().max()  # (B, 1 + N)
    routed = any(isinstance(m, MoE) for m in model.modules()) and bound >= BOUNDS["int8"]
    return float((off < bound).float().mean()) >= (0.75 if routed else 1.0)


def program(model) -> native.Native | None:
    """Its native program; None where it has none, which its path then says."""
    try:
        return lower.attach(model)
    except lower.Unlowered as error:
        assert model.path() == f"torch: {error}"
        return None


@NATIVE
def test_the_native_runtime_gives_the_modules_numbers(model):
    model = copy.deepcopy(model).float()
    batch = batch_for(model)
    right, options = whole(model, batch), asked(batch, pad_token_id=0)
    runs = [options, options | {"num_beams": 3, "max_new_tokens": 5}]
    tokens = [model.generate(batch.ids, batch.mask, **o) for o in runs]
    own = program(model)
    if own is not None:
        assert model.path().startswith("native runtime, ")
        for cache, bound in BOUNDS.items():
            assert within(bound, fed(model, batch, cache=cache), right, model), cache
    with torch.inference_mode():
        again = [model.generate(batch.ids, batch.mask, **o) for o in runs]
    assert all(map(torch.equal, again, tokens))
    plain = model.generate(batch.prompts[0], **options)
    run = by_oracle(model, batch, plain)
    list(run)
    assert torch.equal(run.ids, plain)
    with model.record() as tape:
        assert model.path() == "torch: a recording or an intervention listens to its modules"
        assert torch.equal(model.generate(batch.prompts[0], **options), plain)
    assert tape.shape()[2] >= 10 and model.native is own


@NATIVE
def test_blocks_on_the_native_runtime(pressed):
    small, wide = pressed
    batch = batch_for(small)
    right, own = whole(wide, batch), lower.ready(small)
    if own is None:  # the modules run: their numbers are held above
        assert small.path().startswith("torch: ")
        return
    assert small.path().startswith("native runtime, ")
    for cache, bound in BOUNDS.items():
        found = fed(small, batch, cache=cache)
        assert within(bound + IN_BLOCKS, found, right, small), cache
    shallow = fed(small, batch, cache="float32", codes=8)
    assert within(EIGHT_BITS, shallow, right, small)
    if not small.encoder_decoder:
        alone = [small.generate(p, **asked(batch))[0, len(p):].tolist() for p in batch.prompts]
        engine = Engine(small, tokens=256, rows=2, chunk=6, threads=1)
        assert isinstance(engine.runner, native.Native)
        assert engine.generate(batch.prompts, **asked(batch)) == alone
        with small.record() as tape:  # the modules run, and what was read is read again
            engine.generate(batch.prompts[:1], **asked(batch))
        assert tape.shape()[2] >= 8 and not isinstance(engine.runner, native.Native)


# ---- what is broken shows -----------------------------------------------------------------------


def shows(model, batch: Batch, **options) -> bool:
    """Whether what is broken is seen: other scores, or a sentence."""
    try:
        return distance(fed(model, batch, **options), whole(model, batch)) > VISIBLE
    except MiradaError:
        return True


def _ends_kept(self, n):
    self.k, self.v = self.k[:, :, -n:], self.v[:, :, -n:]


CACHE_FAULTS = {
    "a query sees one key less": ("mask", lambda self, mask, T: replace(mask, start=self.held - 1)),
    "a rollback forgets to roll back": ("crop", lambda self, n: None),
    "a rollback keeps the wrong end": ("crop", _ends_kept),
    "rows change places": ("update", lambda self, k, v: UPDATE(self, k.flip(0), v)),
}
UPDATE = Growing.update


@pytest.mark.parametrize("fault", CACHE_FAULTS)
@pytest.mark.parametrize("name", ["llama:LlamaForCausalLM", "t5:T5ForConditionalGeneration"])
def test_a_broken_cache_shows(name, fault, monkeypatch):
    model = made(name)
    batch = batch_for(model)
    assert not shows(model, batch)
    monkeypatch.setattr(Growing, *CACHE_FAULTS[fault])
    assert shows(model, batch)


def test_pads_that_are_read_show():
    model = made("llama:LlamaForCausalLM")
    batch = batch_for(model)
    batch.mask[0, 0] = 0
    assert shows(model, batch)
    batch.mask[:] = 1
    assert shows(model, batch)


@pytest.mark.parametrize("name", ["llama:LlamaForCausalLM", "t5:T5ForConditionalGeneration"])
@pytest.mark.parametrize("fault", ["all is believed", "one more is believed", "nothing is forgot"])
def test_a_guess_that_is_wrongly_believed_shows(name, fault, always, monkeypatch):
    model = made(name)
    batch = batch_for(model)
    plain = model.generate(batch.prompts[0], **asked(batch))
    right = speculate.accept

    def believed(guesses, chances, scores, *rest):
        best = scores.argmax(-1).tolist()
        stand = len(right(guesses, chances, scores, *rest)) - 1
        stand = len(guesses) if fault == "all is believed" else min(stand + 1, len(guesses))
        return [*guesses[:stand], best[stand]]

    if fault == "nothing is forgot":
        monkeypatch.setattr(Feed, "crop", lambda self, n: setattr(self, "fed", n))
    else:
        monkeypatch.setattr(speculate, "accept", believed)
    run = by_oracle(model, batch, plain)
    try:
        list(run)
    except MiradaError:
        return
    assert not torch.equal(run.ids, plain)


@pytest.mark.parametrize("to", TYPES)
def test_a_scale_that_is_off_shows(to):
    """In one block of one projection, by a sixteenth."""
    small = mirada.edit.quantize(made("llama:LlamaForCausalLM").float(), to)
    right, batch = dense(small).double(), batch_for(small)
    down = small.body.blocks[1].mlp.f.down
    kind = torch.float16 if to == "int4" else torch.float32
    down.blocks[0, : kind.itemsize] = (down.blocks[0, : kind.itemsize].view(kind) * 1.0625).view(
        torch.uint8)
    down.dynamic = False
    wide = copy.deepcopy(small).double()
    for module in wide.modules():
        if isinstance(module, Quantized):
            module.dynamic = False
    assert distance(fed(wide, batch), whole(right, batch)) > VISIBLE
    assert distance(fed(wide, batch), whole(dense(small).double(), batch)) < BAR
    if not native.missing():
        assert distance(fed(small, batch, cache="float32"), whole(right.float(), batch)) > (
            BOUNDS["float32"] + IN_BLOCKS)


@NATIVE
def test_a_program_of_older_weights_shows(monkeypatch):
    model = made("llama:LlamaForCausalLM").float()
    batch = batch_for(model)
    lower.attach(model)
    monkeypatch.setattr(lower, "stamp", lambda m, old=model.native.stamp: old)
    with torch.no_grad():
        model.body.blocks[0].mlp.f.up.weight.mul_(1.5)
    assert distance(fed(model, batch), whole(model, batch)) > 1e-3
    monkeypatch.undo()
    assert distance(fed(model, batch), whole(model, batch)) < BOUNDS["float32"]

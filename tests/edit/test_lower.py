"""Programs for the native runtime equal the modules they were made of, for every family."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mirada
from mirada.core.cache import Growing
from mirada.core.linear import Quantized, QuantizedEmbedding, kept, replaced
from mirada.core.position import Dynamic, Rotary
from mirada.edit import lower
from mirada.errors import MiradaError
from mirada.generate.engine import Engine
from mirada.generate.rows import Rows
from mirada.kernels import native
from mirada.kernels.pack import pack
from mirada.model import Caches

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing() or "")

T = 20
WINDOW = {"window": 7}
CASES = {  # name -> how it is built
    "bloom": {}, "gemma": {}, "gemma2": WINDOW, "gemma3": WINDOW, "gpt1": {}, "gpt2": {},
    "gpt3": WINDOW, "gptj": {}, "gptneo": WINDOW, "llama": {}, "mixtral": {}, "mpt": {}, "neox": {},
    "neox-serial": {"parallel": False}, "palm": {}, "qwen2": {}, "qwen3": {}, "starcoder": {},
    "starcoder-heads": {"shared": False}, "starcoder2": WINDOW,
    "mistral": WINDOW | {"architecture": "MistralForCausalLM"},
}
FAMILY = {"mistral": "llama"}


def built(name: str, **more) -> mirada.Model:
    """A tiny model with uneven attention, its norms and biases off one and zero."""
    family = FAMILY.get(name, name.partition("-")[0])
    model = mirada.build(family, "tiny", seed=3, **CASES[name] | more)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise * 1.2 / p.shape[-1] ** 0.5) if p.ndim > 1 else p.add_(noise * 0.3)
    return model


def ids_for(model, rows: int = 2, length: int = T) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, model.config.vocab, (rows, length), generator=generator)


@torch.inference_mode()
def by_torch(model, ids) -> torch.Tensor:
    return model(ids).logits


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert torch.isfinite(a).all() and a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())


def in_blocks(model, type: str):
    """The model with its projections, and its table, kept in blocks."""
    table: dict = {}
    for module in model.modules():
        if type_of(module) and module.weight.shape[1] % (256 if type.endswith("_K") else 32) == 0:
            table[module] = kept(module, pack(module.weight.detach(), type), type)
    assert any(isinstance(new, QuantizedEmbedding) for new in table.values())
    replaced(model, table)
    return model


def type_of(module) -> bool:
    return type(module) in (nn.Linear, nn.Embedding)


def exactly(model, ids) -> torch.Tensor:
    """The logits of weights in blocks as floats: I8's own modules round their input to 8 bits."""
    expanded = copy.deepcopy(model)
    for module in expanded.modules():
        if type(module) is Quantized:
            module.forward = lambda x, m=module: F.linear(x, m.expand(x.dtype), m.bias)
    return by_torch(expanded, ids)


@pytest.mark.scope("1.15.5")
@pytest.mark.parametrize("kind", ["growing", "static", "rolling"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_cached_logits_are_the_uncached(name, kind):
    """Grouped heads, with a window and without; a token that was forgotten is seen."""
    model = built(name)
    assert model.config.kv_heads < model.config.heads
    ids = ids_for(model)
    with torch.inference_mode():
        cache = model.new_cache(kind, size=T, margin=1)
        steps = [model(part, cache=cache).logits for part in ids.split([9, 1, 1, T - 11], 1)]
        assert distance(torch.cat(steps, 1), by_torch(model, ids)) < 1e-5
        cache.crop(T - 1)
        again = model(ids[:, :1], cache=cache).logits
    assert distance(again, by_torch(model, ids)[:, -1:]) > 1e-3


@pytest.mark.scope("1.15.5")
@pytest.mark.parametrize("name", CASES)
def test_a_program_gives_the_models_logits(name):
    model = built(name)
    ids = ids_for(model)
    program = lower.lower(model)
    whole = Rows(program)(ids.tolist(), T)
    assert distance(whole, by_torch(model, ids)) < 1e-5
    rows = Rows(program)  # token by token, as it is generated: to the last bit
    steps = [rows(ids[:, t : t + 1].tolist()) for t in range(T)]
    assert torch.equal(torch.cat(steps, 1), whole)


def test_every_decoder_family_is_here():
    here = {FAMILY.get(name, name.partition("-")[0]) for name in CASES}
    decoders = {f for f in mirada.families() if mirada.build(f, device="meta").kind == "decoder"}
    assert decoders == here


def _changed(model, what: str) -> None:
    first = model.body.blocks[0].attn.f
    if what == "window":
        first.mask = replace(first.mask, window=6)
    elif what == "scale":
        first.scale *= 1.02
    elif what == "cap":
        first.cap = 20.0
    elif what == "base":
        first.rotary = Rotary(first.rotary.dim, 9000.0)
    elif what == "pairs":
        first.rotary = Rotary(first.rotary.dim, first.rotary.base, interleaved=True)
    elif what == "slopes":
        first.score_bias.slopes[1] *= 1.1
    elif what == "weight":
        model.body.blocks[1].mlp.f.up.weight.data[5, 3] += 0.2
    elif what == "eps":
        model.body.norm.eps = 0.02


@pytest.mark.parametrize("name, what", [
    ("gemma2", "window"), ("llama", "scale"), ("gemma2", "cap"), ("llama", "base"),
    ("llama", "pairs"), ("bloom", "slopes"), ("llama", "weight"), ("gpt2", "eps")])
def test_what_a_program_is_made_of_shows(name, what):
    model = built(name)
    ids, before = ids_for(model), lower.lower(model)
    _changed(model, what)
    after = by_torch(model, ids)
    assert distance(Rows(before)(ids.tolist(), T), after) > 1e-4
    assert distance(Rows(lower.lower(model))(ids.tolist(), T), after) < 1e-5


WIDE = dict(d=256, hidden=256, heads=4, kv_heads=2, head_dim=64, layers=2)


@pytest.mark.parametrize("type", sorted(native.KINDS))
def test_weights_in_blocks(type):
    """15-bit activations: the modules' own numbers to five parts in ten thousand."""
    model = in_blocks(built("llama", **WIDE), type)
    ids = ids_for(model)
    program = lower.lower(model, cache="float32")
    whole = Rows(program)(ids.tolist(), T)
    assert distance(whole, exactly(model, ids)) < 5e-4
    shallow = Rows(lower.lower(model, cache="float32", codes=8))(ids.tolist(), T)
    assert distance(shallow, exactly(model, ids)) < 5e-2
    half = Rows(lower.lower(model))(ids.tolist(), T)
    assert distance(half, whole) < 2e-3
    rows = Rows(program)
    steps = [rows(ids[:, t : t + 1].tolist()) for t in range(T)]
    assert torch.equal(torch.cat(steps, 1), whole)


class Rounded(Growing):
    """Keys and values rounded to whole numbers up to `top`, a scale for each token and head."""

    top = 127

    def update(self, k, v):
        return super().update(self.rounded(k), self.rounded(v))

    def rounded(self, x):
        per = x.abs().amax(-1, keepdim=True) / self.top
        return (x / per).round() * per


@pytest.mark.scope("1.15.5")
@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "gptj", "mistral"])
def test_keys_and_values_in_bytes(name, monkeypatch):
    """Grouped heads, windows, caps, slopes: the modules' logits with the same rounding, where a
    number may round to either side; a rounding half as fine is seen."""
    model, ids = built(name), ids_for(built(name), 2, 70)
    program = lower.lower(model, cache="int8")
    whole = Rows(program)(ids.tolist(), 70)

    def twin() -> torch.Tensor:
        with torch.inference_mode():
            places = model.new_cache()
            cache = Caches({n: Rounded() for n in place} for place in places)
            return model(ids, cache=cache).logits

    assert distance(whole, twin()) < 2e-3
    assert distance(whole, by_torch(model, ids)) < 3e-2
    rows = Rows(program)
    steps = [rows(part.tolist(), part.shape[1]) for part in ids.split([33, 1, 36], 1)]
    assert torch.equal(torch.cat(steps, 1), whole)
    monkeypatch.setattr(Rounded, "top", 63)
    assert distance(whole, twin()) > 4e-3


@pytest.mark.scope("1.15.5")
def test_a_cache_is_chosen_at_each_generation(small):
    """The program serves all kinds; each page has the size it says."""
    model, program = small
    ids = ids_for(model, 2, 40)
    found = {kind: model.generate(ids, max_new_tokens=6, eos_token_id=(), cache=kind)
             for kind in ("growing", *native.CACHES)}
    assert torch.equal(found["growing"], found["float16"])
    assert model.path().endswith("operators, keys and values in float16: 1,024 bytes a token")
    numbers = 32 * 2 * 2 * 2 * 64  # slots, layers, keys and values, heads, channels
    sizes = {kind: program.fork(kind).block_bytes for kind in native.CACHES}
    assert sizes == {"float32": 4 * numbers, "float16": 2 * numbers,
                     "int8": numbers + 4 * numbers // 64}
    eight = lower.lower(model, cache="int8")
    rows = Rows(eight)
    rows(ids.tolist())
    assert rows.native.pool.nbytes == len(rows.native.pool) * sizes["int8"]
    assert torch.equal(Rows(program, "int8")(ids.tolist()), Rows(eight)(ids.tolist()))
    with pytest.raises(MiradaError, match="no cache is kept in 'int4'"):
        lower.lower(model, cache="int4")
    with pytest.raises(MiradaError, match="is the native runtime's, .*lower.attach"):
        built("llama").generate(ids, cache="int8")


def test_activations_have_the_bits_that_a_generation_asks_for(small):
    """One program serves both; eight bits are the numbers of one that was lowered with them."""
    model, program = small
    ids, deep = ids_for(model, 2, 40), Rows(program)(ids_for(model, 2, 40).tolist())
    shallow = Rows(lower.lower(model, codes=8))(ids.tolist())
    assert torch.equal(Rows(program, codes=8)(ids.tolist()), shallow)
    assert 5e-2 > distance(shallow, deep) > 1e-4
    assert torch.equal(Rows(program, codes=16)(ids.tolist()), deep)
    prompts = [row[:30] for row in ids.tolist()]
    engine = Engine(model, tokens=512, codes=8)
    asked = dict(max_new_tokens=6, eos_token_id=())
    alone = [model.generate(p, codes=8, **asked)[0, 30:].tolist() for p in prompts]
    assert engine.generate(prompts, **asked) == alone and engine.runner.lib is not program.lib
    model.native = lower.lower(model, codes=8)
    assert "operators, activations in 8 bits, keys and" in model.path()
    model.native = program
    assert "8 bits" not in model.path()


@pytest.mark.parametrize("asked, says", [
    ({"codes": 4}, "codes is 4; it must be 8 or 16"), ({"codes": True}, "it must be 8 or 16"),
    ({"codes": 8, "cache": "rolling"}, "codes=8 is the native runtime's, and cache='rolling' is")])
def test_bits_that_cannot_be(small, asked, says):
    with pytest.raises(MiradaError, match=says):
        small[0].generate([5, 6], **asked)
    with pytest.raises(MiradaError, match="codes=8 is the native runtime's, and this model runs"):
        built("llama").generate([5, 6], codes=8)


def test_an_engine_has_a_cache_and_threads_of_its_own(small):
    model, program = small
    prompts = ids_for(model, 3, 50).tolist()
    engines = [Engine(model, tokens=1024, cache="int8", threads=n) for n in (1, 2)]
    first, second = (e.generate(prompts, max_new_tokens=5, eos_token_id=()) for e in engines)
    alone = model.generate(prompts[0], max_new_tokens=5, eos_token_id=(), cache="int8")
    assert first == second and first[0] == alone[0, 50:].tolist()
    assert engines[0].runner.pool.nbytes == 32 * program.fork("int8").block_bytes
    with pytest.raises(MiradaError, match="are the native runtime's, .* torch; "):
        Engine(built("llama"), cache="int8")


def test_a_cache_that_cannot_fit_says_how_much_it_needs(small, monkeypatch):
    model, program = small
    monkeypatch.setattr(native, "available", lambda: 200_000)
    with pytest.raises(MiradaError, match=r"256 tokens need 0\.26 MB \(1,024 bytes a token in "
                                          r'float16\) .* give cache="int8", or .* a window'):
        model.generate(ids_for(model, 1, 9), max_new_tokens=2)
    program.fork("int8").reserve(8)
    with pytest.raises(MiradaError, match="fewer tokens or rows, or"):
        program.fork("int8").reserve(80)


@pytest.mark.parametrize("broken", ["codes", "scale"])
def test_a_broken_block_shows(broken):
    model = in_blocks(built("llama", **WIDE), "Q4_0")
    ids, right = ids_for(model), lower.lower(model, cache="float32")
    blocks = model.body.blocks[0].mlp.f.down.blocks
    blocks[0, 2 if broken == "codes" else 1] ^= 0x77 if broken == "codes" else 4
    after = exactly(model, ids)
    assert distance(Rows(right)(ids.tolist(), T), after) > 2e-3
    assert distance(Rows(lower.lower(model, cache="float32"))(ids.tolist(), T), after) < 5e-4


@pytest.fixture(scope="module")
def small():
    """A model with a window, in blocks, and its program."""
    model = in_blocks(built("mistral", **WIDE | {"context": 2048, "window": 300}), "Q4_1")
    return model, lower.attach(model)


def test_neighbours_change_no_bit(small):
    """Alone, in a batch, in pieces, on other pages or threads: the same numbers."""
    _, program = small
    texts = [torch.randint(0, 1024, (n,)).tolist() for n in (700, 3, 41, 270)]
    alone = [Rows(program)([t])[0, -1] for t in texts]
    rows = Rows(program)
    rows.native.reserve(64)
    rows.tables = [torch.randperm(16).add(16 * n).tolist() for n in range(4)]
    together = rows(texts)[:, -1]
    pieces = Rows(program)
    for start in range(0, 700, 97):
        last = pieces([texts[0][start : start + 97]])
    third = Rows(program)
    third.native.threads = 3
    assert torch.equal(last[0, -1], alone[0])
    assert torch.equal(third([texts[0]])[0, -1], alone[0])
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_what_does_not_fit_the_pool_or_the_vocabulary_is_refused(small):
    program = small[1].fork()
    program.reserve(2)
    good = dict(ids=[1, 2], positions=[0, 1], rows=[0, 0], tables=[[0]], score=[1])
    program.step(*map(torch.tensor, good.values()))
    for name, value, says in (("ids", [1, 1024], "vocabulary"), ("rows", [0, 1], "table"),
                              ("positions", [0, 32], "position"), ("tables", [[2]], "page"),
                              ("score", [2], "scored"), ("positions", [-1, 0], "position")):
        with pytest.raises(MiradaError, match=says):
            program.step(*map(torch.tensor, (good | {name: value}).values()))


# ---- generation runs on it ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 5},
                                     {"repetition_penalty": 1.3}])
@pytest.mark.parametrize("padded", [False, True])
def test_generation_is_the_same(small, options, padded):
    model, program = small
    ids = ids_for(model, 3, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = mask[2, :1] = 0
    options = options | {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": ()}
    fast = model.generate(ids, mask, **options)
    assert model.native is program and model.path().startswith("native runtime, ")
    model.native = "switched off"
    slow = model.generate(ids, mask, **options)
    model.native = program
    assert torch.equal(fast, slow)


def test_guessing_ahead_and_cropping(small):
    model, _ = small
    ids = torch.tensor([[5, 6, 7, 8] * 6])
    plain = model.generate(ids, max_new_tokens=20, eos_token_id=())
    guessed = model.generate(ids, max_new_tokens=20, eos_token_id=(), prompt_lookup_num_tokens=4)
    assert torch.equal(plain, guessed)


def test_a_row_takes_back_and_goes_on(small):
    rows, other = Rows(small[1]), Rows(small[1])
    text = torch.randint(0, 1024, (2, 80)).tolist()
    rows(text)
    rows.crop([33, 64])
    rows.reorder([1, 0, 1])
    rows.crop([20, 33, 64])  # the first goes on within a page that the last has filled
    more = rows([[7, 8], [9, 1], [2, 3]])
    expected = other([text[1][:20] + [7, 8], text[0][:33] + [9, 1], text[1][:64] + [2, 3]])
    assert torch.equal(more, expected)
    with pytest.raises(MiradaError, match="cannot crop"):
        rows.crop(23)


MEMORY = """
import sys, torch, mirada
from mirada.core.linear import Quantized
from mirada.edit import lower
from mirada.kernels import native
def now(what):
    lines = open("/proc/self/status").readlines()
    return int(next(x for x in lines if x.startswith(what)).split()[1]) << 10
model = mirada.load(sys.argv[1])
blocks = [m.blocks for m in model.modules() if isinstance(m, Quantized)]
blocks[3][5, :3] = 7  # what was written to is not the file's
before = now("VmRSS")
lower.attach(model)
grown = now("VmHWM") - before
again = [m.blocks for m in mirada.load(sys.argv[1]).modules() if isinstance(m, Quantized)]
again[3][5, :3] = 7
same = all(map(torch.equal, blocks, again))
pack = native.library().mirada_pack
def staying(jobs, count, threads):
    for n in range(count):
        jobs[n].stays = 1
    pack(jobs, count, threads)
native.library().mirada_pack = staying
del again
lower.attach(model)
print(grown, now("VmRSS") - before, sum(b.nbytes for b in blocks), int(same))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_packed_weights_take_the_place_of_the_files(tmp_path):
    """What is packed is let go of: at no time are both there, and the modules can read on."""
    changes = dict(d=512, hidden=2048, heads=8, kv_heads=8, head_dim=64, layers=6)
    model = in_blocks(built("llama", **changes), "Q8_0")
    mirada.save(model, tmp_path / "m.gguf")
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "m.gguf"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    grown, kept, size, same = map(int, done.stdout.split())
    assert size > 20e6 and same == 1
    assert grown < 1.3 * size, (grown, size)
    assert kept > 1.6 * size, "without it both are there"


def test_a_prompt_has_its_pages_at_once(small, monkeypatch):
    """A pool that grew page by page would be there twice, old and new, again and again."""
    asked = []
    reserve = native.Native.reserve
    monkeypatch.setattr(native.Native, "reserve",
                        lambda self, blocks: asked.append(blocks) or reserve(self, blocks))
    rows = Rows(small[1])
    rows(torch.randint(0, 1024, (2, 700)).tolist())
    assert asked == [2 * 22 * 5 // 4] and len(rows.native.pool) == 55
    for _ in range(5):
        rows([[1], [2]])
    assert len(asked) == 1


def test_copies_of_a_row_part(small):
    """Beams share whole pages and write into a last page of their own."""
    rows = Rows(small[1])
    text = torch.randint(0, 1024, (1, 70)).tolist()
    rows(text)
    rows.reorder([0, 0])
    parted = rows([[1], [2]])
    assert rows.tables[0][:2] == rows.tables[1][:2] and rows.tables[0][2] != rows.tables[1][2]
    for n, token in enumerate((1, 2)):
        assert torch.equal(parted[n], Rows(small[1])([text[0] + [token]])[0])


def test_who_listens_gets_the_modules(small):
    model, _ = small
    ids = ids_for(model, 1, 6)
    fast = model.generate(ids, max_new_tokens=4, eos_token_id=())
    with model.record() as tape:
        assert "recording" in model.path()
        assert torch.equal(model.generate(ids, max_new_tokens=4, eos_token_id=()), fast)
    assert tape.pattern(0).shape[-1] == 9
    with mirada.kernel("exact"):
        assert "'exact'" in model.path()
    assert model.train().path() == "torch: the model is in training mode"
    assert model.eval().path().startswith("native")


def test_weights_that_change_are_lowered_again():
    model = built("gpt2")
    assert "attach" in model.path() and lower.ready(model) is None
    first = lower.attach(model)
    assert lower.ready(model) is first
    with torch.no_grad():
        model.body.blocks[0].mlp.f.up.weight.mul_(1.5)
    ids = ids_for(model, 1)
    again = lower.ready(model)
    assert again is not first
    assert distance(Rows(again)(ids.tolist(), T), by_torch(model, ids)) < 1e-5
    assert copy.deepcopy(model).native is None


def _swap(model, what: str) -> None:
    attention = model.body.blocks[1].attn.f
    if what == "dynamic":
        attention.rotary = Rotary(16, scaling=Dynamic(2.0, 64))
    elif what == "subclass":
        attention.q.__class__ = type("Clipped", (nn.Linear,), {})
    elif what == "double":
        model.double()
    elif what == "blocks":
        in_blocks(model, "Q8_0").body.blocks[0].mlp.f.up.type = "Q3_K"
    elif what == "activation":
        model.body.blocks[1].mlp.f.act = nn.Hardswish()


@pytest.mark.parametrize("what, says", [
    ("dynamic", "blocks.1.attn: Dynamic"), ("subclass", "blocks.1.attn: Clipped has no native"),
    ("double", "float64"), ("blocks", "blocks.0.mlp: Quantized of type Q3_K"),
    ("activation", "blocks.1.mlp: Hardswish")])
def test_what_has_no_operator_is_named(what, says):
    model = built("llama")
    _swap(model, what)
    with pytest.raises(lower.Unlowered, match=says):
        lower.attach(model)
    assert says in model.path() and model.path().startswith("torch: ")


def test_other_architectures_are_refused():
    kind = {"architecture": "LlamaForSequenceClassification"}
    for name, more, says in (("llama", kind, "one token after another"),
                             ("deberta", {}, "Disentangled has no native operator")):
        with pytest.raises(lower.Unlowered, match=says):
            lower.lower(mirada.build(name, "tiny", **more))


def test_quantized_models_are_lowered_at_their_first_generation(monkeypatch):
    model = in_blocks(built("llama"), "Q8_0")
    assert "made at the first generation" in model.path()
    ids = ids_for(model, 1, 5)
    native_ids = model.generate(ids, max_new_tokens=3, eos_token_id=())
    assert isinstance(model.native, native.Native)
    model.native = None

    def none(*flags):
        raise native.Unbuilt("no compiler")

    monkeypatch.setattr(lower, "library", none)
    with pytest.warns(UserWarning, match="torch, which is slower: no compiler"):
        by_modules = model.generate(ids, max_new_tokens=3, eos_token_id=())
    assert model.path() == "torch: no compiler" and torch.equal(native_ids, by_modules)


def test_a_table_that_widens_its_rows_is_asked():
    assert isinstance(in_blocks(built("llama"), "Q4_0").body.blocks[0].attn.f.q, Quantized)
    gemma = built("gemma")
    assert type(gemma.body.embed.token) is not nn.Embedding
    assert lower._widening(gemma.body.embed.token) == pytest.approx(gemma.config.d**0.5)

"""Torch's caches: what they take is counted before it is taken."""

import pytest
import torch

import mirada
from mirada.errors import MiradaError
from mirada.generate import budget
from mirada.generate.budget import cost


def held(cache) -> int:
    tensors = (t for layer in cache for one in layer.values() for t in (one.k, one.v))
    return sum(t.nbytes for t in tensors if t is not None)


@pytest.mark.parametrize("family", ["llama", "gpt2", "starcoder", "gemma2", "t5"])
def test_it_is_what_the_cache_holds(family):
    model = mirada.build(family, "tiny", seed=0)
    for kind in ("growing", "static", "rolling"):
        cache, ids = model.new_cache(kind, size=40), torch.arange(3, 43)[None]
        given = {"input_ids": ids}
        if model.encoder_decoder:
            given |= {"decoder_input_ids": ids[:, :40]}
        model(**given, cache=cache)
        windows = kind == "rolling"  # it keeps one token less: the newest is looked at, not held
        slack = cost(model, "growing", 1) if windows else 0
        assert 0 <= cost(model, kind, 40, source=40) - held(cache) <= slack


def test_a_cache_that_cannot_fit_is_refused(monkeypatch):
    model = mirada.build("llama", "tiny", seed=0, context=100_000)
    one = cost(model, "growing", 1)
    assert one == 2 * 2 * 2 * 16 * 4  # layers, key and value, heads, width, bytes
    monkeypatch.setattr(budget, "free", lambda device: 300 * one)
    with pytest.raises(MiradaError, match=r"1 x 5,000 tokens.*need 2.56 MB \(512 bytes a token in "
                                          r"torch.float32\) and 0.15 are free: ask for fewer.*"
                                          "int8.*window.fit"):
        model.generate([5, 6], max_new_tokens=4998, cache="static", eos_token_id=())
    with pytest.raises(MiradaError, match="1 x 756 tokens"):
        model.generate(list(range(500)), max_new_tokens=600)
    assert model.generate([5, 6], max_new_tokens=9, eos_token_id=()).shape == (1, 11)
    with pytest.raises(MiradaError, match="4 x 258 tokens"):
        model.generate([5, 6], max_new_tokens=600, num_beams=4)


def test_it_is_asked_for_while_it_grows(monkeypatch):
    model = mirada.build("llama", "tiny", seed=0, context=4096)
    one, asked = cost(model, "growing", 1), []
    monkeypatch.setattr(budget, "free", lambda device: asked.append(1) or 1000 * one)
    run = model.stream([5, 6], max_new_tokens=600, eos_token_id=())
    assert len(list(run)) == 600 and len(asked) == 3  # 258, 515, 602
    monkeypatch.setattr(budget, "free", lambda device: 250 * one if len(asked) > 3 else (
        asked.append(1) or 1000 * one))
    run, written = model.stream([5, 6], max_new_tokens=600, eos_token_id=()), 0
    with pytest.raises(MiradaError, match="fewer tokens or rows"):
        for _ in run:
            written += 1
    assert 256 <= written <= 258


def test_windows_are_offered(monkeypatch):
    model = mirada.build("llama", "tiny", seed=0, window=16,
                         architecture="MistralForCausalLM")
    monkeypatch.setattr(budget, "free", lambda device: 40 * cost(model, "growing", 1))
    with pytest.raises(MiradaError, match='cache="rolling"'):
        model.generate([5, 6], max_new_tokens=100)
    assert model.generate([5, 6], max_new_tokens=100, cache="rolling", eos_token_id=()) is not None

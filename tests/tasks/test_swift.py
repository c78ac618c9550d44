"""Embedding runs a twin of the model, packed for the CPU: the same vectors, never stale ones."""

import pytest
import torch

import mirada
from mirada import edit
from mirada.edit.ordered import Packed
from mirada.tasks import features, inputs
from tasks import tiny

TEXTS = ["the cat sat on a mat", "attention is all you need and language was there", "hello"]


@pytest.fixture
def model(tmp_path):
    return mirada.load(tiny.bert(tmp_path / "model", "Model"))


def plainly(model, texts) -> torch.Tensor:
    """The mean of each text's states, one at a time, by the model itself."""
    bare = features.headless(model)
    with torch.inference_mode():
        return torch.stack([bare(**model.tokenizer(text)).last_hidden_state[0].mean(0)
                            for text in texts])


def test_the_same_vectors(model):
    assert torch.allclose(mirada.embed(model, TEXTS), plainly(model, TEXTS), atol=1e-5)
    assert any(isinstance(m, Packed) for m in features.swift(model).modules())
    assert not any(isinstance(m, Packed) for m in model.modules())


def test_weights_that_changed_are_packed_anew(model):
    before = mirada.embed(model, TEXTS)
    twin = features.swift(model)
    assert features.swift(model) is twin
    with torch.no_grad():
        model.body.blocks[0].attn.f.q.weight.mul_(3)
    assert features.swift(model) is not twin
    after = mirada.embed(model, TEXTS)
    assert (before - after).abs().max() > 1e-3
    assert torch.allclose(after, plainly(model, TEXTS), atol=1e-5)


def test_a_recording_sees_the_model_itself(model):
    with model.record():
        assert not any(isinstance(m, Packed) for m in features.swift(model).modules())
        assert torch.allclose(mirada.embed(model, TEXTS), plainly(model, TEXTS), atol=1e-5)


def test_a_packed_model_is_a_model(model, tmp_path):
    other = edit.packed(model)
    batch = model.tokenizer(TEXTS)
    with torch.no_grad():
        assert torch.allclose(other(**batch).last_hidden_state, model(**batch).last_hidden_state,
                              atol=1e-5)
    other(**batch).last_hidden_state.square().sum().backward()
    grads = [p.grad for p in model.body.blocks.parameters()]  # the same tensors
    assert all(g is not None and g.abs().max() > 0 for n, g in enumerate(grads) if n % 2 == 0)
    mirada.save(other, tmp_path / "saved")
    again = mirada.load(tmp_path / "saved")
    assert all(torch.equal(t, again.state()[n]) for n, t in model.state().items())


def test_rows_much_shorter_run_by_themselves():
    rows = [[0] * n for n in (128, 10, 120, 128, 127, 12, 126, 125)]
    every = list(inputs.alike(rows, 32))
    assert [[len(rows[i]) for i in some] for some in every] == [
        [128, 128, 127, 126, 125, 120], [12, 10]]
    few = [[0] * 9, [0] * 2, [0] * 1]  # together they fill nothing
    assert list(inputs.alike(few, 32)) == [[0, 1, 2]]

"""RNN, LSTM, GRU, MLP and convolutions in the Transformer's loop: what each can and cannot."""

import importlib.util
from pathlib import Path

import pytest
import torch

from mirada.errors import MiradaError
from mirada.train import baselines
from mirada.train.corpus import Corpus
from mirada.train.language import NextToken
from mirada.train.loop import Plan, fit
from mirada.train.optim import Recipe
from train import kills

KINDS = list(baselines.KINDS)


@pytest.fixture(scope="module")
def distance():
    file = Path(__file__).parents[2] / "recipes/distance.py"
    spec = importlib.util.spec_from_file_location("distance", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_is_not_seen(kind):
    model = baselines.build(kind, vocab=11, d=12, context=10, layers=2)
    ids = torch.randint(0, 11, (3, 10))
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 11
    a, b = model(ids).logits, model(other).logits
    assert a.shape == (3, 10, 11) and torch.equal(a[:, :6], b[:, :6])
    assert (a[:, 6:] - b[:, 6:]).abs().amax((0, 2)).min() > 1e-4
    assert torch.allclose(model(inputs_embeds=model.token(ids)).logits, a)


@pytest.mark.parametrize("kind", KINDS)
def test_each_learns_the_next_token_in_the_same_loop(kind):
    corpus = Corpus.of([[(n * n) % 11 for n in range(11)] * 40])
    model = baselines.build(kind, vocab=11, d=24, context=16, layers=2)
    result = fit(model, NextToken(corpus, 16), Plan(steps=150, batch=8, dtype="float32"),
                 Recipe(rate=1e-2, warmup=10))
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]


def recurrent():
    model = baselines.build("lstm", vocab=11, d=8, context=16)
    corpus = Corpus.of([[(n * n) % 11 for n in range(200)]])
    return model, NextToken(corpus, 16), Plan(steps=12, batch=4, save=2), Recipe(rate=1e-2)


def test_killed(tmp_path):
    kills.survives(recurrent, tmp_path, kills=1)


def test_what_cannot_be_built():
    with pytest.raises(MiradaError, match="no baseline is called 'xlstm'; there are rnn, lstm"):
        baselines.build("xlstm", vocab=11)
    with pytest.raises(MiradaError, match="weights for 10 places, and the row has 11"):
        baselines.build("mlp", vocab=11, context=10)(torch.zeros(1, 11, dtype=torch.long))


@pytest.mark.scope("1.16.8")
@pytest.mark.parametrize("factor, grows", [(0.7, False), (1.4, True)])
def test_a_recurrent_gradient_vanishes_or_explodes(factor, grows):
    """By the power of the recurrent weights' size, step by step (Bengio et al. 1994)."""
    model = baselines.build("rnn", vocab=11, d=16)
    with torch.no_grad():
        model.token.weight.mul_(1e-6)  # where tanh is a straight line
        for name, p in model.body.cells.named_parameters():
            if name.startswith("bias"):
                p.zero_()
        torch.nn.init.orthogonal_(model.body.cells.weight_hh_l0, gain=factor)
    norms = baselines.reach(model, torch.randint(0, 11, (4, 31))).flip(0)
    steps = (norms[1:] / norms[:-1])
    assert torch.allclose(steps, torch.full((30,), factor), rtol=0.35)
    assert float(norms[30] / norms[0]) == pytest.approx(factor**30, rel=0.6)
    assert (norms[30] > norms[0]) == grows


@pytest.mark.scope("1.16.8")
def test_what_arrives_from_afar(distance):
    found = {kind: distance.gradients(distance.build(kind, 33), 32) for kind in distance.MODELS}
    assert all(found[kind][32] < 1e-3 for kind in ("rnn", "lstm", "gru"))
    assert found["transformer"][32] > 0.1 and found["mlp"][32] > 0.1
    assert found["cnn"][30] > 0 and found["cnn"][31] == found["cnn"][32] == 0.0  # beyond its reach


@pytest.mark.slow
@pytest.mark.scope("1.16.8", "1.16.9")
def test_who_remembers_how_far(distance, tmp_path):
    results = {}
    for kind in distance.MODELS:
        results[kind] = {"accuracy": distance.accuracy(distance.train(kind, 32, 300), 32),
                         "gradient": distance.gradients(distance.build(kind, 33), 32)}
    found = {kind: of["accuracy"] for kind, of in results.items()}
    known, every = distance.learned(32), distance.asked(32)
    assert min(found["transformer"].values()) > 0.95
    assert min(found[kind][32] for kind in ("lstm", "gru")) > found["rnn"][32] + 0.1
    assert found["rnn"][1] > found["rnn"][8] > found["rnn"][32]
    # an MLP knows the places where it learned, and nothing of those between
    assert min(found["mlp"][d] for d in known) > 0.95
    assert max(found["mlp"][d] for d in every if d not in known) < 0.3
    # convolutions reach a place by taps of their own too, and see nothing beyond the last
    assert min(found["cnn"][d] for d in known if d <= 30) > 0.95 and found["cnn"][32] < 0.25
    for kind in distance.SPEAKERS:
        results[kind]["repeated"] = distance.repeated(kind, 500)
    said = {kind: results[kind]["repeated"] for kind in distance.SPEAKERS}
    for kind in ("rnn", "lstm", "gru"):  # all must go through one state
        assert said["transformer"][8] > said[kind][8] + 0.1
    assert said["lstm"][2] > said["lstm"][16] + 0.2
    distance.draw(results, 32, str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").stat().st_size > 20_000

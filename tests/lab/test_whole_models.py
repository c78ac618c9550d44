"""What the lab says of whole models and their parts holds on other seeds, and turns around where
what it is said to come from is taken away."""

import pytest
import torch
from torch import Generator

from mirada.lab import alone, depth, gradients, heads, mlp, rnn, understand, vision
from mirada.lab.learn import learn, right

LATER = [pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)]


@pytest.mark.scope("1.19.1")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_attention_alone_lacks_three_things(seed):
    found = alone.run(seed)
    assert found["order"] < 1e-5 < 0.1 < found["placed"], "order"
    assert found["linear"] < 1e-5 < 0.1 < found["bent"], "a function of a token"
    assert found["mixed"] > 0.999 and max(found["apart"], found["full"]) < 0.95, "depth"
    assert len(found["alone"]) == len(found["whole"]) == alone.LAYERS + 1


@pytest.mark.scope("1.19.2")
@pytest.mark.parametrize("seed", [0, *LATER])
def test_heads_are_several_looks_for_the_same_weights(seed):
    found = heads.run(seed)
    one, two, four, *_, last = found["gains"]
    assert one < found["bound"] + 0.03, "no head can give more"
    assert one + 0.1 < two < four - 0.1 and four > 0.8 and last < four - 0.2


def test_one_head_is_enough_for_one_wish(monkeypatch):
    monkeypatch.setattr(heads, "BACK", (2, 2, 2, 2))
    assert heads.trained(1, seed=0) > 0.8


@pytest.mark.scope("1.19.3")
@pytest.mark.parametrize("seed", [0, *LATER])
def test_depth_does_harm_without_residual_connections(seed):
    found = depth.run(seed)
    assert found["first"] > found["last"] + 0.3, "degradation"
    assert min(found["kept_last"], found["kept_first"]) > 0.9 > found["last"] + 0.3


@pytest.mark.scope("1.19.13")
@pytest.mark.parametrize("seed", [0, *LATER])
def test_gradients_keep_their_promise_with_residual_connections(seed):
    found = gradients.run(seed)
    assert found["usual"] < 5 < 1000 < found["bare"]
    assert found["kept"] > 0.5 and abs(found["broken"]) < 0.3
    assert found["broken_first"] > 0.3, "depth breaks it, not the lack of a connection by itself"


@pytest.mark.scope("1.19.5")
@pytest.mark.parametrize("seed", [0, *LATER])
def test_an_mlp_knows_places_and_attention_what_stands_there(seed):
    found = mlp.run(seed)
    assert min(found["mlp_known"], found["known"], found["new"]) > 0.9
    assert found["mlp_new"] < 0.5
    assert found["growth"] > 3 and found["same"] == 1


def test_an_mlp_that_met_the_letter_everywhere_tells_it_everywhere():
    def anywhere(count, chance):
        places = torch.randint(mlp.T - 1, (count,), generator=chance)
        return mlp.rows(count, chance, places)

    model = learn(mlp.mlp(mlp.T, 0), anywhere, 150, 0, 1e-2)
    assert right(model, *mlp.rows(128, Generator().manual_seed(1), 5)) > 0.9


@pytest.mark.scope("1.19.14")
@pytest.mark.parametrize("seed", [0, *LATER])
def test_what_is_far_is_near_to_attention(seed):
    found = rnn.run(seed)
    assert found["rnn_far"] < 1e-3 < 0.1 < found["far_too"]
    assert found["right"] > 0.9 and found["rnn_right"] < 0.5
    assert found["chain"] == found["twice"] and found["rnn_twice"] > 1.8 * found["rnn_chain"]


def test_an_rnn_learns_what_is_near(monkeypatch):
    monkeypatch.setattr(rnn, "FAR", 2)
    ids, labels = rnn.rows(128, Generator().manual_seed(1))
    assert right(learn(rnn.rnn(0), rnn.rows, rnn.STEPS, 0, rnn.RATE), ids, labels) > 0.9


@pytest.mark.scope("1.19.4")
@pytest.mark.parametrize("seed", [0, *LATER])
def test_answers_follow_what_matters_and_nothing_else(seed):
    found = understand.run(seed)
    assert found["far"] > found["guess"] + 0.4
    assert found["follows"] > 0.7 and found["stays"] > 0.7
    assert len(found["gaps"]) == len(found["by"]) and found["by"][0] > 0.9


def test_the_rows_are_brackets_that_close():
    for row, opened in understand.nested(20, Generator().manual_seed(0)):
        assert len(row) == understand.T + 1 and len(opened) == understand.T // 2
        assert all(row[close] == row[open_] + understand.KINDS for close, open_ in opened.items())
        assert sorted([*opened, *opened.values()]) == list(range(1, understand.T + 1))


@pytest.mark.scope("1.19.15")
@pytest.mark.parametrize("seed", [0, *LATER])
def test_a_vit_needs_more_pictures_than_a_cnn(seed):
    found = vision.run(seed)
    assert found["cnn_few"] > found["vit_few"] + 0.05
    assert found["cnn_many"] > found["cnn_few"] and found["vit_many"] > 0.9

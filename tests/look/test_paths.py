"""Rollout, max-flow and routes against references written apart from them."""

import networkx
import numpy as np
import pytest
import torch

import mirada
from mirada import look
from mirada.errors import MiradaError
from mirada.look import maxflow, paths


@pytest.fixture(scope="module")
def tape():
    m = mirada.build("gpt2", size="tiny", seed=3, layers=3)
    seeded = torch.Generator().manual_seed(0)
    for p in m.parameters():
        p.data.add_(torch.randn(p.shape, generator=seeded) * 0.3)
    ids = torch.randint(0, 1024, (2, 10), generator=seeded)
    with m.record(v=True, resid="sublayers") as tape, torch.no_grad():
        m(input_ids=ids)
    return tape


def numpy_rollout(patterns):
    """2005.00928, section 3, from patterns (L, H, T, T)."""
    joined = np.eye(patterns.shape[-1])
    for layer in patterns:
        step = 0.5 * layer.mean(0) + 0.5 * np.eye(len(joined))
        joined = step / step.sum(1, keepdims=True) @ joined
    return joined


@pytest.mark.scope("1.18.5")
def test_rollout_and_max_flow_equal_their_references(tape, tmp_path):
    patterns = torch.stack([tape.pattern(n)[1] for n in range(3)]).double().numpy()
    joined = look.rollout(tape, row=1)
    assert np.abs(joined.numpy() - numpy_rollout(patterns)).max() < 1e-6
    assert (joined.sum(1) - 1).abs().max() < 1e-5
    upto = look.rollout(tape, 1, row=1)
    assert np.abs(upto.numpy() - numpy_rollout(patterns[:2])).max() < 1e-6
    one = look.flow(tape, target=-3, row=1)
    assert np.abs(np.array(one.value) - numpy_rollout(patterns)[7]).max() < 1e-6
    assert one.shares.shape == (4, 10) and one.shares[-1, 7] == 1

    steps = paths.capacities(tape, "decoder", 1)
    values, edges = paths.flows(steps, 9)
    graph = networkx.DiGraph()
    for n, i, j in zip(*np.nonzero(steps), strict=True):
        graph.add_edge((n + 1, i), (n, j), capacity=steps[n, i, j])
    for sink in range(10):
        assert abs(values[sink] - networkx.maximum_flow_value(graph, (3, 9), (0, sink))) < 1e-9
    for n in range(2):  # what enters a place from above leaves it below
        assert np.abs(edges[n + 1].sum(0) - edges[n].sum(1)).max() < 1e-6
    assert abs(edges[-1, 9].sum() - 1) < 1e-6 and (edges >= -1e-12).all()
    flowed = look.max_flow(tape, row=1)
    assert np.abs(np.array(flowed.value) - values / values.sum()).max() < 1e-9
    for result in (one, flowed, look.flow(tape, "routes", row=1)):
        assert result.save(tmp_path / "way.png") and "not a cause" in str(result)
        assert (tmp_path / "way.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seed", range(4))
def test_a_flow_through_any_network_is_the_greatest(seed):
    """Networks with shortcuts and dead ends, so that ways of several lengths must be used."""
    rng = np.random.default_rng(seed)
    capacity = np.triu(rng.random((14, 14)) * (rng.random((14, 14)) < 0.4), 1)
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(14))
    for a, b in zip(*np.nonzero(capacity), strict=True):
        graph.add_edge(a, b, capacity=capacity[a, b])
    flow = maxflow.greatest(capacity, 0, 13)
    assert abs(flow[:, 13].sum() - networkx.maximum_flow_value(graph, 0, 13)) < 1e-9
    assert (flow >= -1e-12).all() and (flow <= capacity + 1e-12).all()
    assert np.abs(flow.sum(0) - flow.sum(1))[1:13].max() < 1e-9


def test_max_flow_has_a_limit_and_says_so():
    m = mirada.build("gpt2", size="tiny", seed=3, layers=1)
    with m.record() as tape, torch.no_grad():
        m(input_ids=torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(MiradaError, match="at most 64 tokens .* and this pass has 65"):
        look.max_flow(tape)
    with pytest.raises(MiradaError, match="no flow is called 'flux'"):
        look.flow(tape, "flux")
    with pytest.raises(MiradaError, match="token 65 does not exist"):
        look.flow(tape, target=65)
    assert abs(sum(look.flow(tape).value) - 1) < 1e-5, "a rollout has no such limit"


def test_routes_weigh_what_was_written(tape):
    """One node's edges by hand: the parts of the stream behind the last attention, at token 5."""
    found = look.flow(tape, "routes", 5, threshold=1e-9)
    m, h = tape.model, 2
    x, added = tape.resid(2)[0, 5].double(), tape.added(2, "attn")[0, 5].double()
    y = x + added
    o = m.body.blocks[2].attn.f.o.weight.double().unflatten(1, (4, -1))

    def near(part):
        return max(0.0, (y.abs().sum() - (y - part).abs().sum()).item())

    parts = {(None, 5): near(x)}
    for head in range(4):
        weights = tape.pattern(2, head, 5)[0, 0, 0].double()
        for key in range(6):
            brought = o[:, head] @ tape.values(2)[0, head, key].double()
            parts[head, key] = near(weights[key] * brought)
    mine = {(e.head, e.key): e.weight for e in found.edges
            if (e.layer, e.query, e.sublayer) == (2, 5, "attn")}
    whole = sum(parts.values())
    for (head, key), value in parts.items():
        assert abs(mine.get((head, key), 0.0) - value / whole) < 1e-5
    assert max(mine[h, k] for k in range(6) if (h, k) in mine) > 0
    assert abs(sum(found.value) - 1) < 1e-5 and found.hidden[0] == 0
    few = look.flow(tape, "routes", 5, threshold=0.3)
    assert all(e.weight >= 0.3 for e in few.edges) and few.hidden[1] > 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj", "t5", "bert"])
def test_routes_of_every_shape_of_block(family):
    """Pre-norm, sandwich, parallel, three stacks and post-norm; parts of one sum make it whole."""
    m = mirada.build(family, size="tiny", seed=1)
    ids = torch.randint(5, m.config.vocab, (1, 7), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids} | ({"decoder_input_ids": ids[:, :4]} if m.encoder_decoder else {})
    with m.record(v=True, resid="sublayers") as tape, torch.no_grad():
        m(**batch)
    found = look.flow(tape, "routes", threshold=1e-9)
    last = len(m.decoder.order) - 1
    sums = {}
    for e in found.edges:
        if e.layer == last and e.query == found.target:
            sums[e.sublayer] = sums.get(e.sublayer, 0.0) + e.weight
    assert sums and all(abs(total - 1) < 1e-4 for total in sums.values())
    assert ("cross" in {e.kind for e in found.edges}) == m.encoder_decoder
    assert bool(found.sources) == m.encoder_decoder

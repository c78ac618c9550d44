"""Heads alike: distances by another route, clusters that were planted, gradients that are exact."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

import mirada
from mirada import look
from mirada.core.attend import Attend
from mirada.errors import MiradaError
from mirada.look import redundancy


@pytest.fixture(scope="module")
def twins():
    """Two layers; in the first, head 3 is a copy of head 1."""
    m = mirada.build("gpt2", size="tiny", seed=3)
    seeded = torch.Generator().manual_seed(0)
    for p in m.parameters():
        p.data.add_(torch.randn(p.shape, generator=seeded) * 0.3)
    f = m.body.blocks[0].attn.f
    K = f.q.out_features // 4
    for linear in (f.q, f.k, f.v):
        linear.weight.data[3 * K :] = linear.weight.data[K : 2 * K]
        linear.bias.data[3 * K :] = linear.bias.data[K : 2 * K]
    f.o.weight.data[:, 3 * K :] = f.o.weight.data[:, K : 2 * K]
    return m


IDS = torch.randint(0, 1024, (1, 12), generator=torch.Generator().manual_seed(1))


def test_copies_are_found_and_distances_are_scipys(twins, tmp_path):
    with twins.record(z=True) as tape, torch.no_grad():
        twins(input_ids=IDS)
    found = look.redundant(tape, threshold=0.05)
    assert [[found.heads[n] for n in c] for c in found.clusters] == [[(0, 1), (0, 3)]]
    assert found.distance[1, 3] < 1e-3 and abs(found.cosine[1, 3] - 1) < 1e-5
    assert len(set(found.cluster)) == 7 and found.cluster[1] == found.cluster[3]
    a, b = (tape.pattern(n)[0].double().numpy() for n in (0, 1))
    mine = np.mean([jensenshannon(p, q, base=2) for p, q in zip(a[2], b[1], strict=True)])
    assert abs(found.distance[2, 5].item() - mine) < 1e-4
    z, o = tape.z(1)[0], twins.body.blocks[1].attn.f.o.weight.unflatten(1, (4, -1))
    brought = torch.stack([z[:, h] @ o[:, h].T for h in (0, 2)]).flatten(1)
    assert abs(found.cosine[4, 6] - torch.cosine_similarity(*brought, 0)) < 1e-5
    assert "0.1 0.3" in str(found) and found.save(tmp_path / "r.png")
    with twins.record() as tape, torch.no_grad():
        twins(input_ids=IDS)
    assert look.redundant(tape).cosine is None


def test_average_linkage():
    distance = torch.tensor([[0, .1, .3, .9], [.1, 0, .2, .9], [.3, .2, 0, .9], [.9, .9, .9, 0]])
    assert redundancy.clusters(distance, 0.15) == [[0, 1]]
    assert redundancy.clusters(distance, 0.24) == [[0, 1]], "0.25 is the mean of 0.3 and 0.2"
    assert redundancy.clusters(distance, 0.26) == [[0, 1, 2]]
    assert redundancy.clusters(distance, 1.0) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert"])
def test_gradients_at_weights_are_autograds(family, monkeypatch):
    """Against the exact kernel with its weights caught, and autograd's gradient of them."""
    named = {"architecture": "BertForMaskedLM"} if family == "bert" else {}
    m = mirada.build(family, size="tiny", seed=2, **named).eval()
    batch = {"input_ids": IDS + 5} if m.config.vocab > 1030 else {"input_ids": IDS % 1000 + 5}
    batch |= {"decoder_input_ids": batch["input_ids"][:, :6]} if m.encoder_decoder else {}
    found = look.gradient_attention(m, batch, 9, pos=3)
    assert all(p.grad is None and p.requires_grad for p in m.parameters())
    caught, plain = [], Attend.weights
    monkeypatch.setattr(Attend, "weights", staticmethod(
        lambda call, rows=None: caught.append(plain(call, rows)) or caught[-1]))
    with mirada.kernel("exact"):
        out = m(**batch)["logits"]
    slopes = torch.autograd.grad(out[0, 3, 9], caught)
    monkeypatch.undo()
    assert abs(found.score - out[0, 3, 9].item()) < 1e-5
    sites = list(found.slopes)
    assert len(sites) == len(caught) and max(s.abs().max() for s in slopes) > 1e-4
    for (stack, layer), weights, slope in zip(sites, caught, slopes, strict=True):
        alone = found.weights(layer, stack=stack, times=False)
        assert (alone - slope[0]).abs().max() < 1e-5
        both = found.weights(layer, heads=[1], rows=[2, 4], stack=stack)
        assert (both - (weights * slope)[0, [1]][:, [2, 4]]).abs().max() < 1e-5
    stack, layer = sites[-1]
    assert torch.allclose(found.heads(stack)[-1], found.weights(layer, stack=stack).sum((1, 2)),
                          atol=1e-5)


def test_relevance_joins_the_rises(twins):
    found = look.gradient_attention(twins, {"input_ids": IDS}, pos=-1)
    joined = np.eye(12)
    for layer in range(2):
        joined = joined + found.weights(layer).clamp(min=0).mean(0).numpy() @ joined
    assert np.abs(found.relevance().numpy() - joined).max() < 1e-5
    with pytest.raises(MiradaError, match="id 5000 is not among the 1024 outputs"):
        look.gradient_attention(twins, {"input_ids": IDS}, 5000)

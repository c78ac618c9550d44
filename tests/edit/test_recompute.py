"""A model that computes its blocks again in backward has the same gradients, and keeps less."""

import pytest
import torch

import mirada
from mirada.edit import recompute

IDS = torch.randint(0, 90, (2, 24), generator=torch.Generator().manual_seed(0))


def passed(model):
    """(gradients, bytes that were kept for them) of one training step with dropout."""
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.2
    model.train()
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=IDS, labels=IDS).loss
    weights = {p.data_ptr() for p in model.parameters()}
    held = sum(size for at, size in kept.items() if at not in weights)
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}, held


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5", "gptj", "llama", "albert", "deberta"])
def test_the_same_gradients_from_less(family):
    model = mirada.build(f"{family}:tiny", layers=6)
    wanted, all_kept = passed(model)
    model.zero_grad()
    other = recompute(model)
    got, kept = passed(other)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[n], wanted[n]) for n in wanted)
    assert kept < all_kept / 2
    assert not any("Recomputed" in type(m).__name__ for m in model.modules())
    again = recompute(other)
    assert [type(m) for m in again.modules()] == [type(m) for m in other.modules()]


def test_it_is_saved_and_generates_as_it_was(tmp_path):
    model = mirada.build("gpt2:tiny")
    other = recompute(model)
    mirada.save(other, tmp_path / "x")
    back = mirada.load(tmp_path / "x")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), back.parameters(),
                                                 strict=True))
    ids = IDS[:1, :5]
    assert torch.equal(other.eval().generate(ids, max_new_tokens=5),
                       model.eval().generate(ids, max_new_tokens=5))

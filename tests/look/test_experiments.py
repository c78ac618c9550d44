"""Order, residual connections and their absence, measured on models of every kind."""

import json

import pytest
import torch

import mirada
from mirada.edit import without_residual
from mirada.errors import MiradaError

IDS = torch.tensor([[5, 9, 5, 30, 7, 12]])  # one token twice


def build(family, **changes):
    return mirada.build(f"{family}:tiny", seed=1, dtype=torch.float64, **changes)


@pytest.mark.scope("1.1.9", "1.2.8")
def test_diego_eats_pizza_and_pizza_eats_diego(real, tmp_path):
    m = mirada.load(real("minilm"))
    found = mirada.look.permute(m, "Diego eats pizza", "Pizza eats Diego")
    assert found.first == ["[CLS]", "diego", "eats", "pizza", "[SEP]"] and found.order == [
        0, 3, 2, 1, 4]
    plain, bare = found.variants
    assert plain.by_token > 0.5 and plain.pooled > 0.3 and plain.verdict == "order matters"
    assert bare.by_token < 1e-4 and bare.pooled < 1e-4, "a permutation, and one mean"
    assert bare.by_place > 1, "equivariant, not invariant: the guides say the other"
    assert bare.verdict == "outputs move with tokens"
    assert torch.equal(bare.cosines.argmax(1), torch.tensor(found.order))
    assert found.order == mirada.look.permute(m, "Diego eats pizza").order
    told = json.loads(json.dumps(found.data()))
    assert [v["name"] for v in told["variants"]] == ["as it is", "without positions"]
    assert "outputs move with tokens" in str(found)
    assert (tmp_path / "p.png").samefile(found.save(tmp_path / "p.png"))


@pytest.mark.scope("1.1.9", "1.2.8")
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "bloom", "t5", "transformer", "mpt",
                                    "deberta", "gptj", "esm"])
def test_positions_of_every_kind(family):
    """Learned, rotary, by distance, in buckets, sinusoids, disentangled: all are taken out."""
    found = {v.name: v for v in mirada.look.permute(build(family), IDS).variants}
    causal = "nor causal mask" in found
    assert found["as it is"].verdict == "order matters"
    last = found["nor causal mask" if causal else "without positions"]
    assert last.by_token < 1e-5 and last.pooled < 1e-5 < 1e-1 < last.by_place
    if causal:
        assert found["without positions"].by_token > 1e-3, "the mask alone tells the order"


def test_an_order_in_numbers_and_what_is_none():
    m = build("bert")
    found = mirada.look.permute(m, IDS, [1, 0, 2, 3, 4, 5])
    assert found.second == ["9", "5", "5", "30", "7", "12"]
    same = mirada.look.permute(m, IDS, range(6)).variants[0]
    assert (same.by_place, same.by_token, same.verdict) == (0, 0, "order does not matter")
    with pytest.raises(MiradaError, match="names each place from 0 once"):
        mirada.look.permute(m, IDS, [0, 0, 1, 2, 3, 4])


def test_two_texts_must_have_the_same_tokens(real):
    with pytest.raises(MiradaError, match="do not have the same tokens: .*give an order"):
        mirada.look.permute(mirada.load(real("minilm")), "one two", "one three")


@pytest.mark.scope("1.3.4")
def test_gradient_by_depth_is_autograd_s():
    m = build("gpt2", layers=3)
    found = mirada.look.gradients(m, IDS)
    for model, depths in ((m, found.usual), (without_residual(m), found.without)):
        assert len(depths.gradient) == len(depths.likeness) == 4
        words = model.body.embed.token(IDS).detach().requires_grad_()
        loss = model(inputs_embeds=words, labels=IDS).loss
        wanted, = torch.autograd.grad(loss, words)
        assert depths.gradient[0] == pytest.approx(wanted.norm().item(), rel=1e-6)
        x = model.body.embed.token(IDS) + model.body.embed.position.weight[:6]
        pairs = [torch.cosine_similarity(x[0, i], x[0, j], dim=0)
                 for i in range(6) for j in range(6) if i != j]
        assert depths.likeness[0] == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-5)
    assert not any(x._forward_pre_hooks for x in m.modules())


@pytest.mark.scope("1.3.4")
@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_what_residual_connections_are_for(family, tmp_path):
    m = build(family, layers=16)
    found = mirada.look.gradients(m, torch.arange(3, 33))
    assert max(found.usual.gradient) < 6 * min(found.usual.gradient), "it reaches every depth"
    assert max(found.without.gradient) > 3 * max(found.usual.gradient) or (
        min(found.without.gradient) < min(found.usual.gradient) / 3)
    assert found.without.likeness[-1] > 0.97, "without them all tokens become one"
    assert found.usual.likeness[-1] < 0.9
    json.dumps(found.data())
    assert len(str(found).splitlines()) == 3 + 17
    assert (tmp_path / "g.png").samefile(found.save(tmp_path / "g.png"))


def test_one_token_has_no_other():
    with pytest.raises(MiradaError, match="give two or more"):
        mirada.look.gradients(build("gpt2"), IDS[:, :1])


@pytest.mark.scope("1.3.13")
def test_three_kinds_of_the_same_blocks():
    """Encoder, decoder and both are the same classes; what differs is a mask and who is asked."""
    kinds = {name: build(name) for name in ("bert", "gpt2", "transformer")}
    assert [m.kind for m in kinds.values()] == ["encoder", "decoder", "encoder-decoder"]
    parts = {name: {type(x).__name__ for x in m.body.modules()} & {
        "Stack", "Block", "Residual", "Attention", "CrossAttention", "Attend", "MLP", "LayerNorm"}
        for name, m in kinds.items()}
    assert parts["bert"] == parts["gpt2"] == parts["transformer"] - {"CrossAttention"}
    masks = {name: {m.mask.causal for m in model.body.modules() if type(m).__name__ == "Attention"}
             for name, model in kinds.items()}
    assert masks == {"bert": {False}, "gpt2": {True}, "transformer": {False, True}}
    changed = IDS.clone()
    changed[0, -1] += 1

    def first_moves(call):
        return not torch.equal(call(IDS)[:, 0], call(changed)[:, 0])

    bert, gpt, both = kinds.values()
    assert first_moves(lambda i: bert(input_ids=i).logits)
    assert not first_moves(lambda i: gpt(input_ids=i).logits)
    assert first_moves(both.encode), "its encoder reads both ways"
    assert not first_moves(lambda i: both(input_ids=IDS, decoder_input_ids=i).logits)
    assert first_moves(lambda i: both(input_ids=i, decoder_input_ids=IDS).logits)
    turned = mirada.edit.attention_pattern(gpt, "dense", causal=False)
    assert first_moves(lambda i: turned(input_ids=i).logits), "one setting makes it an encoder"

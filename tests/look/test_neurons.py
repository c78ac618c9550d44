"""Neurons: scores in channels for every family, firing over a corpus, and what neurons say."""

import pytest
import torch

import mirada
from mirada import look
from mirada.core import attend
from mirada.errors import MiradaError


def shaken(family):
    """A tiny model with norms and biases off their places."""
    m = mirada.build(family, size="tiny", seed=1).eval()
    seeded = torch.Generator().manual_seed(0)
    for p in m.parameters():
        p.data.add_(torch.randn(p.shape, generator=seeded) * 0.1)
    return m


def batch_of(m):
    seeded = torch.Generator().manual_seed(4)
    batch = {}
    if hasattr(m.config, "image"):
        side = m.config.image
        side = (side, side) if isinstance(side, int) else side
        batch["pixel_values"] = torch.randn(1, 3, *side, generator=seeded)
    if m.kind == "vision":
        return batch
    ids = torch.randint(5, m.config.vocab, (2, 9), generator=seeded)
    if m.family.startswith("clip"):
        ids[:, 5] = m.config.eos
    more = {"decoder_input_ids": ids[:, :6]} if m.encoder_decoder else {}
    return batch | {"input_ids": ids} | more


@pytest.mark.scope("1.18.4")
@pytest.mark.parametrize("family", mirada.families())
def test_channels_bias_and_mask_make_the_score_that_ran(family, monkeypatch):
    """Against the scores as the exact kernel hands them to its softmax, in each stack."""
    m = shaken(family)
    batch = batch_of(m)
    caught, plain = [], attend._softmax
    monkeypatch.setattr(attend, "_softmax", lambda s, seen, sinks: caught.append(
        s if seen is None else s.masked_fill(~seen, float("-inf"))) or plain(s, seen, sinks))
    with mirada.kernel("exact"), m.record() as tape, torch.no_grad():
        m(**batch)
    ran = caught.copy()
    checked = 0
    for stack in tape.stacks:
        for layer in tape.layers(stack):
            B, H, T, S = tape.shape(layer, stack)
            for head in {0, H - 1}:
                found = look.neuron_terms(tape, layer, head, -2, stack=stack, row=B - 1)
                assert found.products.shape == (S, tape.read(layer, stack=stack).k.shape[3])
                mine = found.score
                same = [s for s in ran if s.shape == (B, H, T, S) and torch.allclose(
                    s[B - 1, head, T - 2].double(), mine, rtol=0, atol=1e-5)]
                assert same, f"{stack} layer {layer} head {head}: no score that ran is this one"
                assert (found.weight[found.seen] - mine[found.seen].softmax(-1)).abs().max() < 1e-5
                checked += 1
    assert checked >= 2


def test_terms_of_a_cached_step_and_a_group():
    m = mirada.build("llama", size="tiny", seed=1, kv_heads=2)
    ids = batch_of(m)["input_ids"]
    with m.record() as tape, torch.no_grad():
        m(input_ids=ids)
    whole = look.neuron_terms(tape, 1, 3, 4)
    assert whole.kv_head == 1
    with m.record() as tape, torch.no_grad():
        cache = m.new_cache()
        for a, b in ((0, 4), (4, 5), (5, 9)):
            m(input_ids=ids[:, a:b], cache=cache)
    step = look.neuron_terms(tape, 1, 3, 4)
    assert torch.allclose(step.score, whole.score, atol=1e-5) and step.seen.sum() == 5
    assert torch.allclose(step.products[:5], whole.products[:5], atol=1e-5)
    with pytest.raises(MiradaError, match="head 4 does not exist: there are 4"):
        look.neuron_terms(tape, 1, 4)


TEXTS = ["the cat sat on the mat", "a dog ran", "cats and dogs and a very long walk in the park",
         "", "the end"]


@pytest.mark.scope("1.18.6")
def test_top_tokens_over_a_corpus_and_ablating_one(real, tmp_path):
    m = mirada.load(real("minilm"))
    found = look.top_tokens(m, iter(TEXTS), 3, [5, 900], k=3, length=6)
    every = []  # all activations of the two neurons, by pieces of six tokens
    for number, text in enumerate(TEXTS):
        ids = m.tokenizer.encode(text).ids
        for a in range(0, len(ids), 6):
            with m.record(keep=None, mlp=True) as tape, torch.no_grad():
                m(input_ids=torch.tensor([ids[a : a + 6]]))
            every += [(number, a + p, acts, ids[a + p]) for p, acts in
                      enumerate(tape.mlp(3)[0][:, [5, 900]])]
    assert found.tokens == len(every) and found.texts == len(TEXTS)
    for column, neuron in enumerate((5, 900)):
        best = sorted(every, key=lambda x: -x[2][column])[:3]
        assert [(h.text, h.position) for h in found.hits[neuron]] == [(n, p) for n, p, _, _ in best]
        assert [h.token for h in found.hits[neuron]] == m.tokenizer.pieces([i for *_, i in best])
        assert abs(found.hits[neuron][0].value - best[0][2][column].item()) < 1e-4
    assert f"[{found.hits[5][0].token}]" in str(found)

    ids = torch.tensor([m.tokenizer.encode(TEXTS[0]).ids])
    with m.record(mlp=True, keep=None) as tape, torch.no_grad():
        before = m(input_ids=ids).last_hidden_state
    fired = look.firing(tape, 3, -1, top=4)
    wrote = tape.mlp(3)[0, -1].abs() * m.body.blocks[3].mlp.f.down.weight.norm(dim=0)
    assert [u.neuron for u in fired.units] == wrote.topk(4).indices.tolist()
    assert fired.save(tmp_path / "n.png") and "wrote" in str(fired)
    silent = {"site": "neuron", "layer": 3, "neurons": [fired.units[0].neuron], "op": "zero"}
    with m.intervene(silent), m.record(mlp=True, keep=None) as tape, torch.no_grad():
        after = m(input_ids=ids).last_hidden_state
    assert tape.mlp(3)[0, :, silent["neurons"][0]].abs().max() == 0
    assert (after - before).abs().max() > 1e-3, "the neuron that wrote most is missed"


def test_promoted_words_are_the_neurons_own_column_through_the_head():
    m = shaken("gpt2")
    (word,) = look.promoted(m, 1, 6, k=4)
    column = m.body.blocks[1].mlp.f.down.weight[:, 6]
    scores = m.head.out.weight @ ((column - column.mean()) * m.body.norm.weight)
    assert [i for i, _, _ in word.promoted] == scores.topk(4).indices.tolist()
    assert [i for i, _, _ in word.suppressed] == scores.topk(4, largest=False).indices.tolist()
    assert abs(word.promoted[0][2] - scores.max().item()) < 1e-5
    assert len(look.promoted(shaken("bert"), 0, [1, 2])) == 2, "through the transform of its head"
    with pytest.raises(MiradaError, match="neuron 9999 does not exist"):
        look.promoted(m, 0, 9999)


def test_experts_and_missing_tokenizers_are_refused():
    m = mirada.build("mixtral", size="tiny", seed=1)
    with pytest.raises(MiradaError, match="experts see tokens of their own"):
        look.promoted(m, 0, 1)
    with pytest.raises(MiradaError, match="no tokenizer"):
        look.top_tokens(m, ["x"], 0)

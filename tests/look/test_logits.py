"""Lens and attribution: the last depth is the model's own output, and terms add up to the logit."""

import pytest
import torch

import mirada
from mirada import look
from mirada.edit.ordered import Packed
from mirada.errors import MiradaError
from mirada.look import logits

WRITERS = ["gpt1", "gpt2", "gptj", "neox", "palm", "mpt", "bloom", "llama", "gemma2", "mixtral",
           "qwen3", "t5", "bart", "m2m100", "transformer"]
OTHERS = {"bert": "BertForMaskedLM", "albert": "AlbertForMaskedLM", "esm": "EsmForMaskedLM",
          "deberta": "DebertaV2ForMaskedLM", "modernbert": "ModernBertForMaskedLM",
          "vit": "ViTForImageClassification"}


def passed(family, **kept):
    """A tiny model of a family with norms and biases off their places, a tape and its output."""
    named = {"architecture": OTHERS[family]} if family in OTHERS else {}
    m = mirada.build(family, size="tiny", seed=1, **named).eval()
    seeded = torch.Generator().manual_seed(0)
    for p in m.parameters():
        p.data.add_(torch.randn(p.shape, generator=seeded) * 0.1)
    if m.kind == "vision":
        side = m.config.image
        side = (side, side) if isinstance(side, int) else side
        batch = {"pixel_values": torch.randn(2, 3, *side, generator=seeded)}
    else:
        ids = torch.randint(5, m.config.vocab, (2, 8), generator=seeded)
        batch = {"input_ids": ids}
        if m.encoder_decoder:
            batch["decoder_input_ids"] = ids[:, :5]
    with m.record(**kept) as tape, torch.no_grad():
        out = m(**batch)
    return m, tape, out["logits"]


@pytest.mark.parametrize("family", [*WRITERS, *OTHERS])
def test_terms_add_up_and_the_last_depth_is_the_output(family):
    m, tape, out = passed(family, resid="sublayers", z=True)
    out = out if out.ndim == 3 else out[:, None]
    read = logits.read_out(tape, tape.resid(-1, logits.answering(tape)), logits.answering(tape))
    assert torch.equal(read, out)
    found = look.lens(tape, token=3 % out.shape[2], row=1)
    assert torch.equal(found.probs[-1], out[1].softmax(-1).topk(5).values
                       if out.shape[2] >= 5 else out[1].softmax(-1).sort(descending=True).values)
    assert (found.prob[-1] - out[1].softmax(-1)[:, 3 % out.shape[2]]).abs().max() < 1e-6
    term = look.dla(tape, 3 % out.shape[2], row=1)
    assert abs(term.total - out[1, term.position, 3 % out.shape[2]].item()) < 1e-5
    attentions = sum(tape.heads(n, s) for s in ("decoder", "cross", "encoder")
                     if s in tape.stacks and not (m.encoder_decoder and s == "encoder")
                     for n in tape.layers(s))
    assert sum(t.kind in ("head", "cross") for t in term.terms) == attentions
    assert not [t for t in term.terms if t.kind == "other"], "heads account for their sublayer"


def test_a_heads_term_is_what_its_removal_takes_from_a_frozen_sum():
    """The term of a head, made anew by hand: z through W_o, the held norm and the word's row."""
    m, tape, out = passed("gpt2", resid="sublayers", z=True)
    term = look.dla(tape, 7, pos=4)
    z, block = tape.z(1)[0, 4, 2].double(), m.body.blocks[1]
    K = len(z)
    brought = block.attn.f.o.weight.double()[:, 2 * K : 3 * K] @ z
    x, norm = tape.resid(-1)[0, 4].double(), m.body.norm
    scale = (x.var(unbiased=False) + norm.eps).rsqrt()
    word = m.head.out.weight[7].double()
    value = ((brought - brought.mean()) * scale * norm.weight.double()) @ word
    mine = next(t.value for t in term.terms if (t.kind, t.layer, t.head) == ("head", 1, 2))
    assert abs(mine - value.item()) < 1e-9
    less = look.dla(tape, 7, pos=4, against=9)
    assert abs(less.total - (out[0, 4, 7] - out[0, 4, 9]).item()) < 1e-5


def test_a_lens_of_a_middle_depth_is_the_head_on_that_stream():
    m, tape, _ = passed("llama", resid=True)
    found = look.lens(tape, positions=[2, -1])
    by_hand = m.head.out(m.body.norm(tape.resid(1)[0]))[[2, 7]]
    assert torch.equal(found.ids[1, :, 0], by_hand.argmax(-1))
    assert found.rank[-1].tolist() == [1, 1] and found.positions == [2, 7]
    turned = look.lens(tape, through=lambda n, x: x if n == 2 else torch.roll(x, 1, -1))
    assert torch.equal(turned.ids[-1], look.lens(tape).ids[-1])
    assert not torch.equal(turned.probs[1], look.lens(tape).probs[1])


def test_a_projection_is_known_by_what_it_does():
    plain = torch.nn.Linear(5, 3)
    weight, bias = logits.matrix(Packed(plain))
    assert torch.allclose(weight, plain.weight.double(), atol=1e-6)
    assert torch.allclose(bias, plain.bias.double(), atol=1e-6)


def test_what_cannot_be_read_is_refused():
    _, tape, _ = passed("gpt2", resid=True)
    with pytest.raises(MiradaError, match=r'takes m\.record\(resid="sublayers"\)'):
        look.dla(tape)
    with pytest.raises(MiradaError, match="token 8 does not exist: there are 8"):
        look.lens(tape, positions=[8])
    with pytest.raises(MiradaError, match="id 5000 is not in the vocabulary of 1024"):
        look.lens(tape, token=5000)
    bare = mirada.build("bert", size="tiny", seed=1, architecture="BertModel")
    with bare.record(resid="sublayers", z=True) as tape:
        bare(input_ids=torch.tensor([[5, 6]]))
    with pytest.raises(MiradaError, match="ends without logits"):
        look.lens(tape)
    with pytest.raises(MiradaError, match="no sum over the stream"):
        look.dla(tape)


def test_both_are_said_and_drawn(tmp_path):
    _, tape, _ = passed("gpt2", resid="sublayers", z=True)
    term, found = look.dla(tape, 7), look.lens(tape)
    assert "sum of all 12 parts" in str(term) and "Norms keep the scale" in str(term)
    assert str(found).splitlines()[1].startswith("2 ") and "not yet ignorance" in str(found)
    for result in (term, found):
        out = tmp_path / "x.png"
        assert result.save(out) == str(out) and out.read_bytes().startswith(b"\x89PNG")
        assert isinstance(result.data(), dict)

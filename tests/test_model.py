"""A model called wrongly says what is wrong; called rightly, its words are the reference's."""

import pytest
import torch

import mirada
from mirada.errors import MiradaError
from mirada.model import Output


def long(*rows) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.fixture(scope="module")
def gpt():
    return mirada.build("gpt2:tiny", context=16, seed=1)


@pytest.fixture(scope="module")
def t5():
    return mirada.build("t5:tiny", seed=1)


IDS = long([5, 6, 7], [8, 9, 10])
ONES = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize("batch, said", [
    ({}, "reads tokens: call it with input_ids"),
    (dict(input_idz=IDS), "reads tokens"),
    (dict(input_ids=IDS, atention_mask=ONES), "given atention_mask: for a loss it takes labels"),
    (dict(input_ids=IDS[0]), r"whole numbers, \(batch, tokens\).*shape \(3,\)"),
    (dict(input_ids=IDS[None]), r"shape \(1, 2, 3\)"),
    (dict(input_ids=IDS.float()), "whole numbers.*float32"),
    (dict(input_ids=[[5, 6]]), "a tensor.*not a list"),
    (dict(input_ids=IDS[:, :0]), "at least one token"),
    (dict(input_ids=IDS + 1020), "token id 1030 is not in this model's vocabulary of 1024"),
    (dict(input_ids=-IDS), "token id -10 is not in"),
    (dict(input_ids=IDS, attention_mask=ONES[:, :2]), "2 columns; it must be.* 2 rows and 3"),
    (dict(input_ids=IDS, attention_mask=ONES[:1]), "attention_mask has 1 rows"),
    (dict(input_ids=IDS, attention_mask=ONES[0]), r"attention_mask has shape \(3,\)"),
    (dict(input_ids=IDS, attention_mask=[[1, 1, 1]]), "attention_mask has"),
    (dict(input_ids=IDS, position_ids=ONES[:, :2]), "position_ids has 2 rows and 2 columns"),
    (dict(input_ids=IDS, segment_ids=ONES[:1]), "segment_ids has 1 rows"),
    (dict(input_ids=torch.ones(1, 17, dtype=torch.long)), "position 16 is past.*context of 16"),
    (dict(input_ids=IDS, position_ids=ONES * 16), "position 16 is past"),
    (dict(input_ids=IDS, token_type_ids=ONES), "does not read token_type_ids"),
    (dict(input_ids=IDS, decoder_input_ids=IDS), "does not read decoder_input_ids"),
    (dict(input_ids=IDS, pixel_values=torch.ones(2, 3, 8, 8)), "does not read pixel_values"),
    (dict(inputs_embeds=torch.ones(2, 3, 65)), r"\(batch, tokens, 64\); this is \(2, 3, 65\)"),
    (dict(inputs_embeds=torch.ones(2, 64)), r"\(batch, tokens, 64\)"),
    (dict(input_ids=IDS, labels=ONES[:, :2]), r"no loss can be taken of labels \(2, 2\)"),
    (dict(input_ids=IDS, labels=ONES * 1024), r"no loss can be taken of labels \(2, 3\)"),
    (dict(input_ids=IDS, labels=ONES.float()), "no loss can be taken"),
    (dict(input_ids=IDS, start_positions=ONES), "given start_positions: .*it takes labels"),
    (dict(input_ids=IDS, logits_to_keep=-1), "logits_to_keep is -1"),
])
def test_a_wrong_call_is_one_sentence(gpt, batch, said):
    with pytest.raises(MiradaError, match=said):
        gpt(**batch)


@pytest.mark.parametrize("batch, said", [
    (dict(input_ids=IDS), "needs decoder_input_ids, or labels to shift"),
    (dict(input_ids=IDS, decoder_input_ids=IDS + 1020), "token id 1030"),
    (dict(input_ids=IDS, segment_ids=IDS, decoder_input_ids=IDS), "does not read segment_ids"),
    (dict(decoder_input_ids=IDS), "reads tokens"),
    (dict(input_ids=IDS, decoder_input_ids=IDS, decoder_attention_mask=ONES[:, 1:]),
     "attention_mask has 2 rows and 2 columns"),
    (dict(encoder_outputs=(torch.ones(2, 3, 64),), decoder_input_ids=IDS), "must be a tensor"),
])
def test_a_wrong_call_of_an_encoder_decoder(t5, batch, said):
    with pytest.raises(MiradaError, match=said):
        t5(**batch)


def test_a_cache_of_another_batch(gpt):
    cache = gpt.new_cache()
    gpt(IDS, cache=cache)
    with pytest.raises(MiradaError, match="cache holds 2 rows.*given 1"):
        gpt(IDS[:1], cache=cache)
    with pytest.raises(MiradaError, match="no cache is called 'huge'; there are growing"):
        gpt.new_cache("huge")
    with pytest.raises(MiradaError, match="does not read cache"):
        mirada.build("bert:tiny")(IDS, cache=cache)


def test_output_by_item_and_by_name(gpt):
    out = gpt(IDS, labels=IDS)
    assert isinstance(out, Output) and out.logits is out["logits"]
    assert list(out) == ["logits", "loss"] and out.logits.shape == (2, 3, 1024)
    with pytest.raises(AttributeError, match="this output has logits, loss, not 'last_hidden'"):
        _ = out.last_hidden


def test_what_a_model_says_of_itself(gpt, t5):
    assert (gpt.family, gpt.kind, gpt.context, gpt.generates) == ("gpt2", "decoder", 16, True)
    assert (t5.kind, t5.context, t5.encoder_decoder) == ("encoder-decoder", None, True)
    assert not mirada.build("gpt2:tiny", architecture="GPT2Model").generates
    assert gpt.dtype == torch.float32 and gpt.device.type == "cpu" and gpt.tokenizer is None
    with pytest.raises(MiradaError, match="no encoder apart from its decoder"):
        gpt.encode(IDS)


def test_state_names_a_shared_tensor_once(gpt):
    paths, state = gpt.paths(), gpt.state()
    assert paths["head.out.weight"] == "embed.token.weight" and "head.out.weight" not in state
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in gpt.parameters())


def test_embeddings_in_place_of_ids(gpt):
    embeds = gpt.body.embed.token(IDS)
    assert torch.equal(gpt(IDS).logits, gpt(inputs_embeds=embeds).logits)


def test_logits_to_keep_are_the_last(gpt):
    assert torch.allclose(gpt(IDS).logits[:, -2:], gpt(IDS, logits_to_keep=2).logits, atol=1e-6)


def test_float64_everywhere(gpt):
    ids, model = IDS, mirada.build("gpt2:tiny", seed=1).to(torch.float64)
    assert model(ids).logits.dtype == torch.float64

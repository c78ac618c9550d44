"""How the stream begins: tokens and positions summed, pictures cut into patches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Patches, Tokens
from mirada.core.norm import LayerNorm
from mirada.core.position import Learned, Sinusoid
from mirada.errors import MiradaError

IDS = torch.tensor([[3, 1, 2], [0, 3, 3]])
POSITIONS = torch.tensor([[0, 1, 2], [2, 0, 4]])


@pytest.mark.scope("1.2.3")
def test_the_input_is_token_plus_position_then_dropout():
    tokens = Tokens(4, 6, positions=Learned(5, 6))
    wanted = tokens.token.weight[IDS] + tokens.position.weight[POSITIONS]
    assert torch.equal(tokens(Inputs(IDS), Ctx(POSITIONS)), wanted)
    tokens.dropout = 0.5
    assert torch.equal(tokens.eval()(Inputs(IDS), Ctx(POSITIONS)), wanted)
    got = tokens.train()(Inputs(IDS), Ctx(POSITIONS))
    assert ((got == 0) | torch.isclose(got, 2 * wanted)).all() and (got == 0).any()


def test_scale_segments_norm_and_projection_in_their_order():
    tokens = Tokens(4, 6, positions=Sinusoid(6), types=2, norm=LayerNorm(6, 0.1), scale=3.0,
                    project=8).double()
    kinds = torch.tensor([[0, 0, 1], [1, 0, 1]])
    inputs = Inputs(IDS, token_type_ids=kinds)
    summed = (tokens.token.weight[IDS] * 3 + tokens.segment.weight[kinds]
              + Sinusoid(6)(POSITIONS, dtype=torch.float64))
    normed = F.layer_norm(summed, (6,), tokens.norm.weight, tokens.norm.bias, 0.1)
    got = tokens(inputs, Ctx(POSITIONS))
    assert torch.allclose(got, tokens.project(normed), atol=1e-13) and got.shape == (2, 3, 8)
    unsaid, zeros = (tokens(Inputs(IDS, token_type_ids=k), Ctx(POSITIONS))
                     for k in (None, torch.zeros_like(IDS)))
    assert torch.equal(unsaid, zeros) and not torch.equal(unsaid, got)


def test_vectors_may_be_given_in_place_of_ids():
    tokens, x = Tokens(4, 6, scale=2.0), torch.randn(2, 3, 6)
    assert torch.equal(tokens(Inputs(inputs_embeds=x), Ctx()), 2 * x)
    given = tokens(Inputs(inputs_embeds=tokens.token(IDS)), Ctx())
    assert torch.equal(tokens(Inputs(IDS), Ctx()), given)


@pytest.mark.scope("1.8.2")
@pytest.mark.parametrize("image, patch", [((224, 224), (16, 16)), ((12, 20), (4, 5)),
                                          ((13, 9), (4, 4))])
def test_cutting_flattening_and_a_linear_map_is_the_strided_convolution(image, patch):
    embed = Patches(image, patch, 3, 10).double()
    pixels = torch.randn(2, 3, *image).double()
    rows, columns = image[0] // patch[0], image[1] // patch[1]
    assert embed.grid == (rows, columns)
    cut = F.unfold(pixels, patch, stride=patch).transpose(1, 2)  # (B, N, C * height * width)
    assert cut.shape == (2, rows * columns, 3 * patch[0] * patch[1])
    linear = F.linear(cut, embed.project.weight.flatten(1), embed.project.bias)
    nn.init.normal_(embed.cls)
    nn.init.normal_(embed.position)
    x = embed(Inputs(pixel_values=pixels), Ctx())
    assert x.shape == (2, 1 + rows * columns, 10)
    assert torch.allclose(x[:, 1:], linear + embed.position[:, 1:], atol=1e-12)
    assert torch.allclose(x[:, :1], (embed.cls + embed.position[:, :1]).expand(2, 1, 10))
    one = pixels[1, :, :patch[0], -(image[1] % patch[1]) - patch[1]:][..., :patch[1]]
    by_hand = (embed.project.weight * one).sum((1, 2, 3)) + embed.project.bias
    assert torch.allclose(linear[1, columns - 1], by_hand, atol=1e-12)


def test_hidden_patches_become_one_vector_before_positions_are_added():
    embed = Patches((8, 8), (4, 4), 1, 5, hidden=True)
    for p in embed.parameters():
        nn.init.normal_(p)
    pixels, masked = torch.randn(1, 1, 8, 8), torch.tensor([[0, 1, 0, 1]])
    seen = embed(Inputs(pixel_values=pixels), Ctx())
    for where in (masked, masked.bool()):
        x = embed(Inputs(pixel_values=pixels, bool_masked_pos=where), Ctx())
        assert torch.equal(x[:, [0, 1, 3]], seen[:, [0, 1, 3]])
        assert torch.allclose(x[:, [2, 4]], embed.hidden + embed.position[:, [2, 4]])
    assert Patches((8, 8), (4, 4), 1, 5).hidden is None
    with pytest.raises(MiradaError, match=r"must be \(1, 4\), and is \(1, 5\)"):
        embed(Inputs(pixel_values=pixels, bool_masked_pos=torch.zeros(1, 5)), Ctx())


def test_a_stretched_grid_keeps_the_class_position_and_its_corners_order():
    embed = Patches((8, 12), (4, 4), 1, 2)  # two rows of three patches
    embed.position.data[0, :, 0] = torch.tensor([9.0, 0, 0, 0, 1, 1, 1])  # which row
    embed.position.data[0, :, 1] = torch.tensor([7.0, 0, 1, 2, 0, 1, 2])  # which column
    out = embed.stretch(torch.zeros(1, 1, 16, 24))
    assert out.shape == (1, 1 + 4 * 6, 2) and out[0, 0].tolist() == [9, 7]
    rows, columns = out[0, 1:].unflatten(0, (4, 6)).unbind(-1)
    assert torch.allclose(rows, rows[:, :1]) and (rows.diff(dim=0) > 0).all()
    assert torch.allclose(columns, columns[:1]) and (columns.diff(dim=1) > 0).all()
    assert torch.equal(embed.stretch(torch.zeros(1, 1, 8, 12)), embed.position)
    pixels = torch.randn(1, 1, 16, 24)
    inputs = Inputs(pixel_values=pixels, interpolate_pos_encoding=True)
    plain = embed.project(pixels).flatten(2).transpose(1, 2)
    assert torch.allclose(embed(inputs, Ctx())[:, 1:], plain + out[:, 1:])


def test_pictures_drop_out_in_training_only():
    embed = Patches((8, 8), (4, 4), 1, 5)
    nn.init.normal_(embed.position)
    inputs = Inputs(pixel_values=torch.randn(1, 1, 8, 8))
    wanted, embed.dropout = embed.eval()(inputs, Ctx()), 0.5
    assert torch.equal(embed(inputs, Ctx()), wanted)
    got = embed.train()(inputs, Ctx())
    assert ((got == 0) | torch.isclose(got, 2 * wanted)).all() and (got == 0).any()


@pytest.mark.parametrize("inputs, said", [
    (Inputs(IDS), "it was given no pixel_values"),
    (Inputs(pixel_values=torch.zeros(1, 3, 8, 8)), r"2 channels, height, width\), and .*\(1, 3, 8"),
    (Inputs(pixel_values=torch.zeros(2, 8, 8)), r"given \(2, 8, 8\)"),
    (Inputs(pixel_values=torch.zeros(1, 2, 8, 9)), r"\(8, 9\) pixels and the model \(8, 8\)"),
    (Inputs(pixel_values=torch.zeros(1, 2, 9, 8)), "interpolate_pos_encoding=True"),
    (Inputs(pixel_values=torch.zeros(1, 2, 8, 8), bool_masked_pos=torch.ones(1, 4)),
     "no vector for hidden patches"),
    (Inputs(pixel_values=torch.zeros(1, 2, 9, 3), interpolate_pos_encoding=True), "than one patch"),
    (Inputs(pixel_values=torch.zeros(1, 2, 3, 9), interpolate_pos_encoding=True), "than one patch"),
])
def test_what_is_no_picture_for_a_model_is_said(inputs, said):
    embed = Patches((8, 8), (4, 4), 2, 5)
    with pytest.raises(MiradaError, match=said):
        embed(inputs, Ctx())


def test_pictures_take_the_models_width():
    embed = Patches((8, 8), (4, 4), 1, 5).double()
    x = embed(Inputs(pixel_values=torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), Ctx())
    assert x.dtype == torch.float64

"""Blocks: where norms stand, torch's layers, branches side by side, shared layers, dropout."""

import pytest
import torch
from torch import nn

from mirada.core.attention import Attention, CrossAttention
from mirada.core.block import (
    Block,
    Branch,
    EncoderDecoder,
    ParallelBlock,
    Residual,
    Stack,
)
from mirada.core.cache import Fixed, Growing
from mirada.core.context import Ctx, Inputs
from mirada.core.embed import Tokens
from mirada.core.mask import Mask
from mirada.core.mlp import MLP
from mirada.core.norm import DropPath, LayerNorm, LayerScale

D = 8


class Scaled(nn.Module):
    """A sublayer or a norm that can be followed by hand: x -> by * x + add."""

    def __init__(self, by: float, add: float = 0.0):
        super().__init__()
        self.by, self.add, self.given = by, add, []

    def forward(self, x, *rest):
        self.given.append(rest)
        return self.by * x + self.add


@pytest.mark.parametrize("slots, formula", [
    ({}, lambda x: x + (5 * x + 1)),
    ({"pre": Scaled(2, 3)}, lambda x: x + (5 * (2 * x + 3) + 1)),  # pre-norm
    ({"out": Scaled(2, 3)}, lambda x: 2 * (x + 5 * x + 1) + 3),  # post-norm
    ({"post": Scaled(2, 3)}, lambda x: x + 2 * (5 * x + 1) + 3),  # res-post-norm
    ({"pre": Scaled(2, 3), "post": Scaled(7, 4)},  # sandwich
     lambda x: x + 7 * (5 * (2 * x + 3) + 1) + 4),
    ({"pre": Scaled(2, 3), "post": Scaled(7, 4), "out": Scaled(11, 6)},
     lambda x: 11 * (x + 7 * (5 * (2 * x + 3) + 1) + 4) + 6),
])
def test_a_residual_is_out_of_x_plus_post_of_f_of_pre(slots, formula):
    x, ctx, cache, f = torch.randn(2, 3, D), Ctx(), object(), Scaled(5, 1)
    assert torch.allclose(Residual(f, **slots)(x, ctx, cache), formula(x))
    assert f.given == [(ctx, cache)], "the sublayer gets the pass's context and its own cache"
    assert all(slot.given == [()] for slot in slots.values()), "slots never see the context"


def shaken(module: nn.Module) -> nn.Module:
    module = module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn_like(p) * 0.5)
    return module


def attention_from_torch(theirs: nn.MultiheadAttention, ours: Attention) -> None:
    parts = zip("qkv", theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True)
    for name, weight, bias in parts:
        getattr(ours, name).load_state_dict({"weight": weight, "bias": bias})
    ours.o.load_state_dict(theirs.out_proj.state_dict())


def placed(f: nn.Module, pre: bool) -> Residual:
    norm = LayerNorm(D, 1e-5)
    return Residual(f, pre=norm) if pre else Residual(f, out=norm)


def norm_of(residual: Residual, pre: bool) -> LayerNorm:
    return residual.pre if pre else residual.out


@pytest.mark.scope("1.3.1")
@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_the_encoder_layer_is_torchs(pre, act):
    theirs = shaken(nn.TransformerEncoderLayer(D, 2, 12, 0.0, act, batch_first=True,
                                               norm_first=pre))
    block = Block(attn=placed(Attention(D, 2, bias="qkvo"), pre), mlp=placed(MLP(D, 12, act), pre))
    block = block.double()
    attention_from_torch(theirs.self_attn, block.attn.f)
    block.mlp.f.up.load_state_dict(theirs.linear1.state_dict())
    block.mlp.f.down.load_state_dict(theirs.linear2.state_dict())
    norm_of(block.attn, pre).load_state_dict(theirs.norm1.state_dict())
    norm_of(block.mlp, pre).load_state_dict(theirs.norm2.state_dict())
    x = torch.randn(2, 5, D).double()
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    wanted = theirs(x, src_key_padding_mask=~real)[real]
    assert torch.allclose(block(x, Ctx(mask=Mask(padding=real)))[real], wanted, atol=1e-12)


@pytest.mark.scope("1.3.2")
@pytest.mark.parametrize("pre", [True, False])
def test_the_decoder_layer_of_three_sublayers_is_torchs(pre):
    theirs = shaken(nn.TransformerDecoderLayer(D, 2, 12, 0.0, "relu", batch_first=True,
                                               norm_first=pre))
    own = Attention(D, 2, bias="qkvo", mask=Mask(causal=True))
    block = Block(attn=placed(own, pre), cross=placed(CrossAttention(D, 2, bias="qkvo"), pre),
                  mlp=placed(MLP(D, 12, "relu"), pre)).double()
    attention_from_torch(theirs.self_attn, block.attn.f)
    attention_from_torch(theirs.multihead_attn, block.cross.f)
    block.mlp.f.up.load_state_dict(theirs.linear1.state_dict())
    block.mlp.f.down.load_state_dict(theirs.linear2.state_dict())
    for n, name in enumerate(("attn", "cross", "mlp"), 1):
        norm_of(getattr(block, name), pre).load_state_dict(getattr(theirs, f"norm{n}").state_dict())
    x, memory = torch.randn(2, 5, D).double(), torch.randn(2, 6, D).double()
    real = torch.ones(2, 6).bool()
    real[0, 4:] = False
    future = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    wanted = theirs(x, memory, tgt_mask=future, memory_key_padding_mask=~real, tgt_is_causal=True)
    ctx = Ctx(memory=memory, memory_mask=Mask(padding=real))
    assert torch.allclose(block(x, ctx), wanted, atol=1e-12)
    cache = {"attn": Growing(), "cross": Fixed()}
    steps = [block(x[:, t:t + 1], ctx, cache) for t in range(5)]
    assert torch.allclose(torch.cat(steps, 1), wanted, atol=1e-12)


def test_a_block_applies_its_sublayers_in_the_order_given():
    x, ctx, caches = torch.randn(1, 2, D), Ctx(), {"b": object()}
    a, b = Residual(Scaled(2)), Residual(Scaled(0, 5))
    assert torch.allclose(Block(a=a, b=b)(x, ctx, caches), 3 * x + 5)
    assert torch.allclose(Block(b=b, a=a)(x, ctx), 3 * (x + 5))
    assert a.f.given == [(ctx, None)] * 2 and b.f.given == [(ctx, caches["b"]), (ctx, None)]


def test_branches_side_by_side_all_read_the_same_stream():
    x, ctx, caches = torch.randn(1, 2, D), Ctx(), {"attn": object()}
    attn, mlp = Scaled(3, 1), Scaled(5, 2)
    shared = ParallelBlock(Scaled(2, 4), attn=Branch(attn), mlp=Branch(mlp))
    h = 2 * x + 4
    assert torch.allclose(shared(x, ctx, caches), x + (3 * h + 1) + (5 * h + 2), atol=1e-5)
    assert attn.given == [(ctx, caches["attn"])] and mlp.given == [(ctx, None)]
    own = ParallelBlock(attn=Branch(attn, Scaled(7)), mlp=Branch(mlp, Scaled(11)))
    assert torch.allclose(own(x, ctx), x + (21 * x + 1) + (55 * x + 2), atol=1e-4)
    assert list(dict(own.named_children())) == ["norm", "attn", "mlp"]


class Start(nn.Module):
    def forward(self, inputs, ctx):
        return inputs.inputs_embeds


def test_a_stack_goes_through_its_blocks_in_order_and_norms_last():
    x, ctx = torch.randn(1, 2, D), Ctx()
    inputs, caches = Inputs(inputs_embeds=x), [object() for _ in range(3)]
    blocks = [Scaled(2), Scaled(1, 3)]
    assert torch.allclose(Stack(Start(), blocks)(inputs, ctx), 2 * x + 3)
    assert torch.allclose(Stack(Start(), blocks, Scaled(5))(inputs, ctx), 5 * (2 * x + 3))
    for block in blocks:
        block.given.clear()
    again = Stack(Start(), blocks, order=[0, 1, 0])
    assert torch.allclose(again(inputs, ctx, caches), 2 * (2 * x + 3))
    assert blocks[0].given == [(ctx, caches[0]), (ctx, caches[2])]
    assert blocks[1].given == [(ctx, caches[1])], "caches by place in the order, weights by block"
    assert Stack(Start(), blocks).order == [0, 1] and len(again.blocks) == 2


def test_passing_twice_through_one_block_is_two_equal_blocks():
    block = shaken(Block(attn=placed(Attention(D, 2), True), mlp=placed(MLP(D, 12, "relu"), True)))
    x = torch.randn(1, 4, D).double()
    shared = Stack(Start(), [block], order=[0, 0, 0])
    wanted = block(block(block(x, Ctx()), Ctx()), Ctx())
    assert torch.equal(shared(Inputs(inputs_embeds=x), Ctx()), wanted)
    count = sum(p.numel() for p in shared.parameters())
    assert count == sum(p.numel() for p in block.parameters())


def test_an_encoder_decoder_decodes_from_what_its_encoder_made():
    both = EncoderDecoder(Stack(Start(), [Scaled(2)]), Stack(Start(), [Scaled(3)], Scaled(1, 1)))
    x, source = torch.randn(2, 1, 2, D)
    assert torch.equal(both.encode(Inputs(inputs_embeds=source), Ctx()), 2 * source)
    assert torch.allclose(both(Inputs(inputs_embeds=x), Ctx()), 3 * x + 1)
    caches = [object()]
    both(Inputs(inputs_embeds=x), Ctx(), caches)
    assert both.decoder.blocks[0].given[-1][1] is caches[0]


def rated(module: nn.Module, rate: float) -> nn.Module:
    module.dropout = rate
    return module


@pytest.mark.scope("1.3.7")
@pytest.mark.parametrize("site", ["residual", "branch", "mlp", "tokens", "attention"])
def test_dropout_is_off_in_evaluation_and_each_site_has_its_rate(site):
    one = torch.ones(1, 2000, D)
    hidden = MLP(D, D, "linear", bias=False)
    hidden.up.weight.data.copy_(torch.eye(D))
    hidden.down.weight.data.copy_(torch.eye(D))
    tokens = Tokens(3, D)
    tokens.token.weight.data.fill_(1.0)
    ids = Inputs(input_ids=torch.zeros(1, 2000, dtype=torch.long))
    attention = Attention(D, 1)
    for p in (attention.v, attention.o):
        p.weight.data.copy_(torch.eye(D))
    make = {  # module that holds the rate, what it gives without the stream that passes by
        "residual": (rated(Residual(Scaled(1)), 0.3), lambda m: m(one, Ctx()) - one),
        "branch": (rated(Branch(Scaled(1)), 0.3), lambda m: m(one, Ctx())),
        "mlp": (rated(hidden, 0.3), lambda m: m(one)),
        "tokens": (rated(tokens, 0.3), lambda m: m(ids, Ctx())),
        "attention": (rated(attention.attend, 0.3),
                      lambda m: attention(one[:, :1].expand(2000, 1, D), Ctx())[None, :, 0]),
    }
    module, run = make[site]
    module.eval()
    assert torch.allclose(run(module), one, atol=1e-5)
    module.train()
    got = run(module)
    dropped = (got == 0).float().mean().item()
    assert dropped == pytest.approx(0.3, abs=0.03)
    assert torch.allclose(got[got != 0], torch.tensor(1 / 0.7), rtol=1e-4)
    module.dropout = 0.0
    assert torch.allclose(run(module), one, atol=1e-5)


def test_drop_path_drops_a_branch_for_whole_rows_and_keeps_the_mean():
    path, x = DropPath(0.25), torch.ones(4000, 2, 3)
    out = path(x)
    kept = out[:, 0, 0] != 0
    assert torch.equal(out, (x * kept[:, None, None]) / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(path.eval()(x), x) and torch.equal(DropPath(0.0).train()(x), x)


def test_layer_scale_is_one_factor_a_channel():
    scale = LayerScale(3, 0.1)
    assert scale.weight.tolist() == pytest.approx([0.1] * 3) and scale.value == 0.1
    scale.weight.data.copy_(torch.tensor([1.0, 2, 3]))
    assert scale(torch.ones(2, 3)).tolist() == [[1, 2, 3], [1, 2, 3]]
    assert LayerScale(2).weight.tolist() == pytest.approx([1e-5] * 2)

"""Score biases: each scheme against its reference or a few lines of NumPy, by rows and whole."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.swin.modeling_swin import SwinRelativePositionBias
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.xlnet.modeling_xlnet import XLNetModel, XLNetRelativeAttention

from mirada.core.attend import Attend, Call
from mirada.core.attention import Attention
from mirada.core.bias import (
    Alibi,
    Bias,
    Buckets,
    Disentangled,
    Places,
    Recurrent,
    Shaw,
    ShawAttend,
    Window2D,
)
from mirada.core.cache import KV, Growing, Static
from mirada.core.context import Ctx
from mirada.core.mask import Mask
from mirada.errors import MiradaError
from parity.harness import wide

H, K, D = 2, 4, 8


def made() -> dict[str, nn.Module]:
    """Every scheme, its parameters random, for H heads of K channels."""
    torch.manual_seed(3)
    found = {
        "alibi": Alibi(H), "buckets": Buckets(H, 8, 12), "buckets back": Buckets(H, 8, 12, False),
        "window": Window2D((3, 4), H), "shaw": Shaw(K, 2, 0.5),
        "recurrent": Recurrent(D, H, K, 0.5),
        "disentangled": Disentangled(Places(8, D), H, 0.3, key=nn.Linear(D, D),
                                     query=nn.Linear(D, D)),
        "log": Disentangled(Places(8, D), H, 0.3, key=nn.Linear(D, D), buckets=4, farthest=8)}
    for module in found.values():
        for p in module.parameters():
            nn.init.normal_(p)
    return {name: module.double() for name, module in found.items()}


MASKS = {"plain": Mask(), "start": Mask(start=2), "start a row": Mask(start=torch.tensor([0, 3])),
         "slots": Mask(start=4, slots=torch.tensor([2, 3, 4, 5, 0, 1])),
         "slots a row": Mask(start=torch.tensor([1, 0]),
                             slots=torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]))}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", made())
def test_rows_are_blocks_of_the_whole_wherever_keys_lie(name, mask):
    scheme, mask = made()[name], dataclasses.replace(MASKS[mask], memo={})
    q, k = torch.randn(2, H, 3, K).double(), torch.randn(2, H, 6, K).double()
    bias = scheme(Ctx(), mask)
    assert isinstance(bias, Bias) and bias.of is scheme and bias.mask is mask
    whole = bias.dense(q, k)
    assert whole.shape[1:] == (H, 3, 6) and whole.shape[0] in (1, 2) and whole.dtype == q.dtype
    for r0, r1 in ((0, 1), (1, 3), (0, 3)):
        assert torch.allclose(bias.rows(q, k, r0, r1), whole[:, :, r0:r1], atol=1e-13)
    # keys elsewhere: each pair alone gives the number that it has among the others
    qi, ki = mask.queries(3).expand(2, 3), mask.keys(6).expand(2, 6)
    for b, t, s in ((0, 0, 5), (1, 2, 0), (1, 1, 3)):
        one = scheme.rows(q[b:b + 1, :, t:t + 1], k[b:b + 1, :, s:s + 1],
                          qi[b, t:t + 1], ki[b, s:s + 1])
        assert torch.allclose(one[0, :, 0, 0], whole[b % len(whole), :, t, s], atol=1e-13)


@pytest.mark.parametrize("name", made())
def test_a_bias_that_reads_no_content_is_built_once_a_pass(name, monkeypatch):
    scheme, built = made()[name], []
    rows = scheme.rows
    monkeypatch.setattr(scheme, "rows", lambda *a: built.append(1) or rows(*a))
    q, mask = torch.randn(1, H, 6, K).double(), Mask()
    first = scheme(Ctx(), mask).dense(q, q)
    again = scheme(Ctx(), mask & Mask(causal=True)).dense(q, q)  # another layer of this pass
    fixed = name in ("alibi", "buckets", "buckets back", "window")
    assert (again is first) == fixed == scheme.fixed and len(built) == (1 if fixed else 2)
    moved = scheme(Ctx(), dataclasses.replace(mask, start=1)).dense(q, q)
    assert torch.equal(moved, rows(q, q, torch.arange(6) + 1, torch.arange(6)))
    slots = torch.arange(6).flip(0)
    moved = scheme(Ctx(), dataclasses.replace(mask, slots=slots)).dense(q, q)
    assert torch.equal(moved, rows(q, q, torch.arange(6), slots))
    assert scheme(Ctx(), mask).dense(q[:, :, :2], q).shape[2] == 2
    other = made()[name]
    if fixed and name != "alibi":
        next(other.parameters()).data.mul_(2)
        assert torch.allclose(other(Ctx(), mask).dense(q, q), 2 * first)


@pytest.mark.scope("1.2.5")
@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12, 16, 20, 25, 40])
def test_alibi_has_slopes_for_any_number_of_heads(heads):
    T = 6
    q = torch.zeros(1, heads, T, K)
    ours = Alibi(heads)(Ctx(), Mask()).dense(q, q)
    seen = torch.ones(T, T).tril().bool()
    bloom = build_alibi_tensor(torch.ones(1, T), heads, torch.float32).view(1, heads, 1, T)
    mpt = build_mpt_alibi_tensor(heads, T)[None]
    for theirs in (bloom, mpt):  # theirs count from another zero, which softmax does not see
        shift = theirs - ours
        flat = (shift - shift[..., :1]).masked_fill(~seen, 0)
        assert flat.abs().max() < 1e-6
    assert ours[0, :, 0, 0].abs().max() == 0 and torch.equal(ours, ours.transpose(2, 3))
    assert torch.allclose(ours[0, :, 3, 1], -2 * torch.tensor(Alibi(heads).slopes))


def test_alibis_steepest_slope_is_mpts_largest_bias():
    for heads, steepest in ((6, 4.0), (8, 16.0)):
        theirs = build_mpt_alibi_tensor(heads, 2, alibi_bias_max=steepest)  # (H, 1, 2)
        assert Alibi(heads, steepest).slopes == pytest.approx((-theirs[:, 0, 0]).tolist())


@pytest.mark.parametrize("cache", [Growing, lambda: Static(12)], ids=["growing", "static"])
@pytest.mark.parametrize("name", ["alibi", "buckets", "buckets back", "shaw", "recurrent"])
def test_a_scheme_counts_on_behind_a_cache(name, cache):
    attention = Attention(D, H, score_bias=made()[name], mask=Mask(causal=True)).double()
    x, held, ctx = torch.randn(2, 7, D).double(), cache(), Ctx()
    whole = attention(x, Ctx())
    parts = [attention(x[:, a:b], ctx, held) for a, b in ((0, 3), (3, 4), (4, 5), (5, 7))]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-12)


@pytest.mark.scope("1.2.6")
@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("buckets, farthest", [(32, 128), (8, 20), (16, 17), (12, 128)])
def test_buckets_are_t5s(both_ways, buckets, farthest):
    distance = torch.arange(-400, 401)
    theirs = T5Attention._relative_position_bucket(distance, both_ways, buckets, farthest)
    ours = Buckets(3, buckets, farthest, both_ways)
    assert torch.equal(ours.bucket(distance), theirs)
    q = torch.zeros(1, 3, 5, K)
    table = ours(Ctx(), Mask()).dense(q, q)
    i, j = 4, 1
    assert torch.equal(table[0, :, i, j], ours.table.weight[theirs[400 + j - i]])


@pytest.mark.parametrize("buckets, farthest, both_ways", [(3, 128, True), (1, 9, False),
                                                         (32, 8, True), (32, 16, False)])
def test_buckets_that_cannot_be_are_refused(buckets, farthest, both_ways):
    with pytest.raises(MiradaError, match="must lie farther"):
        Buckets(2, buckets, farthest, both_ways)
    assert Buckets(2, 4, 2, True).bucket(torch.tensor([-9, 0, 9])).tolist() == [1, 0, 3]


@pytest.mark.scope("1.2.6")
@pytest.mark.parametrize("window", [(2, 3), (3, 3), (1, 4), (4, 2)])
def test_the_window_table_is_swins(window):
    area = window[0] * window[1]
    theirs, ours = SwinRelativePositionBias(H, window), Window2D(window, H)
    with torch.no_grad():
        ours.table.normal_()
        theirs.relative_position_bias_table.copy_(ours.table)
    q = torch.zeros(1, H, area, K)
    assert torch.equal(ours(Ctx(), Mask()).dense(q, q), theirs())


@pytest.mark.scope("1.2.6")
@pytest.mark.parametrize("clip", [1, 3, 20])
def test_shaw_is_its_paper_in_both_halves(clip):
    """z_i = sum_j a_ij (v_j + av_ij), e_ij = q_i (k_j + ak_ij) / sqrt(d): eq. 3 and 4."""
    torch.manual_seed(4)
    scheme = Shaw(K, clip, K**-0.5).double()
    attend = ShawAttend(K, clip).double()
    for p in (scheme.table, attend.table):
        nn.init.normal_(p)
    q, k, v = torch.randn(3, 1, H, 5, K).double()
    mask = Mask(causal=True)
    bias = scheme(Ctx(), mask)
    z = attend(q, KV(k, v), scale=K**-0.5, mask=mask, bias=bias)
    ak, av = scheme.table.detach().numpy(), attend.table.detach().numpy()
    for h in range(H):
        for i in range(5):
            near = [min(max(j - i, -clip), clip) + clip for j in range(i + 1)]
            e = [q[0, h, i].numpy() @ (k[0, h, j].numpy() + ak[near[j]]) / math.sqrt(K)
                 for j in range(i + 1)]
            a = np.exp(e) / np.exp(e).sum()
            wanted = sum(a[j] * (v[0, h, j].numpy() + av[near[j]]) for j in range(i + 1))
            assert z[0, h, i].detach().numpy() == pytest.approx(wanted, abs=1e-12)


def test_shaws_value_half_serves_groups_caches_and_dropout():
    attend = ShawAttend(K, 2).double().eval()
    nn.init.normal_(attend.table)
    q, kv = torch.randn(1, 4, 3, K).double(), torch.randn(2, 1, 2, 6, K).double()
    mask = Mask(causal=True, start=3, slots=torch.tensor([1, 0, 2, 3, 4, 5]))
    z = attend(q, KV(*kv), scale=0.5, mask=mask)
    order = torch.tensor([1, 0, 2, 3, 4, 5])  # the same keys in their places
    full = kv[:, :, :, order].repeat_interleave(2, 2)
    same = attend(q, KV(*full), scale=0.5, mask=Mask(causal=True, start=3))
    assert torch.allclose(z, same, atol=1e-13)
    attend.dropout = 0.5
    assert torch.equal(attend(q, KV(*kv), scale=0.5, mask=mask), z), "not in training: no dropout"
    assert not torch.allclose(attend.train()(q, KV(*kv), scale=0.5, mask=mask), z)


@pytest.mark.scope("1.2.6")
@pytest.mark.parametrize("memory", [0, 3])
def test_transformer_xl_is_xlnets_relative_attention(memory):
    """The same weights, without and with a segment that came before (recurrence)."""
    T, B = 4, 2
    config = transformers.XLNetConfig(d_model=D, n_head=H, d_inner=D, n_layer=1, attn_type="bi",
                                      dropout=0.0)
    with wide():
        theirs = XLNetRelativeAttention(config).double().eval()
        for p in theirs.parameters():
            nn.init.normal_(p)
        table = XLNetModel.relative_positional_encoding(
            _Encoder(config), T, T + memory, bsz=B)
    ours = Attention(D, H, mask=Mask(), score_bias=Recurrent(D, H, K, K**-0.5)).double()
    bias = ours.score_bias
    with torch.no_grad():
        for name in ("q", "k", "v"):
            getattr(ours, name).weight.copy_(getattr(theirs, name).reshape(D, H * K).T)
        bias.r.weight.copy_(theirs.r.reshape(D, H * K).T)
        bias.u.copy_(theirs.r_w_bias)
        bias.v.copy_(theirs.r_r_bias)
        ours.o.weight.copy_(theirs.o.reshape(D, H * K))
    before, x = torch.randn(B, memory, D).double(), torch.randn(B, T, D).double()
    cache = Growing()
    if memory:
        ours(before, Ctx(), cache)
    got = ours(x, Ctx(), cache)
    h, cat = x.transpose(0, 1), torch.cat([before, x], 1).transpose(0, 1)
    with wide():
        heads = [torch.einsum("ibh,hnd->ibnd", t, w) for t, w in (
            (h, theirs.q), (cat, theirs.k), (cat, theirs.v), (table, theirs.r))]
        wanted = torch.einsum("ibnd,hnd->bih", theirs.rel_attn_core(*heads), theirs.o)
    assert torch.allclose(got, wanted, atol=1e-11)


class _Encoder:
    """What XLNet's table of distances reads of its model."""

    def __init__(self, config):
        self.d_model, self.attn_type = config.d_model, config.attn_type
        self.bi_data, self.clamp_len = config.bi_data, config.clamp_len

    positional_embedding = staticmethod(XLNetModel.positional_embedding)


@pytest.mark.scope("1.2.6")
def test_transformer_xl_term_by_term():
    """q.k + q.r + u.k + v.r at each distance, from the four terms of section 3.3."""
    torch.manual_seed(5)
    scheme = Recurrent(D, H, K, 0.7).double()
    for p in scheme.parameters():
        nn.init.normal_(p)
    q, k = torch.randn(2, 1, H, 5, K).double()
    mask = Mask(start=2)
    got = scheme(Ctx(), mask).dense(q, k)
    W, u, v = (p.detach().numpy() for p in (scheme.r.weight, scheme.u, scheme.v))
    for h in range(H):
        for i in range(5):
            for j in range(5):
                far = i + 2 - j
                angles = far / 10000 ** (np.arange(0, D, 2) / D)
                r = (W @ np.concatenate([np.sin(angles), np.cos(angles)]))[h * K:(h + 1) * K]
                qi, kj = q[0, h, i].numpy(), k[0, h, j].numpy()
                wanted = 0.7 * (qi @ r + u[h] @ kj + v[h] @ r)
                assert got[0, h, i, j].item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("buckets, farthest", [(0, 0), (4, 8), (6, 50)])
@pytest.mark.parametrize("terms", ["key", "query", "both"])
def test_disentangled_terms_by_their_sums(terms, buckets, farthest):
    torch.manual_seed(6)
    span, T = buckets or 3, 7
    parts = {t: nn.Linear(D, D).double() for t in ("key", "query") if terms in (t, "both")}
    scheme = Disentangled(Places(2 * span, D), H, 0.3, buckets=buckets, farthest=farthest, **parts)
    scheme = scheme.double()
    q, k = torch.randn(2, 1, H, T, K).double()
    got, where = scheme(Ctx(), Mask()).dense(q, k), scheme.table().detach()
    for h, i, j in ((0, 0, 6), (1, 6, 0), (0, 3, 3), (1, 2, 4), (0, 5, 1)):
        distance = i - j
        if buckets:
            near = buckets // 2
            if abs(distance) >= near:
                far = math.log(abs(distance) / near) / math.log((farthest - 1) / near) * (near - 1)
                distance = int(math.copysign(math.ceil(far - 1e-9) + near, distance))
        row = where[min(max(distance + span, 0), 2 * span - 1)]
        wanted = 0.0
        if "key" in parts:
            wanted += (q[0, h, i] @ parts["key"](row)[h * K:(h + 1) * K]).item()
        if "query" in parts:
            wanted += (k[0, h, j] @ parts["query"](row)[h * K:(h + 1) * K]).item()
        assert got[0, h, i, j].item() == pytest.approx(0.3 * wanted, abs=1e-12)


@pytest.mark.parametrize("buckets, farthest", [(4, 8), (6, 50), (16, 40), (64, 100), (256, 512)])
def test_log_buckets_of_every_distance(buckets, farthest):
    scheme = Disentangled(Places(2 * buckets, D), H, 1.0, buckets=buckets, farthest=farthest)
    distance = torch.arange(-2 * farthest, 2 * farthest + 1)
    theirs = make_log_bucket_position(distance, buckets, farthest) + buckets
    ours = scheme.index(distance, torch.zeros(1, dtype=torch.long))
    assert torch.equal(ours[0, 0, :, 0], theirs.long().clamp(0, 2 * buckets - 1))


@pytest.mark.parametrize("buckets, farthest", [(1, 9), (8, 5), (8, 4)])
def test_log_buckets_that_cannot_be_are_refused(buckets, farthest):
    with pytest.raises(MiradaError, match="must lie farther"):
        Disentangled(Places(8, D), H, 1.0, buckets=buckets, farthest=farthest)


def test_a_bias_enters_the_scores_after_the_cap_and_before_the_mask():
    q = torch.randn(1, H, 4, K).double()
    mask = Mask(causal=True)
    call = Call(q, KV(q, q), 0.5, mask, Alibi(H)(Ctx(), mask), cap=0.5)
    scores = 0.5 * torch.tanh(q @ q.transpose(2, 3) * 0.5 / 0.5)
    scores = scores + call.bias.dense(q, q)
    wanted = scores.masked_fill(~torch.ones(4, 4).tril().bool(), -math.inf).softmax(-1)
    assert torch.allclose(Attend.weights(call), wanted, atol=1e-14)

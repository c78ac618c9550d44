"""Caches: any way of feeding a text gives what feeding it whole gives; what they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mirada.core.attention import Attention
from mirada.core.cache import KV, Fixed, Growing, Rolling, Static
from mirada.core.context import Ctx
from mirada.core.mask import Mask
from mirada.core.position import Rotary
from mirada.errors import MiradaError

D, B, WINDOW = 8, 2, 4


def attention(window: int | None = None) -> Attention:
    torch.manual_seed(7)
    module = Attention(D, 2, kv_heads=1, rotary=Rotary(4), mask=Mask(causal=True, window=window))
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return module.double().requires_grad_(False).eval()


def feed(module: Attention, x, cache, *, past: int = 0, padding=None) -> torch.Tensor:
    """x (B, T, D) behind `past` tokens. padding: (B, all tokens)."""
    T = x.shape[1]
    seen = None if padding is None else padding[:, : past + T]
    return module(x, Ctx(torch.arange(past, past + T)[None], Mask(padding=seen)), cache)


CACHES = {"growing": Growing, "static": lambda: Static(20), "static exact": lambda: Static(12),
          "rolling": lambda: Rolling(WINDOW), "rolling with margin": lambda: Rolling(WINDOW, 3)}


@settings(max_examples=60)
@given(st.sampled_from(sorted(CACHES)), st.lists(st.integers(1, 6), min_size=1, max_size=12),
       st.booleans(), st.integers(0, 2**16))
def test_any_way_of_cutting_a_text_gives_the_whole(kind, cuts, pads, seed):
    module = attention(WINDOW if "rolling" in kind or seed % 2 else None)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, 12, D, generator=generator).double()
    padding = torch.ones(B, 12).bool()
    padding[0, :3] = not pads
    whole = feed(module, x, None, padding=padding if pads else None)
    cache, past, parts = CACHES[kind](), 0, []
    for cut in cuts:
        part = x[:, past:past + cut]
        if part.shape[1]:
            parts.append(feed(module, part, cache, past=past, padding=padding if pads else None))
            past += part.shape[1]
    assert torch.allclose(torch.cat(parts, 1), whole[:, :past], atol=1e-12)
    assert cache.length.tolist() == [past] * B


@settings(max_examples=60)
@given(st.sampled_from(sorted(CACHES)), st.data())
def test_taking_tokens_back_forgets_them(kind, data):
    """Feed, take back, feed others: as if the taken had never been."""
    module, cache = attention(WINDOW if "rolling" in kind else None), CACHES[kind]()
    text = torch.zeros(B, 0, D).double()
    margin = {"rolling": 0, "rolling with margin": 3}.get(kind, 12)
    for step in range(4):
        T = data.draw(st.integers(1, 3))
        x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(step)).double()
        got = feed(module, x, cache, past=text.shape[1])
        text = torch.cat([text, x], 1)
        assert torch.allclose(got, feed(module, text, None)[:, -T:], atol=1e-12)
        back = data.draw(st.integers(0, min(margin, text.shape[1] - 1)))
        cache.crop(text.shape[1] - back)
        text = text[:, : text.shape[1] - back]
        assert cache.length.tolist() == [text.shape[1]] * B


@pytest.mark.parametrize("kind", CACHES)
def test_rows_change_places_and_beams_multiply_them(kind):
    module, cache = attention(WINDOW), CACHES[kind]()
    x, more = torch.randn(B, 6, D).double(), torch.randn(3, 2, D).double()
    cache.reorder(torch.tensor([0]))  # nothing held yet: nothing to do
    feed(module, x, cache)
    index = torch.tensor([1, 0, 1])
    cache.reorder(index)
    got = feed(module, more, cache, past=6)
    wanted = feed(module, torch.cat([x[index], more], 1), None)[:, 6:]
    assert torch.allclose(got, wanted, atol=1e-12) and len(cache.length) == 3


def test_rows_of_a_static_cache_may_differ_in_length():
    module = Attention(D, 2, mask=Mask(causal=True)).double().eval()
    x, y = torch.randn(B, 5, D).double(), torch.randn(B, 2, D).double()
    cache = Static(9)
    module(x, Ctx(), cache)
    cache.crop(torch.tensor([3, 5]))
    assert cache.length.tolist() == [3, 5]
    got = module(y, Ctx(), cache)
    assert cache.length.tolist() == [5, 7]
    cache.reorder(torch.tensor([1, 0]))
    assert cache.length.tolist() == [7, 5]
    swapped = module(y.flip(0), Ctx(), cache)
    for row, kept in enumerate((3, 5)):
        text = torch.cat([x[row:row + 1, :kept], y[row:row + 1], y[row:row + 1]], 1)
        wanted = module(text, Ctx())
        assert torch.allclose(got[row], wanted[0, kept:kept + 2], atol=1e-12)
        assert torch.allclose(swapped[1 - row], wanted[0, kept + 2:], atol=1e-12)


def entries(T: int, rows: int = B) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 1, T, 3), torch.randn(rows, 1, T, 5)


def test_what_a_growing_cache_holds():
    cache = Growing()
    assert cache.held == 0 and cache.length.tolist() == []
    cache.crop(0)
    k, v = entries(3)
    kv = cache.update(k, v)
    assert isinstance(kv, KV) and kv.fresh is k and kv.dense()[0] is kv.k
    more = entries(2)
    kv = cache.update(*more)
    assert torch.equal(kv.k, torch.cat([k, more[0]], 2)) and kv.fresh is more[0]
    assert torch.equal(kv.v, torch.cat([v, more[1]], 2)) and cache.held == 5
    assert cache.mask(Mask(causal=True), 4).start == 5
    cache.crop(torch.tensor([4, 4]))
    assert cache.held == 4 and torch.equal(cache.v, kv.v[:, :, :4])
    for wrong in (5, -1):
        with pytest.raises(MiradaError, match=f"cannot crop to {wrong} keys: the cache holds 4"):
            cache.crop(wrong)
    with pytest.raises(MiradaError, match="rows of one length"):
        cache.crop(torch.tensor([3, 4]))
    assert KV(k, v).fresh is k


def test_a_static_cache_writes_in_place_and_says_when_it_is_full():
    cache = Static(5)
    assert cache.length.tolist() == []
    first = entries(3)
    kv = cache.update(*first)
    assert kv.k.shape == (B, 1, 5, 3) and kv.v.shape == (B, 1, 5, 5) and kv.fresh is first[0]
    assert torch.equal(kv.k[:, :, :3], first[0]) and torch.equal(kv.v[:, :, :3], first[1])
    place = cache.k.data_ptr(), cache.v.data_ptr()
    with pytest.raises(MiradaError, match="has room for 5 keys and 6 are needed"):
        cache.update(*entries(3))
    assert cache.length.tolist() == [3, 3]
    more = entries(2)
    kv = cache.update(*more)
    assert (kv.k.data_ptr(), kv.v.data_ptr()) == place and torch.equal(kv.k[:, :, 3:], more[0])
    assert torch.equal(kv.v[:, :, 3:], more[1])
    for wrong in (6, -1, torch.tensor([5, 6]), torch.tensor([-1, 2])):
        with pytest.raises(MiradaError, match="cannot crop"):
            cache.crop(wrong)
    cache.crop(0)
    assert cache.length.tolist() == [0, 0]


def test_a_static_caches_mask_shows_what_is_written_and_no_more():
    cache = Static(6)
    mask = cache.mask(Mask(causal=True), 2)
    assert mask.slots.tolist() == [[0, 1, -1, -1, -1, -1]] and mask.start.tolist() == [0]
    cache.update(*entries(3))
    cache.crop(torch.tensor([1, 3]))
    padding = torch.ones(2, 5).bool()
    mask = cache.mask(Mask(causal=True, padding=padding), 2)
    assert mask.slots.tolist() == [[0, 1, 2, -1, -1, -1], [0, 1, 2, 3, 4, -1]]
    assert mask.start.tolist() == [1, 3] and mask.causal
    assert mask.padding.tolist() == [[True] * 5 + [False]] * 2


@pytest.mark.parametrize("margin", [0, 2])
def test_a_rolling_cache_holds_a_window_and_a_margin_and_frees_the_rest(margin):
    cache = Rolling(WINDOW, margin)
    assert cache.held == 0 and cache.length.tolist() == []
    keep = WINDOW - 1 + margin
    for n, T in enumerate((1, 1, 7, 1, 30, 1, 1)):
        k, v = entries(T)
        mask = cache.mask(Mask(causal=True), T)
        kv = cache.update(k, v)
        assert mask.slots.tolist() == list(range(cache.seen - kv.k.shape[2], cache.seen))
        assert mask.start == cache.seen - T and kv.fresh is k
        assert cache.held == min(cache.seen, keep) and torch.equal(cache.k, kv.k[:, :, -keep:])
        assert cache.k.untyped_storage().nbytes() <= B * (keep + 1) * 3 * 4, n
        assert cache.v.untyped_storage().nbytes() <= B * (keep + 1) * 5 * 4, n
    assert cache.seen == 42 and cache.length.tolist() == [42, 42]


def test_a_rolling_cache_gives_back_its_margin_once():
    cache = Rolling(WINDOW, 2)
    cache.update(*entries(4))
    for wrong in (5, -1):
        with pytest.raises(MiradaError, match=f"cannot crop 4 keys to {wrong}"):
            cache.crop(wrong)
    cache.crop(1)  # nothing was dropped yet: any of it may go
    assert cache.seen == cache.held == 1
    cache.update(*entries(9))
    for wrong in (7, 11, -1):
        with pytest.raises(MiradaError, match="a rolling cache with margin 2 has dropped"):
            cache.crop(wrong)
    kept = cache.k[:, :, :-2]
    cache.crop(8)
    assert cache.seen == 8 and cache.held == 3 and torch.equal(cache.k, kept)
    with pytest.raises(MiradaError):
        cache.crop(7)  # the margin is spent: the window of the next query would have a hole
    cache.crop(8)
    cache.update(*entries(1))
    cache.crop(8)
    tight = Rolling(WINDOW)
    tight.update(*entries(3))
    tight.crop(2)
    tight.update(*entries(2))
    with pytest.raises(MiradaError):
        tight.crop(3)


def test_a_rolling_caches_padding_is_that_of_the_keys_it_holds():
    cache = Rolling(3)
    cache.update(*entries(6))
    padding = torch.tensor([[0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()
    mask = cache.mask(Mask(causal=True, padding=padding), 1)
    assert mask.slots.tolist() == [4, 5, 6] and torch.equal(mask.padding, padding[:, 4:])
    assert mask.start == 6


def test_a_fixed_cache_is_filled_once_a_source_and_never_shrinks():
    cache = Fixed()
    assert cache.held == 0
    cache.reorder(torch.tensor([0, 1]))
    k, v = entries(4)
    kv = cache.fill(k, v)
    assert kv.k is cache.k is k and kv.v is cache.v is v and cache.held == 4
    cache.crop(1)
    assert cache.held == 4
    cache.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(cache.k, k[[1, 1, 0]]) and torch.equal(cache.v, v[[1, 1, 0]])

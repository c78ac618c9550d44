"""Attention that grows with the length alone, in any model: Linformer and Performer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mirada.core.attend import Attend
from mirada.core.attention import Attention, CrossAttention, NoBias
from mirada.core.cache import KV
from mirada.core.mask import Mask
from mirada.errors import MiradaError
from mirada.kernels.linear import FEATURES, draw, linear
from mirada.model import Model

from .share import blocks, share

SHARING = ("none", "headwise", "key-value", "layerwise")


class Linformer(Attend):
    """softmax(q (E k)^T) F v: n keys and values become k (Wang et al., 2006.04768, eq. 7).

    e, f: (heads or 1, k, n). A shorter text takes their first columns, and pads are drawn to the
    end before that, so that they change nothing; a row that then reads no token is not looked at.
    """

    def __init__(self, e: nn.Parameter, f: nn.Parameter):
        super().__init__()
        self.e, self.f = e, f

    def forward(self, q, kv, *, scale, mask, bias=None, cap=None, sinks=None) -> Tensor:
        _check("Linformer's", mask, bias)
        if mask.causal:
            raise MiradaError(BACK)
        (k, v), n = kv.dense(), self.e.shape[2]
        S = k.shape[2]
        if S > n:
            raise MiradaError(f"Linformer's projections are for {n} tokens, and there are {S}: "
                              f"edit.linformer takes length={S}")
        e, f, seen = self.e[..., :S], self.f[..., :S], Mask()
        if S < n or mask.padding is not None:
            real = k.new_ones(1, S).bool() if mask.padding is None else mask.padding
            k, v, real = _front(k, v, real)
            reads = (e != 0).any(0).to(k.dtype) @ real.to(k.dtype).mT  # (k, B) tokens of each row
            seen = Mask(padding=reads.mT > 0)
        return super().forward(q, KV(e @ k, f @ v), scale=scale, mask=seen, cap=cap, sinks=sinks)

    def extra_repr(self) -> str:
        return f"{self.e.shape[2]} tokens as {self.e.shape[1]}"


BACK = ("Linformer mixes all tokens before it looks, so it cannot look back only: its attention "
        "must go both ways (edit.performer can be causal)")


def _front(k: Tensor, v: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's real keys and values first, in their order, and zeros behind them."""
    order = (~real).int().argsort(dim=1, stable=True)  # (B, S)
    real = real.gather(1, order)
    index, there = order[:, None, :, None], real[:, None, :, None]
    k, v = (x.gather(2, index.expand(len(x), x.shape[1], -1, x.shape[3])) * there for x in (k, v))
    return k, v, real


class Performer(Attend):
    """softmax(q k^T) v by the features w (m, K) of mirada.kernels.linear (2009.14794).

    No weight stands apart here, so there is none for attention's dropout to drop.
    """

    def __init__(self, w: Tensor, kind: str):
        super().__init__()
        self.register_buffer("w", w)
        self.kind = kind

    def forward(self, q, kv, *, scale, mask, bias=None, cap=None, sinks=None) -> Tensor:
        _check("Performer's", mask, bias, cap, sinks)
        k, v = kv.dense()
        wide = torch.promote_types(q.dtype, torch.float32)
        features, w = FEATURES[self.kind], self.w.to(wide)
        with torch.autocast(q.device.type, enabled=False):  # exponents rounded to 8 bits are none
            q = features(q.to(wide) * scale**0.5, w, query=True)
            k = features(k.to(wide) * scale**0.5, w)
            return linear(q, k, v.to(wide), mask.causal, mask.padding).to(v.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.w)} {self.kind} features"


def linformer(model: Model, k: int, *, length: int | None = None, sharing: str = "headwise",
              start: str = "mean", seed: int = 0, layers: Sequence[int] | None = None) -> Model:
    """The model whose self-attention looks at k mixtures of the keys (Linformer): n * k products,
    not n * n. Only attention that goes both ways; of an encoder-decoder, its encoder's.

    length: most tokens, the model's context when None. sharing: of the projections, as in section
    4: "none" (each head's own), "headwise" (a layer's own for keys and for values), "key-value"
    (one a layer) or "layerwise" (one). start: "mean" (each mixture is the mean of length / k
    neighbours, so that k = length is the model as it was) or "normal" (N(0, 1 / k), by seed).
    layers: places in the stack's order, all when None. They train with all else; `save` refuses.
    Raises MiradaError.
    """
    length = model.context if length is None else length
    if length is None:
        raise MiradaError(f"{model.architecture} has no longest context: give length=, the most "
                          "tokens that will be read")
    if not (type(k) is int and type(length) is int and 1 <= k <= length):
        raise MiradaError(f"k is {k!r} and length {length!r}: whole numbers, k from 1 to length")
    for name, given, known in (("sharing", sharing, SHARING), ("start", start, STARTS)):
        if given not in known:
            raise MiradaError(f"{name} is {given!r}; it is {', '.join(known)}")
    generator, shared = torch.Generator().manual_seed(seed), []

    def project(count: int) -> nn.Parameter:
        rows = STARTS[start](count, k, length, generator)
        return nn.Parameter(rows.to(model.device, model.dtype))

    def make(a: Attention) -> Attend:
        if a.mask.causal:
            if model.encoder_decoder:
                return a.attend
            raise MiradaError(BACK)
        _check("Linformer's", a.mask, a.score_bias)
        e = shared[0] if shared else project(a.kv_heads if sharing == "none" else 1)
        if sharing == "layerwise":
            shared[:] = [e]
        made = Linformer(e, e if sharing in ("key-value", "layerwise") else project(len(e)))
        made.dropout = a.attend.dropout
        return made

    return _swap(model, f"Linformer's: {k} of {length}, {sharing}", layers, make)


def _mean(count: int, k: int, n: int, generator: torch.Generator) -> Tensor:
    rows = nn.functional.one_hot(torch.arange(n) * k // n, k).double().T  # (k, n)
    return (rows / rows.sum(1, keepdim=True)).repeat(count, 1, 1)


def _normal(count: int, k: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, k, n, generator=generator, dtype=torch.float64) * k**-0.5


STARTS = {"mean": _mean, "normal": _normal}


def performer(model: Model, features: int | None = None, *, kind: str = "positive",
              orthogonal: bool = True, seed: int = 0,
              layers: Sequence[int] | None = None) -> Model:
    """The model whose self-attention is estimated by random features (Performer): n * m products,
    not n * n, both ways or causal.

    features: m of each layer, K ln K when None. kind: "positive", or "trigonometric" to compare.
    orthogonal: fewer are needed. seed: for drawing; the edit made again with another draws anew,
    and the weights, which both models share, go on. layers: places in each stack's order, all when
    None. A growing cache keeps keys as ever, and a step reads them all. `save` refuses; attention's
    dropout is left out. Raises MiradaError.
    """
    if kind not in FEATURES:
        raise MiradaError(f"kind is {kind!r}; it is {', '.join(FEATURES)}")
    if features is not None and (type(features) is not int or features < 1):
        raise MiradaError(f"features is {features!r}: it must be a whole number from 1")
    generator = torch.Generator().manual_seed(seed)

    def make(a: Attention) -> Attend:
        _check("Performer's", a.mask, a.score_bias, a.cap, a.sinks)
        K = a.q.out_features // a.heads
        w = draw(features or round(K * math.log(K)) or 1, K, generator, orthogonal)
        return Performer(w.to(model.device, model.dtype), kind)

    made = f"{features or 'K ln K'} {kind} features, seed {seed}"
    return _swap(model, f"Performer's: {made}", layers, make)


def _swap(model: Model, said: str, layers: Sequence[int] | None,
          make: Callable[[Attention], Attend]) -> Model:
    """The model with another `attend` in its self-attention."""
    other = share(model, f"its attention was made {said}")
    for block in blocks(other, layers):
        for a in block.modules():
            if isinstance(a, Attention) and not isinstance(a, CrossAttention):
                if type(a.attend) not in (Attend, Linformer, Performer):
                    raise MiradaError(f"{model.architecture}'s attention does more than weigh "
                                      "values by a softmax, which no linear one can stand for")
                a.attend = make(a)
    return other


def _check(whose: str, mask: Mask, bias=None, cap=None, sinks=None) -> None:
    """Raises where scores are needed that neither attention ever makes."""
    asked = {"a bias of each pair": not (bias is None or isinstance(bias, NoBias)),
             "a soft cap": cap is not None, "sinks": sinks is not None,
             "a window": mask.window is not None, "a prefix": mask.prefix is not None,
             "packed texts": bool(mask.segments), "a pattern": bool(mask.patterns),
             "a cache with gaps": mask.slots is not None}
    found = next((what for what, there in asked.items() if there), None)
    if found:
        raise MiradaError(f"{whose} attention makes no score of one query and one key, so it "
                          f"cannot have {found}")

"""Experiments on any model: tokens in another order, no residual connections, another mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mirada.core.attention import Attention
from mirada.core.mask import Mask
from mirada.edit.masks import attention_pattern
from mirada.edit.positions import without_positions
from mirada.edit.residual import without_residual
from mirada.errors import MiradaError

from . import draw
from .describe import stacks
from .embeddings import last_stream
from .stages import read

SAME = 1e-4  # of the outputs' spread: what another order of adding up may do in float32


@dataclass(frozen=True)
class Variant:
    """One model, both orders. Differences are the largest, of the outputs' standard deviation.

    by_place: output n against output n; by_token: each token's output against its own, wherever it
    stands now; pooled: the mean over tokens against the mean. cosines (T, T): rows the first
    order's tokens, columns the second's.
    """

    name: str
    by_place: float
    by_token: float
    pooled: float
    cosines: Tensor

    @property
    def verdict(self) -> str:
        """What the figures say of this model and these orders."""
        if self.by_token > SAME:
            return "order matters"
        return "order does not matter" if self.by_place <= SAME else "outputs move with tokens"


@dataclass(frozen=True)
class Permuted:
    """The same tokens in two orders through a model, with and without positions. Printed: a table.

    order: token n of the second text is token order[n] of the first.
    """

    first: list[str]
    second: list[str]
    order: list[int]
    variants: list[Variant]

    def data(self) -> dict:
        """For programs."""
        return {"first": self.first, "second": self.second, "order": self.order, "variants": [
            {**vars(v), "cosines": v.cosines.tolist(), "verdict": v.verdict}
            for v in self.variants]}

    def __str__(self) -> str:
        wide = max(len(v.name) for v in self.variants)
        lines = [" ".join(self.first), " ".join(self.second), "", "largest difference of outputs, "
                 "in standard deviations", f"{'':{wide}}   by place  by token  of the mean"]
        lines += [f"{v.name:{wide}}  {_small(v.by_place)}  {_small(v.by_token)}     "
                  f"{_small(v.pooled)}  {v.verdict}" for v in self.variants]
        return "\n".join(lines)

    def save(self, path) -> str:
        """Draw which output of one order is like which of the other into `path`."""
        side, count = max(2.4, 0.3 * len(self.first) + 1.2), len(self.variants)
        figure = draw.canvas(side * count + 0.9, side + 0.5)
        axes = figure.subplots(1, count, squeeze=False)[0]
        for n, (place, variant) in enumerate(zip(axes, self.variants, strict=True)):
            draw.dressed(place, variant.name, "Second order", "First order" if not n else "")
            picture = place.imshow(variant.cosines.numpy(), vmin=0, vmax=1, cmap=draw.heat())
            place.set_xticks(range(len(self.second)), [draw.short(t, 10) for t in self.second],
                             rotation=90)
            place.set_yticks(range(len(self.first)), [draw.short(t, 10) for t in self.first])
        draw.bar(figure, picture, list(axes), "Cosine of two outputs", 7, shrink=0.8)
        return draw.save(figure, path)


def permute(model, text, other=None) -> Permuted:
    """A text and the same tokens in another order, through the model as it is, without positions,
    and without positions and causal mask: does it know the order?

    text: a text, or ids (1, T). other: a text of the same tokens, or their order as numbers;
    backwards between the special tokens at the ends when None. Of an encoder-decoder, its encoder.
    Outputs are those of the last block. Raises MiradaError.
    """
    ids, tokens = _given(model, text)
    order = _order(model, ids[0].tolist(), other)
    bare = without_positions(model)
    models = {"as it is": model, "without positions": bare}
    if any(m.mask.causal for m in _attentions(model)):
        models["nor causal mask"] = attention_pattern(bare, "dense", causal=False)
    variants = []
    for name, each in models.items():
        with torch.no_grad():
            a, b = last_stream(each, {"input_ids": torch.cat([ids, ids[:, order]])}).float()
        spread = a.std().item() or 1.0
        by_place, by_token, pooled = (
            (x - y).abs().max().item() / spread
            for x, y in ((a, b), (a[order], b), (a.mean(0), b.mean(0))))
        cosines = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T
        variants.append(Variant(name, by_place, by_token, pooled, cosines.cpu()))
    return Permuted(tokens, [tokens[n] for n in order], order, variants)


def _attentions(model):
    stack = next(iter(stacks(model).values()))
    return [m for m in stack.blocks.modules() if isinstance(m, Attention)]


def _order(model, ids: list[int], other) -> list[int]:
    """Which token of the first order stands at each place of the second."""
    if other is None:
        special = model.tokenizer.special_ids if model.tokenizer is not None else set()
        inner = [n for n, i in enumerate(ids) if i not in special]
        back = dict(zip(inner, reversed(inner), strict=True))
        return [back.get(n, n) for n in range(len(ids))]
    if not isinstance(other, str):
        order = [int(n) for n in other]
        if sorted(order) != list(range(len(ids))):
            raise MiradaError(f"an order of {len(ids)} tokens names each place from 0 once; this "
                              f"is {order}")
        return order
    theirs = _given(model, other)[0][0].tolist()
    if sorted(theirs) != sorted(ids):
        pieces = model.tokenizer.pieces
        raise MiradaError(f"the two texts do not have the same tokens: {' '.join(pieces(ids))} and "
                          f"{' '.join(pieces(theirs))}; give an order as numbers instead")
    places = {i: [n for n, own in enumerate(ids) if own == i] for i in set(ids)}
    return [places[i].pop(0) for i in theirs]


@dataclass(frozen=True)
class Depths:
    """What is found before each block, and after the last, by depth.

    gradient: the length of the loss's gradient at the stream. likeness: the mean cosine between
    the vectors of two tokens; at 1 all tokens are one, and no later block can tell them apart.
    """

    gradient: list[float]
    likeness: list[float]


@dataclass(frozen=True)
class Gradients:
    """A model as it is and without its residual connections. Printed, it is a table."""

    loss: str
    usual: Depths
    without: Depths

    def data(self) -> dict:
        """For programs."""
        return {"loss": self.loss, "usual": vars(self.usual), "without": vars(self.without)}

    def __str__(self) -> str:
        columns = (self.usual.gradient, self.without.gradient,
                   self.usual.likeness, self.without.likeness)
        lines = [f"gradient of {self.loss}; likeness: mean cosine of two tokens",
                 "             gradient             likeness",
                 "depth    usual   without      usual   without   (without residual connections)"]
        lines += [f"{n:5}{a:9.3g} {b:9.3g}  {c:9.3f} {d:9.3f}"
                  for n, (a, b, c, d) in enumerate(zip(*columns, strict=True))]
        return "\n".join(lines)

    def save(self, path) -> str:
        """Draw both figures against the depth into `path`."""
        figure = draw.canvas(9.6, 3.7)
        first, second = figure.subplots(1, 2)
        draw.dressed(first, "Gradient by depth", "Blocks below", "Length at the stream")
        draw.dressed(second, "Are the tokens still apart?", "Blocks below",
                     "Mean cosine of two tokens")
        for n, (name, found) in enumerate((("as it is", self.usual),
                                           ("without residual connections", self.without))):
            for axes, line in ((first, found.gradient), (second, found.likeness)):
                axes.plot(range(len(line)), line, "o-", color=draw.INKS[n], markersize=4,
                          linewidth=1.8, label=name)
                axes.grid(color=draw.EDGE, linewidth=0.5)
        first.set_yscale("log")
        first.minorticks_off()
        first.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
        second.set_ylim(min(-0.05, *self.usual.likeness, *self.without.likeness), 1.05)
        second.legend(frameon=False, fontsize=9, labelcolor=draw.INK)
        return draw.save(figure, path)


def gradients(model, text) -> Gradients:
    """How much of the loss's gradient reaches each depth, and how alike tokens become there, with
    residual connections and without (the second as in 2103.03404).

    text: a text, or ids (1, T) of two tokens or more. The loss is the model's own for its next
    tokens; of a model that does not write, the last stream along a fixed random direction. Of an
    encoder-decoder, its decoder. Raises MiradaError.
    """
    ids, _ = _given(model, text)
    if ids.shape[1] < 2:
        raise MiradaError("one token has no other to differ from: give two or more")
    loss = "the next-token loss" if model.generates else "a random direction of the output"
    return Gradients(loss, _by_depth(model, ids), _by_depth(without_residual(model), ids))


def _by_depth(model, ids: Tensor) -> Depths:
    """Both figures at each depth of the stack that comes last."""
    streams: list[Tensor] = []

    def enter(module, args):
        x = args[0] if streams else args[0].detach().requires_grad_()  # all below is not asked
        streams.append(x)
        return (x, *args[1:])

    stack = model.decoder
    handles = [block.register_forward_pre_hook(enter) for block in stack.blocks]
    handles.append(stack.norm.register_forward_pre_hook(lambda m, args: streams.append(args[0])))
    try:
        with torch.enable_grad():
            if model.generates:
                loss = model(input_ids=ids, labels=ids).loss
            else:
                out = last_stream(model, {"input_ids": ids})
                way = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
                loss = (out * F.normalize(way, dim=-1).to(out)).sum()
            found = torch.autograd.grad(loss, streams)
    finally:
        for handle in handles:
            handle.remove()
    return Depths([g.float().norm().item() for g in found],
                  [likeness(x[0].detach().float()) for x in streams])


def likeness(x: Tensor) -> float:
    """The mean cosine of two different rows of x (T, D)."""
    unit, count = F.normalize(x, dim=-1), len(x)
    return ((unit @ unit.T).sum().item() - count) / (count * (count - 1))


@dataclass(frozen=True)
class Seen:
    """Which query sees which key, by masks: (T, S) bool each. Printed: a dot for what is hidden."""

    grids: dict[str, Tensor]

    def data(self) -> dict:
        """For programs: rows of 0 and 1."""
        return {name: grid.int().tolist() for name, grid in self.grids.items()}

    def __str__(self) -> str:
        lines = []
        for name, grid in self.grids.items():
            lines += [f"{name}: {grid.float().mean():.0%} of all pairs",
                      *(" ".join("■" if x else "·" for x in row) for row in grid.tolist()), ""]
        return "\n".join(lines[:-1])

    def save(self, path) -> str:
        """Draw the masks beside each other into `path`."""
        from matplotlib.colors import ListedColormap
        figure = draw.canvas(2.5 * len(self.grids) + 0.3, 3.0)
        axes = figure.subplots(1, len(self.grids), squeeze=False)[0]
        for n, (place, (name, grid)) in enumerate(zip(axes, self.grids.items(), strict=True)):
            draw.dressed(place, name, "Key", "" if n else "Query")
            place.imshow(grid.numpy(), cmap=ListedColormap([draw.CLOTH, draw.INKS[0]]), vmin=0,
                         vmax=1)
            place.set_xticks(torch.arange(-0.5, grid.shape[1]).tolist(), minor=True)
            place.set_yticks(torch.arange(-0.5, grid.shape[0]).tolist(), minor=True)
            place.tick_params(which="minor", length=0)
            place.grid(which="minor", color=draw.CLOTH, linewidth=0.7)
        return draw.save(figure, path)


def sees(masks: dict[str, Mask] | Mask, tokens: int = 12) -> Seen:
    """The picture of a mask, or of several by name, for so many tokens: see edit.pattern."""
    named = masks if isinstance(masks, dict) else {"mask": masks}
    return Seen({name: mask.rows(0, tokens, tokens, tokens)[0, 0] for name, mask in named.items()})


def _given(model, text) -> tuple[Tensor, list[str]]:
    """ids (1, T) and the tokens' names."""
    if isinstance(text, str):
        batch, tokens, _ = read(model, text)
        return batch["input_ids"], next(iter(tokens.values()))
    ids = torch.as_tensor(text, device=model.device).reshape(1, -1)
    if model.tokenizer is not None:
        return ids, model.tokenizer.pieces(ids[0].tolist())
    return ids, [str(n) for n in ids[0].tolist()]


def _small(x: float) -> str:
    return f"{x:8.1e}" if x < 1e-3 else f"{x:8.3f}"

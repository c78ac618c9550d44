"""Sweeps: the same change at every head or place of a model, what each does to the answer, and
whether that is more than chance.

The layers below a change are the same for all, so they run once: each change begins from the stored
stream at its layer, and the changes of a layer run side by side as rows of one batch.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mirada.errors import MiradaError
from mirada.look import draw, intervene, record, sites

TOKENS = 2048  # that run side by side; more cost memory and are no faster
NULL = 32  # heads that an effect is compared with, or all others if they are fewer
GRIDS = ("head_out", "attn", "cross", "mlp", "resid")
DONE = {"mean": "replaced by its mean", "zero": "set to zero", "patch": "patched",
        "resample": "taken from another row", "scale": "scaled"}
CAUTION = ("A change shows what this model's answer owes to a place as things stand. Little may "
           "mean that others step in (see backup); much, that nothing alike was ever seen.")
Metric = Callable[[Any], Tensor]


def logit_difference(right, wrong, at: int = -1) -> Metric:
    """How much higher the logit of one token is than of another, (B,): the metric that Zhang &
    Nanda (2309.16042) recommend. right, wrong: a token id, or one for each row."""
    def metric(out) -> Tensor:
        row = logits(out)[:, at]
        return _of(row, right) - _of(row, wrong)
    return metric


def log_probability(token, at: int = -1) -> Metric:
    """The log probability of a token, (B,). token: an id, or one for each row."""
    return lambda out: _of(logits(out)[:, at].log_softmax(-1), token)


def divergence(base: Tensor, at: int = -1) -> Metric:
    """KL from the answer of logits `base` (B, T, V) to the changed one, (B,) in nats."""
    kept = base[:, at].log_softmax(-1)
    return lambda out: (kept.exp() * (kept - logits(out)[:, at].log_softmax(-1))).sum(-1)


def logits(out) -> Tensor:
    """A model output's logits."""
    for name in ("logits", "prediction_logits"):
        if name in out:
            return out[name]
    raise MiradaError(f"this output has {', '.join(out)}, no logits: write a metric for it, a "
                      "function of the output that gives one number a row")


def _of(rows: Tensor, token) -> Tensor:
    index = torch.as_tensor(token, device=rows.device).expand(len(rows))
    return rows.gather(1, index[:, None])[:, 0]


@dataclass(frozen=True)
class Sweep:
    """What one change does, made at each place in turn. Printed, its largest effects.

    effects (L, N, B): the metric less what it is unchanged, by layer, head (or position; one column
    where a whole sublayer changes) and row of the batch. base (B,): unchanged. executed: blocks
    that ran, a row of the batch each, of which one pass takes `whole`.
    """

    site: str
    op: str
    stack: str
    layers: list[int]
    effects: Tensor
    base: Tensor
    reference: str
    executed: int
    whole: int

    @property
    def mean(self) -> Tensor:
        """(L, N): the mean effect over the rows."""
        return self.effects.mean(2)

    @property
    def forwards(self) -> float:
        """The blocks that ran, in passes of the whole model."""
        return self.executed / self.whole

    def interval(self, layer: int, column: int = 0, seed: int = 0) -> tuple[float, float]:
        """The mean effect's 95 % bootstrap interval over the rows of the batch."""
        return bootstrap(self.effects[self.layers.index(layer), column], seed=seed)

    def null(self, layer: int, column: int = 0, band: int = 1, most: int = NULL,
             seed: int = 0) -> Tensor:
        """The mean effects of other places drawn by lot from the layers within `band` of this one;
        from the nearest others where these are fewer than `most`."""
        others = [(abs(n - layer), i, c) for i, n in enumerate(self.layers)
                  for c in range(self.effects.shape[1]) if (n, c) != (layer, column)]
        near = [place for place in others if place[0] <= band]
        if len(near) < most:
            near = sorted(others)[:most]
        drawn = random.Random(seed).sample(near, min(most, len(near)))
        return torch.stack([self.mean[i, c] for _, i, c in drawn]) if drawn else torch.zeros(0)

    def percentile(self, layer: int, column: int = 0, **options) -> float:
        """The part of the null whose effect is smaller in size, 0 to 1."""
        own = self.mean[self.layers.index(layer), column].abs()
        others = self.null(layer, column, **options).abs()
        return (others < own).double().mean().item() if len(others) else float("nan")

    def largest(self, k: int = 10) -> list[tuple[int, int]]:
        """(layer, column) of the k largest mean effects, by size."""
        order = self.mean.abs().flatten().argsort(descending=True)[:k].tolist()
        return [(self.layers[n // self.effects.shape[1]], n % self.effects.shape[1]) for n in order]

    def data(self) -> dict:
        """For programs."""
        tensors = {"effects": self.effects.tolist(), "base": self.base.tolist(),
                   "mean": self.mean.tolist()}
        return {**vars(self), **tensors, "forwards": self.forwards, "note": CAUTION}

    def __str__(self) -> str:
        what = {"head_out": "head", "resid": "position"}.get(self.site)
        lines = [f"{self.op} {self.site} of {self.stack} ({self.reference}); unchanged: "
                 f"{self.base.mean().item():.4g} on average of {len(self.base)}"]
        for layer, column in self.largest():
            where = f"layer {layer}" + (f", {what} {column}" if what else "")
            effect = self.mean[self.layers.index(layer), column].item()
            lines.append(f"  {where:22} {effect:+.4f}{_said(self.interval(layer, column))}  more "
                         f"than {self.percentile(layer, column):.0%} of others")
        lines.append(f"  {self.executed} blocks ran: {self.forwards:.1f} passes' worth")
        return "\n".join([*lines, CAUTION])

    def save(self, path) -> str:
        """Write the figures as .json, or layers and columns as a picture. Raises MiradaError."""
        out = draw.place(path, (*draw.PICTURES, ".json"))
        if out.suffix == ".json":
            words = json.dumps(self.data(), indent=1) + "\n"
            return draw.written(out, lambda aside: Path(aside).write_text(words))
        L, N = self.mean.shape
        figure = draw.canvas(min(max(0.4 * N + 2, 4), 16), min(max(0.26 * L + 1.4, 2.6), 12))
        what = {"head_out": "head", "resid": "position"}.get(self.site, self.site)
        across = what.capitalize() if N > 1 else ""
        axes = draw.dressed(figure.subplots(), f"Each {what} {DONE[self.op]}", across, "Layer")
        most = self.mean.abs().max().item() or 1.0
        picture = axes.imshow(self.mean.cpu().numpy(), cmap="PuOr_r", vmin=-most, vmax=most,
                              aspect="auto")
        axes.set_yticks(range(L), self.layers)
        draw.bar(figure, picture, axes, "Change of the metric", aspect=40, pad=0.03)
        return draw.save(figure, out)


def bootstrap(values: Tensor, share: float = 0.95, draws: int = 2000, seed: int = 0
              ) -> tuple[float, float]:
    """The percentile interval of the mean of values (B,), drawn anew with replacement; of one value
    there is none, and it is not a number."""
    if len(values) < 2:
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    values = values.double().cpu()
    drawn = values[torch.randint(len(values), (draws, len(values)), generator=generator)].mean(1)
    low, high = drawn.quantile(torch.tensor([(1 - share) / 2, (1 + share) / 2]).double()).tolist()
    return low, high


def _said(interval: tuple[float, float]) -> str:
    low, high = interval
    return "" if low != low else f"  [{low:+.4f}, {high:+.4f}]"


def sweep(model: nn.Module, clean, metric: Metric, *, op: str = "mean", site: str = "head_out",
          source=None, stack: str | None = None, layers: list[int] | None = None, pos="all",
          factor: float = 0.0, seed: int = 0) -> Sweep:
    """Change each head (site "head_out"), sublayer ("attn", "cross", "mlp") or position of the
    stream ("resid") of `model` in turn, and measure the answer to `clean` each time.

    clean: token ids (B, T), or the model's arguments by name. metric: a function of the model's
    output that gives one number a row, such as logit_difference(right, wrong). op: mean, zero,
    resample, patch or scale; source: arguments of another pass (the reference of a mean, the donor
    of a patch) or a tape of it; see intervene. With op="patch" a clean donor into a corrupt text is
    denoising (is this place enough?), a corrupt donor into a clean one noising (is it needed?).
    logits_to_keep=1 among the arguments spares most of the head. Raises MiradaError.
    """
    if site not in GRIDS:
        raise MiradaError(f"a sweep goes over {', '.join(GRIDS)}, not {site!r}")
    clean, reference = _arguments(clean), _reference(op, source)
    stack = stack or ("cross" if site == "cross" else list(sites.stacks(model))[-1])
    home = intervene.home_of(model, stack)
    with torch.no_grad(), _counted(model) as count:
        source = _taped(model, source, site)
        count[0] = 0
        with record.record(model, keep=None, resid=True) as tape:
            out = model(**clean)
        base, whole = _numbers(metric(out)), count[0]
        chosen = range(len(sites.stacks(model)[home].order)) if layers is None else layers
        effects = []
        for layer in tqdm(chosen, f"{op} {site}", unit="layer", disable=None, leave=False):
            change = intervene.check(model, dict(
                site=site, layer=layer, op=op, stack=stack, pos=pos, source=source, factor=factor,
                seed=seed, source_layer=layer))
            cells = _cells(model, change, tape.resid(layer, home))
            tail = Tail(model, home, layer, tape.resid(layer, home), clean, out)
            effects.append(torch.stack(list(tail.run(cells, metric, len(base)))) - base)
    return Sweep(site, op, stack, list(chosen), torch.stack(effects), base, reference, count[0],
                 whole)


def _cells(model: nn.Module, change, x: Tensor) -> list:
    """One change for each column of a layer, as it is made in the tail's first layer."""
    change = replace(change, layer=0)
    if change.site == "head_out":
        heads = intervene.attention_of(model, replace(change, layer=change.from_layer)).heads
        return [replace(change, heads=(h,)) for h in range(heads)]
    if change.site == "resid":
        return [replace(change, pos=[p]) for p in range(x.shape[1])]
    return [change]


class Tail:
    """A model from one layer on: the stream that enters it is given, what lies below does not run.

    The same modules as the model's own, in a tree that begins later; no pass is written anew.
    """

    def __init__(self, model: nn.Module, home: str, layer: int, x: Tensor, clean: dict, out):
        self.x, self.clean = x, dict(clean)
        stack = _shallow(sites.stacks(model)[home])
        stack._modules["embed"] = self.given = Given()
        self.given.x = x
        stack.order = stack.order[layer:]
        self.model = _shallow(model)
        if model.encoder_decoder:
            body = self.model._modules["body"] = _shallow(model.body)
            body._modules[home] = stack
            if home == "decoder":
                self.clean["encoder_outputs"] = out["encoder_last_hidden_state"]
                for name in ("input_ids", "inputs_embeds"):
                    self.clean.pop(name, None)
        else:
            self.model._modules["body"] = stack

    def __call__(self):
        """The model's output, from the stream that was given."""
        return self.model(**self.clean)

    def run(self, cells: list, metric: Metric, rows: int) -> Iterator[Tensor]:
        """(B,) numbers of each change, several of them side by side as rows of one batch."""
        B, T = self.x.shape[:2]
        together = max(1, TOKENS // (B * T))
        for at in range(0, len(cells), together):
            some = cells[at : at + together]
            n = len(some)
            self.given.x = _repeated(self.x, n)
            batch = {name: _repeated(value, n) if _batched(value, B) else value
                     for name, value in self.clean.items()}
            changes = [replace(c, rows=tuple(range(i * B, (i + 1) * B)))
                       for i, c in enumerate(some)]
            with intervene.intervene(self.model, changes):
                out = self.model(**batch)
            for i in range(n):
                mine = {k: v[i * B : (i + 1) * B] for k, v in out.items() if _batched(v, n * B)}
                yield _numbers(metric(type(out)(mine)))


class Given(nn.Module):
    """Stands where a stack embeds its input and hands on the stream that it was given."""

    x: Tensor

    def forward(self, inputs, ctx) -> Tensor:
        return self.x


def _shallow(module: nn.Module) -> nn.Module:
    """The same module with a table of children of its own."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    return twin


def _batched(value, B: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == B


def _repeated(x: Tensor, n: int) -> Tensor:
    return x.repeat(n, *[1] * (x.ndim - 1))


def _arguments(given) -> dict:
    given = {"input_ids": given} if isinstance(given, Tensor) else dict(given)
    if "labels" in given or "cache" in given:
        raise MiradaError("a sweep measures with its metric and runs whole texts: leave labels and "
                          "cache out")
    return given


def _reference(op: str, source) -> str:
    if source is not None:
        return "from the source that was given"
    return {"mean": "the mean over the batch's own tokens",
            "resample": "another row of the batch"}.get(op, "no reference needed")


def _taped(model: nn.Module, source, site: str):
    """A tape of a source that is given as arguments."""
    if source is None or isinstance(source, record.Tape):
        return source
    keep = {"head_out": {"z": True}, "resid": {"resid": True}}.get(site, {"resid": "sublayers"})
    with record.record(model, keep=None, **keep) as tape:
        model(**_arguments(source))
    return tape


def _numbers(value: Tensor) -> Tensor:
    value = torch.as_tensor(value).detach().double()
    if value.ndim > 1:
        raise MiradaError(f"a metric gives one number a row; this one gave {tuple(value.shape)}")
    return value.reshape(-1)


@contextmanager
def _counted(model: nn.Module) -> Iterator[list[int]]:
    """Counts the blocks that run, a row of the batch each."""
    count = [0]

    def step(module, args):
        count[0] += len(args[0])

    blocks = [b for stack in sites.stacks(model).values() for b in stack.blocks]
    handles = [block.register_forward_pre_hook(step) for block in blocks]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Effect:
    """What some changes together do to the metric: before and after (B,), and the same for as many
    heads drawn by lot."""

    changes: list[str]
    before: Tensor
    after: Tensor
    null: Tensor

    @property
    def mean(self) -> float:
        return (self.after - self.before).mean().item()

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of the mean effect over the rows of the batch."""
        return bootstrap(self.after - self.before)

    @property
    def percentile(self) -> float:
        """The part of the null whose effect is smaller in size; not a number without a null."""
        if not len(self.null):
            return float("nan")
        return (self.null.abs() < abs(self.mean)).double().mean().item()

    @property
    def agreement(self) -> float:
        """The part of the rows on which the effect has the sign of the mean."""
        return ((self.after - self.before).sign() == (1 if self.mean > 0 else -1)
                ).double().mean().item()

    def data(self) -> dict:
        """For programs."""
        tensors = {name: getattr(self, name).tolist() for name in ("before", "after", "null")}
        return {"changes": self.changes, **tensors, "mean": self.mean, "interval": self.interval,
                "percentile": self.percentile, "agreement": self.agreement, "note": CAUTION}

    def __str__(self) -> str:
        lines = [f"{'; '.join(self.changes)}: {self.mean:+.4f}{_said(self.interval)}"]
        if len(self.null):
            lines.append(f"more than {self.percentile:.0%} of {len(self.null)} draws of others")
        return "\n".join([*lines, CAUTION])


def effect(model: nn.Module, clean, metric: Metric, changes, *, null: int = 0, band: int = 1,
           seed: int = 0) -> Effect:
    """The metric before and after some changes made together.

    null: how many times as many other heads of the layers within `band` are drawn and changed alike
    (changes of heads only). Raises MiradaError.
    """
    clean = _arguments(clean)
    changes = [intervene.check(model, c) for c in ([changes] if isinstance(changes, dict)
                                                   else changes)]
    drawn = _drawn(model, changes, null, band, random.Random(seed)) if null else []
    with torch.no_grad():
        before = _numbers(metric(model(**clean)))
        after = _changed(model, clean, metric, changes)
        others = [(_changed(model, clean, metric, c) - before).mean() for c in drawn]
    return Effect([c.words for c in changes], before, after,
                  torch.stack(others) if others else torch.zeros(0))


def _changed(model: nn.Module, clean: dict, metric: Metric, changes: list) -> Tensor:
    with intervene.intervene(model, *changes):
        return _numbers(metric(model(**clean)))


def _drawn(model: nn.Module, changes: list, null: int, band: int, rng) -> Iterator[list]:
    """The same changes in heads that were not chosen, of layers near by."""
    own = {(c.stack, c.layer, h) for c in changes for h in c.heads or ()}
    if not all(c.heads for c in changes):
        raise MiradaError("a null is drawn among heads: each change must say its heads")
    for _ in range(null):
        made, taken = [], set(own)
        for change in changes:
            free = [(n, h) for n, h in _near(model, change, band)
                    if (change.stack, n, h) not in taken]
            if len(free) < len(change.heads):
                raise MiradaError(f"{change.words}: the layers within {band} of it have too few "
                                  "other heads to compare with")
            for n, h in rng.sample(free, len(change.heads)):
                taken.add((change.stack, n, h))
                made.append(replace(change, layer=n, heads=(h,)))
        yield made


def _near(model: nn.Module, change, band: int) -> list[tuple[int, int]]:
    L = len(sites.stacks(model)[intervene.home_of(model, change.stack)].order)
    layers = range(max(0, change.layer - band), min(L, change.layer + band + 1))
    return [(n, h) for n in layers
            for h in range(intervene.attention_of(model, replace(change, layer=n)).heads)]


@dataclass(frozen=True)
class Backup:
    """Heads changed together against each alone. backup: joint - sum of singles; far from 0, others
    step in for a head that is gone, or several did the same thing."""

    heads: list[tuple[int, int]]
    singles: Tensor  # (n,) mean effects
    joint: float

    @property
    def backup(self) -> float:
        return self.joint - self.singles.sum().item()

    def data(self) -> dict:
        """For programs."""
        return {"heads": self.heads, "singles": self.singles.tolist(), "joint": self.joint,
                "backup": self.backup, "note": CAUTION}

    def __str__(self) -> str:
        alone = ", ".join(f"{layer}.{head} {x:+.4f}" for (layer, head), x in
                          zip(self.heads, self.singles.tolist(), strict=True))
        return f"together {self.joint:+.4f}; alone {alone}; backup {self.backup:+.4f}\n{CAUTION}"


def backup(model: nn.Module, clean, metric: Metric, heads: Sequence[tuple[int, int]], *,
           op: str = "mean", source=None, stack: str | None = None) -> Backup:
    """Change some heads, (layer, head) each, one by one and together. Raises MiradaError."""
    with torch.no_grad():
        source = _taped(model, source, "head_out")
    changes = [dict(site="head_out", layer=n, heads=[h], op=op, source=source, stack=stack)
               for n, h in heads]
    singles = [effect(model, clean, metric, c).mean for c in changes]
    return Backup(list(heads), torch.tensor(singles, dtype=torch.float64),
                  effect(model, clean, metric, changes).mean)


def path(model: nn.Module, clean, corrupt, metric: Metric, sender: tuple[int, int],
         receiver: tuple[int, int], *, stack: str | None = None) -> Effect:
    """What a head changes in the answer through another head alone (path patching, 2211.00593).

    sender, receiver: (layer, head), the sender's layer below. The sender brings what it brings in
    `corrupt`; every other head before the receiver what it brings in `clean`, MLPs run; and of all
    this only what the receiver then brings enters the pass that is measured. Raises MiradaError.
    """
    clean, donor = _arguments(clean), _taped(model, corrupt, "head_out")
    if sender[0] >= receiver[0]:
        raise MiradaError(f"head {receiver} cannot hear of head {sender}: the sender's layer lies "
                          "below the receiver's")
    own = _taped(model, clean, "head_out")

    def patch(layer: int, head: int | None, source) -> dict:
        return dict(site="head_out", layer=layer, heads=head, op="patch", source=source,
                    stack=stack)
    between = [patch(n, None, own) for n in range(sender[0] + 1, receiver[0])]
    with torch.no_grad(), intervene.intervene(model, patch(*sender, donor), *between), (
            record.record(model, keep=None, z=True)) as heard:
        model(**clean)
    found = effect(model, clean, metric, patch(*receiver, heard))
    words = "head {}.{} of the other text, heard by {}.{} alone".format(*sender, *receiver)
    return replace(found, changes=[words])


def downstream(model: nn.Module, clean, changes, stack: str | None = None) -> Tensor:
    """(L, H): how much each head's own output changes, as a part of its length, when `changes` are
    made elsewhere: who hears of it, or steps in. 0 where nothing reaches."""
    clean, tapes = _arguments(clean), []
    for made in ([], changes):
        with torch.no_grad(), intervene.intervene(model, made), record.record(
                model, z=True) as tape:
            model(**clean)
        tapes.append(tape)
    rows = []
    for layer in tapes[0].layers(stack):
        before, after = (tape.z(layer, tape.site(layer, stack)[0]) for tape in tapes)
        length = before.norm(dim=-1).sum((0, 1)).clamp(min=torch.finfo(before.dtype).tiny)
        rows.append((after - before).norm(dim=-1).sum((0, 1)) / length)
    return torch.stack(rows)

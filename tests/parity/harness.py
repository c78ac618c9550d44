"""The parity table: each family and head against the reference, in float64, on the same file.

A row names the reference's class and a tiny config. Random weights, with norms and biases moved off
one and zero, are written by the reference's own save_pretrained; both sides read that file. The
reference's float32 islands are raised to float64 by `Float64`, so every row holds to 1e-10.
"""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

import mirada
from mirada import registry
from mirada.core.attention import Attention
from mirada.core.bias import ScoreBias
from mirada.core.mask import Mask
from mirada.core.position import Rotary
from mirada.model import Model

BAR = 1e-10
VISIBLE = 1e-6  # what a broken model must differ by, at least


class Float64(TorchFunctionMode):
    """Within it torch.float32 and bfloat16 mean torch.float64, .float() means .double()."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            return args[0].double()
        raised = {k: _raised(v) for k, v in (kwargs or {}).items()}
        return func(*map(_raised, args), **raised)


def _raised(value):
    narrow = value is torch.float32 or value is torch.bfloat16  # learned activations are born so
    return torch.float64 if narrow else value


def tokens(row: Row, rows: int = 2, length: int = 7) -> dict:
    """input_ids without the pad id, (B, T)."""
    vocab = row.settings["vocab_size"]
    return {"input_ids": torch.randint(3, vocab, (rows, length))}


def source_and_target(row: Row) -> dict:
    """An encoder's ids (B, S) and a decoder's (B, T)."""
    return tokens(row, 2, 9) | {"decoder_input_ids": tokens(row, 2, 5)["input_ids"]}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    architecture: the reference's class; config: its config class; settings: the tiny config.
    inputs: row -> the call's arguments; pads: whether rows of unequal length make sense here.
    left: whether left padding does. cached: the model decodes with a cache.
    exempt: negative controls that cannot show here, each with its reason. untied: a module of the
    reference that gets a table of its own, as in files that its config class calls tied. buffers:
    those that files hold and that are born as zeros, which would hide them. frozen: modules and
    tables of the reference that it means not to train, and does. patterns: (pair, the reference's
    outputs) -> {stack: [(attention, which of it counts)]}, where it keeps its attentions in a form
    of its own.
    told: with pads, the reference is given our positions; False: it counts real tokens itself.
    labels: pair -> the head's labels, where they are not classes of its logits.
    """

    architecture: str
    config: str
    settings: dict
    inputs: Callable[[Row], dict] = tokens
    name: str = ""
    pads: bool = True
    left: bool = True
    cached: bool = False
    exempt: dict = field(default_factory=dict)
    untied: str | None = None
    buffers: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    patterns: Callable[[Pair, dict], dict] | None = None
    told: bool = True
    labels: Callable[[Pair], torch.Tensor] | None = None

    @property
    def family(self) -> str:
        return registry.FAMILIES.get(getattr(transformers, self.config).model_type, "?")

    def __str__(self) -> str:
        return f"{self.architecture}{'-' + self.name if self.name else ''}"

    def __hash__(self) -> int:
        return id(self)


def _class(row: Row) -> type:
    return getattr(transformers, row.architecture)


@dataclass
class Pair:
    """The reference and ours, both read from the folder the reference wrote."""

    row: Row
    folder: Path
    theirs: torch.nn.Module
    ours: Model
    batch: dict


@lru_cache(maxsize=4)
def pair(row: Row) -> Pair:
    folder = Path(tempfile.mkdtemp(prefix="parity-"))
    torch.manual_seed(11)
    config = getattr(transformers, row.config)(**row.settings)
    config._attn_implementation = "eager"
    cls = _class(row)
    with wide():
        theirs = cls(config).double().eval()
        if row.untied:
            own = theirs.get_submodule(row.untied)
            own.weight = torch.nn.Parameter(own.weight.detach().clone())
        shake(theirs)
        for name in row.buffers:
            theirs.get_buffer(name).normal_()
        theirs.save_pretrained(folder)
        theirs = read_reference(cls, folder)
        for name in row.frozen:
            owner, _, last = name.rpartition(".")
            getattr(theirs.get_submodule(owner), last).requires_grad_(False)
    return Pair(row, folder, theirs, mirada.load(folder), row.inputs(row))


@contextmanager
def wide():
    """float64 everywhere, as the reference is run."""
    old, narrow = torch.get_default_dtype(), torch.FloatTensor
    torch.set_default_dtype(torch.float64)
    torch.FloatTensor = torch.DoubleTensor  # a class, which no function mode sees: sinusoids
    try:
        with Float64():
            yield
    finally:
        torch.FloatTensor = narrow
        torch.set_default_dtype(old)


def read_reference(cls, folder: Path) -> torch.nn.Module:
    with wide():
        model = cls.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager",
                                    experts_implementation="eager")
    model.config.use_cache = False  # with a cache one of them sees later tokens in a long pass
    return model.eval()


@torch.no_grad()
def shake(model: torch.nn.Module) -> None:
    """Weights large enough that attention is uneven; norms and biases off one and zero."""
    for p in model.parameters():
        if p.ndim < 2:
            p.add_(torch.randn_like(p) * 0.3)
        else:
            p.normal_(0, 1.2 / p.shape[-1] ** 0.5)


def run_theirs(pair: Pair, batch: dict) -> dict:
    known = inspect.signature(pair.theirs.forward).parameters
    with wide():
        out = pair.theirs(**{k: v for k, v in batch.items() if k in known})
    return dict(out.items())


def compare(pair: Pair, batch: dict, ours: dict, theirs: dict, real=None, bar=BAR) -> float:
    """The largest difference over all outputs of ours, at real tokens only; all must be finite."""
    worst = 0.0
    for name, mine in ours.items():
        other = theirs[name]
        assert mine.shape == other.shape, (name, mine.shape, other.shape)
        assert mine.dtype == other.dtype in (torch.float64, torch.int64)  # indices are whole
        if real is not None and mine.ndim >= 2 and mine.shape[:2] == real.shape:
            mine, other = mine[real], other[real]
        assert torch.isfinite(mine).all() and torch.isfinite(other).all(), name
        worst = max(worst, (mine - other).abs().max().item())
    assert ours, "no outputs were compared"
    return worst


# ---- what each row is put through ------------------------------------------------------------


def outputs(pair: Pair) -> None:
    """Strict load, same outputs, on both kernels."""
    theirs = run_theirs(pair, pair.batch)
    assert compare(pair, pair.batch, pair.ours(**pair.batch), theirs) < BAR
    with mirada.kernel("exact"):
        assert compare(pair, pair.batch, pair.ours(**pair.batch), theirs) < BAR


def round_trip(pair: Pair, tmp_path: Path) -> None:
    """save(load(file)) is the file, bit for bit; the reference reads it and answers the same."""
    mirada.save(pair.ours, tmp_path / "saved")
    before, after = (load_file(f / "model.safetensors") for f in (pair.folder, tmp_path / "saved"))
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype, name
        assert torch.equal(before[name], after[name]), name
    theirs = read_reference(type(pair.theirs), tmp_path / "saved")
    back = Pair(pair.row, tmp_path, theirs, pair.ours, pair.batch)
    assert compare(back, pair.batch, pair.ours(**pair.batch), run_theirs(back, pair.batch)) < BAR


def fresh(pair: Pair, tmp_path: Path) -> None:
    """A model that mirada built and saved is read by the reference, which answers the same."""
    fam = registry.family(pair.ours.family)
    model = registry.assemble(fam, pair.ours.config, pair.row.architecture)
    registry.allocate(model, "cpu")
    model.double().eval()
    assert model.state().keys() == pair.ours.state().keys()
    registry.initialisers.reset(model)
    torch.manual_seed(5)
    fam.init(model, model.config)
    shake(model)
    mirada.save(model, tmp_path / "fresh")
    theirs = read_reference(type(pair.theirs), tmp_path / "fresh")
    both = Pair(pair.row, tmp_path, theirs, model, pair.batch)
    assert compare(both, pair.batch, model(**pair.batch), run_theirs(both, pair.batch)) < BAR


def _padded(pair: Pair, side: str) -> tuple[dict, torch.Tensor]:
    """The batch with three pads on one side of its first row, and where tokens are real."""
    ids = pair.batch["input_ids"].clone()
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    mask = mask if side == "right" else mask.flip(1)
    ids[mask == 0] = pair.row.settings.get("pad_token_id") or 0
    batch = pair.batch | {"input_ids": ids, "attention_mask": mask}
    if "decoder_input_ids" in batch:
        return batch, torch.ones_like(batch["decoder_input_ids"], dtype=torch.bool)
    return batch, mask.bool()


def _told(pair: Pair, batch: dict) -> dict:
    """The batch with the positions that ours takes by default, where the reference can be told."""
    known = inspect.signature(pair.theirs.forward).parameters
    if not pair.row.told or "position_ids" not in known:
        return batch
    return batch | {"position_ids": (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def padding(pair: Pair, side: str) -> None:
    """Rows of unequal length: the pads change nothing that is real."""
    batch, real = _padded(pair, side)
    ours, theirs = pair.ours(**batch), run_theirs(pair, _told(pair, batch))
    if "encoder_last_hidden_state" in ours:  # real where the source is
        memory = {"encoder_last_hidden_state": ours.pop("encoder_last_hidden_state")}
        assert compare(pair, batch, memory, theirs, batch["attention_mask"].bool()) < BAR
    assert compare(pair, batch, ours, theirs, real) < BAR


def cached(pair: Pair) -> None:
    """Chunk by chunk through a cache = all at once, padded on the left, for each kind of cache."""
    batch, real = _padded(pair, "left") if pair.row.left else (pair.batch, None)
    enc_dec = pair.ours.encoder_decoder
    name = "decoder_input_ids" if enc_dec else "input_ids"
    whole = pair.ours(**batch).logits
    T = whole.shape[1]
    for kind in ("growing", "static", "rolling"):
        cache, parts, at, extra = pair.ours.new_cache(kind, size=T + 2), [], 0, {}
        if enc_dec:
            memory = pair.ours.encode(batch["input_ids"], batch.get("attention_mask"))
            extra = {"encoder_outputs": memory, "input_ids": None}
        for step in (3, 1, T - 4):
            part = batch | {name: batch[name][:, at : at + step]} | extra
            if not enc_dec and "attention_mask" in batch:
                part["attention_mask"] = batch["attention_mask"][:, : at + step]
            parts.append(pair.ours(**part, cache=cache).logits)
            at += step
        got = torch.cat(parts, 1)
        assert got.shape == whole.shape
        where = real if real is not None and real.shape == got.shape[:2] else slice(None)
        assert (got - whole)[where].abs().max() < BAR, kind


def gradients(pair: Pair, tmp_path: Path) -> None:
    """Every weight's gradient, compared under the names the files use."""
    ours, theirs = copy.deepcopy(pair.ours), copy.deepcopy(pair.theirs)
    ours.zero_grad()
    generator = torch.Generator().manual_seed(3)
    mine = ours(**pair.batch)
    with wide():
        other = dict(theirs(**pair.batch).items())
        factors = {n: torch.randn(t.shape, generator=generator, dtype=torch.float64)
                   for n, t in mine.items()}
        sum((t * factors[n]).sum() for n, t in mine.items()).backward()
        sum((other[n] * factors[n]).sum() for n in mine).backward()
        for model in (ours, theirs):
            for p in model.parameters():
                p.data = torch.zeros_like(p) if p.grad is None else p.grad
        theirs.save_pretrained(tmp_path / "grads")
    wanted, got = load_file(tmp_path / "grads" / "model.safetensors"), registry.export(ours)
    assert wanted.keys() == got.keys()
    moved = 0
    for name, grad in wanted.items():
        if name in ours.origin.carried:
            assert not grad.any(), f"{name} is only carried, and the reference uses it"
        elif grad.is_floating_point():
            worst = (got[name] - grad).abs().max().item()
            assert worst < BAR * max(1.0, grad.abs().max().item()), (name, worst)
            moved += bool(grad.abs().max() > 0)
    assert moved > len(wanted) / 2, "most gradients are zero: this proves nothing"


def loss(pair: Pair) -> None:
    """The same loss for the same labels, some of which do not count."""
    known = inspect.signature(pair.theirs.forward).parameters
    batch = pair.batch | {n: make(pair) for n, make in LABELS.items() if n in known}
    with wide():
        theirs = pair.theirs(**batch).loss
    assert theirs > 0 and (pair.ours(**batch).loss - theirs).abs() < BAR


def _labels(pair: Pair) -> torch.Tensor:
    """A class for each token or row, or a number where a row has one output."""
    if pair.row.labels is not None:
        return pair.row.labels(pair)
    out = pair.ours(**pair.batch)
    logits = out.prediction_logits if "prediction_logits" in out else out.logits
    if logits.shape[-1] == 1:
        return torch.randn(len(logits), dtype=logits.dtype)
    made = torch.randint(logits.shape[-1], logits.shape[:-1])
    if made.ndim == 2:
        made[0, 2:4] = -100
    return made


LABELS = {"labels": _labels, "next_sentence_label": lambda pair: torch.tensor([0, 1]),
          "sentence_order_label": lambda pair: torch.tensor([1, 0]),
          "start_positions": lambda pair: torch.tensor([2, 1]),
          "end_positions": lambda pair: torch.tensor([4, 99])}  # past the end: does not count


def recording(pair: Pair) -> None:
    """Recording changes no bit; the pattern it gives is the reference's own eager attention."""
    plain = pair.ours(**pair.batch)
    with pair.ours.record() as tape:
        taped = pair.ours(**pair.batch)
    for name in plain:
        assert torch.equal(plain[name], taped[name]), name
    with wide():
        theirs = pair.theirs(**pair.batch, output_attentions=True)
    stacks = {"encoder": "encoder_attentions", "decoder": "decoder_attentions",
              "cross": "cross_attentions"}
    if pair.row.patterns is not None:
        return _patterns(tape, pair.row.patterns(pair, theirs))
    seen = 0
    for stack in tape.stacks:
        name = stacks[stack] if pair.ours.encoder_decoder else "attentions"
        for layer, wanted in enumerate(getattr(theirs, name, None) or theirs.attentions):
            got = tape.pattern(layer, stack=stack)
            assert got.shape == wanted.shape and (got - wanted).abs().max() < BAR
            seen += 1
    given = [theirs[n] for n in (*stacks.values(), "attentions") if theirs.get(n)]
    assert seen == sum(map(len, given)) > 0


def _patterns(tape, wanted: dict) -> None:
    assert set(tape.stacks) == set(wanted)
    for stack, layers in wanted.items():
        assert tape.layers(stack) == list(range(len(layers)))
        for layer, (attention, counts) in enumerate(layers):
            got = tape.pattern(layer, stack=stack)
            assert got.shape == attention.shape and counts.any()
            assert ((got - attention) * counts).abs().max() < BAR


def broken(pair: Pair) -> None:
    """Each thing broken in ours must show as a difference: a parity that cannot fail is none."""
    side = "left" if pair.row.left else "right"
    batch, real = _padded(pair, side) if pair.row.pads else (pair.batch, None)
    theirs, shown = run_theirs(pair, _told(pair, batch) if pair.row.pads else batch), []
    for name, fault in faults(pair.ours, batch).items():
        ours, changed = copy.deepcopy(pair.ours), dict(batch)
        fault(ours, changed)
        out = ours(**changed)
        worst = max(_apart(mine, theirs[k], real)
                    for k, mine in out.items() if mine.shape == theirs[k].shape)
        if name in pair.row.exempt:
            assert worst < VISIBLE, f"{name} shows after all: drop its exemption"
            continue
        assert worst > VISIBLE, f"{name} was broken and nothing showed ({worst:.1e})"
        shown.append(name)
    assert len(shown) >= 4, shown


def _apart(mine: torch.Tensor, other: torch.Tensor, real) -> float:
    """The largest difference at real tokens: a pad that sees nothing differs at any time."""
    if real is not None and mine.shape[:2] == real.shape:
        mine, other = mine[real], other[real]
    return (mine - other).abs().nan_to_num(1e9).max().item()


def faults(model: Model, batch: dict) -> dict[str, Callable]:
    """name -> a function that breaks that thing in a copy of the model or of the batch."""
    found = {"scale": _scale, "bias": _bias, "norm": _norm, "index": _index, "eps": _eps}
    attentions = [m for m in model.modules() if isinstance(m, Attention)]
    if any(a.mask.causal for a in attentions):
        found["mask"] = _causal
    if any(a.mask.window for a in attentions):
        found["window"] = _window
    if "attention_mask" in batch:
        found["padding"] = lambda m, b: b.pop("attention_mask")
    if any(isinstance(m, Rotary) for m in model.modules()):
        found["rotary"] = _rotary
    if any(isinstance(m, Rotary) and m.scaling for m in model.modules()):
        found["scaling"] = _unscaled
    if any(isinstance(m, ScoreBias) for m in model.modules()):
        found["score bias"] = _score_bias
    if getattr(getattr(model.decoder, "embed", None), "position", None) is not None \
            and "input_ids" in batch and not model.encoder_decoder:
        found["shift"] = _shift
    return found


def _attentions(model: Model) -> list[Attention]:
    return [m for m in model.modules() if isinstance(m, Attention)]


def _scale(model: Model, batch: dict) -> None:
    _attentions(model)[-1].scale *= 1.01


@torch.no_grad()
def _bias(model: Model, batch: dict) -> None:
    vectors = [p for n, p in model.named_parameters() if p.ndim == 1 and "attn.f" not in n]
    vectors[0].add_(0.01 * torch.randn_like(vectors[0]))


@torch.no_grad()
def _norm(model: Model, batch: dict) -> None:
    norms = [m for m in model.modules() if hasattr(m, "eps") and hasattr(m, "weight")]
    norms[-1].weight[0] += 0.1


@torch.no_grad()
def _index(model: Model, batch: dict) -> None:
    """The first two output rows of a value projection change places."""
    v = _attentions(model)[0].v.weight
    v[:2] = v[:2].flip(0).clone()


def _eps(model: Model, batch: dict) -> None:
    norms = [m for m in model.modules() if hasattr(m, "eps") and hasattr(m, "weight")]
    norms[0].eps += 1e-3


def _causal(model: Model, batch: dict) -> None:
    for a in _attentions(model):
        a.mask = Mask(window=a.mask.window)


def _window(model: Model, batch: dict) -> None:
    for a in _attentions(model):
        if a.mask.window:
            a.mask = Mask(causal=a.mask.causal, window=a.mask.window + 1)


def _rotary(model: Model, batch: dict) -> None:
    for m in model.modules():
        if isinstance(m, Rotary):
            m.base *= 1.1


def _unscaled(model: Model, batch: dict) -> None:
    for m in model.modules():
        if isinstance(m, Rotary):
            m.scaling = None


@torch.no_grad()
def _score_bias(model: Model, batch: dict) -> None:
    bias = next(m for m in model.modules() if isinstance(m, ScoreBias))
    rows = bias.rows
    bias.rows = lambda q, k, qi, ki: 1.05 * rows(q, k, qi, ki)


def _shift(model: Model, batch: dict) -> None:
    T = batch["input_ids"].shape[1]
    batch["position_ids"] = torch.arange(1, T + 1)[None]


CHECKS: dict[str, Callable] = {
    "outputs": lambda pair, tmp: outputs(pair),
    "round_trip": round_trip,
    "fresh": fresh,
    "right_padding": lambda pair, tmp: padding(pair, "right"),
    "left_padding": lambda pair, tmp: padding(pair, "left"),
    "cached": lambda pair, tmp: cached(pair),
    "gradients": gradients,
    "loss": lambda pair, tmp: loss(pair),
    "recording": lambda pair, tmp: recording(pair),
    "broken": lambda pair, tmp: broken(pair),
}


def wanted(row: Row) -> list[str]:
    """The checks that make sense for a row."""
    off = {"right_padding": not row.pads, "left_padding": not (row.pads and row.left),
           "cached": not row.cached,
           "loss": not LABELS.keys() & inspect.signature(_class(row).forward).parameters.keys()}
    return [name for name in CHECKS if not off.get(name, False)]


def table(rows: list[Row]):
    """One test a row and check: `test_parity = table(ROWS)` in each family's file.

    Mutants of the core meet the first row, and the outputs of the named variants; a head adds no
    core of its own.
    """
    cases = []
    for row in rows:
        marks = [pytest.mark.parity(family=row.family, architecture=str(row))]
        for check in wanted(row):
            fast = (check in ("outputs", "cached", "left_padding") if row is rows[0]
                    else check == "outputs" and row.name)
            cases.append(pytest.param(row, check, id=f"{row}-{check}",
                                      marks=[*marks, *[pytest.mark.fast] * bool(fast)]))

    @pytest.mark.parametrize("row, check", cases)
    def test_parity(row: Row, check: str, tmp_path: Path) -> None:
        CHECKS[check](pair(row), tmp_path)

    return test_parity

"""Tuning: a pretrained model and a file of examples become a model that does a task.

The rows are split by the hash of their text. Behind each epoch the rows held out are told; the
weights that told them best are kept, and PATIENCE epochs without a better one are the end, once a
third of the plan is done (a new head's first epochs say little).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mirada import registry
from mirada.core.linear import KEPT
from mirada.edit.frozen import freeze
from mirada.edit.lowrank import lora, merge
from mirada.edit.rates import dropout
from mirada.errors import MiradaError, WorkFailed
from mirada.model import Model
from mirada.train import checkpoint, loop, optim, supervised
from mirada.train.disk import keep
from mirada.train.heads import with_head
from mirada.train.log import CHECKPOINTS, Folder
from mirada.train.sft import Answers
from mirada.train.supervised import Example
from mirada.weights.paths import open_regular

from . import evaluate, examples, metrics
from .features import embed
from .pipeline import pipeline

ALIASES = {"sentiment": "classify", "tag": "ner"}
KINDS = {"classify": "ForSequenceClassification", "score": "ForSequenceClassification",
         "ner": "ForTokenClassification", "qa": "ForQuestionAnswering", "similarity": "Model",
         "chat": None}  # how the names of the heads end; None: the model's own
DOES = {"classify": "text-classification", "ner": "token-classification",
        "qa": "question-answering"}
RATES = {"all": 5e-5, "lora": 2e-4, "head": 1e-3}  # what trains -> the rate of a model 768 wide
LONGEST = 512  # tokens of a conversation
PATIENCE = 3
DROPOUT = 0.1  # as the models of this kind were trained with (1810.04805, appendix A.2)


@dataclass
class Tuned:
    """What tuning came to. metrics: on the rows held out ("held_out") and on those of a test file
    ("test"); rows: how many of each. best: the epoch whose weights the model has."""

    model: Model
    task: str
    folder: Path | None
    rows: dict[str, int]
    metrics: dict[str, dict[str, float]]
    epochs: int
    best: int
    seconds: float
    notes: list[str] = field(default_factory=list)

    def data(self) -> dict:
        """For programs."""
        return {n: v for n, v in vars(self).items() if n != "model"} | {
            "folder": None if self.folder is None else str(self.folder)}

    def __str__(self) -> str:
        lines = [f"{self.task}: {self.rows['train']:,} rows, {self.epochs} epochs (the weights are "
                 f"of the {_nth(self.best)}), {self.seconds:.0f} s"]
        for name, found in self.metrics.items():
            told = ", ".join(f"{measure} {value:.3f}" for measure, value in found.items())
            lines.append(f"  {name.replace('_', ' ')}, {self.rows[name]:,} rows: {told}")
        lines += [f"  note: {note}" for note in self.notes]
        if self.folder is not None:
            lines.append(f"  {self.folder}")
        return "\n".join(lines)


def tune(model: Model | str | Path, task: str, data: str | Path, out: str | Path | None = None, *,
         text: str | None = None, pair: str | None = None, label: str | None = None,
         delimiter: str | None = None, test: str | Path | None = None, epochs: int | None = None,
         batch: int = 16, rate: float | None = None, train: str = "all", seed: int = 0,
         parts: int = 1, dtype: str = "auto") -> Tuned:
    """Tune a model on the rows of a .csv, .tsv or .jsonl, and save it as `transformers` reads it.

    task: classify (or sentiment: one of some labels), score (a number), ner (or tag: a label a
    word), qa (a span of a passage), similarity (how like two texts are), chat (answers). text,
    pair, label: the columns, where they are not named as examples.FIELDS has them. test: a file
    that is measured at the end; training rows with a text of it are left out. epochs: at most.
    rate: the highest learning rate; None: 5e-5 of a model 768 wide, of another 5e-5 * 768 / width;
    of adapters 4 times that, of a head 20 times. train: "all"; "lora" (adapters of rank 8 on q and
    v, merged at the end; on quantized weights too); "head" (feature extraction: the model stays).
    parts, dtype: see train.loop.Plan.
    out: a new folder. While it is made, the run lies beside it (out.run), and the same call goes on
    with it. Raises MiradaError, and WorkFailed where it was stopped.
    """
    began, task = time.perf_counter(), ALIASES.get(task, task)
    if task not in KINDS:
        raise MiradaError(f"no task is called {task!r}; there are {', '.join([*KINDS, *ALIASES])}")
    if train not in RATES:
        raise MiradaError(f"train is {train!r}; it is one of {', '.join(RATES)}")
    if batch < 1 or (epochs is not None and epochs < 1):
        raise MiradaError(f"batch is {batch} and epochs {epochs}; both are whole numbers from 1")
    columns: dict[str, Any] = {"text": text, "pair": pair, "label": label, "delimiter": delimiter}
    found = examples.read(data, task, **columns)
    asked = None if test is None else _tested(test, task, columns, found)
    rows, held = examples.held_out(found.rows)
    side = None if out is None else _side(Path(out))
    model = _own(model, train, dtype)
    source = model.origin.path or model.architecture
    model = _prepared(model, task, found.labels, train, seed)
    objective = _objective(task, model, rows, found.labels)
    size = min(batch, objective.count)
    every = math.ceil(objective.count / size)
    epochs = epochs or _epochs(every)
    plan = loop.Plan(steps=every * epochs, batch=size, parts=parts, seed=seed, dtype=dtype,
                     save=max(every, 100), keep=1)
    # as Adam's rate scales with a model's width (2203.03466, table 3)
    rate = RATES[train] * 768 / model.config.d if rate is None else rate
    recipe = replace(optim.PRESETS["finetune"], warmup=plan.steps // 10, rate=rate)
    if side is not None:
        _begin(side, {"data": _sha256(data), "task": task, "columns": columns, "seed": seed,
                      "labels": found.labels, "rate": recipe.rate, "batch": size,
                      "epochs": epochs, "model": source, "train": train, "parts": parts,
                      "dtype": dtype})
    keeper = Keeper(model, _objective(task, model, held, found.labels), plan.steps, every, side)
    _fit(keeper, objective, plan, recipe)
    model = keeper.put_back()
    told = {"held_out": held} | ({} if asked is None else {"test": asked.rows})
    tuned = Tuned(model, task, None, {"train": len(rows)} | {n: len(r) for n, r in told.items()},
                  {name: measure(model, task, rows) for name, rows in told.items()},
                  len(keeper.losses), keeper.best, 0.0, found.notes)
    if out is not None:
        tuned.folder = registry.save(model, out)
        shutil.rmtree(side)
    tuned.seconds = round(time.perf_counter() - began, 1)
    return tuned


def _fit(keeper: Keeper, objective, plan: loop.Plan, recipe: optim.Recipe) -> None:
    """Train until the plan is done or the keeper has seen enough."""
    if keeper.enough:  # it was stopped behind that
        return
    with tqdm(total=plan.steps, unit="step", file=sys.stderr, disable=None) as bar:
        def watch(line: dict) -> bool:
            bar.n = line["step"]
            bar.set_postfix_str(keeper.words(line))
            return keeper(line)

        result = loop.fit(keeper.model, objective, plan, recipe, watch=watch,
                          out=None if keeper.folder is None else str(keeper.folder))
    if result.reason == "stopped" and not keeper.enough:
        raise WorkFailed(f"stopped behind step {result.step} of {plan.steps}" + (
            "" if keeper.folder is None else "; the same command goes on"))


class Keeper:
    """Tells the held-out rows behind each epoch and keeps the weights that did it best; says True
    when it has seen enough. A folder holds what it kept, for a run that is begun again."""

    def __init__(self, model: Model, held, steps: int, every: int, folder: Path | None):
        self.model, self.held, self.folder = model, held, folder
        self.every, self.soonest = every, steps // every // 3
        self.losses: dict[int, float] = {}  # epoch, counted from 1 -> loss
        self.weights: dict[str, Tensor] = {}
        found = None if folder is None else checkpoint.newest(folder / "best")
        if found is not None:
            self.losses = {int(n): loss for n, loss in found.state["losses"].items()}
            self.weights = dict(found.tensors["weights.safetensors"])

    @property
    def best(self) -> int:
        return min(self.losses, key=lambda epoch: self.losses[epoch])

    @property
    def enough(self) -> bool:
        last = max(self.losses, default=0)
        return last >= max(1, self.soonest) and last - self.best >= PATIENCE

    def __call__(self, line: dict) -> bool:
        epoch, rest = divmod(line["step"], self.every)
        if rest:
            return False
        self.losses = {n: loss for n, loss in self.losses.items() if n < epoch}
        self.losses[epoch] = supervised.mean_loss(self.model, self.held)
        if self.best == epoch:
            self.weights = {n: p.detach().clone() for n, p in self.model.named_parameters()
                            if p.requires_grad}
        if self.folder is not None:
            checkpoint.write(self.folder / "best", checkpoint.Checkpoint(
                line["step"], {"weights.safetensors": self.weights}, {"losses": self.losses}), 1)
        return self.enough

    def words(self, line: dict) -> str:
        last = f", held out {list(self.losses.values())[-1]:.3f}" if self.losses else ""
        return f"loss {line['loss']:.3f}{last}"

    def put_back(self) -> Model:
        """The model with the weights that were kept, as it is used: nothing is dropped."""
        checkpoint.put({n: p for n, p in self.model.named_parameters() if p.requires_grad},
                       self.weights, self.folder)
        model = merge(self.model) if self.model.adapters.active else self.model
        return dropout(model, 0.0).eval()


def measure(model: Model, task: str, rows: list[Example]) -> dict[str, float]:
    """How well the model does what it was tuned to, as `mirada eval` measures it; of numbers the
    correlations with those of the rows (Pearson's, and Spearman's of their ranks)."""
    if task == "chat":
        loss = supervised.mean_loss(model, _objective(task, model, rows, None))
        return {"loss": loss, "perplexity": math.exp(loss)}
    if task == "classify":
        made = pipeline(DOES[task], model, truncation=True)
        told = [{"text": _text(one), "label": one.label} for one in rows]
    elif task == "ner":
        made = pipeline(DOES[task], model, truncation=True)
        told = [{"tokens": one.text.split(" "), "tags": one.label} for one in rows]
    elif task == "qa":
        none = any(one.label is None for one in rows)
        made = pipeline(DOES[task], model, handle_impossible_answer=none)
        told = [{"question": one.text, "context": one.pair,
                 "answers": "" if one.label is None else one.pair[slice(*one.label)]}
                for one in rows]
    else:
        gold = [one.label for one in rows]
        return metrics.correlation(_numbers(model, task, rows), gold)
    found = evaluate.MEASURES[DOES[task]](made, told, "the rows")
    if task == "ner" and not any(re.match("[BIES]-", tag) for one in rows for tag in one.label):
        return {"accuracy": found["accuracy"]}  # parts of speech: there are no spans
    return found


def _numbers(model: Model, task: str, rows: list[Example]) -> list[float]:
    if task == "score":
        made = pipeline("text-classification", model, truncation=True, function_to_apply="none")
        return [one["score"] for one in made([_text(one) for one in rows])]
    a, b = (embed(model, list(texts), pooling="mean", normalize=True, truncation=True)
            for texts in zip(*((one.text, one.pair) for one in rows), strict=True))
    return (a * b).sum(1).tolist()


def _text(one: Example):
    return one.text if one.pair is None else {"text": one.text, "text_pair": one.pair}


def _own(model: Model | str | Path, train: str, dtype: str) -> Model:
    """A model whose weights may be moved: loaded here, or a copy, in float32 or wider."""
    if isinstance(model, Model):
        model = copy.deepcopy(model, {id(x): x for x in (model.origin, model._tokenizer)})
    else:
        model = registry.load(model, dtype=None if train == "lora" else torch.float32)
    if not any(isinstance(m, KEPT) for m in model.modules()):
        return model.to(loop.kept(dtype, model))
    if train != "lora":
        raise MiradaError("quantized weights do not train: tune adapters on them (train=\"lora\"), "
                          "or load the model with dtype=torch.float32")
    return model


def _prepared(model: Model, task: str, labels: list[str] | None, train: str, seed: int) -> Model:
    """With the task's head, and training what is to be trained."""
    if task == "chat" and (not model.generates or model.encoder_decoder):
        raise MiradaError(f"{model.architecture} does not write a text on: chat tunes a model that "
                          "does, as smollm2")
    names = ["LABEL_0"] if task == "score" else labels
    if KINDS[task] is not None:
        model = with_head(model, KINDS[task], names, seed=seed, **_kind(task))
    if train == "head" and not any(True for _ in model.head.parameters()):
        raise MiradaError(f"{task} has no head of its own to train: leave out train=\"head\"")
    whole = ("head",) if names or task == "qa" else ()
    if train == "lora":
        model = lora(model, whole=whole, dropout=DROPOUT, seed=seed)
    elif train == "head":
        model = freeze(model)
    return dropout(model, DROPOUT)


def _tested(test, task: str, columns: dict, found: examples.Examples) -> examples.Examples:
    """The rows of a test file; those training rows that say the same go."""
    asked = examples.read(test, task, known=found.labels, **columns)
    found.rows, gone = examples.apart(found.rows, asked.rows)
    if gone:
        found.notes.append(f"{gone:,} training rows have a text of {test} too, and were left out: "
                           "what was learnt by heart measures nothing")
    if not found.rows:
        raise MiradaError(f"every row to train on is in {test} too: take other rows to test on")
    return asked


def _kind(task: str) -> dict[str, str]:
    """What config.json says besides the labels."""
    kinds = {"classify": "single_label_classification", "score": "regression"}
    return {"problem_type": kinds[task]} if task in kinds else {}


def _objective(task: str, model: Model, rows: list[Example], labels: list[str] | None):
    if task == "classify":
        return supervised.Classes(model, rows, labels)
    if task == "ner":
        return supervised.Tags(model, rows, labels)
    if task == "chat":
        return Answers.of(model, [one.label for one in rows],
                          min(LONGEST, model.context or LONGEST))
    kinds = {"score": supervised.Numbers, "qa": supervised.Spans,
             "similarity": supervised.Likeness}
    return kinds[task](model, rows)


def _epochs(every: int) -> int:
    """Three of many rows, as the papers take; of few as many as give 500 updates, 20 at most."""
    return max(3, min(20, math.ceil(500 / every)))


def _side(out: Path) -> Path:
    """Where the run lies while `out` is made."""
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        raise MiradaError(f"{out} is there already and not an empty folder: choose another --out")
    return out.with_name(out.name + ".run")


def _begin(side: Path, said: dict) -> None:
    """A folder for a run of what is said; one that holds another run is refused, unless that did
    not come to a checkpoint, so that nothing is lost."""
    file = side / "tune.json"
    if file.exists():
        if json.loads(file.read_text()) == json.loads(json.dumps(said)):
            return
        Folder(side).close()  # refused while another process trains there
        if any(checkpoint.steps(side / name) for name in (CHECKPOINTS, "best")):
            raise MiradaError(f"{side} holds an interrupted run on other data, another model or "
                              "with other options: give the same as then, or remove that folder")
        shutil.rmtree(side)
    side.mkdir(parents=True, exist_ok=True)
    keep(file, said)


def _sha256(path) -> str:
    with open_regular(path) as file:
        return hashlib.sha256(file.read()).hexdigest()


def _nth(n: int) -> str:
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10 if n % 100 // 10 != 1 else 0, 'th')}"

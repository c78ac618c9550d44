"""What a run is: as a TOML file or a command line says it, and as its folder keeps it.

The folder is all that going on needs: train.json (what was asked, and the hash of each file of
data), tokenizer/ where one was made, corpus/ (the tokens), checkpoints/, and at the end model/ or
adapter/.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from mirada import edit, registry
from mirada.errors import MiradaError, UntrustedInputError
from mirada.text import Tokenizer
from mirada.text.records import values
from mirada.text.train import train as train_tokenizer
from mirada.weights.paths import open_regular

from . import corpus, objectives, pictures
from .disk import folder_made, keep
from .loop import Plan, kept
from .optim import PRESETS, Recipe

PIECE = 1 << 20  # characters of a .txt that are tokenised at once
KINDS = {"int": (int, "a whole number"), "float": ((int, float), "a number"), "str": (str, "text")}


@dataclass(frozen=True)
class Run:
    """model: a family and size ("gpt2:tiny"), begun from nothing, or what mirada.load takes, gone
    on from. data: .txt (each file one document), .csv, .tsv and .jsonl files (each record one, in
    `column`; of objectives that read pairs the second is in `target`); of objectives that read
    pictures what pictures.read takes. objective: a name of
    objectives.OBJECTIVES, or None: what the model's head is for. options: what differs in it.
    length: tokens in a sample. tokens: at most, of the tokenizer that a model from nothing is
    given. changes: fields of its config. adapter: what edit.lora takes (rank, alpha, targets ...),
    so that it alone trains, and quantize: what the model below is rounded to, as "nf4d" (QLoRA).
    recipe: fields of Recipe, or preset = a name of PRESETS and what differs. plan: fields of Plan.
    """

    model: str
    data: tuple[str, ...]
    objective: str | None = None
    length: int = 128
    column: str = "text"
    target: str = "target"
    tokens: int = 4096
    options: dict = field(default_factory=dict)
    changes: dict = field(default_factory=dict)
    adapter: dict = field(default_factory=dict)
    recipe: dict = field(default_factory=dict)
    plan: dict = field(default_factory=dict)

    def __post_init__(self):
        if not self.data:
            raise MiradaError("there is nothing to train on: name a file of text with --data")
        if self.objective not in (None, *objectives.OBJECTIVES):
            raise MiradaError(f"no objective is called {self.objective!r}; there are "
                              f"{', '.join(objectives.OBJECTIVES)}")
        if self.length < 2:
            raise MiradaError(f"length is {self.length}; a sample has 2 tokens or more")
        if self.adapter and self.new:
            raise MiradaError(f"an adapter is tuned on a model that was trained, and {self.model} "
                              "begins from nothing")
        if self.changes and not self.new:
            raise MiradaError(f"changes are of a model from nothing, and {self.model} is loaded")

    @property
    def new(self) -> bool:
        """Whether the model begins from nothing. A file or folder of the name comes first."""
        return not Path(self.model).exists() and self.model.partition(":")[0] in registry.families()

    def whole_plan(self) -> Plan:
        return _filled(Plan, {"steps": 1000} | self.plan, "plan")

    def whole_recipe(self) -> Recipe:
        given = dict(self.recipe)
        name = given.pop("preset", "pretrain" if self.new else "finetune")
        if name not in PRESETS:
            raise MiradaError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
        preset = PRESETS[name]
        if preset.schedule != "noam":  # in a short run the warm-up is a tenth at most
            preset = replace(preset, warmup=min(preset.warmup, self.whole_plan().steps // 10))
        return _filled(Recipe, asdict(preset) | given, "recipe")


def read(file: str | os.PathLike, words: dict) -> Run:
    """A run from a TOML file, its paths seen from where the file lies; words, fields of Run, come
    before what it says, entry by entry of plan and recipe. Raises MiradaError."""
    file = Path(file)
    try:
        with open_regular(file) as opened:
            said = tomllib.loads(opened.read().decode())
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one
        raise MiradaError(f"{file} is no TOML: {error}") from None
    data = said.get("data", [])
    data = [data] if isinstance(data, str) else data
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise MiradaError(f"{file}: data is a file or a list of files")
    model = said.get("model")
    if not isinstance(model, str):
        raise MiradaError(f"{file}: it must say which model, as model = \"gpt2:tiny\"")
    if (file.parent / model).exists():
        said["model"] = str(file.parent / model)
    said["data"] = tuple(str(file.parent / name) for name in data)
    tables = {name: {**_table(said.get(name, {}), file, name), **words.get(name, {})}
              for name in ("plan", "recipe")}
    return _filled(Run, said | words | tables, file)


def create(run: Run, folder: Path) -> None:
    """A folder that says what the run is. Raises MiradaError where it, or the data, cannot be."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        held = (folder / "train.json").exists()
        raise MiradaError(f"{folder} " + (f"holds a run: go on with mirada train --resume {folder}"
                                          if held else "is there already and not an empty folder")
                          + ", or choose another with --out")
    run.whole_plan(), run.whole_recipe()
    if not run.new:
        model = registry.locate(run.model)
        run = replace(run, model=str(model.absolute()) if model.exists() else run.model)
    run = replace(run, data=tuple(os.path.abspath(name) for name in run.data))
    hashes = {name: _sha256(name) for name in run.data}
    folder_made(folder)
    keep(folder / "train.json", {"run": asdict(run), "files": hashes})


def open_run(folder: Path):
    """(run, model, objective) of a folder that `create` made: what is not made yet, is made.

    Raises MiradaError where the data are needed still and are not those it was begun with.
    """
    try:
        said = json.loads((folder / "train.json").read_text())
        asked, hashes = said["run"], said["files"]
        run = _filled(Run, asked | {"data": tuple(asked["data"])}, folder / "train.json")
    except FileNotFoundError:
        raise MiradaError(f"{folder} holds no run: begin one with mirada train MODEL --data FILE "
                          f"--out {folder}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UntrustedInputError(folder, "train.json", f"cannot be read: {error}") from None
    made = folder / "corpus"
    if not made.exists():
        changed = [name for name in run.data if _sha256(name) != hashes.get(name)]
        if changed:
            raise MiradaError(f"{changed[0]} is not the file that {folder} was begun with: bring "
                              "that back, or begin anew with another --out")
    if _reads(run) == "pictures":
        return _shown(run)
    if run.new:
        if not (folder / "tokenizer").exists():
            _tokenizer(run, folder / "tokenizer")
        tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        model = _build(run, tokenizer)
    else:
        model = registry.load(run.model)
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise MiradaError(f"{run.model} has no tokenizer, so there is none to read text with")
    if model.context is not None and run.length > model.context:
        raise MiradaError(f"length is {run.length}, and {run.model} reads {model.context} tokens "
                          "at most: choose a smaller one"
                          + (" or set changes.context" if run.new else ""))
    model = _adapted(run, model) if run.adapter else model.to(kept(run.whole_plan().dtype, model))
    name = objectives.chosen(run.objective, model, run.model)  # before the work of tokenising
    model, reads = objectives.whole(name, model, run.whole_plan().seed), _reads(run)
    data: corpus.Corpus | dict
    if reads == "rows":
        data = {name: rows(name) for name in run.data}
    elif made.exists():
        data = corpus.Corpus.open(made)
    else:
        data = corpus.write(texts(run), tokenizer, made, every=reads == "pairs")
    return run, model, objectives.made(name, data, run.length, model, run.options)


def _shown(run: Run):
    """(run, model, objective) of a run on pictures: it needs no tokenizer, and its data stay where
    they are."""
    if run.new:
        data = pictures.read(run.data)
        names = {str(n): name for n, name in enumerate(data.names)}
        model = registry.build(run.model, architecture=_head(run), seed=run.whole_plan().seed,
                               **_counted(run, len(names)) | run.changes)
        if hasattr(model.config, "labels"):
            raw = {"id2label": names, "label2id": {v: int(k) for k, v in names.items()}}
            model.origin.raw |= raw
        model.processor = model.processor  # of its own, and no longer understood: it is saved too
    else:
        model = registry.load(run.model)
        data = pictures.read(run.data, pictures.label_names(model))
    model = _adapted(run, model) if run.adapter else model.to(kept(run.whole_plan().dtype, model))
    name = objectives.chosen(run.objective or "pictures", model, run.model)
    return run, model, objectives.made(name, data, run.length, model, run.options)


def _counted(run: Run, labels: int) -> dict[str, int]:
    """How many labels a model from nothing tells apart, if it tells any."""
    config = registry.family(run.model.partition(":")[0]).Config
    return {"labels": labels} if hasattr(config, "labels") else {}


def _adapted(run: Run, model):
    """The same adapter on the same base, whenever it is made."""
    given = dict(run.adapter)
    small = given.pop("quantize", None)
    model = model if small is None else edit.quantize(model, small)
    try:
        return edit.lora(model, **{"seed": run.whole_plan().seed} | given)
    except TypeError as error:
        said = str(error).rpartition("() ")[2]
        raise MiradaError(f"[adapter]: {said}; mirada.edit.lora says what it takes") from None


def _reads(run: Run) -> str:
    if run.objective is not None:
        return objectives.OBJECTIVES[run.objective].reads
    first = Path(run.data[0])
    return "pictures" if first.is_dir() or first.suffix.lower() == ".npz" else "texts"


def texts(run: Run) -> Iterator[str]:
    """The documents of a run's files, one by one; of pairs both sides by turns."""
    for name in run.data:
        if _reads(run) == "rows":
            yield from (text for row in rows(name) for text in row.values())
        elif _reads(run) == "pairs":
            for record in values(name, {"text": run.column, "target": run.target}):
                yield _text(name, run.column, record)
                yield _text(name, run.target, record)
        elif Path(name).suffix.lower() == ".txt":
            yield from _pieces(name, run.column, values(name, {"text": run.column}))
        else:
            yield from (_text(name, run.column, record)
                        for record in values(name, {"text": run.column}))


def rows(name: str) -> list[dict[str, str]]:
    """The records of a file, whole. Raises MiradaError for one with anything but text in it."""
    if Path(name).suffix.lower() == ".txt":
        raise MiradaError(f"{name} has a text a line, and a row has columns: give it as .csv or "
                          ".jsonl")
    return [{column: _text(name, column, record) for column in record.item or [""]}
            for record in values(name, {})]


def _pieces(name: str, column: str, rows) -> Iterator[str]:
    """A file of lines as one text; a long one in pieces, so that memory stays bounded."""
    held, size = [], 0
    for record in rows:
        held.append(_text(name, column, record))
        size += len(held[-1]) + 1
        if size > PIECE:
            yield "\n".join(held)
            held, size = [], 0
    yield "\n".join(held)


def _text(name: str, column: str, record) -> str:
    said = record.error
    text = None if said else record.item.get(column)
    if said is None and not isinstance(text, str):
        said = f"{column!r} holds no text"
    elif said is None and any("\ud800" <= c <= "\udfff" for c in text):
        said = "is no UTF-8; convert the file first (iconv -f latin1 -t utf-8)"
    if said is not None:
        raise MiradaError(f"{name}, row {record.row}: {said}")
    return text


def _head(run: Run) -> str | None:
    """The architecture of a model from nothing."""
    asked = run.objective or ("pictures" if _reads(run) == "pictures" else None)
    return objectives.head(asked, run.model.partition(":")[0])


def _tokenizer(run: Run, out: Path) -> None:
    """The teacher's, where there is one; else of the kind and with the marks that the objective
    needs: byte-level BPE for who writes, WordPiece for who tells hidden tokens."""
    if "teacher" in run.options:
        registry.load(run.options["teacher"]).tokenizer.save(out)
        return
    name = run.objective or ("masked" if _head(run) else "causal")
    kind, special = (getattr(objectives.OBJECTIVES[name], part) for part in ("tokenizer",
                                                                             "special"))
    if all(name.lower().endswith(".txt") for name in run.data):
        train_tokenizer(list(run.data), kind, run.tokens, out, special=special)
        return
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".text-") as aside:
        plain = Path(aside) / "all.txt"
        with plain.open("w", encoding="utf-8", newline="") as file:
            for text in texts(run):
                file.write(text + "\n")
        train_tokenizer([str(plain)], kind, run.tokens, out, special=special)


def _build(run: Run, tokenizer):
    if "vocab" in run.changes:
        raise MiradaError("vocab is as large as the tokenizer is: set tokens, not changes.vocab")
    default = registry.family(run.model.partition(":")[0]).Config()
    end = min(tokenizer.eos_ids, default=tokenizer.sep_id)
    told = {"vocab": tokenizer.size, "pad": tokenizer.pad_id, "eos": end,
            "mask": tokenizer.mask_id}
    if getattr(default, "start", None) is not None:  # a decoder begins with one of the two
        told["start"] = told["eos" if default.start == default.eos else "pad"]
    told = {name: value for name, value in told.items()
            if value is not None and hasattr(default, name)}
    model = registry.build(run.model, architecture=_head(run), seed=run.whole_plan().seed,
                           **told | run.changes)
    model.tokenizer = tokenizer
    if tokenizer.eos_ids:  # else readers take the original vocabulary's
        model.origin.raw |= {"bos_token_id": tokenizer.bos_id,
                             "eos_token_id": min(tokenizer.eos_ids)}
    return model


def _filled(kind, given: dict, where):
    known = {f.name for f in fields(kind)}
    for name in given.keys() - known:
        raise MiradaError(f"{where}: nothing is called {name!r}; there are "
                          f"{', '.join(sorted(known))}")
    for name, wanted in ((f.name, f.type) for f in fields(kind) if f.name in given):
        got = given[name]
        kind_of, words = KINDS.get(str(wanted), (object, ""))
        wrong = isinstance(got, bool) or not isinstance(got, kind_of)  # type: ignore[arg-type]
        if words and wrong:
            raise MiradaError(f"{where}: {name} is {got!r}; it must be {words}")
        if wanted == "dict":
            _table(got, where, name)
    if isinstance(given.get("betas"), list):  # of TOML and JSON
        given = given | {"betas": tuple(given["betas"])}
    try:
        return kind(**given)
    except TypeError as error:
        raise MiradaError(f"{where}: a value is of the wrong kind: {error}") from None


def _table(found, where, name: str) -> dict:
    if not isinstance(found, dict):
        raise MiradaError(f"{where}: {name} is a table of names and values")
    return found


def _sha256(name: str) -> str:
    """Of a file's bytes; of a folder of folders, of its files' names and theirs."""
    found = hashlib.sha256()
    if Path(name).is_dir():
        for held in sorted(one for one in Path(name).glob("*/*") if one.is_file()):
            found.update(f"{held.relative_to(name)} {_sha256(str(held))}\n".encode())
        return found.hexdigest()
    with open_regular(name) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()

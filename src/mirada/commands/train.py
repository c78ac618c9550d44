"""mirada train: a model from nothing or from another, on text or pictures; a run that goes on."""

import os
import shutil
from pathlib import Path
from typing import Any

from .common import show

HELP = "train a model on text or pictures; a run that was killed goes on with --resume"


def fill(parser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?",
                        help="a family and size (gpt2:tiny) from nothing, a folder to go on from, "
                        "or a .toml that says all of it")
    parser.add_argument("--data", nargs="+", metavar="FILE", help=".txt, .csv, .tsv or .jsonl; of "
                        "pictures a folder of one folder a label, .npz or .jsonl")
    parser.add_argument("--column", metavar="NAME", help="where the text stands; default: text")
    parser.add_argument("--target", metavar="NAME", help="where a pair's second text stands; "
                        "default: target")
    parser.add_argument("--objective", metavar="NAME", help="causal, masked, span, denoise, "
                        "translate ...; default: what the model's head is for")
    for flag, kind, words in (("steps", int, "updates in all; default: 1000"),
                              ("batch", int, "samples in an update; default: 8"),
                              ("parts", int, "read the batch in so many parts, for less memory"),
                              ("save", int, "steps between checkpoints; default: 100"),
                              ("seed", int, "another run of the same kind; default: 0"),
                              ("length", int, "tokens in a sample; default: 128"),
                              ("tokens", int, "of the tokenizer that is made; default: 4096"),
                              ("rate", float, "the highest learning rate")):
        parser.add_argument(f"--{flag}", type=kind, metavar=kind.__name__.upper()[:5], help=words)
    parser.add_argument("--dtype", choices=("auto", "float32", "float64", "bfloat16"),
                        help="what is multiplied in; default: auto, bfloat16 where that is faster")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="default: the next one under runs/")
    parser.add_argument("--tensor", type=int, default=1, metavar="N",
                        help="under torchrun: processes that share each product")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run; nothing else is needed")
    parser.add_argument("--show", type=int, default=100, metavar="N",
                        help="on a terminal, steps between texts that the model writes; 0: none")


def run(args) -> None:
    from mirada.train import config, world
    shared = world.join(args.tensor)
    if shared is None:
        show(args, _train(*_begun(args), args.show))
        return
    if shared.lead:  # it alone makes the folder, the tokenizer and the corpus
        begun = _begun(args)
        shared.told(str(begun[0].absolute()))
    else:
        folder = Path(shared.told(""))
        begun = (folder, *config.open_run(folder))
    told = _train(*begun, 0, shared)
    if shared.lead:
        show(args, told)
    world.leave()


def _begun(args) -> tuple[Path, Any, Any, Any]:
    """(folder, run, model, objective) of a new run, or of one that goes on."""
    from mirada.errors import MiradaError, WorkFailed
    from mirada.train import config
    if args.resume:
        asked = [f for f in ("model", "data", *_GIVEN, *_PLAN, "rate", "out")
                 if getattr(args, f) is not None]
        if asked:
            raise MiradaError(f"--resume goes on with what the run was begun with: leave out "
                              f"{', '.join(asked)}")
        return Path(args.resume), *config.open_run(Path(args.resume))
    if args.model is None:
        raise MiradaError("name a model (gpt2:tiny), a .toml, or a run with --resume")
    asked = _asked(args)
    out = Path(args.out) if args.out else _next(asked.model)
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):  # torchrun begins the same words again
        out = out if args.out else _next(asked.model, back=1)
        return out, *config.open_run(out)
    config.create(asked, out)
    try:
        return out, *config.open_run(out)
    except (MiradaError, OSError) as error:  # nothing is trained yet: the name stays free
        shutil.rmtree(out)
        if isinstance(error, MiradaError) or error.filename:
            raise
        raise WorkFailed(f"{out} could not be written: {error.strerror}") from error


_GIVEN = ("column", "target", "objective", "length", "tokens")
_PLAN = ("steps", "batch", "parts", "save", "seed", "dtype")


def _asked(args):
    """The run that the words name; they come before what a .toml says."""
    from mirada.train.config import Run, read
    given: dict = {n: getattr(args, n) for n in _GIVEN if getattr(args, n) is not None}
    given["data"] = tuple(args.data or ())
    given["plan"] = {n: getattr(args, n) for n in _PLAN if getattr(args, n) is not None}
    given["recipe"] = {} if args.rate is None else {"rate": args.rate}
    if not args.model.endswith(".toml"):
        return Run(args.model, **given)
    if not args.data:
        del given["data"]
    return read(args.model, given)


def _next(model: str, back: int = 0) -> Path:
    name = Path(model).stem.replace(":", "-")
    number = 1
    while Path(f"runs/{name}-{number}").exists():
        number += 1
    return Path(f"runs/{name}-{number - back}")


def _train(folder: Path, run, model, objective, every: int, shared=None):
    from mirada import edit, registry
    from mirada.train import allocator, checkpoint, config, loop, objectives, terminal
    from mirada.train.log import CHECKPOINTS
    allocator.keep_freed()
    plan = run.whole_plan()
    done = max(checkpoint.steps(folder / CHECKPOINTS), default=0)
    length = getattr(objective, "places", run.length)  # of a picture: its patches, and the class
    tokens = plan.batch * length
    view = terminal.Terminal(plan.steps, done, tokens, terminal.flops(model, tokens, length),
                             loop.precision(plan, model))

    if shared is not None:
        from mirada.edit.parallel import parallel
        for words in parallel(model, shared.mesh):
            view.say(f"computed whole by each process: {words}")
        if not shared.lead:
            view.close()
            view.bar.disable = True

    def watch(line: dict) -> None:
        view(line)
        if every and line["step"] % every == 0 and not view.bar.disable and model.generates:
            view.say(f"{line['step']}: {_written(model)!r}")

    try:
        result = loop.fit(model, objective, plan, run.whole_recipe(), out=str(folder), watch=watch,
                          world=shared)
    finally:
        view.close()
    made = folder / ("adapter" if run.adapter else "model")
    if result.reason == "done" and not made.exists() and (shared is None or shared.lead):
        if shared is not None:  # this process holds a piece of each weight, the checkpoint all
            _, model, _ = config.open_run(folder)
            held = checkpoint.newest(folder / CHECKPOINTS)
            checkpoint.put({n: p for n, p in model.named_parameters() if p.requires_grad},
                           held.tensors["ema.safetensors" if plan.ema else "weights.safetensors"],
                           folder)
        if run.adapter:
            edit.save_adapter(model, made)
        else:
            registry.save(objectives.kept(model), made)
    return Told(folder, plan.steps, result, made)


def _written(model) -> str:
    """What the model writes now; the run's own chance is set anew at each step, and not touched."""
    from mirada.generate.text import text
    model.eval()
    try:
        return text(model, "", max_new_tokens=32, temperature=0.8, seed=0)
    finally:
        model.train()


class Told:
    """What a run came to."""

    def __init__(self, folder: Path, steps: int, result, made: Path):
        self.folder, self.steps, self.result, self.made = folder, steps, result, made

    def data(self) -> dict:
        from mirada.train.log import history
        lines = history(self.folder)
        return {"run": str(self.folder), "step": self.result.step, "steps": self.steps,
                "reason": self.result.reason, "loss": lines[-1]["loss"] if lines else None,
                "model": str(self.made) if self.result.reason == "done" else None}

    def __str__(self) -> str:
        said = self.data()
        if self.result.reason == "stopped":
            return (f"{self.folder}: stopped behind step {said['step']} of {self.steps}; go on: "
                    f"mirada train --resume {self.folder}")
        return f"{self.folder}: {self.steps} steps, loss {said['loss']:.3f}; {said['model']}"

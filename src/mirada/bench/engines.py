"""Engines that can be timed, each in a process of its own: python -m mirada.bench.engines NAME ...

A child loads the model, says so, and then does what each line of its stdin asks, answering with one
line of JSON. Engines are asked in turn, so that what else a shared machine does falls on all alike.
Prompts are the same pseudo-random tokens for each; none of them stops at an end token.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from mirada.ahead import Ahead

from .ask import prompt, timed
from .peers import CTranslate2, LlamaCpp, OnnxRuntime, OpenVINO


class Mirada:
    """This library, as `mirada run` uses it; with `torch`, its pure-torch path. codes: bits of the
    activations that quantized weights meet."""

    NEEDS = ()

    def __init__(self, path: str, threads: int, torch_only: bool = False,
                 codes: int | None = None):
        if torch_only:
            os.environ["MIRADA_NATIVE"] = "0"
        gc.disable()  # as mirada.cli
        begun = Ahead(path, speaks=True)
        import torch

        from mirada import registry
        torch.set_num_threads(threads)
        self.model, self.codes = registry.load(path), codes
        self.model.tokenizer = begun.tokenizer
        gc.enable()
        self.vocab = self.model.config.vocab

    def write(self, context: int, rows: int, new: int) -> list[float]:
        """Seconds until the prompt was read, and of each of the `new` tokens after."""
        import torch

        from mirada.generate.loop import started
        from mirada.generate.options import Options
        ids = torch.tensor([prompt(context, self.vocab, row) for row in range(rows)])
        options = Options.read(self.model, {
            "max_new_tokens": new + 1, "eos_token_id": (), "do_sample": False, "num_beams": 1,
            "codes": self.codes})
        run = started(self.model, ids, torch.ones_like(ids), options)
        return timed(run.step, new)


class Mirada8(Mirada):
    """This library with activations of 8 bits, as other engines have them."""

    def __init__(self, path: str, threads: int):
        super().__init__(path, threads, codes=8)


class MiradaTorch(Mirada):
    """This library without its native runtime."""

    def __init__(self, path: str, threads: int):
        super().__init__(path, threads, torch_only=True)


class Transformers:
    """The reference library in bfloat16, with its own cache, its forward called in a plain loop."""

    NEEDS = ("transformers",)

    def __init__(self, path: str, threads: int):
        import torch
        self.torch = torch
        torch.set_num_threads(threads)
        self.model = _reference(path, torch.bfloat16)
        self.vocab = self.model.config.vocab_size

    def write(self, context: int, rows: int, new: int) -> list[float]:
        torch = self.torch
        ids = torch.tensor([prompt(context, self.vocab, row) for row in range(rows)])
        state = {"ids": ids, "past": None}

        def step() -> None:
            with torch.inference_mode():
                out = self.model(input_ids=state["ids"], past_key_values=state["past"],
                                 use_cache=True, logits_to_keep=1)
            state["ids"], state["past"] = out.logits[:, -1:].argmax(-1), out.past_key_values

        return timed(step, new)


ENGINES: dict[str, Any] = {
    "mirada": Mirada, "mirada-8": Mirada8, "mirada-torch": MiradaTorch,
    "transformers": Transformers,
    "llama.cpp": LlamaCpp, "openvino": OpenVINO, "ctranslate2": CTranslate2,
    "onnxruntime": OnnxRuntime,
}


def _reference(path: str, dtype):
    """The model as transformers loads it, from a folder or a GGUF file."""
    from transformers import AutoModelForCausalLM
    where = Path(path)
    given = {"gguf_file": where.name} if where.suffix == ".gguf" else {}
    folder = where.parent if given else where
    kind = {} if dtype is None else {"dtype": dtype}
    return AutoModelForCausalLM.from_pretrained(folder, **given, **kind).eval()


def _peak() -> int:
    """Bytes of memory at most. Linux says it of this process alone: ru_maxrss, which is all that
    others have, begins with the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """NAME FILE THREADS: answer what stdin asks; or make NAME FILE FOLDER: say what file the engine
    reads, made in the folder where it is none of ours."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    gc.set_threshold(100_000)  # as `mirada` does
    if sys.argv[1] == "make":
        _, _, name, path, folder = sys.argv
        print(ENGINES[name].made(path, folder), file=answers, flush=True)
        return
    _, name, path, threads = sys.argv
    serve(ENGINES[name](path, int(threads)), {"context": 16, "rows": 1, "new": 0}, answers)


def serve(engine, first: dict, answers) -> None:
    """Do `first`, then what each line of stdin asks of engine.write, and tell how long it took."""
    seconds = engine.write(**first)
    print(json.dumps({"first": seconds[0]}), file=answers, flush=True)
    for line in sys.stdin:
        seconds = engine.write(**json.loads(line))
        print(json.dumps({"seconds": seconds, "peak": _peak()}), file=answers, flush=True)


if __name__ == "__main__":
    main()

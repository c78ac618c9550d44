"""Engines that can be timed, each in a process of its own: python -m mirada.bench.engines NAME ...

A child loads the model, says so, and then does what each line of its stdin asks, answering with one
line of JSON. Engines are asked in turn, so that what else a shared machine does falls on all alike.
Prompts are the same pseudo-random tokens for each; none of them stops at an end token.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mirada.errors import MiradaError


def prompt(length: int, vocab: int, row: int = 0) -> list[int]:
    """`length` token ids, the same in every engine and each time; rows differ."""
    return [(7919 * (at + 31 * row) + 104729) % (vocab - 300) + 200 for at in range(length)]


class Mirada:
    """This library, as `mirada run` uses it; with `torch`, its pure-torch path."""

    NEEDS = ()

    def __init__(self, path: str, threads: int, torch_only: bool = False):
        if torch_only:
            os.environ["MIRADA_NATIVE"] = "0"
        import torch

        from mirada import registry
        torch.set_num_threads(threads)
        self.model = registry.load(path)
        self.vocab = self.model.config.vocab

    def write(self, context: int, rows: int, new: int) -> list[float]:
        """Seconds until the prompt was read, and of each of the `new` tokens after."""
        import torch

        from mirada.generate.loop import started
        from mirada.generate.options import Options
        ids = torch.tensor([prompt(context, self.vocab, row) for row in range(rows)])
        options = Options.read(self.model, {
            "max_new_tokens": new + 1, "eos_token_id": (), "do_sample": False, "num_beams": 1})
        run = started(self.model, ids, torch.ones_like(ids), options)
        return _timed(run.step, new)


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

        return _timed(step, new)


class LlamaCpp:
    """llama.cpp through its Python package's low-level calls, on the same GGUF file."""

    NEEDS = ("llama_cpp",)

    def __init__(self, path: str, threads: int):
        import llama_cpp
        self.c = llama_cpp
        if not path.endswith(".gguf"):
            raise MiradaError("llama.cpp reads .gguf files: mirada convert makes one")
        llama_cpp.llama_backend_init()
        with _silence():
            self.model = llama_cpp.llama_model_load_from_file(
                path.encode(), llama_cpp.llama_model_default_params())
        self.threads, self.context, self.size = threads, None, (0, 0)
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def write(self, context: int, rows: int, new: int) -> list[float]:
        import numpy
        c, needed = self.c, rows * (context + new + 2)
        if self.size != (needed, rows):  # it divides its cache among as many rows as it is told
            if self.context is not None:
                c.llama_free(self.context)
            params = c.llama_context_default_params()
            params.n_ctx, params.n_batch, params.n_seq_max = needed, max(512, context), rows
            params.n_threads = params.n_threads_batch = self.threads
            with _silence():
                self.context = c.llama_init_from_model(self.model, params)
            self.size = needed, rows
        c.llama_memory_clear(c.llama_get_memory(self.context), True)
        batch = c.llama_batch_init(max(512, context), 0, 1)
        last = [0] * rows

        def feed(tokens: list[tuple[int, int, int, bool]]) -> list[int]:
            batch.n_tokens = len(tokens)
            for at, (token, position, row, wanted) in enumerate(tokens):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
                batch.seq_id[at][0], batch.logits[at] = row, wanted
            if c.llama_decode(self.context, batch):
                raise MiradaError("llama.cpp could not decode this batch")
            found = []
            for at, (_, _, _, wanted) in enumerate(tokens):
                if wanted:
                    line = c.llama_get_logits_ith(self.context, at)
                    found.append(int(numpy.ctypeslib.as_array(line, (self.vocab,)).argmax()))
            return found

        place = [0]

        def step() -> None:
            if not place[0]:
                for row in range(rows):
                    ids = prompt(context, self.vocab, row)
                    last[row] = feed([(t, at, row, at == context - 1)
                                      for at, t in enumerate(ids)])[0]
            else:
                last[:] = feed([(last[row], context + place[0] - 1, row, True)
                                for row in range(rows)])
            place[0] += 1

        seconds = _timed(step, new)
        c.llama_batch_free(batch)
        return seconds


class CTranslate2:
    """CTranslate2 in int8, on files that it converts from the reference's."""

    NEEDS = ("ctranslate2", "transformers")

    def __init__(self, path: str, threads: int):
        import ctranslate2
        with tempfile.TemporaryDirectory() as folder:
            self.vocab = _written(path, folder)
            _numbered(self.vocab).save_pretrained(folder)
            out = str(Path(folder) / "ct2")
            ctranslate2.converters.TransformersConverter(folder).convert(out, quantization="int8")
            self.model = ctranslate2.Generator(out, device="cpu", intra_threads=threads,
                                               compute_type="int8")

    def write(self, context: int, rows: int, new: int) -> list[float]:
        prompts = [[f"t{i}" for i in prompt(context, self.vocab, row)] for row in range(rows)]
        seconds = []
        for length in (1, new + 1):  # it does not say when each token came
            began = time.perf_counter()
            self.model.generate_batch(prompts, max_length=length, min_length=length,
                                      include_prompt_in_result=False, end_token=[],
                                      max_batch_size=0)
            seconds.append(time.perf_counter() - began)
        return [seconds[0], *[(seconds[1] - seconds[0]) / new] * new]


ENGINES: dict[str, Callable] = {
    "mirada": Mirada, "mirada-torch": MiradaTorch, "transformers": Transformers,
    "llama.cpp": LlamaCpp, "ctranslate2": CTranslate2,
}


def _timed(step: Callable[[], object], new: int) -> list[float]:
    times = [time.perf_counter()]
    for _ in range(new + 1):
        step()
        times.append(time.perf_counter())
    return [b - a for a, b in zip(times, times[1:], strict=False)]


def _reference(path: str, dtype):
    """The model as transformers loads it, from a folder or a GGUF file."""
    from transformers import AutoModelForCausalLM
    where = Path(path)
    given = {"gguf_file": where.name} if where.suffix == ".gguf" else {}
    folder = where.parent if given else where
    kind = {} if dtype is None else {"dtype": dtype}
    return AutoModelForCausalLM.from_pretrained(folder, **given, **kind).eval()


def _written(path: str, folder: str) -> int:
    """Writes the model in float32, as the reference writes its own; the vocabulary's size."""
    import torch

    from mirada import registry
    model = registry.load(path, dtype=torch.float32)
    registry.save(model, folder)
    return model.config.vocab


def _numbered(vocab: int):
    """A tokenizer whose tokens are called t0, t1 ...: engines that want tokens are given ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    words = {f"t{i}": i for i in range(vocab)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "t0")),
                                   unk_token="t0", bos_token="t1", eos_token="t2")


class _silence:
    """Nothing of what C code prints reaches the terminal meanwhile."""

    def __enter__(self):
        self.saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    def __exit__(self, *error):
        os.dup2(self.saved, 2)
        os.close(self.saved)


def _peak() -> int:
    """Bytes of memory at most. Linux says it of this process alone: ru_maxrss, which is all that
    others have, begins with the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    name, path, threads = sys.argv[1:4]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    engine = ENGINES[name](path, int(threads))
    first = engine.write(16, 1, 0)[0]
    print(json.dumps({"first": first}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = engine.write(asked["context"], asked["rows"], asked["new"])
        print(json.dumps({"seconds": seconds, "peak": _peak()}), file=answers, flush=True)


if __name__ == "__main__":
    main()

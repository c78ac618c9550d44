"""Engines of others, each on the file that it reads best: made once, before anything is timed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from mirada.errors import MiradaError

from .ask import Silence, gaps, prompt, timed


class LlamaCpp:
    """llama.cpp through its Python package's low-level calls, on the same GGUF file."""

    NEEDS = ("llama_cpp",)

    def __init__(self, path: str, threads: int):
        import llama_cpp
        self.c = llama_cpp
        if not path.endswith(".gguf"):
            raise MiradaError("llama.cpp reads .gguf files: mirada convert makes one")
        llama_cpp.llama_backend_init()
        with Silence():
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
            with Silence():
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

        seconds = timed(step, new)
        c.llama_batch_free(batch)
        return seconds


class OpenVINO:
    """OpenVINO through its GenAI package, which reads GGUF files and keeps their blocks."""

    NEEDS = ("openvino", "openvino_genai")

    def __init__(self, path: str, threads: int):
        import openvino
        import openvino_genai
        if not path.endswith(".gguf"):
            raise MiradaError("openvino is timed on .gguf files: mirada convert makes one")
        self.ov, self.genai = openvino, openvino_genai
        self.pipe = openvino_genai.LLMPipeline(  # the other backend takes one row a prompt
            path, "CPU", ATTENTION_BACKEND="SDPA", INFERENCE_NUM_THREADS=threads)
        self.vocab = len(self.pipe.get_tokenizer().get_vocab())

    def write(self, context: int, rows: int, new: int) -> list[float]:
        import numpy
        ids = numpy.array([prompt(context, self.vocab, row) for row in range(rows)])
        config = self.genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new + 1
        config.ignore_eos, config.do_sample, config.apply_chat_template = True, False, False
        asked = self.genai.TokenizedInputs(self.ov.Tensor(ids),
                                           self.ov.Tensor(numpy.ones_like(ids)))
        raw = self.pipe.generate(asked, config).perf_metrics.raw_metrics
        steps = [ms / 1e3 for ms in gaps(raw.m_new_token_times)]
        return [raw.m_times_to_first_token[0] / 1e6, *steps]


class CTranslate2:
    """CTranslate2 in int8, on files that it converts from the reference's."""

    NEEDS = ("ctranslate2", "transformers")

    @staticmethod
    def made(path: str, folder: str) -> str:
        import ctranslate2
        source, out = reference(path, folder), str(Path(folder) / "ctranslate2")
        ctranslate2.converters.TransformersConverter(source).convert(out, quantization="int8")
        return out

    def __init__(self, path: str, threads: int):
        import ctranslate2
        self.model = ctranslate2.Generator(path, device="cpu", intra_threads=threads,
                                           compute_type="int8")
        self.vocab = len(json.loads((Path(path) / "vocabulary.json").read_text()))

    def write(self, context: int, rows: int, new: int) -> list[float]:
        prompts = [[f"t{i}" for i in prompt(context, self.vocab, row)] for row in range(rows)]
        times = [time.perf_counter()]

        def came(step) -> bool:
            if step.batch_id == 0:
                times.append(time.perf_counter())
            return False

        self.model.generate_batch(prompts, max_length=new + 1, min_length=new + 1,
                                  include_prompt_in_result=False, end_token=[], max_batch_size=0,
                                  callback=came)
        return gaps(times)


class OnnxRuntime:
    """onnxruntime-genai in int4 with products in int8, on files that its builder makes."""

    NEEDS = ("onnxruntime_genai", "onnx", "onnx_ir", "transformers")

    @staticmethod
    def made(path: str, folder: str) -> str:
        source, out = reference(path, folder), str(Path(folder) / "onnx")
        subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source,
                        "-o", out, "-p", "int4", "-e", "cpu", "-c", str(Path(folder) / "cache"),
                        "--extra_options", "int4_accuracy_level=4"], check=True)
        return out

    def __init__(self, path: str, threads: int):
        import onnxruntime_genai
        self.genai = onnxruntime_genai
        config = onnxruntime_genai.Config(path)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {
            "intra_op_num_threads": threads}}}}))
        self.model = onnxruntime_genai.Model(config)
        said = json.loads((Path(path) / "genai_config.json").read_text())
        self.vocab = said["model"]["vocab_size"]

    def write(self, context: int, rows: int, new: int) -> list[float]:
        import numpy
        ids = numpy.array([prompt(context, self.vocab, row) for row in range(rows)],
                          dtype=numpy.int32)
        params, size = self.genai.GeneratorParams(self.model), context + new + 2
        params.set_search_options(max_length=size, min_length=size, batch_size=rows,
                                  do_sample=False)
        run, read = self.genai.Generator(self.model, params), []

        def step() -> None:
            if not read:
                run.append_tokens(ids)
                read.append(True)
            run.generate_next_token()

        return timed(step, new)


def reference(path: str, folder: str) -> str:
    """A folder of the reference's with the model of `path` in float32, and a tokenizer whose tokens
    are called t0, t1 ...: engines that want tokens are given ids."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from mirada import registry
    model, out = registry.load(path, dtype=torch.float32), Path(folder) / "reference"
    model.tokenizer = None
    model.origin.path = None  # else the tokenizer beside its files comes along
    registry.save(model, out)
    words = {f"t{i}": i for i in range(model.config.vocab)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "t0")),
                            unk_token="t0", bos_token="t1", eos_token="t2").save_pretrained(out)
    return str(out)

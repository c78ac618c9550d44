"""Engines that turn ids into sentence vectors, each in a process of its own: see engines.py.

Run by engines.py as: python benchmarks/encoders.py NAME FOLDER THREADS. Each gives the mean of the
last states over the tokens, of length one, for batches of the same pseudo-random ids.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy

from mirada.bench.ask import prompt
from mirada.bench.engines import serve

VOCAB = 30_000  # ids below it are words in every BERT


class Encoder:
    """What all do: times passes over ids that are made before the clock starts."""

    def write(self, rows: int, length: int, times: int, processor: bool = False) -> list[float]:
        """Seconds of each of `times` passes over `rows` sentences of `length` tokens, by the clock
        or of the processor, which other work on a machine lengthens less."""
        ids = numpy.array([prompt(length, VOCAB, row) for row in range(rows)])
        given, seconds = self.given(ids), []
        clock = time.process_time if processor else time.perf_counter
        for _ in range(times):
            began = clock()
            self.last = self.vectors(*given)
            seconds.append(clock() - began)
        return seconds

    def given(self, ids: numpy.ndarray) -> tuple:
        return ids, numpy.ones_like(ids)

    @staticmethod
    def pooled(states) -> numpy.ndarray:
        mean = states.mean(1)
        return mean / numpy.linalg.norm(mean, axis=1, keepdims=True)


class Torch(Encoder):
    """What runs torch modules."""

    def __init__(self, folder: str, threads: int, dtype: str):
        import torch
        torch.set_num_threads(threads)
        self.torch = torch
        self.model = self.load(folder, dtype)

    def given(self, ids: numpy.ndarray) -> tuple:
        return tuple(map(self.torch.from_numpy, super().given(ids)))

    def vectors(self, ids, mask):
        with self.torch.inference_mode():
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return self.torch.nn.functional.normalize(states.mean(1), dim=-1)


class Mirada(Torch):
    """This library as mirada.embed runs it: its weights packed, or in int8 natively, with
    activations in 15 bits ("int8") or 8 ("codes8")."""

    def load(self, folder: str, dtype: str):
        import mirada
        from mirada.edit import lower, quantize
        from mirada.tasks.features import swift
        if dtype not in ("int8", "codes8"):
            return swift(mirada.load(folder, dtype=getattr(self.torch, dtype)))
        model = quantize(mirada.load(folder, dtype=self.torch.float32), "int8")
        lower.attach(model, codes=8 if dtype == "codes8" else 16)
        return swift(model)


class Transformers(Torch):
    def load(self, folder: str, dtype: str):
        from transformers import AutoModel
        return AutoModel.from_pretrained(folder, dtype=getattr(self.torch, dtype)).eval()


def states_of(folder: str):
    """The reference as a function of ids and mask alone, and ids to trace it with. Its other
    attentions ask for the mask's values, which a trace would freeze."""
    import torch
    from transformers import AutoModel
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    class States(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    ids = torch.tensor([prompt(8, VOCAB, row) for row in range(2)])
    return States(), (ids, torch.ones_like(ids))


class OpenVINO(Encoder):
    """OpenVINO on the reference's traced graph, in the precision that it is told."""

    def __init__(self, folder: str, threads: int, dtype: str):
        import openvino
        module, example = states_of(folder)
        graph = openvino.convert_model(module, example_input=example)
        graph.reshape({graph.input(0): [-1, -1], graph.input(1): [-1, -1]})
        precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
        self.run = openvino.Core().compile_model(graph, "CPU", {
            "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads})

    def vectors(self, ids, mask):
        return self.pooled(self.run([ids, mask])[0])


class OnnxRuntime(Encoder):
    """onnxruntime in float32, on the reference's exported graph."""

    def __init__(self, folder: str, threads: int, dtype: str):
        import onnxruntime
        import torch
        module, example = states_of(folder)
        options, names = onnxruntime.SessionOptions(), ("ids", "mask")
        options.intra_op_num_threads = threads
        with tempfile.TemporaryDirectory() as made:
            path = str(Path(made) / "model.onnx")
            torch.onnx.export(module, example, path, input_names=[*names], output_names=["states"],
                              dynamic_axes={n: {0: "rows", 1: "length"} for n in names},
                              dynamo=False)
            self.session = onnxruntime.InferenceSession(path, options)

    def vectors(self, ids, mask):
        return self.pooled(self.session.run(None, {"ids": ids, "mask": mask})[0])


class CTranslate2(Encoder):
    """CTranslate2 in int8, its lists of ids made before the clock starts."""

    def __init__(self, folder: str, threads: int, dtype: str):
        import ctranslate2
        with tempfile.TemporaryDirectory() as made:
            out = str(Path(made) / "model")
            ctranslate2.converters.TransformersConverter(folder).convert(out, quantization=dtype)
            self.model = ctranslate2.Encoder(out, intra_threads=threads, compute_type=dtype)

    def given(self, ids: numpy.ndarray) -> tuple:
        return (ids.tolist(),)

    def vectors(self, ids):
        return self.pooled(numpy.array(self.model.forward_batch(ids).last_hidden_state))


ENCODERS = {"mirada": Mirada, "transformers": Transformers, "openvino": OpenVINO,
            "onnxruntime": OnnxRuntime, "ctranslate2": CTranslate2}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    name, dtype = sys.argv[1].split(":")
    encoder = ENCODERS[name](sys.argv[2], int(sys.argv[3]), dtype)
    serve(encoder, {"rows": 1, "length": 8, "times": 1}, answers)


if __name__ == "__main__":
    main()

"""The tasks by the names people know them by: one table, and the function that reads it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import torch

from mirada import registry
from mirada.errors import MiradaError
from mirada.model import Model
from mirada.text.tokenizer import Tokenizer

from .answer import QuestionAnswering
from .classify import TextClassification, ZeroShotClassification
from .features import FeatureExtraction, SentenceSimilarity
from .fill import FillMask
from .tag import TokenClassification
from .task import Task
from .write import Summarization, Text2Text, TextGeneration, Translation

TASKS: dict[str, type[Task]] = {
    "feature-extraction": FeatureExtraction,
    "fill-mask": FillMask,
    "question-answering": QuestionAnswering,
    "sentence-similarity": SentenceSimilarity,
    "summarization": Summarization,
    "text-classification": TextClassification,
    "text-generation": TextGeneration,
    "text2text-generation": Text2Text,
    "token-classification": TokenClassification,
    "translation": Translation,
    "zero-shot-classification": ZeroShotClassification,
}
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


def pipeline(task: str, model: Model | str | Path, *, tokenizer=None, device=None, dtype=None,
             batch_size: int = 32, **options) -> Task:
    """A task with a model, to be called with a text or a list of texts.

    task: a name of TASKS or ALIASES, or translation_xx_to_yy. model: a Model, or what mirada.load
    takes. tokenizer: a Tokenizer or a folder with one, where the model's own is not meant. device:
    as in torch, or as older programs say it: -1 the CPU, n the n-th GPU. dtype: of a model that is
    loaded here. options: the task's, for every call. Results have the classic pipelines' keys and
    shapes; see the task's class. Raises MiradaError.
    """
    name = ALIASES.get(task, task)
    kind = TASKS.get("translation" if re.fullmatch(r"translation_\w+_to_\w+", name) else name)
    if kind is None:
        known = [*TASKS, *ALIASES]
        near = difflib.get_close_matches(name, known, 1)
        raise MiradaError(f"no task is called {task!r}; "
                          + (f"did you mean {near[0]!r}?" if near else
                             f"there are {', '.join(sorted(known))}, translation_xx_to_yy"))
    if not isinstance(model, Model):
        model = registry.load(model, dtype=dtype)
    if device is not None:
        model.to(_device(device))
    if tokenizer is not None:
        own = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_folder(tokenizer)
        model.tokenizer = own
    return kind(name, model, batch_size, **options)


def _device(device) -> torch.device:
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise MiradaError(f"device={device!r} cannot be used here: {reason}") from None

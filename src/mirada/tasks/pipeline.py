"""The tasks by the names people know them by: one table, and the function that reads it."""

from __future__ import annotations

import difflib
import random
import re
import sys
from pathlib import Path

import torch

from mirada import registry
from mirada.errors import MiradaError
from mirada.model import Model
from mirada.text.tokenizer import Tokenizer

from . import older
from .answer import QuestionAnswering
from .classify import TextClassification, ZeroShotClassification
from .code import Code
from .features import FeatureExtraction, SentenceSimilarity
from .fill import FillMask
from .pictures import ImageClassification, ImageFeatureExtraction
from .tag import TokenClassification
from .task import Task
from .write import Summarization, Text2Text, TextGeneration, Translation
from .zero_shot_pictures import ZeroShotImageClassification

TASKS: dict[str, type[Task]] = {
    "code": Code,
    "feature-extraction": FeatureExtraction,
    "fill-mask": FillMask,
    "image-classification": ImageClassification,
    "image-feature-extraction": ImageFeatureExtraction,
    "question-answering": QuestionAnswering,
    "sentence-similarity": SentenceSimilarity,
    "summarization": Summarization,
    "text-classification": TextClassification,
    "text-generation": TextGeneration,
    "text2text-generation": Text2Text,
    "token-classification": TokenClassification,
    "translation": Translation,
    "zero-shot-classification": ZeroShotClassification,
    "zero-shot-image-classification": ZeroShotImageClassification,
}
ALIASES = {"ner": "token-classification", "sentiment-analysis": "text-classification"}


def pipeline(task: str, model: Model | str | Path | None = None, *, tokenizer=None,
             image_processor=None, device=None, dtype=None, batch_size: int | None = None,
             **options) -> Task:
    """A task with a model, to be called with a text or picture, or a list of them.

    model: a Model, or what mirada.load takes. tokenizer: a Tokenizer or a folder with one, where
    the model's own is not meant; image_processor: the same of pictures. device: as in torch, or as
    older programs say it: -1 the CPU, n the n-th GPU. dtype: of a model that is loaded here, a
    torch.dtype or its name. batch_size: 32 unless told. options: the task's, for every call; and
    what older programs say besides, see older.loading. Their library's own models, tokenizers and
    image processors are taken too. Raises MiradaError.

    The tasks, and what one input gives; a list of inputs gives a list of these:

    fill-mask                 [{score, token, token_str, sequence}]; of several masks a list each
    text-classification       [{label, score}]; in a list of texts without the brackets; with top_k
                              so many for each text
    zero-shot-classification  {sequence, labels, scores}
    token-classification      [{entity, score, index, word, start, end}]; joined: [{entity_group,
                              score, word, start, end}]
    question-answering        {score, start, end, answer}; with top_k above 1 a list
    feature-extraction        [[[number]]], (1, T, D)
    sentence-similarity       [number], one a sentence
    text-generation           [{generated_text}]; with return_tensors [{generated_token_ids}]
    text2text-generation      the same; a list of texts gives the dicts without brackets
    translation               [{translation_text}], or [{translation_token_ids}]
    summarization             [{summary_text}], or [{summary_token_ids}]
    code                      [{generated_text}]
    image-classification      [{label, score}] of a picture
    zero-shot-image-classification  [{score, label}] of a picture
    image-feature-extraction  [[[number]]], (1, T, D), of its patches

    ner and sentiment-analysis are token- and text-classification; translation_xx_to_yy names the
    languages. The keys stay as they are; the task's class (pipeline.TASKS) says more.
    """
    options, device, dtype = older.loading(options, device, dtype)
    name = ALIASES.get(task, task)
    kind = TASKS.get("translation" if re.fullmatch(r"translation_\w+_to_\w+", name) else name)
    if kind is None:
        known = [*TASKS, *ALIASES]
        near = difflib.get_close_matches(name, known, 1)
        raise MiradaError(f"no task is called {task!r}; "
                          + (f"did you mean {near[0]!r}?" if near else
                             f"there are {', '.join(sorted(known))}, translation_xx_to_yy"))
    if model is None:
        raise MiradaError(f"{task} needs a model: a folder, a .gguf file or a short name, as "
                          f'pipeline("{task}", model="my-model"); nothing is fetched unasked')
    if older.foreign(model):
        model = older.model(model, tokenizer or image_processor, dtype)
    elif not isinstance(model, Model):
        model = registry.load(model, dtype=dtype)
    if device is not None:
        model.to(_device(device))
    if tokenizer is not None:
        own = tokenizer if isinstance(tokenizer, Tokenizer) else older.read_tokenizer(tokenizer)
        model.tokenizer = own
    if image_processor is not None:
        model.processor = older.read_processor(image_processor)
    return kind(name, model, 32 if batch_size is None else batch_size, **options)


def served(model: Model) -> list[str]:
    """The tasks that this model's head can do."""
    found = []
    for name, kind in TASKS.items():
        task = object.__new__(kind)  # without its checks, of which only this one is asked
        task.name, task.model = name, model
        if task.fits():
            found.append(name)
    return found


def set_seed(seed: int) -> None:
    """Seed Python's, numpy's and torch's random numbers; from torch's the tasks draw what they
    sample where a call gives no seed=."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)
    torch.manual_seed(seed)


def _device(device) -> torch.device:
    if isinstance(device, int):
        device = "cpu" if device < 0 else f"cuda:{device}"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise MiradaError(f"device={device!r} cannot be used here: {reason}") from None

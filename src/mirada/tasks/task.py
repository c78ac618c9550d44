"""A task: a model with the head for it, its tokenizer, its options, and one call for it all."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from copy import copy
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from torch.utils.data import Dataset

from mirada import registry
from mirada.errors import MiradaError
from mirada.generate.text import needed
from mirada.model import Model

from . import long


class Task:
    """Call it with one input for one result, or a list for a list in the same order.

    An iterator (a generator, a file of lines) or a torch Dataset gives an iterator. batch_size:
    texts that run through the model together, those of like length beside each other. options: the
    task's own, each of which, and batch_size, a call may give anew. Every task takes
    truncation=True (cut what is longer than the model's context, with a warning; otherwise it is
    refused), max_length= (cut there instead) and padding= (taken from the batch, whatever is
    said), also in a dict tokenizer_kwargs. long="truncate" and long="refuse" say the same in one
    word, long="stride" reads a longer text in windows: each task names in LONG those that it has.
    Raises MiradaError.
    """

    HEADS: ClassVar[tuple[str, ...]] = ()  # how the names of fitting architectures end
    DOES: ClassVar[str] = ""  # what such a head does
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    LONG: ClassVar[tuple[str, ...]] = ("truncate", "refuse")
    TEXTS: ClassVar[bool] = True  # it reads them, and takes what every such task takes

    def __init__(self, name: str, model: Model, batch_size: int = 32, **options):
        self.name, self.model, self.batch_size = name, model, _count(batch_size)
        if not self.fits():
            raise MiradaError(f"{name} needs a head that {self.DOES}, and this model is "
                              f"{model.architecture}; {model.family} has the heads "
                              f"{', '.join(registry.family(model.family).HEADS)}: load a model "
                              "trained with a fitting one, or train it")
        self.tokenizer = needed(model) if self.TEXTS else None
        self.options = self.read(options)

    def fits(self) -> bool:
        return self.model.architecture.endswith(self.HEADS)

    def read(self, given: dict) -> dict:
        """The options in `given`, each of them known to this task."""
        for bag in ("tokenizer_kwargs", "tokenize_kwargs", "tokenizer_encode_kwargs"):
            if bag in given:
                given = given | (given[bag] or {})
                del given[bag]
        if given.get("truncation") == "do_not_truncate":
            given = given | {"truncation": False}
        shared = ("truncation", "max_length", "padding", "long") if self.TEXTS else ()
        known = [*dict.fromkeys((*self.OPTIONS, *shared))]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise MiradaError(f"{self.name} has no option {name!r}; {hint}there are "
                                  f"{', '.join(known)}")
        return long.options(self, given)

    def __call__(self, inputs: Any, *, batch_size: int | None = None, num_workers=None,
                 **options) -> Any:
        """num_workers is taken for older programs' sake: batches are made here."""
        if batch_size is not None:
            once = copy(self)
            once.batch_size = _count(batch_size)
            return once(inputs, **options)
        told = self.options | self.read(options)
        if self.one(inputs):
            return self.run([inputs], told)[0]
        if isinstance(inputs, Iterator | Dataset):
            return self._flow(_items(inputs), told)
        return self.run(list(inputs), told)

    def _flow(self, inputs: Iterator, told: dict) -> Iterator:
        while some := list(islice(inputs, 8 * self.batch_size)):
            yield from self.run(some, told)

    def one(self, inputs: Any) -> bool:
        """Whether `inputs` is one input, and not several."""
        return isinstance(inputs, str | dict)

    def run(self, items: list, told: dict) -> list:
        """The result of each item, in order; each kind of task has its own."""
        raise NotImplementedError

    def words(self, words: list[str], options: dict) -> Any:
        """The result of what stands on a command line."""
        return self(words[0] if len(words) == 1 else words, **options)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the model and its tokenizer; see mirada.save."""
        return registry.save(self.model, folder)


def _count(batch_size: int) -> int:
    if type(batch_size) is not int or batch_size < 1:
        raise MiradaError(f"batch_size is {batch_size!r}; it must be a whole number from 1")
    return batch_size


def _items(inputs: Iterator | Dataset) -> Iterator:
    """A Dataset need not say by an IndexError that it has ended."""
    if isinstance(inputs, Dataset) and hasattr(inputs, "__len__"):
        return (inputs[n] for n in range(len(inputs)))
    return iter(inputs)

"""A task: a model with the head for it, its tokenizer, its options, and one call for it all."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

from mirada import registry
from mirada.errors import MiradaError
from mirada.generate.text import needed
from mirada.model import Model


class Task:
    """Call it with one input for one result, or a list for a list in the same order.

    An iterator (a generator, a file of lines) gives an iterator. batch_size: texts that run
    through the model together, those of like length beside each other. options: the task's own,
    each of which a call may give anew. Every task takes truncation=True (cut what is longer than
    the model's context, with a warning; otherwise it is refused), max_length= (cut there instead)
    and padding= (taken from the batch, whatever is said). Raises MiradaError.
    """

    HEADS: ClassVar[tuple[str, ...]] = ()  # how the names of fitting architectures end
    DOES: ClassVar[str] = ""  # what such a head does
    OPTIONS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, model: Model, batch_size: int = 32, **options):
        if type(batch_size) is not int or batch_size < 1:
            raise MiradaError(f"batch_size is {batch_size!r}; it must be a whole number from 1")
        self.name, self.model, self.batch_size = name, model, batch_size
        if not self.fits():
            raise MiradaError(f"{name} needs a head that {self.DOES}, and this model is "
                              f"{model.architecture}; {model.family} has the heads "
                              f"{', '.join(registry.family(model.family).HEADS)}: load a model "
                              "trained with a fitting one, or train it")
        self.tokenizer = needed(model)
        self.options = self.read(options)

    def fits(self) -> bool:
        return self.model.architecture.endswith(self.HEADS)

    def read(self, given: dict) -> dict:
        """The options in `given`, each of them known to this task."""
        known = (*self.OPTIONS, "truncation", "max_length", "padding")
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise MiradaError(f"{self.name} has no option {name!r}; {hint}there are "
                                  f"{', '.join(known)}")
        return given

    def __call__(self, inputs: Any, **options) -> Any:
        told = self.options | self.read(options)
        if self.one(inputs):
            return self.run([inputs], told)[0]
        if isinstance(inputs, Iterator):
            return self._flow(inputs, told)
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

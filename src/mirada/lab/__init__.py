"""The study guides' questions, answered by experiments that run: mirada.lab.ask("scale").

Each file beside this one is a question. It holds ROW, its row of the checklist; by language ASKED,
the question, TOLD, the answer with {names} of what was found, and WORDS, what its picture says
("title", "across", "down" and whatever else draw reads); ALSO, if it is there, a sentence told
where a real model was at hand ("real" was found); and two functions:

    run(seed) -> found            the experiment: numbers and lists of them, by name
    draw(found, axes, words)      one plot of them, on axes that have their title and labels
"""

from __future__ import annotations

import difflib
import importlib
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

from mirada.errors import MiradaError
from mirada.look import draw

NAMES = (  # in the checklist's order
    "alone", "heads", "depth", "understand", "mlp", "embedding", "permute", "concatenate",
    "looking", "projections", "scale", "itself",
    "gradients", "rnn", "vision",
)
LANGUAGES = ("en", "es")
HEAD = {
    "en": "# The guides' questions\n\nThe five study guides ask these questions, and do not answer "
          "them. Each answer here is an experiment that runs in seconds; every number in it was "
          "measured by the command above it. Another `--seed` draws other data and other weights. "
          "`mirada lab` lists the questions, `-o scale.png` draws an answer, `--json` gives its "
          "numbers.",
    "es": "# Las preguntas de las guías\n\nLas cinco guías de estudio hacen estas preguntas y no "
          "las contestan. Aquí cada respuesta es un experimento que corre en segundos; cada número "
          "lo midió la orden que está encima. Otra `--seed` sortea otros datos y otros pesos. "
          "`mirada lab` enumera las preguntas, `-o scale.png` dibuja una respuesta, `--json` da "
          "sus números.",
}


@dataclass(frozen=True)
class Answer(draw.Drawn):
    """A question and what was found. Printed, it is both, in words."""

    name: str
    language: str
    seed: int
    found: dict[str, float | list]

    @property
    def row(self) -> str:
        """The checklist's row."""
        return _file(self.name).ROW

    @property
    def question(self) -> str:
        """What the guides ask."""
        return _file(self.name).ASKED[self.language]

    @property
    def answer(self) -> str:
        """The answer, with the numbers that this run found."""
        file = _file(self.name)
        told = file.TOLD[self.language]
        if "real" in self.found:
            told += " " + file.ALSO[self.language]
        return told.format(**self.found)

    def data(self) -> dict:
        """For programs."""
        return {"name": self.name, "row": self.row, "language": self.language, "seed": self.seed,
                "question": self.question, "answer": self.answer, "found": self.found}

    def __str__(self) -> str:
        return f"{self.question}\n\n{textwrap.fill(self.answer, 88)}"

    def figure(self):
        """The numbers as one plot, a matplotlib figure."""
        file = _file(self.name)
        words = file.WORDS[self.language]
        figure = draw.canvas(6.4, 3.6)
        axes = draw.dressed(figure.subplots(), *(words[n] for n in ("title", "across", "down")))
        file.draw(self.found, axes, words)
        return figure


@dataclass(frozen=True)
class Questions:
    """What can be asked. Printed: a name and its question a line."""

    language: str

    def data(self) -> list[dict]:
        """For programs."""
        return [{"name": name, "row": _file(name).ROW, "question": question}
                for name, question in self._each()]

    def __str__(self) -> str:
        wide = max(map(len, NAMES))
        return "\n".join(f"{name:{wide}}  {question}" for name, question in self._each())

    def _each(self) -> list[tuple[str, str]]:
        return [(name, _file(name).ASKED[self.language]) for name in NAMES]


@dataclass(frozen=True)
class Page:
    """Every answer. Printed, it is Markdown, with links to the pictures that were drawn."""

    language: str
    answers: list[Answer]
    pictures: list[str]

    def data(self) -> list[dict]:
        """For programs."""
        return [answer.data() for answer in self.answers]

    def __str__(self) -> str:
        parts = [HEAD[self.language]]
        more = "" if self.language == "en" else f" --lang {self.language}"
        for n, answer in enumerate(self.answers):
            seed = f" --seed {answer.seed}" if answer.seed else ""
            parts += [f"## {answer.question}",
                      f"`mirada lab {answer.name}{more}{seed}`",
                      textwrap.fill(answer.answer, 100, break_on_hyphens=False)]
            if self.pictures:
                parts.append(f"![{answer.question}]({self.pictures[n]})")
        return "\n\n".join(parts)


def ask(name: str, seed: int = 0, language: str = "en") -> Answer:
    """Run the experiment that answers a question of NAMES, on one core in seconds.

    seed: of data and weights, 0 to 2**32 - 1. language: of the words, "en" or "es"; the numbers are
    the same. Raises MiradaError.
    """
    _known(language)
    if not 0 <= seed < 1 << 32:
        raise MiradaError(f"the seed is {seed}; it is a number from 0 to 4294967295")
    return Answer(name, language, seed, _file(name).run(seed))


def page(seed: int = 0, language: str = "en", folder: str | None = None) -> Page:
    """Every answer, and in `folder` its picture: NAME.png, of another language NAME.es.png."""
    from tqdm import tqdm
    _known(language)
    if folder is not None and not Path(folder).is_dir():
        raise MiradaError(f"{folder} is no folder: make one for the pictures")
    answers, pictures = [], []
    for name in tqdm(NAMES, "lab", unit="question", disable=None, leave=False):
        answers.append(ask(name, seed, language))
        if folder is not None:
            file = f"{name}.png" if language == "en" else f"{name}.{language}.png"
            pictures.append(answers[-1].save(Path(folder) / file))
    return Page(language, answers, pictures)


def spoken() -> str:
    """The language of this terminal, among LANGUAGES: "es" where LANG is Spanish, else "en"."""
    said = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    return "es" if said.lower().startswith("es") else "en"


def _known(language: str) -> None:
    if language not in LANGUAGES:
        raise MiradaError(f"there are no answers in {language!r}; there are in "
                          f"{' and '.join(LANGUAGES)}")


def _file(name: str):
    """The file of a question."""
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(NAMES)}"
        raise MiradaError(f"the lab has no question called {name!r}: {hint}")
    return importlib.import_module(f"mirada.lab.{name}")

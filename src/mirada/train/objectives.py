"""The objectives of a run, by name: which models learn by each, and what one from nothing needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from mirada import registry
from mirada.errors import MiradaError

from . import convnets
from .contrast import Contrast
from .denoise import Denoise
from .distill import Distill, Taught, begin
from .gaps import MASK, GapSentences
from .instructions import Instructions, Task
from .language import HiddenToken, NextToken
from .masked_images import HiddenPatches
from .middle import MARKS, FillMiddle
from .pairs import SentencePairs, Together
from .pictures import Labelled, Pictures, changes, label_names
from .preference import DPO, frozen_copy, told
from .replaced import Joint, ReplacedToken, joint
from .seq2seq import Translate
from .sft import Answers, talk
from .sft import Mixture as Talks
from .spans import MODES, SENTINELS, Mixture, Spans

PAIRED = ("ForPreTraining", "ForNextSentencePrediction")
FOUND = "ElectraForPreTraining"
PAINTED = "ViTMAEForPreTraining"


def writes(model) -> bool:
    return model.generates and not model.encoder_decoder


def rewrites(model) -> bool:
    return model.generates and model.encoder_decoder


def compares(model) -> bool:
    return (model.kind == "encoder" and model.architecture.endswith(PAIRED)
            and model.family != "electra")


def detects(model) -> bool:
    return model.architecture.endswith(FOUND)


def hides(model) -> bool:
    return model.architecture.endswith("ForMaskedLM")


def matches(model) -> bool:
    return model.kind == "dual-encoder" and hasattr(model.head, "scale")


def sees(model) -> bool:
    return "ForImageClassification" in model.architecture


def paints(model) -> bool:
    return model.architecture == PAINTED


@dataclass(frozen=True)
class Kind:
    """make(data, length, model, **options) -> objective. fits: which models learn by it. Of a model
    from nothing: heads, endings of the architecture; tokenizer and special: what it reads with.
    reads: "texts", "pairs" (two columns of each record), "rows" (records as they are), "pictures".
    """

    make: Callable
    fits: Callable
    heads: tuple[str, ...] = ()
    tokenizer: str = "unigram"
    special: tuple[str, ...] = ()
    reads: str = "texts"


def _pairs(kind: str) -> Callable:
    return lambda data, length, model, **options: SentencePairs(data, length, model, kind,
                                                                **options)


def _taught(data, length: int, model, teacher: str, **options) -> Distill:
    wise = registry.load(teacher)
    if model.origin.path is None:  # from nothing; a student that was loaded stays as it is
        begin(model, wise)
    return Distill(data, length, model, wise, **options)


def _shown(data: Labelled, length: int, model, make: Callable = Pictures, shift: int = 0,
           flip: bool = False, crop: float = 1.0, **options) -> Pictures:
    processor = model.processor
    if isinstance(processor.size, int) and processor.crop is None:
        raise MiradaError("this model's files bring pictures to no single size, and a batch has "
                          "one: set size, or crop_size, in preprocessor_config.json")
    rows, columns = getattr(getattr(model.body, "embed", None), "grid", (0, 0))
    return make(data, processor=processor, changes=changes(shift, flip, crop),
                places=1 + rows * columns, **options)


def _copied(data: Labelled, length: int, model, teacher: str, **options) -> Pictures:
    wise = convnets.load(teacher) if convnets.is_one(teacher) else registry.load(teacher)
    if not isinstance(wise, convnets.ResNet) and not sees(wise):
        raise MiradaError(f"{teacher} ({wise.architecture}) tells no labels of pictures apart: a "
                          "teacher does")
    names = wise.names if isinstance(wise, convnets.ResNet) else label_names(wise)
    if names is not None and names != data.names:
        raise MiradaError(f"{teacher} tells {', '.join(names[:5])} ... apart and the data "
                          f"{', '.join(data.names[:5])} ...: a teacher's labels are the data's")
    return _shown(data, length, model, partial(Taught, teacher=wise), **options)


def _matched(data: Labelled, length: int, model, template: str = "a photo of {}", shift: int = 0,
             flip: bool = False, crop: float = 1.0) -> Contrast:
    """A picture's text is what it is labelled, in a template; "{}" of labels that are sentences."""
    if "{}" not in template:
        raise MiradaError(f"template {template!r} must have {{}} where the label goes")
    texts = [template.replace("{}", data.names[n]) for n in data.labels]
    return Contrast(data.pictures, texts, model, changes=changes(shift, flip, crop))


def _told(data: dict[str, list], length: int, model, templates, **options) -> Instructions:
    tasks = [Task(name, rows, [(asked, answer) for asked, answer in templates])
             for name, rows in data.items()]
    return Instructions(tasks, length, model, **options)


def _answers(data: dict[str, list], length: int, model, system: str | None = None,
             shares=None) -> Answers | Talks:
    """Each file a set of prompts and answers; of several a mixture."""
    for name, rows in data.items():
        if any("prompt" not in row or "answer" not in row for row in rows):
            raise MiradaError(f"{name}: each record needs the columns prompt and answer")
    sets = [Answers.of(model, [talk(row["prompt"], row["answer"]) for row in rows], length, system)
            for rows in data.values()]
    return sets[0] if len(sets) == 1 else Talks(sets, shares)


def _preferred(data: dict[str, list], length: int, model, system: str | None = None,
               **options) -> DPO:
    rows = told(model, [row for rows in data.values() for row in rows], system)
    kept = [row for row in rows if len(row[0]) + max(map(len, row[1:])) <= length]
    if not kept:
        raise MiradaError(f"no preference has its prompt and answers within {length} tokens")
    reference = None if model.adapters.active else frozen_copy(model)
    return DPO(kept, model.tokenizer.pad_id or 0, reference=reference, **options)


OBJECTIVES = {
    "causal": Kind(lambda data, length, model: NextToken(data, length), writes, tokenizer="bpe"),
    "middle": Kind(lambda data, length, model, **options: FillMiddle(
        data, length, model.tokenizer, **options), writes, tokenizer="bpe", special=MARKS[0]),
    "masked": Kind(lambda data, length, model, **options: HiddenToken(
        data, length, model.tokenizer, **options), hides, ("ForMaskedLM",), "wordpiece"),
    "distill": Kind(_taught, hides, ("ForMaskedLM",), "wordpiece"),
    "pictures": Kind(_shown, sees, ("ForImageClassification",), reads="pictures"),
    "taught": Kind(_copied, sees, ("ForImageClassificationWithTeacher", "ForImageClassification"),
                   reads="pictures"),
    "painted": Kind(lambda data, length, model, **options: HiddenPatches(
        _shown(data, length, model, **options), model), paints, (PAINTED,), reads="pictures"),
    "contrast": Kind(_matched, matches, ("CLIPModel",), reads="pictures"),
    "replaced": Kind(ReplacedToken, detects, (FOUND,), "wordpiece"),
    "next": Kind(_pairs("next"), compares, PAIRED, "wordpiece"),
    "order": Kind(_pairs("order"), compares, PAIRED, "wordpiece"),
    "together": Kind(Together, lambda model: model.kind == "encoder", ("Model",), "wordpiece",
                     reads="pairs"),
    "span": Kind(Spans, rewrites, special=SENTINELS),
    "mixture": Kind(Mixture, rewrites, special=(*SENTINELS, *MODES)),
    "denoise": Kind(Denoise, rewrites, tokenizer="wordpiece"),
    "gaps": Kind(GapSentences, rewrites, special=(MASK,)),
    "translate": Kind(Translate, rewrites, reads="pairs"),
    "answers": Kind(_answers, writes, tokenizer="bpe", reads="rows"),
    "preferences": Kind(_preferred, writes, tokenizer="bpe", reads="rows"),
    "instructions": Kind(_told, rewrites, reads="rows"),
}


def chosen(asked: str | None, model, name: str) -> str:
    """The objective's name: what was asked for, or what the model's head is for.

    name: of the model, for messages. Raises MiradaError where the model does not learn by it.
    """
    fits = [one for one, kind in OBJECTIVES.items() if kind.fits(model)]
    words = " or ".join(map(repr, fits))
    of = f"{name} ({model.architecture})"
    if asked is None and (not fits or model.encoder_decoder):
        hint = f"by itself: name the objective, {words}" if fits else (
            "as it neither writes a text on nor tells hidden tokens")
        raise MiradaError(f"{of}: plain text does not train it, {hint}")
    if asked is not None and asked not in fits:
        raise MiradaError(f"{of} learns by objective {words or 'none of these'}, not {asked!r}")
    return asked or fits[0]


def head(asked: str | None, family: str) -> str | None:
    """The architecture that a model from nothing is given; None: the family's first. Where nothing
    is asked, one that tells hidden tokens."""
    endings = OBJECTIVES[asked or "masked"].heads
    heads = registry.family(family).HEADS
    return next((one for end in endings for one in heads if one.endswith(end)), None)


def whole(name: str, model, seed: int):
    """The model with what trains beside it: the generator of replaced tokens."""
    return joint(model, seed=seed) if name == "replaced" else model


def kept(model):
    """The one that is saved of a model that trains with another."""
    return model.discriminator if isinstance(model, Joint) else model


def made(name: str, data, length: int, model, options: dict):
    """The objective. Raises MiradaError for an option that it has not, or lacks."""
    try:
        return OBJECTIVES[name].make(data, length, model, **options)
    except TypeError as error:
        said = str(error).rpartition("() ")[2]
        raise MiradaError(f"objective {name!r}: {said}; its options stand in [options]") from None

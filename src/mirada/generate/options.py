"""What generation can be asked for: the reference's option names, each checked in one place."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mirada.errors import MiradaError, UntrustedInputError
from mirada.model import Caches, Model

from .defaults import defaults, source, token_id

LENGTH = 20  # new tokens, where neither the caller nor the model's files say


@dataclass(frozen=True)
class Options:
    """The options of one generation; `read` checks them and fills in what the model knows.

    What is not given is what the model's files say (see defaults.py), else what stands below.
    max_new_tokens: written at most, less where the context ends; 20 where nothing else is said.
    min_new_tokens: no end token before. max_length, min_length: the same two counted with the
    prompt, or with an encoder-decoder's first id, where the others are None. do_sample: None
    samples when temperature (above 0), top_k, top_p or min_p is given and is greedy otherwise;
    temperature 0 is always greedy. num_return_sequences: answers a prompt. eos_token_id: an id or
    several, () for none; None: generation_config.json's, else the config's and the tokenizer's.
    pad_token_id: what fills finished rows. stop: a text or several; the token that completes one
    is the last. seed: for sampling, which leaves torch's own generator alone, or a torch.Generator
    to draw from; None: new numbers each time. cache: "growing", "static", "rolling"; "float32",
    "float16" or "int8", which are the native runtime's; or what holds the prompt's beginning
    already. codes: bits of the activations that quantized weights meet in the native runtime: 16,
    as exact as float32 here, or 8, as other engines have it: prompts and batches are read half as
    fast again, and a token in twenty may be another; None: as the program was attached; a cache
    that is given keeps its own. context: most tokens in all, the model's own when None.
    encoder_outputs (B, S, D): the memory, when it is known. decoder_start_token_id: the first id of
    an encoder-decoder's answer.
    forced_bos_token_id: what stands behind that id (or behind a prompt of one token).
    forced_eos_token_id: the last token when the room is used up. suppress_tokens: ids never
    written; begin_suppress_tokens: not at first; each an id or several. bad_words_ids: lists of
    ids that are not written in a row. renormalize_logits: what the other options leave is made
    chances again, which beams add up. assistant_model: a smaller model of the same vocabulary that
    guesses up to num_assistant_tokens ahead, or prompt_lookup_num_tokens: how many are guessed
    from what the text (or an encoder-decoder's source) repeats; both change how fast an answer
    comes, and not the answer.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    max_length: int | None = None
    min_length: int = 0
    do_sample: bool | None = None  # differs: the reference is greedy unless told, and warns
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_id: tuple[int, ...] | None = None
    pad_token_id: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | torch.Generator | None = None
    cache: str | Caches = "growing"
    codes: int | None = None
    context: int | None = None
    encoder_outputs: Tensor | None = None
    decoder_start_token_id: int | None = None
    forced_bos_token_id: tuple[int, ...] = ()
    forced_eos_token_id: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    renormalize_logits: bool = False
    assistant_model: Model | None = None
    num_assistant_tokens: int = 8
    prompt_lookup_num_tokens: int = 0

    @classmethod
    def read(cls, model: Model, given: dict) -> Options:
        """Options for this model. Raises MiradaError for what cannot be."""
        if not model.generates:
            raise MiradaError(f"{model.architecture} does not write one token after another; to "
                              "generate, a decoder or encoder-decoder with a language-model head "
                              "is needed")
        for name in given:
            _known(name)
        options = cls(**defaults(model, given), **given)
        for name, (rule, holds) in RULES.items():
            value = getattr(options, name)
            if not (holds(value) or (value is None and DEFAULTS[name] in (None, ()))):
                _refuse(model, given, name, value, rule)
        ids: dict = {name: _ids(getattr(options, name)) for name in IDS}
        ids["bad_words_ids"] = tuple(map(tuple, options.bad_words_ids or ()))
        for name, several in ids.items():
            if any(i >= model.config.vocab for one in several for i in _ids(one)):
                _refuse(model, given, name, getattr(options, name),
                        f"ids below this model's vocabulary of {model.config.vocab}")
        options = replace(
            options, **ids, do_sample=options._samples(), stop=options._stops(model),
            eos_token_id=options._ends(model), context=options._context(model))
        words = tuple(w for w in options.bad_words_ids  # an end may stay an end
                      if len(w) > 1 or w[0] not in options.eos_token_id)
        options = replace(options, pad_token_id=options._pad(model), bad_words_ids=words)
        options._agree()
        return options

    def sized(self, length: int) -> Options:
        """These options with both lengths in new tokens, behind `length` tokens."""
        most, least = self.max_new_tokens, self.min_new_tokens
        if most is None:
            most = LENGTH if self.max_length is None else self.max_length - length
        if most < 1:
            raise MiradaError(f"the prompt has {length} tokens, and max_length, which counts "
                              f"them, is {self.max_length}: give max_new_tokens instead")
        return replace(self, max_new_tokens=most,
                       min_new_tokens=max(0, self.min_length - length) if least is None else least)

    def _samples(self) -> bool:
        words = (self.temperature, self.top_k, self.top_p, self.min_p)
        asked = any(word is not None for word in words)
        return self.temperature != 0 and (asked if self.do_sample is None else self.do_sample)

    def _stops(self, model: Model) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(isinstance(s, str) and s for s in stops):
            raise MiradaError(f"stop is {self.stop!r}; it must be a text, or several, none empty")
        if stops and model.tokenizer is None:
            raise MiradaError("stop needs a tokenizer, and this model has none: give eos_token_id "
                              "or set model.tokenizer")
        return stops

    def _ends(self, model: Model) -> tuple[int, ...]:
        vocab = model.config.vocab
        if self.eos_token_id is not None:
            ids = _ids(self.eos_token_id)
            if not all(whole(0)(i) and i < vocab for i in ids):
                raise MiradaError(f"eos_token_id is {self.eos_token_id!r}; it must be ids below "
                                  f"this model's vocabulary of {vocab}")
            return ids
        named = [*_ids((model.origin.generation or {}).get("eos_token_id"))]
        if not named:
            named = [*_ids(token_id(model, "eos_token_id")), getattr(model.config, "eos", None)]
            named += sorted(model.tokenizer.eos_ids) if model.tokenizer is not None else []
        return tuple(dict.fromkeys(i for i in named if whole(0)(i) and i < vocab))

    def _pad(self, model: Model) -> int | None:
        own = model.tokenizer.pad_id if model.tokenizer is not None else None
        known = (self.pad_token_id, token_id(model, "pad_token_id"), own,
                 getattr(model.config, "pad", None), *self.eos_token_id)
        return next((i for i in known if whole(0)(i)), None)

    def _context(self, model: Model) -> int | None:
        if self.context is not None and model.context is not None and self.context > model.context:
            raise MiradaError(f"context is {self.context}; this model's own is {model.context}")
        return self.context or model.context

    def _agree(self) -> None:
        """Options that are right alone and wrong together."""
        if self.num_beams > 1 and (self.assistant_model or self.prompt_lookup_num_tokens):
            raise MiradaError("beams are not guessed ahead: leave out assistant_model and "
                              "prompt_lookup_num_tokens, or set num_beams=1")
        most = self.num_beams if self.num_beams > 1 else math.inf if self.do_sample else 1
        if self.num_return_sequences > most:
            raise MiradaError(f"num_return_sequences is {self.num_return_sequences}, and this "
                              f"search has {most}: sample, or raise num_beams")


def whole(low: int, high: float = math.inf) -> Callable[[object], bool]:
    """A test for whole numbers from low to below high; True and False are none."""
    return lambda x: (isinstance(x, numbers.Integral) and not isinstance(x, bool)
                      and low <= int(x) < high)


def real(holds: Callable[[float], bool]) -> Callable[[object], bool]:
    """A test for finite numbers of which `holds`."""
    return lambda x: (isinstance(x, numbers.Real) and not isinstance(x, bool)
                      and math.isfinite(x) and holds(float(x)))


def tokens(x) -> bool:
    """Whether x is a token id or several."""
    return (isinstance(x, int | list | tuple | set) or hasattr(x, "tolist")) and all(
        map(whole(0), _ids(x)))


IDS = ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
DEFAULTS = {field.name: field.default for field in fields(Options)}
RULES = {  # option -> what it must be, and the test
    "max_new_tokens": ("a whole number of tokens, 1 or more", whole(1)),
    "min_new_tokens": ("a whole number of tokens, 0 or more", whole(0)),
    "max_length": ("a whole number of tokens, 1 or more", whole(1)),
    "min_length": ("a whole number of tokens, 0 or more", whole(0)),
    "do_sample": ("True, False or None", lambda x: isinstance(x, bool)),
    "temperature": ("0 (greedy) or a number above it", real(lambda x: x >= 0)),
    "top_k": ("a whole number of tokens, 1 or more", whole(1)),
    "top_p": ("above 0 and at most 1", real(lambda x: 0 < x <= 1)),
    "min_p": ("from 0 to 1", real(lambda x: 0 <= x <= 1)),
    "repetition_penalty": ("above 0 (1 changes nothing)", real(lambda x: x > 0)),
    "no_repeat_ngram_size": ("a whole number of tokens, 0 (off) or more", whole(0)),
    "num_beams": ("a whole number, 1 or more", whole(1)),
    "num_return_sequences": ("a whole number, 1 or more", whole(1)),
    "length_penalty": ("a number", real(lambda x: True)),
    "early_stopping": ('True, False or "never"', lambda x: isinstance(x, bool) or x == "never"),
    "pad_token_id": ("a token id, 0 or more", whole(0)),
    "seed": ("a whole number from 0 to 2**63 - 1, or a torch.Generator",
             lambda s: isinstance(s, torch.Generator) or whole(0, 2**63)(s)),
    "codes": ("8 or 16, the bits of an activation", lambda c: whole(8, 17)(c) and c in (8, 16)),
    "context": ("a whole number of tokens, 2 or more", whole(2)),
    "decoder_start_token_id": ("a token id, 0 or more", whole(0)),
    **{name: ("a token id, 0 or more, or several", tokens) for name in IDS},
    "bad_words_ids": ("a list of lists of token ids, none empty", lambda x: (
        isinstance(x, list | tuple) and all(isinstance(w, list | tuple) and w and tokens(w)
                                            for w in x))),
    "renormalize_logits": ("True or False", lambda x: isinstance(x, bool)),
    "assistant_model": ("a model", lambda x: isinstance(x, Model)),
    "num_assistant_tokens": ("a whole number of tokens, 1 or more", whole(1)),
    "prompt_lookup_num_tokens": ("a whole number of tokens, 0 (off) or more", whole(0)),
}


def _refuse(model: Model, given: dict, name: str, value, rule: str) -> None:
    """Raises for an option's value, and names the file where it stands in one."""
    if name in given:
        raise MiradaError(f"{name} is {value!r}; it must be {rule}")
    where = f"{model.origin.path}/{source(model)[1]}"
    raise UntrustedInputError(where, name, f"{value!r} cannot be; it must be {rule}")


def _known(name: str) -> None:
    if name not in DEFAULTS:
        near = difflib.get_close_matches(name, DEFAULTS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise MiradaError(f"generation has no option {name!r}; {hint}there are "
                          f"{', '.join(DEFAULTS)}")


def _ids(value) -> tuple:
    """One id, several or None, as a tuple."""
    if value is None or isinstance(value, str):
        return ()
    if hasattr(value, "tolist"):
        value = value.tolist()
    return (value,) if isinstance(value, numbers.Number) else tuple(value)

"""Texts that a model writes: going on from a prompt or a chat, translations, summaries."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any, ClassVar

import torch

from mirada.errors import MiradaError
from mirada.generate import window
from mirada.generate.defaults import LENGTHS, defaults
from mirada.generate.loop import generate
from mirada.generate.options import DEFAULTS

from . import evidence, inputs, long
from .inputs import Row
from .task import Task

RENAMED = {"stop_sequence": "stop", "stop_strings": "stop"}
GENERATION = (*DEFAULTS, *RENAMED)
LANGUAGE = re.compile("[a-z]{2,3}_[A-Z]+[a-z]*|__[a-z]{2,3}__")  # a token that stands for one
HOUSE = {"max_new_tokens": 256}  # where neither caller nor files say anything


class Writer(Task):
    """What all that generate share. Further options: see generate.options.Options."""

    HOUSE: ClassVar[dict] = HOUSE
    KIND: ClassVar[str] = ""

    def fits(self) -> bool:
        return self.model.generates and self.model.kind == self.KIND

    def read(self, given: dict) -> dict:
        told = {RENAMED.get(name, name): value for name, value in super().read(given).items()}
        return told | {"top_k": told["top_k"] or None} if "top_k" in told else told  # 0: of all

    def generation(self, told: dict, own: dict) -> dict:
        """What generate is given: the caller's options, then `own`, then, where the model's files
        are silent too, the house's."""
        asked = {name: told[name] for name in DEFAULTS if name in told}
        for lower in (own, self._silent(asked | own)):
            unsaid = set(asked).union(*(p for p in LENGTHS if not p.isdisjoint(asked)))
            asked |= {n: v for n, v in lower.items() if n in DEFAULTS and n not in unsaid}
        return asked

    def _silent(self, asked: dict) -> dict:
        own = defaults(self.model, asked)
        said = set(own) | set(asked)
        said = said.union(*(pair for pair in LENGTHS if not pair.isdisjoint(said)))
        return {name: value for name, value in self.HOUSE.items() if name not in said}

    def write(self, rows: list[Row], options: dict) -> list[list[list[int]]]:
        """The answers to each prompt as ids, without the prompt, in order."""
        found: list = [None] * len(rows)
        prompts = self.model.encoder_decoder
        # a length that counts the prompt is another for each: no two share a batch
        counted = not prompts and "max_new_tokens" not in options
        for places in inputs.buckets(rows, 1 if counted else self.batch_size):
            batch = inputs.padded(self.model, [rows[i] for i in places],
                                  "right" if prompts else "left")
            ids = generate(self.model, batch["input_ids"], batch["attention_mask"],
                           **{"seed": _drawn(self.model.device)} | options)
            written = ids[:, 0 if prompts else batch["input_ids"].shape[1] :]
            for i, some in zip(places, written.unflatten(0, (len(places), -1)), strict=True):
                found[i] = some.tolist()
        return found


def _drawn(device: torch.device) -> torch.Generator:
    """torch's own generator, so that a program that seeds it gets what the reference gives it."""
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator


def _tidy(text: str, told: dict) -> str:
    """With clean_up_tokenization_spaces without the spaces that tokens of English leave, as the
    reference takes them away."""
    if told.get("clean_up_tokenization_spaces"):
        text = re.sub(r" ([.?!,]|n't|'m|'s|'ve|'re)", r"\1", text.replace(" ' ", "'"))
    return text


class TextGeneration(Writer):
    """A prompt, or a chat (a list of dicts with role and content) -> [{"generated_text"}, ...], one
    for each of num_return_sequences. generated_text: the prompt and what follows, of a chat its
    messages and the answer's.

    return_full_text: False leaves out the prompt. return_tensors: {"generated_token_ids"}, ids with
    the prompt's. prefix: put before each prompt. truncation=True or handle_long_generation="hole":
    the oldest tokens of a prompt without room for an answer go, with a warning.
    What neither the caller nor the files say: 256 tokens are sampled, at a temperature of 0.7.
    evidence=True: each text has "evidence", what evidence.written gives.
    """

    KIND = "decoder"
    DOES = "writes on from a text"
    OPTIONS = ("return_full_text", "return_tensors", "prefix", "handle_long_generation",
               "add_special_tokens", "skip_special_tokens", "continue_final_message",
               "clean_up_tokenization_spaces", "evidence", *GENERATION)
    SAMPLES: ClassVar[dict] = {"do_sample": True, "temperature": 0.7}

    def one(self, inputs: Any) -> bool:
        return isinstance(inputs, str) or (
            isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict))

    def run(self, items: list, told: dict) -> list:
        options = self.generation(told, {})
        if options.get("num_beams", 1) == 1:
            options = self.SAMPLES | defaults(self.model, options) | options
        rows = [self._row(item, told, options) for item in items]
        return [[self._result(item, row, ids, told) for ids in answers]
                for item, row, answers in zip(items, rows, self.write(rows, options), strict=True)]

    def _row(self, item: str | list[dict], told: dict, options: dict) -> Row:
        if isinstance(item, str):
            ids = self.tokenizer.encode(told.get("prefix", "") + item,
                                        special=told.get("add_special_tokens", True)).ids
        else:
            ids = self._chat(item, told)
        ids = ids or [i for i in (self.tokenizer.bos_id,) if i is not None]
        room = options.get("max_new_tokens") or 1
        most = self.model.context
        if most is not None and len(ids) + room > most and (
                told.get("truncation") or told.get("handle_long_generation") == "hole"):
            fitting = window.fit(ids, most, room, "left")
            warnings.warn(f"the oldest {len(fitting.dropped)} tokens of a prompt of {len(ids)} "
                          "were left out", inputs.Cut, stacklevel=2)
            ids = fitting.ids
        return Row(ids, [0] * len(ids))

    def _chat(self, messages: list[dict], told: dict) -> list[int]:
        """A chat's ids; one that ends in the model's own words is to be gone on with."""
        if not self._goes_on(messages, told):
            return self.tokenizer.chat(messages)
        said = str(messages[-1]["content"]).rstrip()
        text = self.tokenizer.render(messages, add_generation_prompt=False)
        text = text[: text.rindex(said) + len(said)]
        return self.tokenizer.encode(text, special=False).ids

    def _goes_on(self, messages: list[dict], told: dict) -> bool:
        own = told.get("continue_final_message")
        return messages[-1].get("role") == "assistant" if own is None else own

    def _result(self, item: str | list[dict], row: Row, ids: list[int], told: dict) -> dict:
        if told.get("return_tensors"):
            return {"generated_token_ids": row.ids + ids}
        text: Any = _tidy(self.tokenizer.decode(
            ids, skip_special=told.get("skip_special_tokens", True)), told)
        if told.get("return_full_text", True):
            if isinstance(item, str):
                text = item + text
            elif self._goes_on(item, told):
                last = item[-1]
                text = [*item[:-1], {"role": last["role"], "content": last["content"] + text}]
            else:
                text = [*item, {"role": "assistant", "content": text}]
        seen = {"evidence": evidence.written(self.model, row, ids)} if told.get("evidence") else {}
        return {"generated_text": text} | seen


class Text2Text(Writer):
    """Text -> [{"generated_text"}]; of a list of texts, one such dict each.

    return_tensors: {"generated_token_ids"} instead. The prefix that the model's files give for the
    task (task_specific_params) is put before each text, and their options hold unless told others;
    without any, 4 beams look for at most 256 tokens. long="stride": a text longer than the model
    reads is answered piece by piece (see long.pieces), and the answers are joined by a space.
    evidence=True: each text has "evidence", what evidence.written gives.
    """

    LONG = long.POLICIES
    KIND = "encoder-decoder"
    DOES = "writes a text in answer to another"
    RETURN = "generated"
    HOUSE = HOUSE | {"num_beams": 4}
    OPTIONS: ClassVar[tuple[str, ...]] = (
        "return_tensors", "return_text", "prefix", "clean_up_tokenization_spaces", "evidence",
        *GENERATION)

    def __call__(self, inputs: Any, **options) -> Any:
        found = super().__call__(inputs, **options)
        if isinstance(inputs, list) and all(len(one) == 1 for one in found):
            return [one[0] for one in found]
        return found

    def run(self, items: list, told: dict) -> list:
        params = self.params(told)
        options = self.generation(told, params)
        raw = self.model.origin.raw
        prefix = told.get("prefix", params.get("prefix", raw.get("prefix"))) or ""
        # max_length is the answer's, not the text's, as in the reference
        fit = {"truncation": told.get("truncation")}
        parts = [long.pieces(self.model, prefix, text) if told.get("long") == "stride" else [text]
                 for text in items]
        rows = [self.source(inputs.row(self.model, prefix + piece, None, fit), told)
                for some in parts for piece in some]
        if options.get("do_sample") and "num_beams" not in told:
            options["num_beams"] = 1
        read = iter(zip(rows, self.write(rows, options), strict=True))
        return [self._joined([next(read) for _ in some], told) for some in parts]

    def _joined(self, read: list[tuple[Row, list[list[int]]]], told: dict) -> list[dict]:
        """The answers to one text, from those to each of its pieces."""
        found = []
        for pieces in zip(*(answers for _, answers in read), strict=True):
            found.append(self._result(list(pieces), told))
            if told.get("evidence"):
                found[-1]["evidence"] = [
                    one for (row, _), ids in zip(read, pieces, strict=True)
                    for one in evidence.written(self.model, row, ids)]
        return found

    def params(self, told: dict) -> dict:
        """What the model's files say of this task."""
        return (self.model.origin.raw.get("task_specific_params") or {}).get(self.name) or {}

    def _result(self, pieces: list[list[int]], told: dict) -> dict:
        """Of one answer, the ids that were written for each piece of the text."""
        if told.get("return_tensors"):
            return {f"{self.RETURN}_token_ids": [i for ids in pieces for i in ids]}
        return {f"{self.RETURN}_text": _tidy(" ".join(map(self.tokenizer.decode, pieces)), told)}

    def source(self, row: Row, told: dict) -> Row:
        """A text as the model is to read it for this task."""
        return row


class Translation(Text2Text):
    """Text -> [{"translation_text"}]. The task's name may say the languages, translation_en_to_de,
    or src_lang="en", tgt_lang="de": of a model that knows them by a prefix (T5), or has a token
    for each (mBART: src_lang="en_XX", tgt_lang="de_DE")."""

    RETURN = "translation"
    DOES = "writes a text in another language"
    OPTIONS: ClassVar[tuple[str, ...]] = (*Text2Text.OPTIONS, "src_lang", "tgt_lang")

    def params(self, told: dict) -> dict:
        source, target = told.get("src_lang"), told.get("tgt_lang")
        if source is None and target is None:
            return super().params(told)
        if self._code(source) is not None and self._code(target) is not None:
            return {"forced_bos_token_id": self._code(target)}
        known = self.model.origin.raw.get("task_specific_params") or {}
        name = f"translation_{source}_to_{target}"
        if name not in known:
            names = [n for n in known if re.fullmatch(r"translation_\w+_to_\w+", n)]
            names += sorted(mark.strip("_") for mark in self._marks() if LANGUAGE.fullmatch(mark))
            raise MiradaError(f"this model's files do not say how to translate from {source} to "
                              f"{target}; they name {', '.join(names) or 'no languages'}: choose "
                              "two of them for src_lang and tgt_lang, leave src_lang and "
                              "tgt_lang out, or put the model's own words before the text with "
                              "prefix=")
        return known[name]

    def _code(self, language: str | None) -> int | None:
        """The id of a language's own token."""
        known = self._marks()
        return known.get(language, known.get(f"__{language}__"))  # the second as M2M-100 has it

    def _marks(self) -> dict[str, int]:
        return {self.tokenizer.token(i): i for i in self.tokenizer.special_ids}

    def source(self, row: Row, told: dict) -> Row:
        """With the source's language where the tokenizer puts the one it was saved with."""
        code = self._code(told.get("src_lang"))
        if code is None:
            return row
        roles = {self.tokenizer.id(token) for token in self.tokenizer.tokens.values()}
        return replace(row, ids=[code if i in self.tokenizer.special_ids - roles else i
                                 for i in row.ids])


class Summarization(Text2Text):
    """Text -> [{"summary_text"}]."""

    RETURN = "summary"
    DOES = "writes a summary"

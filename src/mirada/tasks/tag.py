"""A label for each token, and the tokens of one name joined to a span of the text (BIO, BIOES:
Ramshaw and Marcus, cmp-lg/9505040)."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from mirada.errors import MiradaError
from mirada.model import Output

from . import evidence, inputs, long
from .inputs import Row
from .labels import names
from .spans import windows
from .task import Task

STRATEGIES = ("none", "simple", "first", "average", "max")


class TokenClassification(Task):
    """Text -> [{"entity", "score", "index", "word", "start", "end"}, ...], a token each; joined:
    [{"entity_group", "score", "word", "start", "end"}, ...]. start, end: characters of the text.

    aggregation_strategy: "none"; "simple" joins neighbours of one name, where B- begins anew (of
    BIOES, S- stands alone and nothing follows E-); "first", "average", "max" first give all tokens
    of a word one label: its first's, that of the mean score, the surest. grouped_entities=True is
    "simple". ignore_labels: left out, ["O"] unless told. stride: read a text longer than the
    context in windows that share so many tokens; of two names that overlap the longer stays.
    long="stride": the same, a quarter of the context shared and names joined unless told.
    is_split_into_words=True: each text is a list of words, read with `delimiter` (a space) between
    them; a single one gives a list of one, and start and end are of the text so made.
    evidence=True: each has "evidence", what evidence.characters gives.
    """

    HEADS = ("ForTokenClassification",)
    DOES = "labels each token"
    OPTIONS = ("aggregation_strategy", "ignore_labels", "stride", "grouped_entities",
               "is_split_into_words", "delimiter", "evidence")
    LONG = long.POLICIES

    def __call__(self, inputs: Any, **options) -> Any:
        told = self.options | options
        if told.get("is_split_into_words") and isinstance(inputs, list):
            between, nested = told.get("delimiter") or " ", isinstance(inputs[0], list)
            inputs = [between.join(one) for one in (inputs if nested else [inputs])]
        return super().__call__(inputs, **options)

    def run(self, items: list, told: dict) -> list:
        if told.get("long") == "stride" and told.get("stride") is None:
            told = told | {"stride": (inputs.limit(self.model, told) or 0) // 4}
        joins = told.get("grouped_entities") or told.get("long") == "stride"
        default = "simple" if joins else "none"
        strategy = str(told.get("aggregation_strategy") or default).lower()
        if strategy not in STRATEGIES:
            raise MiradaError(f"aggregation_strategy is {strategy!r}; it can be "
                              f"{', '.join(STRATEGIES)}")
        if told.get("stride") is not None and strategy == "none":
            raise MiradaError("stride joins names from several windows: choose an "
                              "aggregation_strategy other than \"none\"")
        parts = [self._rows(text, told) for text in items]
        rows = [row for some in parts for row in some]
        scores = iter(inputs.forward(self.model, rows, self.batch_size, _scores))
        ignored = told.get("ignore_labels")
        ignored = {"O"} if ignored is None else set(ignored)
        return [self._result(text, [(row, next(scores)) for row in some], strategy, ignored,
                             bool(told.get("evidence")))
                for text, some in zip(items, parts, strict=True)]

    def _rows(self, text: str, told: dict) -> list[Row]:
        if told.get("stride") is None:
            return [inputs.row(self.model, text, None, told)]
        most = inputs.limit(self.model, told)
        return windows(self.tokenizer.encode(text), 0, most, told["stride"])

    def _result(self, text: str, read: list[tuple[Row, Tensor]], strategy: str,
                ignored: set[str], shown: bool) -> list[dict]:
        found = []
        for row, scores in read:
            labels = names(self.model, scores.shape[-1])
            tokens = self._tokens(text, row, scores)
            if strategy in ("first", "average", "max"):
                tokens = [self._word(word, strategy) for word in _words(tokens)]
            named = [_named(token, labels) for token in tokens]
            here = named if strategy == "none" else self._joined(named, labels)
            here = [o for o in here if o.get("entity", o.get("entity_group")) not in ignored]
            if shown and here:
                look = evidence.Look(self.model, row)
                for one in here:
                    one["evidence"] = evidence.characters(look, one["start"], one["end"])
            found += here
        return found if len(read) == 1 else _apart(found)

    def _tokens(self, text: str, row: Row, scores: Tensor) -> list[dict]:
        """Each token that stands for text, and whether it goes on with the word before."""
        pieces, found = '"WordPiece"' in json.dumps(self.tokenizer.decoder), []
        for place, i in enumerate(row.at):
            if row.encoding.special_mask[i]:
                continue
            word, (start, end) = row.encoding.tokens[i], row.encoding.offsets[i]
            goes_on = (len(word) != end - start if pieces  # ##ing is longer than its text
                       else start > 0 and " " not in text[start - 1 : start + 1])
            if row.ids[place] == self.tokenizer.unk_id:
                word, goes_on = text[start:end], False
            found.append({"scores": scores[place], "index": place, "word": word, "start": start,
                          "end": end, "goes_on": goes_on})
        return found

    def _word(self, tokens: list[dict], strategy: str) -> dict:
        """One token made of a word's."""
        if strategy == "first":
            scores = tokens[0]["scores"]
        elif strategy == "max":
            scores = max(tokens, key=lambda token: token["scores"].max().item())["scores"]
        else:
            scores = sum(token["scores"] for token in tokens) / len(tokens)
        return {"scores": scores, "word": self._text(tokens), "start": tokens[0]["start"],
                "end": tokens[-1]["end"]}

    def _joined(self, named: list[dict], labels: list[str]) -> list[dict]:
        groups: list[list[dict]] = []
        before = ("", "")
        for token in named:
            mark, name = _mark(token["entity"], labels)
            if groups and name == before[1] and mark in "IE" and before[0] not in ("E", "S"):
                groups[-1].append(token)
            else:
                groups.append([token])
            before = (mark, name)
        return [{"entity_group": group[0]["entity"].split("-", 1)[-1],
                 "score": sum(token["score"] for token in group) / len(group),
                 "word": self._text(group), "start": group[0]["start"], "end": group[-1]["end"]}
                for group in groups]

    def _text(self, tokens: list[dict]) -> str:
        return self.tokenizer.decode_tokens([token["word"] for token in tokens])


def _scores(out: Output, b: int, row: Row) -> Tensor:
    return out.logits[b, : len(row)].float().softmax(-1).cpu()


def _words(tokens: list[dict]) -> list[list[dict]]:
    words: list[list[dict]] = []
    for token in tokens:
        if words and token["goes_on"]:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _named(token: dict, labels: list[str]) -> dict[str, Any]:
    """A token or word with its likeliest label in place of all scores."""
    best = int(token["scores"].argmax())
    kept = {name: token[name] for name in ("index", "word", "start", "end") if name in token}
    return {"entity": labels[best], "score": token["scores"][best].item()} | kept


def _mark(label: str, labels: list[str]) -> tuple[str, str]:
    """(B, I, E or S; name). E- and S- are marks where the same name has a B- or I- too.

    differs: the reference knows B- and I- only, and gives each part of a BIOES name by itself.
    """
    mark, _, name = label.partition("-")
    if mark in ("B", "I") and name:
        return mark, name
    if mark in ("E", "S") and {f"B-{name}", f"I-{name}"} & {*labels}:
        return mark, name
    return "I", label


def _apart(found: list[dict]) -> list[dict]:
    """Of names from several windows that overlap, the longest, then the surest."""
    kept: list[dict] = []
    for one in sorted(found, key=lambda one: one["start"]):
        if not kept or not kept[-1]["start"] <= one["start"] < kept[-1]["end"]:
            kept.append(one)
        elif _rank(one) > _rank(kept[-1]):
            kept[-1] = one
    return kept


def _rank(one: dict) -> tuple[int, float]:
    return one["end"] - one["start"], one["score"]

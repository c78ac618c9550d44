"""Where in a passage the answer to a question stands (Rajpurkar et al., 1606.05250; without an
answer 1806.03822)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mirada.errors import MiradaError
from mirada.model import Output

from . import evidence, inputs
from .inputs import Row
from .spans import windows
from .task import Task

HIDDEN = -10_000.0  # the logit of what cannot be an answer, as the reference has it


class QuestionAnswering(Task):
    """question=, context= (or a dict of both, or lists) -> {"score", "start", "end", "answer"},
    a list of them with top_k above 1. start, end: characters of the context.

    doc_stride: tokens that the windows over a long context share (128, at most half a window);
    max_seq_len: tokens of a window, 384 at most unless told; max_question_len: longer questions
    are refused; max_answer_len: tokens of an answer (15); handle_impossible_answer: "" is an
    answer too; align_to_words: answers are whole words (True). long="refuse": no windows.
    evidence=True: each answer with words has "evidence", what evidence.span gives.
    """

    HEADS = ("ForQuestionAnswering",)
    DOES = "marks where an answer begins and ends"
    OPTIONS = ("top_k", "topk", "doc_stride", "max_seq_len", "max_question_len", "max_answer_len",
               "handle_impossible_answer", "align_to_words", "evidence")
    LONG = ("stride", "refuse")

    def __call__(self, inputs: Any = None, question=None, context=None, **options) -> Any:
        if inputs is None:
            inputs = _asked(question, context)
        found = super().__call__(inputs, **options)
        return found[0] if isinstance(inputs, list) and len(inputs) == 1 else found

    def run(self, items: list, told: dict) -> list:
        top_k, longest = told.get("top_k", told.get("topk", 1)), told.get("max_answer_len", 15)
        for name, value in (("top_k", top_k), ("max_answer_len", longest)):
            if type(value) is not int or value < 1:
                raise MiradaError(f"{name} is {value!r}; it must be a whole number from 1")
        parts = [self._rows(_checked(item), told) for item in items]
        rows = [row for some in parts for row in some]
        read = iter(inputs.forward(self.model, rows, self.batch_size, _logits))
        results = []
        for item, some in zip(items, parts, strict=True):
            found = self._answers(item["context"], [(row, next(read)) for row in some], told,
                                  top_k, longest)
            results.append(found[0] if len(found) == 1 else found)
        return results

    def _rows(self, item: dict, told: dict) -> list[Row]:
        """The windows over one context, each behind the question."""
        encoding = self.tokenizer.encode(item["question"], item["context"])
        most, allowed = inputs.limit(self.model, {}), told.get("max_question_len")
        asked = encoding.sequence.count(0)
        if allowed is not None and asked > allowed:
            raise MiradaError(f"the question has {asked} tokens, more than max_question_len="
                              f"{allowed}: shorten it, or raise that")
        wide = told.get("max_seq_len") or min(384, most or 384)
        if most is not None and wide > most:
            raise MiradaError(f"max_seq_len is {wide}, and this model reads {most} tokens")
        stride = told.get("doc_stride")
        stride = min(wide // 2, 128) if stride is None else stride
        rows = windows(encoding, 1, wide, stride)
        if told.get("long") == "refuse" and len(rows) > 1:
            raise MiradaError(f"the question and its context have {len(encoding)} tokens, and a "
                              f"window {wide}: shorten them, or ask for long=stride")
        return rows

    def _answers(self, context: str, read: list[tuple[Row, Tensor]], told: dict, top_k: int,
                 longest: int) -> list[dict]:
        words = told.get("align_to_words", True)
        some = 2 * top_k + 10 if words else top_k  # several spans may be the same words
        found: dict[str, dict] = {}
        places: dict[str, tuple[Row, int, int]] = {}  # where each was found first
        none = 1e6
        for row, logits in read:
            start, end, null = _chances(row, logits, self.tokenizer.cls_id)
            none = min(none, null)
            for score, s, e in _best(start, end, longest, some):
                at, to = _characters(row, s, e, words)
                answer = context[at:to]
                if answer.lower() in found:  # the same words, found twice, are likelier
                    found[answer.lower()]["score"] += score
                else:
                    found[answer.lower()] = {"score": score, "start": at, "end": to,
                                             "answer": answer}
                    places[answer.lower()] = (row, s, e)
        answers = list(found.values())
        if told.get("handle_impossible_answer") or not answers:
            answers.append({"score": none, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda one: -one["score"])[:top_k]
        for one in answers if told.get("evidence") else ():
            if one["answer"]:
                one["evidence"] = evidence.span(self.model, *places[one["answer"].lower()])
        return answers

    def words(self, words: list[str], options: dict) -> Any:
        if len(words) != 2:
            raise MiradaError("question-answering takes two texts: the question, then the passage")
        return self(question=words[0], context=words[1], **options)


def _asked(question, context) -> Any:
    """One question and context, or lists of them, as what a call takes."""
    if question is None or context is None:
        raise MiradaError("question-answering takes question= and context=")
    if isinstance(question, str):
        question, one = [question], isinstance(context, str)
    else:
        one = False
    contexts = [context] * len(question) if isinstance(context, str) else list(context)
    if len(question) != len(contexts):
        raise MiradaError(f"{len(question)} questions and {len(contexts)} contexts: give one for "
                          "each, or one context for all")
    made = [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
    return made[0] if one else made


def _checked(item) -> dict:
    if not isinstance(item, dict) or not {"question", "context"} <= item.keys():
        raise MiradaError("what is asked must be a dict with the keys question and context")
    for key in ("question", "context"):
        if not isinstance(item[key], str) or not item[key].strip():
            raise MiradaError(f"the {key} is empty: question-answering needs both texts")
    return item


def _logits(out: Output, b: int, row: Row) -> Tensor:
    both = torch.stack([out.start_logits[b], out.end_logits[b]])[:, : len(row)]
    return both.float().cpu()  # (2, T)


def _chances(row: Row, logits: Tensor, cls: int | None) -> tuple[Tensor, Tensor, float]:
    """Probability (T,) of each token to begin and to end the answer, and that of no answer, which
    models say at the first token."""
    inside = torch.tensor([row.encoding.sequence[i] == 1 for i in row.at])
    none = torch.tensor([token == cls for token in row.ids])
    start, end = logits.masked_fill(~(inside | none), HIDDEN).softmax(-1)
    null = float(start[0] * end[0])
    return start * inside, end * inside, null


def _best(start: Tensor, end: Tensor, longest: int, count: int) -> list[tuple[float, int, int]]:
    """(score, first token, last token) of the likeliest spans of at most `longest` tokens.

    differs: spans of no chance at all are left out, where the reference fills up with them.
    """
    scores = torch.outer(start, end).triu().tril(longest - 1)  # (T, T)
    best = scores.flatten().topk(min(count, scores.numel()))
    T = len(start)
    return [(score, at // T, at % T) for score, at in
            zip(best.values.tolist(), best.indices.tolist(), strict=True) if score > 0]


def _characters(row: Row, s: int, e: int, words: bool) -> tuple[int, int]:
    """Where tokens s to e of a row stand in the context; with `words` whole words, as far as they
    are in this window."""
    encoding, of = row.encoding, row.encoding.found.word_ids
    s, e = row.at[s], row.at[e]
    if words and of[s] is not None and of[e] is not None:
        inside = [i for i in row.at if encoding.sequence[i] == 1]
        s = next(i for i in inside if of[i] == of[s])
        e = next(i for i in reversed(inside) if of[i] == of[e])
    return encoding.offsets[s][0], encoding.offsets[e][1]

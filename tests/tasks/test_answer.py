"""Questions: the reference dropped the task, so every span of every window is tried here."""

import numpy as np
import pytest
import torch
import transformers

import mirada
from mirada.errors import MiradaError
from tasks import tiny

PASSAGE = ("the cat sat on a mat and there was language in every model. attention is all you need "
           "Köln año 2024, hello world's model") * 2
QUESTION = "what was there?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("answer") / "model", "ForQuestionAnswering")


@pytest.fixture(scope="module")
def pipe(folder):
    return mirada.pipeline("question-answering", folder)


def spans(folder: str, wide: int, stride: int, longest: int, words: bool, question=QUESTION,
          context=PASSAGE) -> tuple[dict, float]:
    """Answer in lower case -> [score, start, end] of all spans, by the reference's model; and the
    chance of no answer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertForQuestionAnswering.from_pretrained(folder).eval()
    read = tokenizer(question, context, truncation="only_second", max_length=wide, stride=stride,
                     return_overflowing_tokens=True)
    found: dict = {}
    none = 1e6
    for n in range(len(read["input_ids"])):
        with torch.no_grad():
            out = model(torch.tensor([read["input_ids"][n]]),
                        token_type_ids=torch.tensor([read["token_type_ids"][n]]))
        seq = read.sequence_ids(n)
        allowed = np.array([s == 1 or i == 0 for i, s in enumerate(seq)])
        start, end = (np.exp(np.where(allowed, x[0].double().numpy(), -1e4))
                      for x in (out.start_logits, out.end_logits))
        start, end = start / start.sum(), end / end.sum()
        none = min(none, start[0] * end[0])
        here = read.encodings[n]
        for s in range(len(seq)):
            for e in range(s, min(s + longest, len(seq))):
                if seq[s] != 1 or seq[e] != 1:
                    continue
                at, to = here.offsets[s][0], here.offsets[e][1]
                if words:
                    at = here.word_to_chars(here.token_to_word(s), 1)[0]
                    to = here.word_to_chars(here.token_to_word(e), 1)[1]
                found.setdefault((n, s, e), (start[s] * end[e], at, to))
    return found, none


def expected(found: dict, none: float, context: str, top_k: int, words: bool,
             impossible: bool) -> list[dict]:
    """The likeliest spans of each window, the same words added up, the best of them first."""
    merged: dict = {}
    for n in sorted({key[0] for key in found}):
        window = sorted((v for key, v in found.items() if key[0] == n), key=lambda v: -v[0])
        for score, at, to in window[: 2 * top_k + 10 if words else top_k]:
            answer = context[at:to]
            if answer.lower() in merged:
                merged[answer.lower()]["score"] += score
            else:
                merged[answer.lower()] = {"score": score, "start": at, "end": to, "answer": answer}
    every = list(merged.values())
    if impossible:
        every.append({"score": none, "start": 0, "end": 0, "answer": ""})
    return sorted(every, key=lambda one: -one["score"])[:top_k]


@pytest.mark.scope("1.14.3")
@pytest.mark.parametrize(("wide", "stride", "longest", "top_k", "words", "impossible"), [
    (64, 32, 15, 1, True, False), (64, 32, 15, 4, True, False), (32, 8, 3, 3, True, True),
    (32, 8, 15, 5, False, False), (24, 2, 1, 2, False, True), (64, 0, 4, 3, True, False)])
def test_all_spans(pipe, folder, wide, stride, longest, top_k, words, impossible):
    found, none = spans(folder, wide, stride, longest, words)
    assert len({key[0] for key in found}) > 1, "one window shows nothing of the stride"
    wanted = expected(found, none, PASSAGE, top_k, words, impossible)
    ours = pipe(question=QUESTION, context=PASSAGE, max_seq_len=wide, doc_stride=stride,
                max_answer_len=longest, top_k=top_k, align_to_words=words,
                handle_impossible_answer=impossible)
    tiny.near(ours, wanted if top_k > 1 else wanted[0])
    for one in ours if top_k > 1 else [ours]:
        assert PASSAGE[one["start"] : one["end"]] == one["answer"]


@pytest.mark.scope("1.14.3")
def test_no_answer_can_win(pipe, folder):
    found = pipe(question="the cat?", context="a", handle_impossible_answer=True, top_k=5)
    assert "" in [one["answer"] for one in found]
    assert all(one["answer"] for one in pipe(question="the cat?", context="a b", top_k=5))
    best = pipe(question="the cat?", context="a", handle_impossible_answer=True)
    assert best == found[0] and isinstance(best, dict)


def test_forms_of_asking(pipe):
    one = pipe(question=QUESTION, context=PASSAGE)
    asked = {"question": QUESTION, "context": PASSAGE}
    assert pipe(asked) == one and pipe([asked]) == one
    tiny.near(pipe([asked, asked]), [one, one])
    two = pipe(question=[QUESTION, "a mat?"], context=PASSAGE)
    tiny.near(two, [one, pipe(question="a mat?", context=PASSAGE)])
    tiny.near(pipe(question=[QUESTION, "a mat?"], context=[PASSAGE, PASSAGE]), two)


@pytest.mark.parametrize(("given", "says"), [
    ({"question": QUESTION}, "question= and context="),
    ({"question": "", "context": PASSAGE}, "question is empty"),
    ({"question": QUESTION, "context": "  "}, "context is empty"),
    ({"question": [QUESTION], "context": ["a", "b"]}, "1 questions and 2 contexts"),
    ({"question": QUESTION, "context": PASSAGE, "max_seq_len": 65}, "reads 64 tokens"),
    ({"question": QUESTION, "context": PASSAGE, "max_seq_len": 20, "doc_stride": 19}, "smaller"),
    ({"question": QUESTION, "context": PASSAGE, "top_k": 0}, "top_k is 0"),
    ({"question": QUESTION, "context": PASSAGE, "max_question_len": 2}, "max_question_len"),
    ({"question": QUESTION, "context": PASSAGE, "strides": 2}, "did you mean doc_stride")])
def test_mistakes(pipe, given, says):
    with pytest.raises(MiradaError, match=says):
        pipe(**given)

"""A conversation with a real chat model: it remembers, and reads only what is new."""

import pytest

import mirada
from mirada.generate import run
from mirada.generate.chat import Conversation
from mirada.generate.feed import Feed


@pytest.fixture(scope="module")
def model(real):
    return mirada.load(real("smollm2"))


@pytest.mark.scope("1.6.5", "1.14.9")
def test_the_second_turn_refers_to_the_first(model, monkeypatch):
    read, scores = [], Feed.scores
    monkeypatch.setattr(Feed, "scores", lambda feed, tokens, keep: (
        read.append(tokens.shape[1]), scores(feed, tokens, keep))[1])
    talk = Conversation(model, context=512)
    first = talk.send("What is the capital of France?", max_new_tokens=10)
    pieces = list(first)
    assert len(pieces) > 5 and "".join(pieces) == first.text and "Paris" in first.text
    assert read[0] == first.prompt_tokens and set(read[1:]) == {1}
    del read[:]
    second = talk.send("What about Italy?", max_new_tokens=10)
    answer = "".join(second)
    assert "capital" in answer and "Rome" in answer
    assert read[0] == second.prompt_tokens - talk.reused < second.prompt_tokens // 2
    assert talk.used == second.prompt_tokens + second.new_tokens
    assert talk.left == 512 - talk.used


@pytest.mark.scope("1.14.9")
def test_what_is_forgotten_is_not_known(model, monkeypatch, capsys):
    """With too little context the first turn goes as a whole, and the person is told."""
    lines = iter(["What is the capital of France?", "What about Italy?"])

    def asked(prompt):
        print(prompt, end="")
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", asked)
    run.talk(model, context=64, max_new_tokens=10)
    shown = capsys.readouterr()
    assert 'forgets the oldest 1 turn, from "What is the capital of France?" on' in shown.err
    answers = shown.out.split("/64 tokens] > ")
    assert "Paris" in answers[1] and "Rome" not in answers[2]

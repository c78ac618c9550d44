"""What has fallen out of the window has no say, and the person is told what it was."""

import json

import pytest
import torch

import mirada
from generate.words import speaker, tokenizer
from mirada import cli
from mirada.commands import next as next_command
from mirada.errors import MiradaError
from mirada.generate import next as ahead
from mirada.generate.loop import next_tokens
from mirada.generate.window import forgotten, reach


def windowed(window: int | None = 4, layers: int = 3) -> mirada.Model:
    model = mirada.build("llama", size="tiny", architecture="MistralForCausalLM", seed=1, vocab=261,
                         layers=layers, window=window).double()
    model.tokenizer = tokenizer()
    return model


@pytest.mark.scope("1.15.4")
@pytest.mark.parametrize("window, layers", [(4, 3), (2, 3), (5, 1), (1, 2)])
def test_the_reach_of_windows(window, layers):
    """One token beyond it changes no bit of the next token's scores; one within it does."""
    model = windowed(window, layers)
    last = reach(model)
    assert last == 1 + layers * (window - 1)
    ids = torch.arange(3, 23)[None]
    wanted = model(ids).logits[0, -1]
    for back in (1, last, last + 1, 20):
        other = ids.clone()
        other[0, -back] = 99
        same = torch.equal(model(other).logits[0, -1], wanted)
        assert same == (back > last), back


def test_a_layer_that_sees_everything_has_no_end():
    assert reach(windowed(None)) is None and reach(speaker()) is None
    mixed = mirada.build("gemma2", size="tiny")
    assert any(m.mask.window for m in mixed.modules() if hasattr(m, "mask") and m.mask)
    assert reach(mixed) is None


@pytest.mark.scope("1.15.4")
def test_a_fact_beyond_the_context_is_not_used():
    """The chances are those of a prompt without it, to the bit; within the context it counts."""
    model = speaker().double()
    facts = [model.tokenizer.encode(text).ids for text in ("The key is red. ", "The key is blue.")]
    question = model.tokenizer.encode("What colour is the key?").ids

    def chances(fact, context):
        fitting = forgotten(model, fact + question, context)
        assert fitting.ids + [] == (fact + question)[len(fitting.dropped) :]
        return fitting, next_tokens(model, fitting.ids, 20)

    for fact in facts:
        fitting, table = chances(fact, len(question))
        assert fitting.dropped == fact and table == next_tokens(model, question, 20)
    inside = [chances(fact, 99) for fact in facts]
    assert not inside[0][0].dropped and inside[0][1] != inside[1][1]
    assert inside[0][1] != next_tokens(model, question, 20)


def command(monkeypatch, capsys, model, *words):
    monkeypatch.setattr(next_command, "load", lambda args: model)
    code = cli.main(["next", "any", *words])
    return code, capsys.readouterr()


@pytest.mark.scope("1.15.4")
def test_next_says_what_is_forgotten(monkeypatch, capsys):
    model = speaker().double()
    for fact in ("It is red. ", "It is blue."):
        code, shown = command(monkeypatch, capsys, model, fact + "What?", "--context", "5")
        assert code == 0 and f'looks back 5 tokens here: "{fact}"' in shown.err
        alone = command(monkeypatch, capsys, model, "What?")[1]
        assert shown.out == alone.out and alone.err == ""
    _, shown = command(monkeypatch, capsys, model, "It is red. What?", "--context", "5", "--json")
    found = json.loads(shown.out)
    assert found["forgotten"] == "It is red. " and found["forgotten_tokens"] == 11
    _, shown = command(monkeypatch, capsys, model, "It is red. What?", "--context", "99", "--json")
    assert "forgotten" not in json.loads(shown.out)


def test_the_trace_leaves_room_for_its_steps(monkeypatch, capsys):
    model = speaker(context=16).double()
    text = "It is red. What colour?"
    with pytest.raises(MiradaError, match="context is 16"):
        ahead.trace(model, text, 4)
    _, shown = command(monkeypatch, capsys, model, text, "--steps", "4", "--context", "16")
    assert 'looks back 12 tokens here: "It is red. "' in shown.err
    assert shown.out.startswith('Step 1: "What colour?" -> ') and "Step 4" in shown.out
    _, shown = command(monkeypatch, capsys, model, text, "--steps", "4", "--context", "16",
                       "--json")
    assert json.loads(shown.out)["forgotten"] == "It is red. "
    assert command(monkeypatch, capsys, model, text, "--context", "0")[0] == 2


def test_windows_of_the_model_itself_forget(monkeypatch, capsys):
    _, shown = command(monkeypatch, capsys, windowed(), "abcdefghijklmnop")
    assert 'looks back 10 tokens here: "abcdef"' in shown.err
    assert shown.out == command(monkeypatch, capsys, windowed(), "xxxxxxghijklmnop")[1].out
